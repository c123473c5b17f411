"""One table of a suite over several of its tasks: a row a method, a column a metric. Standard library alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpe.leaderboard.formats import escape_markdown
from adpe.leaderboard.ranking.rows import Cell
from adpe.leaderboard.tables import difference_text, value_entry
from adpe.leaderboard.tasks import is_defined, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import Difference, seed_difference, summarise, usual_detectable
from adpe.suites.suite import Suite, expand


def overview(suite: Suite, records: Sequence[Mapping[str, Any]], confidence: float = 0.95) -> str:
    """Mean and standard deviation over seeds, and the paired difference to the suite's first method with its interval.

    A difference whose interval excludes 0 is bold. A method without a record of a task has an empty cell.

    Args:
        suite: with an `overview`.
        records: of any suites; those of this one are taken, the last of every run.
        confidence: coverage of the t intervals over seeds.

    Returns:
        Markdown, or nothing if the suite has no overview or no record.
    """
    latest = {str(record["run"]): record for record in records if record.get("suite") == suite.name}
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for run in expand(suite, Path(suite.name)):
        found = short_names(latest[run.name]["metrics"]) if run.sweep is None and run.name in latest else {}
        for task, name in suite.overview:
            value = found.get(name)
            if task == run.task and value is not None and is_defined(name, value):
                cell = values.setdefault((run.method, task, name), {})
                cell[run.seed] = float(value) * metric_of(name).scale
    if not values:
        return ""
    first = suite.methods[0].name
    rows = []
    found_in: dict[tuple[str, str], list[Difference | None]] = {column: [] for column in suite.overview}
    for method in suite.methods:
        row = [escape_markdown(method.name)]
        for column in suite.overview:
            own, other = values.get((method.name, *column)), values.get((first, *column))
            compared = method.name != first
            difference = seed_difference(own, other, confidence) if own and other and compared else None
            found_in[column].append(difference)
            row.append(_cell(own, difference, column[1], confidence) if own else "")
        rows.append(row)
    titles = ["Method", *(f"{task}: {_title(name)}" for task, name in suite.overview)]
    power = [_power(differences, name) for (_, name), differences in found_in.items()]
    counts = sorted({len(found) for found in values.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    note = (
        f"Mean ± standard deviation over {seeds}; below it the paired difference to {first} with its "
        f"{confidence:.0%} t interval, bold where that excludes 0. Each interval holds by itself."
    )
    if any(power):
        rows.append(["*power*", *power])
        note += " Power: the true difference that this many seeds find in four of five repetitions, median of the rows."
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _title(name: str) -> str:
    metric = metric_of(name)
    return metric.label if metric.higher_is_better else f"{metric.label} (lower is better)"


def _cell(own: dict[int, float], difference: Difference | None, name: str, confidence: float) -> str:
    text = str(value_entry(name, Cell(own, summarise(list(own.values()), confidence))))
    if difference is None:
        return text
    change = difference_text(name, difference)
    return f"{text}<br>{f'**{change}**' if difference.is_clear else change}"


def _power(differences: Sequence[Difference | None], name: str) -> str:
    """The difference that the seeds of a column could have shown; nothing without intervals."""
    size = usual_detectable(differences)
    return "" if size is None else f"{size:.{metric_of(name).digits}f}"
