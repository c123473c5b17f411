"""Suites: declared sets of runs, methods x tasks x seeds x sweep points, and the trainings that follow from them.

`adpe.suites.suite_file` reads them from YAML, `adpe.suites.local_runner` and `adpe.suites.slurm_runner` execute them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.option_values import option_text


@dataclass(frozen=True)
class Cost:
    """What a run takes, as somebody measured it: GPU hours, on which GPU, and who says so."""

    gpu_hours: float
    gpu: str
    source: str


@dataclass(frozen=True)
class Method:
    """An encoder: pretrained by a config, read from a checkpoint, or started at random if both are None."""

    name: str
    pretraining: str | None = None
    epochs: int | None = None
    checkpoint: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    transfer: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class Task:
    """A transfer config with the points of its sweep.

    Attributes:
        reported: the point that runs with every seed.
        sweep_seeds: of the other points.
        seeds: the only ones of the suite that this task runs with; all if empty.
        methods: names of the only methods that it runs with; all if empty.
        images: of the published data in ``train`` and ``val``, which a claim's runs must have seen.
    """

    name: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Mapping[str, float], ...] = ({},)
    reported: Mapping[str, float] = field(default_factory=dict)
    sweep_seeds: tuple[int, ...] = ()
    cost: Cost | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A published row that a method is expected to reproduce on a task, within a tolerance that has a source."""

    method: str
    task: str
    point: Mapping[str, float]
    published: Mapping[str, Any]
    tolerance: Mapping[str, float]
    tolerance_source: str
    note: str | None = None


@dataclass(frozen=True)
class Budget:
    """Another size of a suite, for other hardware or time.

    Attributes:
        seeds: instead of the suite's; all of them if empty.
        epochs: of every pretraining; None for the methods' own.
        pretraining: options put over those of every pretraining.
        tasks: name of a task -> options put over its own; tasks that are left out do not run. None runs all.
        jobs: runs at a time.
        text: instead of the suite's.
    """

    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    jobs: int = 1
    text: str = ""


@dataclass(frozen=True)
class Suite:
    """A declared set of runs.

    Attributes:
        gpus: of one run.
        pretraining_seeds: seeds with a pretraining of their own; the other seeds start from that of the first.
        missing: published rows without a config yet, and why.
        data: arguments of `adpe.data.scenes.write_scenes`, for a suite that brings its data.
        budgets: other sizes of it, by name.
        shared_pretraining: folder beside the suite's in which its pretrainings run, for other suites to find them.
        overview: tasks and metrics that are the columns of one table over several tasks.
    """

    name: str
    title: str
    text: str
    gpus: int
    seeds: tuple[int, ...]
    pretraining_seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    tasks: tuple[Task, ...]
    claims: tuple[Claim, ...]
    missing: tuple[tuple[Mapping[str, Any], str], ...]
    data: Mapping[str, int] | None = None
    shared_pretraining: str | None = None
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    overview: tuple[tuple[str, str], ...] = ()

    def sized(self, name: str) -> Suite:
        """The suite under one of its budgets, with a name and so a folder of its own.

        Raises:
            UserError: for a budget that it does not have.
        """
        if name not in self.budgets:
            known = ", ".join(self.budgets) or "none"
            raise UserError(f"suite {self.name} has no budget {name!r}; it has: {known}.")
        budget = self.budgets[name]
        seeds = budget.seeds or self.seeds
        methods = [
            method
            if method.pretraining is None
            else replace(
                method, epochs=budget.epochs or method.epochs, options={**method.options, **budget.pretraining}
            )
            for method in self.methods
        ]
        chosen = {task.name: {} for task in self.tasks} if budget.tasks is None else budget.tasks
        tasks = [replace(t, options={**t.options, **chosen[t.name]}) for t in self.tasks if t.name in chosen]
        options = [task.options for task in tasks]
        options += [{**one.options, **one.transfer, "checkpoint": one.checkpoint} for one in methods]
        return replace(
            self,
            name=f"{self.name}_{name}",
            title=f"{self.title} (--budget {name})",
            text=budget.text or self.text,
            seeds=seeds,
            pretraining_seeds=seeds,
            methods=tuple(methods),
            tasks=tuple(tasks),
            # Scenes take pycocotools to write: a budget that reads none does without.
            overview=tuple(column for column in self.overview if column[0] in chosen),
            data=self.data if any("{data}" in str(value) for one in options for value in one.values()) else None,
        )


@dataclass(frozen=True)
class Run:
    """One training of a suite.

    Attributes:
        name: unique in the suite, also the folder below the suite's.
        task: name of the task, or ``"pretraining"``.
        needs: name of the run whose encoder it starts from.
        home: folder beside the suite's that it runs in, if not the suite's.
    """

    suite: str
    name: str
    method: str
    task: str
    config: str
    seed: int
    gpus: int
    options: Mapping[str, Any]
    sweep: str | None = None
    needs: str | None = None
    cost: Cost | None = None
    home: str | None = None

    def root(self, folder: Path) -> Path:
        """The folder of its suite's runs, or of the shared ones."""
        return folder.parent / self.home if self.home else folder

    def work_dir(self, folder: Path) -> Path:
        """Where it runs."""
        return self.root(folder) / self.name

    def arguments(self, folder: Path) -> list[str]:
        """Arguments of `tools/train.py` after the config; the same for a start and for going on."""
        changes = [f"{name}={option_text(value)}" for name, value in self.options.items()]
        changes.append(f"record_file={option_text(str(self.root(folder) / 'records.jsonl'))}")
        where = ["--work-dir", str(self.work_dir(folder))]
        return [*where, "--seed", str(self.seed), "--resume", "--cfg-options", *changes]

    def command(self, folder: Path, python: str = "python") -> list[str]:
        """What a user would type in the root of the repository."""
        if self.gpus > 1:
            return ["tools/dist_train.sh", self.config, str(self.gpus), *self.arguments(folder)]
        return [python, "tools/train.py", self.config, *self.arguments(folder)]


def expand(
    suite: Suite,
    folder: Path,
    *,
    gpus: int | None = None,
    seeds: Sequence[int] = (),
    pretraining_options: Mapping[str, Any] | None = None,
    task_options: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The runs of a suite, each after what it needs.

    Args:
        suite: as `read_suite` gives it.
        folder: of the suite's runs.
        gpus: of every run, instead of the suite's.
        seeds: the only ones to run; all if empty.
        pretraining_options: put over those of the suite in every pretraining.
        task_options: the same for every transfer; ``TASK:KEY`` for the one task of that name, as `slug` writes it.

    Raises:
        UserError: for a seed or a task that the suite does not have.
    """
    unknown = [seed for seed in seeds if seed not in suite.seeds]
    if unknown:
        raise UserError(f"suite {suite.name} has no seed {unknown[0]}; it has {', '.join(map(str, suite.seeds))}.")
    processes = gpus or suite.gpus
    chosen = tuple(seeds) or suite.seeds
    runs: dict[str, Run] = {}

    changes = dict(pretraining_options or {})
    for_task = _by_task(suite, task_options or {})

    def add(run: Run) -> None:
        runs.setdefault(run.name, run)

    def add_pretraining(method: Method, seed: int) -> str | None:
        if method.pretraining is None:
            return None
        own = seed if seed in suite.pretraining_seeds else suite.pretraining_seeds[0]
        name = f"{slug(method.name)}/pretraining/seed{own}"
        options = {**method.options, **changes}
        home = suite.shared_pretraining
        options |= _record(home or suite.name, name, method, "random", None, changes.get("epochs", method.epochs))
        run = Run(suite.name, name, method.name, "pretraining", method.pretraining, own, processes,
                  at_data(options, folder / "data"), cost=method.cost, home=home)  # fmt: skip
        add(run)
        return name

    # Seed by seed, so that what is done when the time is over compares all methods.
    for seed, method in itertools.product(chosen, suite.methods):
        if not suite.tasks:
            add_pretraining(method, seed)
        for task, point in itertools.product(suite.tasks, task_points(suite)):
            if point not in task.points or (point != task.reported and seed not in task.sweep_seeds):
                continue
            if (task.seeds and seed not in task.seeds) or (task.methods and method.name not in task.methods):
                continue
            needs = add_pretraining(method, seed)
            sweep = sweep_text(point)
            name = "/".join(filter(None, (slug(method.name), slug(task.name), slug(sweep or ""), f"seed{seed}")))
            options = {**task_settings(task, method, point), **for_task[task.name]}
            start = "random"
            if needs or method.checkpoint:
                start = "pretrained"
                encoder = runs[needs].work_dir(folder) / "encoder.safetensors" if needs else method.checkpoint
                options["pretrained"] = str(encoder)
            epochs = changes.get("epochs", method.epochs) if needs else method.epochs
            options |= _record(suite.name, name, method, start, sweep, epochs)
            add(Run(suite.name, name, method.name, task.name, task.config, seed, processes,
                    at_data(options, folder / "data"), sweep, needs, task.cost))  # fmt: skip
    return list(runs.values())


def _by_task(suite: Suite, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each task, of those for all (``KEY``) and for one (``TASK:KEY``), which go before."""
    general = {key: value for key, value in options.items() if ":" not in key}
    found = {slug(task.name): dict(general) for task in suite.tasks}
    for key, value in options.items():
        name, separator, rest = key.partition(":")
        if separator and name not in found:
            raise UserError(f"{key}: suite {suite.name} has no task {name!r}; it has {', '.join(found)}.")
        if separator:
            found[name][rest] = value
    return {task.name: found[slug(task.name)] for task in suite.tasks}


def task_settings(task: Task, method: Method, point: Mapping[str, float]) -> dict[str, Any]:
    """The options of a transfer that its protocol follows from, with what the record says of them."""
    options = {**task.options, **method.transfer, **point}
    if method.transfer:
        options["record.own"] = sorted(method.transfer)
    return options


def task_points(suite: Suite) -> list[Mapping[str, float]]:
    """Every point of every task's sweep, once."""
    points: list[Mapping[str, float]] = []
    for task in suite.tasks:
        points += [point for point in task.points if point not in points]
    return points


def sweep_text(point: Mapping[str, float]) -> str | None:
    """``{"lr": 1e-4}`` as ``"lr 0.0001"``; None for no sweep."""
    return " ".join(f"{name} {value:g}" for name, value in point.items()) or None


def _record(suite: str, name: str, method: Method, start: str, sweep: str | None, epochs: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "record.suite": suite,
        "record.run": name,
        "record.method": method.name,
        "record.start": start,
    }
    if sweep:
        options["record.sweep"] = sweep
    if epochs:
        options["record.pretraining_epochs"] = epochs
    return options


def at_data(options: Mapping[str, Any], root: Path, unlabelled: str = "unlabelled") -> dict[str, Any]:
    """Options on the data in a folder, the images of pretraining in its folder `unlabelled`."""

    def fill(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.replace("{data}/unlabelled", f"{root}/{unlabelled}").replace("{data}", str(root))

    return {name: fill(value) for name, value in options.items()}


def suite_files() -> dict[str, Path]:
    """The files in `benchmarks/suites/` and its folders by the names of their suites, in alphabetical order."""
    files = {file.stem: file for file in (ROOT / "benchmarks" / "suites").rglob("*.yaml")}
    return dict(sorted(files.items()))


def slug(name: str) -> str:
    """A name as part of a path: lower case, ``+`` as ``plus``, the rest dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("+", " plus")).strip("-")
