"""The demo: the suite `benchmarks/suites/small/demo.yaml` on scenes or on a user's data, and a page about it.

Every training is a run of `tools/train.py` in a process of its own, as a user would start it; a run that has finished
is not repeated, an interrupted one resumes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adpe.data.scenes import write_scenes
from adpe.errors import UserError
from adpe.suites.local_runner import execute, finished_record
from adpe.suites.own_inputs import with_data
from adpe.suites.suite import Run, Suite, expand
from adpe.suites.suite_file import read_suite


@dataclass(frozen=True)
class Options:
    """What `tools/demo.py` was asked for.

    Attributes:
        work_dir: where everything is written.
        data_root: data in ADE20K's and COCO's layout; None for the synthetic scenes.
        images: folders or archives of photographs to pretrain on, beside the training images of `data_root`.
        seeds: of the suite's; all of them if empty.
        epochs: of pretraining; None for the suite's own.
        iterations: of each training on annotated images; None for the suite's own.
        scenes: synthetic scenes for training, validation and pretraining; None for the suite's own.
        image_size: short side in pixels to which annotated images are resized; None for the configs' own.
    """

    work_dir: Path
    data_root: Path | None = None
    images: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    iterations: int | None = None
    scenes: tuple[int, int, int] | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Data:
    """What the demo runs on.

    Attributes:
        root: in ADE20K's and COCO's layout.
        sources: of pretraining.
        name: in tables.
        text: for the page.
    """

    root: Path
    sources: list[str]
    name: str
    text: str


def run_demo(options: Options, console: Console | None = None) -> Path:
    """Run the suite and return the HTML page.

    Raises:
        UserError: if the data root is not laid out as expected, or a training fails or is interrupted.
    """
    from adpe.demo.demo_report import write_report

    console = console or Console()
    start = time.time()
    folder = options.work_dir.resolve()
    suite = read_suite("demo")
    data = _data(options, suite, folder, console)
    runs = demo_runs(options, suite, data, folder)
    jobs = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    console.print(f"{len(runs)} trainings, {jobs} at a time, in {folder}", soft_wrap=True, highlight=False)
    if not execute(runs, folder, jobs=jobs, console=console):
        missing = [run.name for run in runs if finished_record(run, folder) is None]
        raise UserError(
            f"{len(missing)} of {len(runs)} trainings are not finished; the first is {missing[0]}, with its log "
            f"{folder / missing[0] / 'output.log'}. Rerun the same command to resume."
        )
    page = write_report(folder, data, suite, runs, console)
    console.print(f"\nDone in {(time.time() - start) / 60:.1f} minutes. Everything lies in {folder}:", soft_wrap=True)
    for label, path in (("page", page), ("table", folder / "leaderboard.md"), ("pictures", folder / "pictures")):
        console.print(f"  {label:9} {path}", soft_wrap=True, highlight=False)
    console.print("  runs      one folder each: log, checkpoints, TensorBoard curves, record.jsonl", highlight=False)
    return page


def _data(options: Options, suite: Suite, folder: Path, console: Console) -> Data:
    if options.data_root is None:
        assert suite.data is not None
        names = ("train", "val", "unlabelled")
        counts = dict(zip(names, options.scenes or [suite.data[name] for name in names], strict=True))
        train, val, unlabelled = counts.values()
        text = f"{train} + {val} annotated and {unlabelled} unlabelled scenes of digits over photographs"
        console.print(f"Data: {text}")
        root = write_scenes(
            folder / "data", num_train=train, num_val=val, num_unlabelled=unlabelled, size=suite.data["size"]
        )
        return Data(root, [str(root / "unlabelled"), *options.images], "embedded_scenes", text)
    root = options.data_root.resolve()
    return Data(root, [str(root / "images/training"), *options.images], root.name, str(root))


def demo_runs(options: Options, suite: Suite, data: Data, folder: Path) -> list[Run]:
    """The suite's trainings on these data, each after what it needs.

    Raises:
        UserError: for data that are not laid out as expected.
    """
    # All of a user's images are used, few as they may be.
    suite = with_data(suite, data.root, data.name, whole=options.data_root is not None)
    shared: dict[str, Any] = {}
    if options.iterations is not None:
        shared["max_iters"] = options.iterations
    if options.image_size is not None:
        shared["image_size"] = options.image_size
    pretraining: dict[str, Any] = {"sources": data.sources, "record.dataset": data.name}
    if options.epochs is not None:
        pretraining["epochs"] = options.epochs
    chosen_seeds = options.seeds or suite.seeds
    tasks = []
    for task in suite.tasks:
        seeds = [seed for seed in task.seeds if seed in chosen_seeds] or list(chosen_seeds[:1])
        tasks.append(replace(task, seeds=tuple(seeds) if task.seeds else ()))
    chosen = replace(suite, tasks=tuple(tasks), seeds=chosen_seeds)
    if options.seeds:
        chosen = replace(chosen, pretraining_seeds=options.seeds)
    return expand(chosen, folder, pretraining_options=pretraining, task_options=shared)
