"""What a table means, in a sentence for every protocol and metric: which rows its seeds tell from the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adpe.leaderboard.ranking.rows import OURS, Row, Table
from adpe.leaderboard.tasks import metric_of


def meaning(table: Table) -> list[str]:
    """Sentences for the reader of a table that has results; none for one without."""
    sentences: list[str] = []
    for letter in table.protocols:
        rows = [row for row in table.results if row.protocol == letter and row.kind == OURS]
        under = f" under protocol {letter}" if len(table.protocols) > 1 else ""
        for name in table.metrics:
            sentences += _of_metric(name, [row for row in rows if _has_mean(row, name)], under)
    if any(row.kind != OURS for row in table.results):
        sentences.append(
            "Numbers from publications are mostly of one run: a small difference, even under one protocol, may be that "
            "of two seeds."
        )
    return sentences


def _of_metric(name: str, rows: Sequence[Row], under: str) -> Iterator[str]:
    metric = metric_of(name)
    compared = [(row, row.cells[name].difference) for row in rows]
    differences = [(row, difference) for row, difference in compared if difference is not None]
    if not differences:
        if len(rows) > 1:
            yield f"{metric.label}{under}: {_best(name, rows)} has the best mean; there is no baseline to compare with."
        elif rows:
            yield f"{metric.label}{under}: one row, with nothing to compare it with."
        return
    baseline = differences[0][0].baseline
    if any(row.baseline != baseline for row, _ in differences):
        baseline = "its baseline"
    sign = 1 if metric.higher_is_better else -1
    better = [row.name for row, one in differences if one.is_clear and sign * one.mean > 0]
    worse = [row.name for row, one in differences if one.is_clear and sign * one.mean < 0]
    doubtful = [row.name for row, one in differences if not one.is_clear]
    parts = [
        f"{_names(names)} {word} than {baseline} by more than seed noise"
        for names, word in zip(
            (better, worse), ("higher", "lower") if metric.neutral else ("better", "worse"), strict=True
        )
        if names
    ]
    if doubtful:
        seeds = max(len(row.cells[name].values) for row in rows)
        others = "none of the others" if better or worse else "no row"
        if seeds > 1:
            parts.append(f"{seeds} seeds tell {others} from {baseline}")
        else:
            parts.append(f"one seed tells {others} from {baseline}")
    yield f"{metric.label}{under}: {'; '.join(parts)}."


def _has_mean(row: Row, name: str) -> bool:
    return name in row.cells and row.cells[name].summary is not None


def _best(name: str, rows: Sequence[Row]) -> str:
    means = {row.name: row.cells[name].summary.mean for row in rows}  # type: ignore[union-attr]
    return (max if metric_of(name).higher_is_better else min)(means, key=lambda row: means[row])


def _names(names: Sequence[str]) -> str:
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} {'is' if len(names) == 1 else 'are'}"
