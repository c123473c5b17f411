"""The rows of a table against its baseline, and their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from adpe.leaderboard.protocol import classes_of
from adpe.leaderboard.ranking.rows import OURS, Row, Table
from adpe.leaderboard.tasks import metric_of
from adpe.leaderboard.uncertainty.seeds import seed_difference


def compare_rows(table: Table, baselines: Sequence[str], confidence: float, problems: list[str]) -> None:
    """Write into every row of ours its difference to the baseline of its protocol.

    Args:
        table: whose rows are changed.
        baselines: starts, methods or names of rows; the first that a protocol has is taken.
        confidence: coverage of the intervals.
        problems: sentences on what cannot be compared are appended.
    """
    for letter in table.protocols:
        rows = [row for row in table.rows if row.protocol == letter and row.kind == OURS]
        named = [(one, [row for row in rows if one in (row.start, row.method, row.name)]) for one in baselines]
        under = f"{table.task} on {table.dataset}" + (f", protocol {letter}" if len(table.protocols) > 1 else "")
        if rows and not any(found for _, found in named) and table.task != "pretrain":
            problems.append(f"{under}: no row {baselines[0]!r} to compare with.")
        for row in rows:
            missing = ", ".join(map(str, sorted(_expected_seeds(row, rows) - row.seeds)))
            if row.cells and row.seeds and missing:
                problems.append(f"{under}, {row.name}: no run for seed {missing}, which other rows have.")
                for cell in row.cells.values():
                    cell.notes.append(len(problems))
            baseline, candidates = _candidates(row, named) or (baselines[0], [])
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
        # A row that no other is compared with is no baseline.
        used = {row.baseline for row in rows if not row.is_baseline}
        for row in rows:
            row.is_baseline = row.is_baseline and row.name in used


def _suites(row: Row) -> list[object]:
    return list(dict.fromkeys(record.get("suite") for record in row.records))


def _candidates(row: Row, named: Sequence[tuple[str, list[Row]]]) -> tuple[str, list[Row]] | None:
    """The first baseline that a suite of the row has, with its rows there; if none has, the first of all."""
    for baseline, found in named:
        for suite in _suites(row):
            if own := [other for other in found if suite in _suites(other)]:
                return baseline, own
    return next((pair for pair in named if pair[1]), None)


def _expected_seeds(row: Row, rows: Sequence[Row]) -> set[int]:
    """Seeds that the row's suites ran with; the points of a sweep may run with fewer than the one that is reported."""
    suites = _suites(row)
    alike = [other for other in rows if other.sweep == row.sweep]
    # A row leaves out what is no seed.
    return {run["seed"] for other in alike for run in other.records
            if run.get("suite") in suites and run.get("seed") in other.seeds}  # fmt: skip


def rank_rows(table: Table) -> None:
    """Sort the rows by protocol and first metric, ours first; mark the best, and metrics of which no row learnt."""
    first = table.metrics[0] if table.metrics else ""

    def order(row: Row) -> tuple[str, bool, float]:
        summary = row.cells[first].summary if first in row.cells else None
        sign = -1.0 if metric_of(first).higher_is_better else 1.0
        return row.protocol, row.kind != OURS, math.inf if summary is None else sign * summary.mean

    # Longer letters (AA) come after Z.
    table.rows.sort(key=lambda row: (len(row.protocol), *order(row)))
    for letter, members in groupby(table.rows, key=lambda row: row.protocol):
        rows = list(members)
        under = f" under protocol {letter}" if len(table.protocols) > 1 else ""
        learnt = []
        for name in table.metrics:
            cells = [row.cells[name] for row in rows if name in row.cells and row.cells[name].summary is not None]
            means = [cell.summary.mean for cell in cells if cell.summary]
            nothing = _nothing(name, means, rows)
            if nothing:
                table.unlearnt.append(f"Nothing was learnt{under}: {nothing}.")
                for cell in cells:
                    cell.difference = None
            elif len(cells) > 1 and not metric_of(name).neutral:
                best = (max if metric_of(name).higher_is_better else min)(means)
                for cell in cells:
                    cell.is_best = cell.summary is not None and cell.summary.mean == best
            learnt += [not nothing] * bool(cells)
        for row in rows:
            row.is_result = any(learnt) or not learnt


def _nothing(name: str, means: Sequence[float], rows: Sequence[Row]) -> str | None:
    """That a metric is in no row above what a model gets that learnt nothing, in words; None where it is."""
    metric = metric_of(name)
    known = {classes_of(record) for row in rows for record in row.records}
    classes = next(iter(known)) if len(known) == 1 else None
    floor = metric.floor_of(classes)
    if not means or not metric.higher_is_better or float(f"{max(means):.{metric.digits}f}") > floor:
        return None
    best = f"{max(means):.{metric.digits}f}"
    if float(best) == 0:
        return f"{metric.label} is {best} in every row"
    reached = "a constant prediction may reach" if metric.by_class else "a result is above"
    return f"{metric.label} is at most {best} in every row; {reached} {floor:.{metric.digits}f}"
