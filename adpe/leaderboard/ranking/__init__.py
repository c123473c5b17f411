"""Records of finished runs -> rows with mean, spread and difference to a baseline, grouped by protocol.

A row is one method, start, length of pretraining and point of a sweep under one protocol on one data set; its seeds are
averaged. Rows of different protocols (`adpe.leaderboard.protocol`) stand in the same table only under different
protocol letters, are ranked apart and never averaged; what a method changes in the protocol of its task stands in its
row. Nothing that was recorded is dropped silently: what cannot be averaged is named in `Leaderboard.problems`, and the
cells it concerns carry the number of that sentence.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpe.errors import UserError
from adpe.leaderboard.protocol import changes, facts, protocol_key, protocol_of, words
from adpe.leaderboard.ranking.baseline import compare_rows, rank_rows
from adpe.leaderboard.ranking.rows import Key, Observation, Table, published_key, published_row, seed_row
from adpe.leaderboard.tasks import TASKS, main_metrics

REQUIRED = ("method", "task", "dataset", "metrics", "fingerprint")


@dataclass
class Leaderboard:
    """Tables in the order of `TASKS`, and what had to be left out or needs a reader's eye, in sentences."""

    tables: list[Table]
    problems: list[str]


def build_leaderboard(
    records: Iterable[Mapping[str, Any]],
    *,
    baseline: str | Sequence[str] = "random",
    published: Iterable[Mapping[str, Any]] = (),
    faults: Iterable[str] = (),
    confidence: float = 0.95,
) -> Leaderboard:
    """Group records into tables and compare every row with the baseline of its protocol.

    Args:
        records: run records, in the order they were written.
        baseline: a start, a method or a row's name ``"method (start)"`` to compare with; of several, the first that a
            protocol has.
        published: entries as `adpe.leaderboard.published.read_published` gives them, shown beside ours, never averaged.
        faults: sentences about lines that are no records, as `adpe.leaderboard.records.read_records` gives them.
        confidence: coverage of the intervals.

    Raises:
        UserError: if no baseline names a row, and none is ``"random"``.
    """
    baselines = (baseline,) if isinstance(baseline, str) else tuple(baseline)
    problems = list(faults)
    groups: dict[tuple[str, str], dict[str, dict[Key, list[Observation]]]] = {}
    heads: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records, start=1):
        observation = Observation(f"run {record['run']}" if record.get("run") else f"record {number}", record)
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
        # Encoders that were pretrained for longer in another suite are others, whatever they are called.
        key = (str(record["method"]), record.get("start"), record.get("sweep"), own, record.get("pretraining_epochs"))
        members.setdefault(key, []).append(observation)
    entries = list(published)
    for entry in entries:
        groups.setdefault((entry["task"], entry["dataset"]), {}).setdefault(published_key(entry), {})

    tables = []
    for (task, dataset), protocols in groups.items():
        letters = {fingerprint: _letter(index) for index, fingerprint in enumerate(protocols)}
        ours = [
            seed_row(key, runs, letters[fingerprint], f"{task} on {dataset}", problems, confidence)
            for fingerprint, members in protocols.items()
            for key, runs in members.items()
        ]
        others = [
            published_row(entry, letters[published_key(entry)])
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
        compare_rows(table, baselines, confidence, problems)
        rank_rows(table)
        # Pretraining without a validation has curves and pictures, but nothing to compare.
        if table.metrics or task != "pretrain":
            tables.append(table)
    names = {name for table in tables for row in table.rows for name in (row.method, row.start, row.name) if name}
    if "random" not in baselines and not names.intersection(baselines):
        raise UserError(
            f"baseline {', '.join(map(repr, baselines))} names no row; there are: {', '.join(sorted(names)) or 'none'}."
        )
    order = {task: index for index, task in enumerate(TASKS)}
    tables.sort(key=lambda table: (order.get(table.task, len(order)), table.dataset))
    return Leaderboard(tables, problems)


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
