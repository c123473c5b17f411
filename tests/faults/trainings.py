"""Real trainings of seconds: the demo's configs through the launcher, on a few embedded scenes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tiny_training

from adpe.data.scenes import write_scenes

ROOT = tiny_training.ROOT
BATCH = 4
STEPS = 4  # iterations in an epoch of pretraining
_SHARED = f"train_dataloader.batch_size={BATCH} effective_batch={BATCH}"
OPTIONS = {
    "pretraining": f"epochs={{epochs}} sources={{data}}/unlabelled {_SHARED}",
    "segmentation": f"max_iters={{iterations}} data_root={{data}} {_SHARED}",
    "detection": f"max_iters={{iterations}} data_root={{data}} {_SHARED}",
}


def write_data(folder: Path) -> Path:
    """The embedded scenes that the short trainings see."""
    return write_scenes(folder, num_train=16, num_val=2, num_unlabelled=STEPS * BATCH, size=48)


class Training(NamedTuple):
    """A demo config at the size of a test.

    Attributes:
        task: name of the config and of its options.
        processes: 1 through `tools/train.py`, more through `tools/dist_train.sh`.
        iterations: until its end; whole epochs of `STEPS` iterations for pretraining.
        interval: iterations between checkpoints.
        workers: of the training's data loader.
        options: more options of the config.
    """

    task: str
    processes: int = 1
    iterations: int = 40
    interval: int = 3
    workers: int = 1
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}, {self.processes} process{'es' * (self.processes > 1)}"

    def command(self, data: Path, work_dir: Path, *arguments: str) -> list[str]:
        config = str(ROOT / "configs" / "demo" / f"{'pretrain' if self.task == 'pretraining' else self.task}.py")
        script = ["bash", str(ROOT / "tools" / "dist_train.sh"), config, str(self.processes)]
        if self.processes == 1:
            script = [sys.executable, str(ROOT / "tools" / "train.py"), config]
        options = (
            OPTIONS[self.task].format(data=data, iterations=self.iterations, epochs=self.iterations // STEPS).split()
        )
        hook = "default_hooks.checkpoint"
        options += [f"{hook}.interval={self.interval}", f"{hook}.by_epoch=False", "default_hooks.logger.interval=1"]
        options += [f"train_dataloader.num_workers={self.workers}"]
        options += [f"train_dataloader.persistent_workers={self.workers > 0}", *self.options]
        return [*script, *arguments, "--work-dir", str(work_dir), "--cfg-options", *options]

    def start(self, data: Path, work_dir: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it as a session of its own, which `session` and `end` know by its process id."""
        with open(log, "ab") as out:
            return subprocess.Popen(
                self.command(data, work_dir, *arguments), stdout=out, stderr=out, cwd=ROOT, start_new_session=True,
                env=tiny_training.environment(),
            )  # fmt: skip

    def last_checkpoint(self, work_dir: Path) -> Path:
        return work_dir / f"iter_{self.iterations}.pth"


def children(pid: int) -> list[int]:
    """Processes started by `pid`, the earliest first; those of torchrun are its ranks in order."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            found += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:  # ended meanwhile
            continue
    return sorted(found)


def session(leader: int) -> list[int]:
    """Living processes of the session that the process `leader` began, whoever their parent is by now."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(file.parent.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def end(leader: int) -> None:
    """Kill what is left of a session."""
    for pid in session(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
