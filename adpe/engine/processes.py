"""The processes of one training or evaluation: joining them, and telling which one was lost.

A wait for another process is bounded by ``env_cfg.dist_cfg.timeout`` (s, default `TIMEOUT`), after which the waiting
process ends with `EXIT_LOST` and the launcher ends the rest. It has to be longer than what one process does alone while
the others wait: computing the metrics of a validation, saving a checkpoint, unpacking an archive.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import re
import signal
import time

import torch
from mmengine.config import Config
from torch.distributed import DistError, PrefixStore, TCPStore

from adpe.errors import UserError

# Exit status of a process that waited for another one in vain.
EXIT_LOST = 86
TIMEOUT = 1800.0
ANSWER = 5.0  # s, that the others have for saying that they fail too
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_COLLECTIVE = re.compile(r"gloo|NCCL|pair closure|Connection (reset|closed) by peer|Timed out waiting")
_LOST = "lost another process"


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
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", "29500")
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise UserError(f"--launcher {launcher}: {', '.join(missing)} not set; start with tools/dist_train.sh.")


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
            "its log; go on with --resume. One that works alone for longer needs a larger env_cfg.dist_cfg.timeout."
        )
    return f"ended because {own}" if own else None
