"""Rows of the leaderboard: the runs of one method under one protocol, averaged over seeds, and published numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adpe.leaderboard.protocol import facts, own_settings
from adpe.leaderboard.tasks import TASKS, is_defined, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import Difference, Summary, describe_difference, summarise

OURS = "ours"
Key = tuple[str, str | None, str | None, str | None, float | None]  # method, start, sweep, fingerprint, epochs


@dataclass
class Cell:
    """One metric of one row, in shown units (percent points for AP).

    Attributes:
        values: seed -> value, of the runs that could be used.
        summary: mean, std and interval over them, None if there is no such run.
        difference: to the baseline row of the same protocol, None for the baseline itself or without one.
        is_best: best mean of its protocol, among at least two rows.
        notes: numbers of the sentences in `Leaderboard.problems` that concern this cell, counted from 1.
    """

    values: dict[int, float]
    summary: Summary | None
    difference: Difference | None = None
    is_best: bool = False
    notes: list[int] = field(default_factory=list)


@dataclass
class Row:
    """One method, start and point of a sweep under one protocol.

    Attributes:
        sweep: the swept settings of the row, e.g. ``"lr 0.0001"``; None without a sweep.
        own: what the method changes in the protocol of its task, in words; None if nothing.
        backbone: what the fingerprint or the source calls the encoder.
        pretraining: data, epochs and extra data, as far as they are known.
        kind: ``"ours"``, or ``"published"``, ``"implied"``, ``"quoted"`` with a `source`.
        protocol: letter of the protocol within the table.
        records: the records behind it, those left out of the mean included.
        seeds: seeds recorded, whether their metrics could be used or not.
        note: what a reader of a published row has to know.
        author_verified: whether the method's authors confirmed every record behind it.
        is_result: False where every metric shown is one that no row of its protocol learnt.
    """

    method: str
    start: str | None
    kind: str
    protocol: str
    cells: dict[str, Cell]
    records: list[Mapping[str, Any]] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)
    source: str | None = None
    note: str | None = None
    sweep: str | None = None
    own: str | None = None
    backbone: str | None = None
    pretraining: str | None = None
    baseline: str | None = None
    is_baseline: bool = False
    author_verified: bool = False
    is_result: bool = True

    @property
    def name(self) -> str:
        """Method and, where there are any, the start and the point of the sweep in brackets."""
        details = ", ".join(filter(None, (self.start, self.sweep)))
        return f"{self.method} ({details})" if details else self.method


@dataclass
class Table:
    """Rows of one task on one data set.

    Attributes:
        protocols: letter -> the few facts that head it.
        differences: letter -> in words, from which protocol before it it differs and in what.
        unlearnt: sentences on protocols and metrics of which no row learnt anything.
    """

    task: str
    dataset: str
    metrics: tuple[str, ...]
    protocols: dict[str, dict[str, Any]]
    rows: list[Row]
    differences: dict[str, str] = field(default_factory=dict)
    unlearnt: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For example ``"Segmentation on scenes"``."""
        return f"{self.task.capitalize()} on {self.dataset}"

    @property
    def results(self) -> list[Row]:
        """The rows but for those of protocols under which nothing was learnt."""
        return [row for row in self.rows if row.is_result]

    def sentences(self) -> list[str]:
        """For every row with a baseline and every metric shown, how the two differ and how sure that is."""
        return [
            describe_difference(
                cell.difference,
                row.name,
                str(row.baseline),
                metric_of(name).label,
                higher_is_better=metric_of(name).higher_is_better,
                digits=metric_of(name).digits,
            )
            for row in self.results
            for name, cell in row.cells.items()
            if name in self.metrics and cell.difference is not None
        ]


@dataclass(frozen=True)
class Observation:
    """A record and how to name its run in a sentence."""

    run: str
    record: Mapping[str, Any]


def published_key(entry: Mapping[str, Any]) -> str:
    """The protocol with the encoder: sizes are not ranked together."""
    protocol = {name: entry["protocol"][name] for name in ("head", "crop", "schedule", "batch", "scales")}
    return json.dumps({**protocol, "backbone": entry["backbone"]}, default=str)


def seed_row(
    key: Key,
    observations: Sequence[Observation],
    protocol: str,
    where: str,
    problems: list[str],
    confidence: float,
) -> Row:
    """A row of ours: the mean over its seeds, with what had to be left out.

    Args:
        key: of the row.
        observations: its records, in the order they were written.
        protocol: letter of its protocol.
        where: task and data set, for sentences.
        problems: sentences on what was left out are appended.
        confidence: coverage of the intervals.
    """
    method, start, sweep, *_ = key
    row = Row(method, start, OURS, protocol, {}, [observation.record for observation in observations], sweep=sweep)
    row.own = own_settings(row.records[-1])
    row.author_verified = all(record.get("author_verified") is True for record in row.records)
    row.backbone = facts(row.records[0]).get("backbone")
    epochs = row.records[0].get("pretraining_epochs")
    row.pretraining = _epochs(epochs)
    notes: list[int] = []

    def report(sentence: str) -> int:
        problems.append(f"{where}, {row.name}: {sentence}")
        return len(problems)

    by_seed: dict[int, Observation] = {}
    for observation in observations:
        seed = observation.record.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool):
            notes.append(report(f"{observation.run} has no seed ({seed!r}); left out of the mean."))
            continue
        if seed in by_seed:
            if _confirms(observation.record, by_seed[seed].record):
                continue
            same = observation.record == by_seed[seed].record
            what = "the same record twice" if same else f"{by_seed[seed].run} and {observation.run}"
            notes.append(report(f"duplicate for seed {seed}: {what}; the last one written is used."))
        by_seed[seed] = observation
    row.seeds = set(by_seed)
    notes += [report(sentence) for sentence in _mixed([observation.record for observation in by_seed.values()])]

    found = {seed: short_names(observation.record["metrics"]) for seed, observation in by_seed.items()}
    task = str(observations[0].record["task"])
    for name in dict.fromkeys(name for record in row.records for name in short_names(record["metrics"])):
        cell = Cell({}, None, notes=list(notes))
        for seed, metrics in found.items():
            value: Any = metrics.get(name)
            if is_defined(name, value):
                cell.values[seed] = float(value) * metric_of(name).scale
            elif name in (TASKS[task].metrics if task in TASKS else (name,)):
                # A record is JSON, where a value that is not finite is null.
                reason = (
                    f"no {name}" if name not in metrics else f"{name} is {'not finite' if value is None else value}"
                )
                cell.notes.append(report(f"{by_seed[seed].run} (seed {seed}): {reason}; left out of the mean."))
        if cell.values:
            cell.summary = summarise(list(cell.values.values()), confidence)
        row.cells[name] = cell
    if not row.cells and task != "pretrain":
        report("none of its runs recorded a metric.")
    return row


def _mixed(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Settings outside the fingerprint in which the seeds of one row differ."""
    for key in ("precision", "effective_batch"):
        found = sorted({str(record.get(key)) for record in records})
        if len(found) > 1:
            yield f"its seeds differ in {key}: {', '.join(found)}."
    # Starting from checkpoints of several pretraining seeds changes the config's hash by the checkpoint's path.
    configs: dict[str, set[str]] = {}
    for record in records:
        configs.setdefault(str(record.get("pretrained_sha256")), set()).add(str(record.get("config_sha256")))
    if any(len(hashes) > 1 for hashes in configs.values()):
        yield "its seeds ran different configs (config_sha256) from the same start."


def published_row(entry: Mapping[str, Any], protocol: str) -> Row:
    """A published entry as a row: one value per metric, without a spread."""
    cells = {
        name: Cell({}, Summary(1, float(value), None, None, None, 0.95)) for name, value in entry["metrics"].items()
    }
    data, epochs = entry["pretraining"]["data"], entry["pretraining"]["epochs"]
    extra = entry.get("extra_data", "none")
    parts = (data, _epochs(epochs), None if extra == "none" else f"extra: {extra}")
    return Row(
        entry["method"], None, entry["kind"], protocol, cells, source=entry["source"], note=entry.get("note"),
        backbone=entry["backbone"], pretraining=", ".join(filter(None, parts)),
    )  # fmt: skip


def _confirms(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether another suite has evaluated the same encoder, with the same result."""
    return record.get("suite") != other.get("suite") and all(
        record.get(name) == other.get(name) for name in ("pretrained_sha256", "metrics")
    )


def _epochs(number: Any) -> str | None:
    return f"{number} epoch{'' if number == 1 else 's'}" if number else None
