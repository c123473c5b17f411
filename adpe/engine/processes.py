"""The processes of one training or evaluation: joining them, naming one that is lost, and locking the work directory.

A wait for another process is bounded by ``env_cfg.dist_cfg.timeout`` (s, default `TIMEOUT`), after which the waiting
process ends with status 86 and the launcher ends the rest. It has to be longer than what one process does alone while
the others wait: computing the metrics of a validation, saving a checkpoint, unpacking an archive.
"""

from __future__ import annotations

import atexit
import ctypes
import datetime
import fcntl
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config
from torch.distributed import DistError, PrefixStore, TCPStore

from adpe.errors import UserError

TIMEOUT = 1800.0
ANSWER = 5.0  # s, that the others have for saying that they fail too
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_COLLECTIVE = re.compile(r"gloo|NCCL|pair closure|Connection (reset|closed) by peer|Timed out waiting")
_LOST = "lost another process"
# Of the job step, else of the job.
_NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
# Ports for jobs, below those that Linux gives to outgoing connections (32768 and above).
_PORTS = range(15000, 30000)
_LOCK = "training.lock"
_locks: dict[str, int] = {}


def check_launcher(launcher: str) -> None:
    """Take the numbers of the processes from the environment, and end with the launcher that started them.

    Raises:
        UserError: if `launcher` did not start this process.
    """
    if launcher == "none":
        return
    if "ADPE_LAUNCHER_PID" in os.environ:
        # Killed outright, the launcher cannot end its processes: the kernel does.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ["ADPE_LAUNCHER_PID"]):
            raise UserError("the launcher that started this process is gone.")
    if launcher == "slurm":
        names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
        for name, source in names.items():
            if source not in os.environ:
                raise UserError(f"--launcher slurm: {source} is not set; start with srun or tools/slurm_train.sh.")
            os.environ[name] = os.environ[source]
        # Rank 0 runs on the first node; where srun was typed may be a login node.
        nodes = next((os.environ[name] for name in _NODE_LISTS if os.environ.get(name)), "127.0.0.1")
        os.environ.setdefault("MASTER_ADDR", first_host(nodes))
        os.environ.setdefault("MASTER_PORT", str(_slurm_port()))
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise UserError(f"--launcher {launcher}: {', '.join(missing)} not set; start with tools/dist_train.sh.")


def first_host(nodes: str) -> str:
    """The first host of a node list as Slurm writes it: ``"gpu[017-018,20],login"`` gives ``"gpu017"``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)


def _slurm_port() -> int:
    """A port that the processes of a job step agree on without talking, and other jobs on the node do not."""
    job, step = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if not job.isdigit():
        return 29500
    # Steps of one job are numbered from 0; a prime keeps them away from the next jobs.
    return _PORTS[(int(job) + 1009 * (int(step) if step.isdigit() else 0)) % len(_PORTS)]


def lock_work_dir(work_dir: str, launcher: str) -> None:
    """Keep other trainings out of a work directory until this process ends, however it ends.

    Rank 0 holds a lock (flock) on ``<work_dir>/training.lock``, which names the process.

    Raises:
        UserError: if another training holds it; it says which.
    """
    path = Path(os.path.realpath(work_dir), _LOCK)
    if str(path) in _locks or (launcher != "none" and os.environ["RANK"] != "0"):
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 1000, 0).decode(errors="replace").strip()
        os.close(handle)
        raise UserError(
            f"--work-dir {work_dir} is in use by another training ({owner or 'just starting'}): wait until it ends, "
            "stop it, or give another --work-dir."
        ) from None
    except OSError as error:  # a file system without locks
        os.close(handle)
        print(f"{path} cannot be locked ({error.strerror}): start no other training in this folder.", flush=True)
        return
    os.ftruncate(handle, 0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode(), 0)
    _locks[str(path)] = handle


def unlock_work_dirs() -> None:
    """Give up the locks of this process."""
    while _locks:
        os.close(_locks.popitem()[1])


# A worker that outlives a killed training does not keep its lock.
os.register_at_fork(after_in_child=unlock_work_dirs)


def join(cfg: Config, launcher: str) -> None:
    """Join the other processes over gloo where there is no GPU; with GPUs mmengine joins them over nccl.

    Raises:
        UserError: if ``env_cfg.dist_cfg.timeout`` is not a positive number.
    """
    if launcher == "none" or torch.distributed.is_initialized():
        return
    environment = cfg.setdefault("env_cfg", {})
    options = environment.setdefault("dist_cfg", {"backend": "nccl"})
    seconds = options.setdefault("timeout", TIMEOUT)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise UserError(f"env_cfg.dist_cfg.timeout must be a positive number of seconds, got {seconds!r}.")
    if not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))


def lost_process(error: Exception) -> str | None:
    """Tell the others that this process fails with `error`, and find out who was lost if that is why it fails.

    Returns:
        a sentence that names the rank, or None if the failure is this process's own.
    """
    collective = isinstance(error, DistError) or (isinstance(error, RuntimeError) and _COLLECTIVE.search(str(error)))
    if not (collective or torch.distributed.is_initialized()):
        return None
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    others = [other for other in range(size) if other != rank]
    first_line = str(error).strip().partition("\n")[0][:200]
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        server = TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=ANSWER))
        store = PrefixStore("adpe/failed", server)
        store.set(str(rank), _LOST if collective else f"{type(error).__name__}: {first_line}")
        if not collective:
            return None
        end = time.monotonic() + ANSWER
        while time.monotonic() < end and not store.check([str(other) for other in others]):
            time.sleep(0.1)
        said = {other: store.get(str(other)).decode() for other in others if store.check([str(other)])}
    except (RuntimeError, OSError):  # whoever keeps the store is gone: the launcher, under Slurm rank 0
        return f"the processes lost each other ({first_line}), and node 0 does not answer." if collective else None
    own = "; ".join(f"rank {other} failed: {why}" for other, why in said.items() if why != _LOST)
    silent = ", ".join(str(other) for other in others if other not in said)
    if silent:
        return (
            f"rank {silent} does not answer ({first_line}): it hangs, or was stopped or killed. What it did last is in "
            "its log; resume with --resume. One that works alone for longer needs a larger env_cfg.dist_cfg.timeout."
        )
    return f"ended because {own}" if own else None


def leave(status: int) -> NoReturn:
    """Leave the group and end this rank with `status`, without the interpreter's teardown.

    A thread of gloo that lets go of the last barrier's tensors asks for the GIL. A thread that asks during teardown
    is ended by CPython, to which C++ answers by std::terminate: the rank would end with SIGABRT, and a run whose
    work is all saved as failed.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # trackers upload what is left in theirs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
