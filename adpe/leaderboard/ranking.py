"""Records of finished runs -> rows with mean, spread and difference to a baseline, grouped by protocol.

A row is one method, start and point of a sweep under one protocol on one data set; its seeds are averaged. Rows of
different protocols (`adpe.leaderboard.protocol`) stand in the same table only under different protocol letters, are
ranked apart and never averaged; what a method changes in the protocol of its task stands in its row. Nothing that was
recorded disappears in silence: what cannot be averaged is named in `Leaderboard.problems`, and the cells it concerns
carry the number of that sentence.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from adpe.errors import UserError
from adpe.leaderboard.protocol import changes, facts, own_settings, protocol_key, protocol_of, words
from adpe.leaderboard.tasks import TASKS, is_defined, main_metrics, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import Difference, Summary, describe_difference, seed_difference, summarise

OURS = "ours"
REQUIRED = ("method", "task", "dataset", "metrics", "fingerprint")


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
        unlearnt: sentences on protocols under which no row learnt anything.
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
            for row in self.rows
            for name, cell in row.cells.items()
            if name in self.metrics and cell.difference is not None
        ]


@dataclass
class Leaderboard:
    """Tables in the order of `TASKS`, and what had to be left out or needs a reader's eye, in sentences."""

    tables: list[Table]
    problems: list[str]


def build_leaderboard(
    records: Iterable[Mapping[str, Any]],
    *,
    baseline: str = "random",
    published: Iterable[Mapping[str, Any]] = (),
    faults: Iterable[str] = (),
    confidence: float = 0.95,
) -> Leaderboard:
    """Group records into tables and compare every row with the baseline of its protocol.

    Args:
        records: run records, in the order they were written.
        baseline: a start, a method or a row's name ``"method (start)"`` to compare with.
        published: entries as `adpe.leaderboard.published.read_published` gives them, shown beside ours, never averaged.
        faults: sentences about lines that are no records, as `adpe.engine.hooks.recording.read_records` gives them.
        confidence: coverage of the intervals.

    Raises:
        UserError: if a baseline other than ``"random"`` names no row.
    """
    problems = list(faults)
    groups: dict[tuple[str, str], dict[str, dict[_Key, list[_Observation]]]] = {}
    heads: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records, start=1):
        observation = _Observation(f"run {record['run']}" if record.get("run") else f"record {number}", record)
        missing = [key for key in REQUIRED if record.get(key) is None]
        if missing:
            problems.append(f"{observation.run}: the record has no {', '.join(missing)}; left out.")
            continue
        protocols = groups.setdefault((str(record["task"]), str(record["dataset"])), {})
        protocol = protocol_key(record)
        members = protocols.setdefault(protocol, {})
        # A letter heads its rows with the facts of the task, which a method with settings of its own does not show.
        if protocol not in heads or (heads[protocol].get("own") and not record.get("own")):
            heads[protocol] = record
        own = record["fingerprint"] if isinstance(record["fingerprint"], str) else None
        key = (str(record["method"]), record.get("start"), record.get("sweep"), own)
        members.setdefault(key, []).append(observation)
    entries = list(published)
    for entry in entries:
        groups.setdefault((entry["task"], entry["dataset"]), {}).setdefault(_published_fingerprint(entry), {})

    tables = []
    for (task, dataset), protocols in groups.items():
        letters = {fingerprint: _letter(index) for index, fingerprint in enumerate(protocols)}
        ours = [
            _row(key, runs, letters[fingerprint], f"{task} on {dataset}", problems, confidence)
            for fingerprint, members in protocols.items()
            for key, runs in members.items()
        ]
        others = [
            _published_row(entry, letters[_published_fingerprint(entry)])
            for entry in entries
            if (entry["task"], entry["dataset"]) == (task, dataset)
        ]
        by_letter = {
            letter: facts(heads[protocol]) if protocol in heads else json.loads(protocol)
            for protocol, letter in letters.items()
        }
        shown = main_metrics(task, (name for row in ours + others for name in row.cells))
        table = Table(task, dataset, shown, by_letter, ours + others)
        table.differences = _differences({letters[name]: heads[name] for name in letters if name in heads})
        _compare(table, baseline, confidence, problems)
        _rank(table)
        # Pretraining without a validation has curves and pictures, but nothing to compare.
        if table.metrics or task != "pretrain":
            tables.append(table)
    names = {name for table in tables for row in table.rows for name in (row.method, row.start, row.name) if name}
    if baseline != "random" and baseline not in names:
        raise UserError(f"baseline {baseline!r} names no row; there are: {', '.join(sorted(names)) or 'none'}.")
    order = {task: index for index, task in enumerate(TASKS)}
    tables.sort(key=lambda table: (order.get(table.task, len(order)), table.dataset))
    return Leaderboard(tables, problems)


_Key = tuple[str, str | None, str | None, str | None]  # method, start, sweep, fingerprint


@dataclass(frozen=True)
class _Observation:
    """A record and how to name its run in a sentence."""

    run: str
    record: Mapping[str, Any]


def _published_fingerprint(entry: Mapping[str, Any]) -> str:
    """The protocol with the encoder: sizes are not ranked together."""
    return json.dumps({"backbone": entry["backbone"], **entry["protocol"]}, sort_keys=True, default=str)


def _differences(heads: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By letter of our protocols, in which values it differs from the one before it to which it is nearest."""
    found: dict[str, str] = {}
    known: dict[str, Mapping[str, Any]] = {}
    for letter, record in heads.items():
        protocol = protocol_of(record)
        if protocol is None:
            continue
        if known:
            between = {other: changes(known[other], protocol) for other in known}
            near = min(between, key=lambda other: len(between[other]))
            found[letter] = f"{near}: {words(between[near])}"
        known[letter] = protocol
    return found


def _letter(index: int) -> str:
    more, last = divmod(index, len(string.ascii_uppercase))
    return (_letter(more - 1) if more else "") + string.ascii_uppercase[last]


def _row(
    key: _Key,
    observations: Sequence[_Observation],
    protocol: str,
    where: str,
    problems: list[str],
    confidence: float,
) -> Row:
    method, start, sweep, _ = key
    row = Row(method, start, OURS, protocol, {}, [observation.record for observation in observations], sweep=sweep)
    row.own = own_settings(row.records[-1])
    row.backbone = facts(row.records[0]).get("backbone")
    epochs = row.records[0].get("pretraining_epochs")
    row.pretraining = f"{epochs} epochs" if epochs else None
    notes: list[int] = []

    def report(sentence: str) -> int:
        problems.append(f"{where}, {row.name}: {sentence}")
        return len(problems)

    by_seed: dict[int, _Observation] = {}
    for observation in observations:
        seed = observation.record.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool):
            notes.append(report(f"{observation.run} has no seed ({seed!r}); left out of the mean."))
            continue
        if seed in by_seed:
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


def _published_row(entry: Mapping[str, Any], protocol: str) -> Row:
    cells = {
        name: Cell({}, Summary(1, float(value), None, None, None, 0.95)) for name, value in entry["metrics"].items()
    }
    data, epochs = entry["pretraining"]["data"], entry["pretraining"]["epochs"]
    extra = entry.get("extra_data", "none")
    parts = (data, f"{epochs} epochs" if epochs else None, None if extra == "none" else f"extra: {extra}")
    return Row(
        entry["method"], None, entry["kind"], protocol, cells, source=entry["source"], note=entry.get("note"),
        backbone=entry["backbone"], pretraining=", ".join(filter(None, parts)),
    )  # fmt: skip


def _compare(table: Table, baseline: str, confidence: float, problems: list[str]) -> None:
    for letter in table.protocols:
        rows = [row for row in table.rows if row.protocol == letter and row.kind == OURS]
        candidates = [row for row in rows if baseline in (row.start, row.method, row.name)]
        under = f"{table.task} on {table.dataset}" + (f", protocol {letter}" if len(table.protocols) > 1 else "")
        if rows and not candidates and table.task != "pretrain":
            problems.append(f"{under}: no row {baseline!r} to compare with.")
        for row in rows:
            # The points of a sweep may run with fewer seeds than the point that is reported.
            seeds = {seed for other in rows if other.sweep == row.sweep for seed in other.seeds}
            if row.cells and row.seeds and seeds - row.seeds:
                missing = ", ".join(map(str, sorted(seeds - row.seeds)))
                problems.append(f"{under}, {row.name}: no run for seed {missing}, which other rows have.")
                for cell in row.cells.values():
                    cell.notes.append(len(problems))
            near = [other for other in candidates if other.sweep == row.sweep] or candidates
            same = [other for other in near if other.method == row.method]
            reference = near[0] if len(near) == 1 else same[0] if len(same) == 1 else None
            if reference is None and candidates and row not in candidates:
                names = ", ".join(other.name for other in near)
                problems.append(f"{under}, {row.name}: {baseline!r} names {names}; choose one of them as the baseline.")
            if reference is None:
                continue
            row.is_baseline = row is reference
            row.baseline = reference.name
            for name, cell in row.cells.items():
                other = reference.cells.get(name)
                if row is not reference and cell.values and other is not None and other.values:
                    cell.difference = seed_difference(cell.values, other.values, confidence)


def _rank(table: Table) -> None:
    first = table.metrics[0] if table.metrics else ""

    def order(row: Row) -> tuple[str, bool, float]:
        summary = row.cells[first].summary if first in row.cells else None
        sign = -1.0 if metric_of(first).higher_is_better else 1.0
        return row.protocol, row.kind != OURS, math.inf if summary is None else sign * summary.mean

    # Longer letters (AA) come after Z.
    table.rows.sort(key=lambda row: (len(row.protocol), *order(row)))
    for letter, members in groupby(table.rows, key=lambda row: row.protocol):
        rows = list(members)
        for name in table.metrics:
            cells = [row.cells[name] for row in rows if name in row.cells and row.cells[name].summary is not None]
            if cells and all(_is_nothing(name, cell.summary.mean) for cell in cells if cell.summary):
                under = f" under protocol {letter}" if len(table.protocols) > 1 else ""
                zero = f"{0:.{metric_of(name).digits}f}"
                table.unlearnt.append(f"Nothing was learnt{under}: {metric_of(name).label} is {zero} in every row.")
                for cell in cells:
                    cell.difference = None
            elif len(cells) > 1:
                choose = max if metric_of(name).higher_is_better else min
                best = choose(cell.summary.mean for cell in cells if cell.summary)
                for cell in cells:
                    cell.is_best = cell.summary is not None and cell.summary.mean == best


def _is_nothing(name: str, mean: float) -> bool:
    """Whether a mean is what a model gets that learnt nothing: 0 to the decimals shown, where higher is better."""
    metric = metric_of(name)
    return metric.higher_is_better and float(f"{mean:.{metric.digits}f}") == 0
