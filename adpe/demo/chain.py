"""The whole chain on a small scale: data, pretraining, transfer to two tasks, leaderboard.

Every training is a run of `tools/train.py` in a process of its own, as a user would start it; a run that has finished
is not repeated. What is trained is decided by `configs/demo/`, what is shown by `benchmarks.demo_pictures`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adpe.data.checks.layout import check_coco_root, check_segmentation_root
from adpe.data.scenes import write_scenes
from adpe.errors import UserError
from adpe.files import ROOT, atomic_write
from adpe.option_values import option_text
from adpe.suites.training_log import fraction_done


@dataclass(frozen=True)
class Options:
    """What `tools/demo.py` was asked for.

    Attributes:
        work_dir: where everything is written.
        data_root: data in ADE20K's and COCO's layout; None for the embedded scenes.
        images: folders or archives of photographs to pretrain on, beside the training images of `data_root`.
        seeds: of the repetitions; each pretrains and transfers anew.
        epochs: of pretraining; None for the config's own.
        iterations: of each fine-tuning; None for the configs' own.
        scenes: embedded scenes for training, validation and pretraining.
        image_size: short side in pixels to which annotated images are resized; None for the configs' own.
    """

    work_dir: Path
    data_root: Path | None = None
    images: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    epochs: int | None = None
    iterations: int | None = None
    scenes: tuple[int, int, int] = (100, 200, 6000)
    image_size: int | None = None


@dataclass(frozen=True)
class Stage:
    """One training: a config, where it runs and what differs from the config."""

    title: str
    config: str
    work_dir: Path
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        """Written by the run at its end: its presence says that the run is complete."""
        return self.work_dir / "record.jsonl"

    def command(self) -> list[str]:
        """What a user would type."""
        command = [sys.executable, str(ROOT / "tools/train.py"), str(ROOT / self.config)]
        command += ["--work-dir", str(self.work_dir), "--seed", str(self.seed), "--resume"]
        return [*command, "--cfg-options", *(f"{name}={option_text(value)}" for name, value in self.options.items())]


def run_demo(options: Options, console: Console | None = None) -> Path:
    """Run the chain and return the HTML page.

    Raises:
        UserError: if the data root is not laid out as expected, or a training fails.
    """
    from adpe.demo.demo_report import write_report

    console = console or Console()
    start = time.time()
    work_dir = options.work_dir.resolve()
    data_root, images, name = _data(options, work_dir, console)
    stages = _stages(options, work_dir, data_root, images, name)
    titles = {stage.work_dir: f"[{i}/{len(stages)}] {stage.title}" for i, stage in enumerate(stages, start=1)}
    with _progress(console) as progress:
        for group in _groups(stages):
            _run_group(group, titles, progress)
    page = write_report(work_dir, data_root, name, stages, console)
    console.print(f"\nDone in {(time.time() - start) / 60:.1f} minutes. Everything lies in {work_dir}:")
    for label, path in (("page", page), ("table", work_dir / "leaderboard.md"), ("pictures", work_dir / "pictures")):
        console.print(f"  {label:9} {path}", soft_wrap=True, highlight=False)
    console.print("  runs      one folder each: log, checkpoints, TensorBoard curves, record.jsonl", highlight=False)
    return page


def _data(options: Options, work_dir: Path, console: Console) -> tuple[Path, list[str], str]:
    """Data root, image sources of pretraining, and the data set's name."""
    if options.data_root is None:
        train, val, unlabelled = options.scenes
        console.print(f"Data: {train} + {val} annotated, {unlabelled} unlabelled scenes of digits over photographs")
        root = write_scenes(work_dir / "data", num_train=train, num_val=val, num_unlabelled=unlabelled, size=48)
        return root, [str(root / "unlabelled"), *options.images], "embedded_scenes"
    root = options.data_root.resolve()
    if not root.is_dir():
        raise UserError(f"DATA_ROOT {root} does not exist: expected images/, annotations/, instances_*.json.")
    return root, [str(root / "images/training"), *options.images], root.name


def _stages(options: Options, work_dir: Path, data_root: Path, images: Sequence[str], name: str) -> list[Stage]:
    segmentation = check_segmentation_root(data_root)
    detection = check_coco_root(data_root)
    check_coco_root(data_root, "instances_validation.json", "images/validation", classes=detection.classes)
    pretrain: dict[str, Any] = {"sources": [str(image) for image in images]}
    shared: dict[str, Any] = {"data_root": data_root}
    if options.epochs is not None:
        pretrain["epochs"] = options.epochs
    if options.iterations is not None:
        shared["max_iters"] = options.iterations
    if options.image_size is not None:
        shared["image_size"] = options.image_size
    stages = []
    for seed in options.seeds:
        folder = work_dir / f"seed{seed}"
        pretraining = Stage(
            f"pretraining, seed {seed}", "configs/demo/pretrain.py", folder / "pretrain", seed,
            {**pretrain, "record.dataset": name},
        )  # fmt: skip
        stages.append(pretraining)
        for start in ("random", "pretrained"):
            for task, classes in (("segmentation", segmentation.classes), ("detection", detection.classes)):
                own: dict[str, Any] = {**shared, "num_classes": len(classes), "record.dataset": name}
                if start == "pretrained":
                    own["pretrained"] = pretraining.work_dir / "encoder.safetensors"
                title = f"{task}, {start} start, seed {seed}"
                stages.append(Stage(title, f"configs/demo/{task}.py", folder / f"{task}-{start}", seed, own))
    return stages


def _groups(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Independent stages: the pretraining with the runs from random weights, then those from the pretrained encoder."""
    groups: dict[tuple[int, bool], list[Stage]] = {}
    for stage in stages:
        groups.setdefault((stage.seed, "pretrained" in stage.options), []).append(stage)
    return list(groups.values())


def _run_group(group: Sequence[Stage], titles: Mapping[Path, str], progress: Progress) -> None:
    """Run stages side by side, as many as there are cores, but one by one on a GPU; if one fails, stop the others."""
    cores = os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(group), cores)
    running = _Running()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_run_stage, s, titles[s.work_dir], progress, cores // workers, running) for s in group]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            running.stop()
            raise


class _Running:
    """The processes of a group, which stop together: a process added afterwards is stopped at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self.stopped = False

    def add(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._processes.append(process)
            if self.stopped:
                process.terminate()

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()


def _run_stage(stage: Stage, title: str, progress: Progress, threads: int, running: _Running) -> None:
    """Run one training, following its log; leave it alone if its record is there."""
    if running.stopped:
        return
    task = progress.add_task(title, total=1.0)
    if stage.record.is_file():
        progress.update(task, completed=1.0, description=f"{title} (finished before)")
        return
    stage.work_dir.mkdir(parents=True, exist_ok=True)
    log = stage.work_dir / "output.log"
    last: deque[str] = deque(maxlen=12)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
    epochs = _epochs(stage)
    with (
        open(log, "w") as file,
        subprocess.Popen(
            stage.command(), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        running.add(process)
        for line in process.stdout:
            file.write(line)
            file.flush()
            last.append(line.rstrip())
            done = fraction_done(line, epochs)
            if done is not None:
                loss = re.search(r"  loss: ([\d.]+)", line)
                progress.update(task, completed=done, description=f"{title}, loss {loss[1]}" if loss else title)
    if process.returncode or not stage.record.is_file():
        said = [line for line in last if line.startswith("error: ")]
        shown = "\n".join(said or last)
        raise UserError(f"{title} failed (exit status {process.returncode}); its log is {log} and ends with\n{shown}")
    progress.update(task, completed=1.0, description=title)


def _epochs(stage: Stage) -> int:
    if "epochs" in stage.options:
        return int(stage.options["epochs"])
    found = re.search(r"^epochs = (\d+)$", (ROOT / stage.config).read_text(), re.MULTILINE)
    return int(found[1]) if found else 1


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)
