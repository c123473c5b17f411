"""What a benchmark needs to know of the machine: its clock, its matrix products, its memory and its name."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch


def pick_clock(device: torch.device) -> Callable[[], float]:
    """Processor time for one thread, which other processes hardly disturb; otherwise time on the wall."""
    if device.type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronized
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of one large square matrix product, in floating-point operations a second."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    clock = pick_clock(device)
    times = []
    for _ in range(6):
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * n**3 / min(times)


def peak_memory(step: Callable[[], None], device: torch.device) -> float | None:
    """GiB that a step holds at its peak beside weights and optimiser state; None where it cannot be measured.

    Call it after a first step, which makes the optimiser's state.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    try:
        # Linux: give freed memory back, then start the high-water mark of the resident memory anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / 2**20
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    """KiB of a field of the process's status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1])


def header(device: torch.device, dtype: torch.dtype, ceiling: float) -> str:
    """What was measured on."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        clock = "processor time" if pick_clock(device) is time.process_time else "time on the wall"
        where = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {clock}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"torch {torch.__version__}, {where} ({os.cpu_count()} cores{load}), {str(dtype).removeprefix('torch.')}; "
        f"one large matmul: {ceiling / 1e9:,.0f} GFLOP/s"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
