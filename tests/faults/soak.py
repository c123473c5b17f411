"""Train for long and watch memory and file handles: neither the process nor its workers may grow.

    python tests/faults/soak.py --minutes 30

It pretrains and then segments (configs/demo/) on the embedded scenes, half the time each, with a worker, a checkpoint
every 20 iterations and a validation every 100. Every two seconds it takes the resident memory and the open file handles
of the process and of each worker from /proc. After the warm-up (a quarter of each training) a line is fitted to the
memory; a process has grown if the slope, less twice its standard error, is beyond `MOST_GROWTH`, or if it has more
handles in the last third than in the first. Exit status: 0 no growth, 1 growth.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from faults.trainings import Training, children, end, wait_until

from adpe.data.scenes import write_scenes

# MiB per hour. A leak of one image of the demo (48 x 48 x 3 bytes) per iteration is about 500 MiB per hour.
MOST_GROWTH = 40.0
# Samples within this many seconds are one: the allocator's steps make neighbours depend on each other.
BLOCK = 20.0


class Sample(NamedTuple):
    """Resident memory in MiB and open file handles of one process, at a time in s."""

    seconds: float
    memory: float
    handles: int


class Growth(NamedTuple):
    """Slope of the memory in MiB per hour with its standard error, and handles (median) early and late."""

    slope: float
    error: float
    handles_before: int
    handles_after: int

    @property
    def grows(self) -> bool:
        return self.slope - 2 * self.error > MOST_GROWTH or self.handles_after > self.handles_before


def take(pid: int, seconds: float) -> Sample | None:
    """A sample of a process; None if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        handles = [_target(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        # Batches on their way from a worker are deleted files of shared memory and sockets, and come and go.
        lasting = [target for target in handles if "(deleted)" not in target and not target.startswith("socket")]
        return Sample(seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(lasting))
    except OSError:
        return None


def _target(handle: str) -> str:
    try:
        return os.readlink(handle)
    except OSError:  # closed meanwhile
        return "(deleted)"


def growth(samples: list[Sample]) -> Growth:
    """The line through the means of blocks of samples."""
    times, memory = np.array([s.seconds for s in samples]), np.array([s.memory for s in samples])
    blocks = ((times - times[0]) // BLOCK).astype(int)
    x = np.array([times[blocks == block].mean() for block in np.unique(blocks)]) / 3600
    y = np.array([memory[blocks == block].mean() for block in np.unique(blocks)])
    slope, offset = np.polyfit(x, y, 1)
    residual = y - slope * x - offset
    error = np.sqrt((residual**2).sum() / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum())
    third = max(1, len(samples) // 3)
    early, late = ([s.handles for s in part] for part in (samples[:third], samples[-third:]))
    return Growth(float(slope), float(error), int(np.median(early)), int(np.median(late)))


def observe(training: Training, data: Path, folder: Path, seconds: float) -> Mapping[str, list[Sample]]:
    """Train for `seconds`, then stop; the samples of the process and its workers after the warm-up.

    Raises:
        RuntimeError: if the training ends by itself.
    """
    log = folder / f"{training.task}.log"
    process = training.start(data, folder / training.task, log)
    try:
        if not wait_until(lambda: b"(train)" in log.read_bytes() or process.poll() is not None, 300):
            raise RuntimeError(f"{training.name} did not begin to train: {log}")
        started = time.monotonic()
        warm_up = seconds / 4
        samples: dict[str, list[Sample]] = {}
        while (now := time.monotonic() - started) < seconds:
            if process.poll() is not None:
                raise RuntimeError(f"{training.name} ended with status {process.returncode}: {log}")
            workers = [pid for pid in children(process.pid) if Path(f"/proc/{pid}/fd").exists()]
            for name, pid in [("process", process.pid), *((f"worker {pid}", pid) for pid in workers)]:
                sample = take(pid, now)
                if sample and now > warm_up:
                    samples.setdefault(name, []).append(sample)
            time.sleep(2)
        iterations = len(re.findall(rb"\(train\)", log.read_bytes()))
        size = f"{iterations} iterations, {len(list((folder / training.task).glob('*.pth')))} checkpoints kept"
        print(f"{training.name}: {seconds / 60:.1f} min, of them {warm_up / 60:.1f} warm-up; {size}", flush=True)
        # A worker that lives for one validation is too short to have a slope.
        return {name: found for name, found in samples.items() if found[-1].seconds - found[0].seconds > seconds / 2}
    finally:
        end(process.pid)
        process.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="of both trainings together")
    args = parser.parse_args(arguments)
    if args.minutes < 10:
        parser.error("--minutes: a slope needs at least 10")
    endless = 10**7
    trainings = (
        Training("pretraining", 1, endless, 20),
        Training("segmentation", 1, endless, 20, options=("train_cfg.val_interval=100",)),
    )
    grown = False
    with tempfile.TemporaryDirectory() as name:
        data = write_scenes(Path(name, "data"), num_train=200, num_val=10, num_unlabelled=40)
        for training in trainings:
            found = observe(training, data, Path(name), args.minutes * 60 / len(trainings))
            for who, samples in found.items():
                result = growth(samples)
                grown |= result.grows
                print(f"  {who}: {samples[-1].memory:.0f} MiB, slope {result.slope:+.1f} ± {result.error:.1f} MiB/h; "
                      f"file handles {result.handles_before} -> {result.handles_after}"
                      f"{': GROWS' if result.grows else ''}", flush=True)  # fmt: skip
    print(f"bound {MOST_GROWTH:.0f} MiB/h beyond 2 standard errors, no more handles: {'failed' if grown else 'kept'}")
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
