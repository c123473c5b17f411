"""Start one process per GPU, or several on the CPU, with torchrun: what `tools/dist_train.sh` and `dist_test.sh` do.

    python -m adpe.distributed GPUS SCRIPT [ARGUMENTS]

The numbers of a run on several nodes come from the environment: NNODES, NODE_RANK, MASTER_ADDR, PORT. The exit status
is that of the process that failed first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from typing import Any

import torch
from torch.distributed import DistNetworkError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from adpe.errors import EXIT_INTERRUPTED, EXIT_LOST, EXIT_MISTAKE, EXIT_PREEMPTED, UserError, print_error

# Exit statuses of scripts that have said all there is to say.
_TOLD = (EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_LOST, EXIT_INTERRUPTED)


def number_of_processes(gpus: str) -> int:
    """Processes to start on this machine.

    Raises:
        UserError: if `gpus` is not a positive number, or larger than the GPUs (without GPUs, the cores) that are there.
    """
    available, kind = (torch.cuda.device_count(), "GPU") if torch.cuda.is_available() else (_cores(), "CPU core")
    if not gpus.isdigit() or int(gpus) < 1:
        raise UserError(f"GPUS must be a number from 1 to {available}, got {gpus!r}.")
    if int(gpus) > available:
        hint = "" if kind == "GPU" else " (no GPU is visible, so processes run on the CPU)"
        raise UserError(f"GPUS = {gpus}, but this machine has {available} {kind}{'s' * (available > 1)}{hint}.")
    return int(gpus)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rendezvous(environment: dict[str, str]) -> list[str]:
    """torchrun's options for the nodes named by NNODES, NODE_RANK, MASTER_ADDR and PORT.

    Raises:
        UserError: if a number is not one, or several nodes are asked for without an address.
    """
    numbers = {}
    for name, default in (("NNODES", "1"), ("NODE_RANK", "0"), ("PORT", "0")):
        value = environment.get(name) or default
        if not value.isdigit():
            raise UserError(f"{name} must be a number, got {value!r}.")
        numbers[name] = int(value)
    if numbers["NNODES"] > 1 and not environment.get("MASTER_ADDR"):
        raise UserError(f"NNODES = {numbers['NNODES']} needs MASTER_ADDR, the address of node 0, on every node.")
    if numbers["NODE_RANK"] >= numbers["NNODES"]:
        raise UserError(f"NODE_RANK = {numbers['NODE_RANK']} must be below NNODES = {numbers['NNODES']}.")
    # Nodes have to agree on a port without talking; one node alone takes a free one.
    port = numbers["PORT"] or (free_port() if numbers["NNODES"] == 1 else 29500)
    return [
        f"--nnodes={numbers['NNODES']}",
        f"--node_rank={numbers['NODE_RANK']}",
        f"--master_addr={environment.get('MASTER_ADDR') or '127.0.0.1'}",
        f"--master_port={port}",
    ]


def port_in_use(error: BaseException) -> UserError | None:
    """The sentence for the error of a process that could not listen on its port, else None."""
    if not isinstance(error, DistNetworkError) or "EADDRINUSE" not in str(error):
        return None
    port = re.search(r"port: (\d+)", str(error))
    return UserError(
        f"port {port[1] if port else os.environ.get('MASTER_PORT')} of this machine is in use by another program, "
        "another training perhaps: choose a free one with MASTER_PORT, for tools/dist_train.sh and dist_test.sh PORT."
    )


_interrupts: list[int] = []


def _forward(number: int, frame: Any) -> None:
    """Pass a signal on to the processes started, which save a checkpoint; their status becomes this one's.

    The third Ctrl-C kills them: one that hangs sees no signal.
    """
    if number == signal.SIGINT:
        _interrupts.append(number)
        number = signal.SIGKILL if len(_interrupts) > 2 else number
    children = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            children += file.read().split()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), number)
    if not children:
        raise SystemExit(128 + number)


def _signals() -> list[str]:
    """The option that leaves the signals to `_forward`: torchrun ends processes that take 30 s to save a checkpoint."""
    known = "--signals-to-handle" in run.get_args_parser().format_help()  # torch >= 2.9
    return ["--signals-to-handle=SIGHUP,SIGQUIT"] if known else []


def main(arguments: list[str] | None = None) -> int:
    """Start the processes and wait for them. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) < 2:
            raise UserError("usage: python -m adpe.distributed GPUS SCRIPT [ARGUMENTS]")
        processes = number_of_processes(arguments[0])
        options = [*rendezvous(dict(os.environ)), f"--nproc_per_node={processes}", *_signals()]
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    # torchrun would set 1 and say so at length.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    os.environ["ADPE_LAUNCHER_PID"] = str(os.getpid())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _forward)
    try:
        run.main([*options, *arguments[1:]])
    except ChildFailedError as error:
        # One that lost another process is not the cause, even where it ended first.
        rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode == EXIT_LOST, item[1].timestamp))
        if failure.exitcode not in _TOLD:
            how = failure.signal_name() if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            print(f"error: rank {rank} failed ({how}); the other processes were ended.", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except DistNetworkError as error:
        busy = port_in_use(error)
        if busy is None:
            raise
        print_error(busy)
        return EXIT_MISTAKE
    except SignalException as stop:
        print(f"error: stopped by {stop.sigval.name}; a checkpoint was saved if the run said so.", file=sys.stderr)
        return 128 + int(stop.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
