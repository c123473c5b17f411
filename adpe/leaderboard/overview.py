"""One table of a suite over several of its tasks: a row a method, a column a metric. Standard library alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adpe.leaderboard.tables import escape_markdown
from adpe.leaderboard.tasks import is_defined, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import seed_difference, summarise
from adpe.suites.suite import Suite, slug


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
    for method in suite.methods:
        for task, name in suite.overview:
            for seed in suite.seeds:
                record = latest.get(f"{slug(method.name)}/{slug(task)}/seed{seed}", {"metrics": {}})
                value = short_names(record["metrics"]).get(name)
                if value is not None and is_defined(name, value):
                    found = values.setdefault((method.name, task, name), {})
                    found[seed] = float(value) * metric_of(name).scale
    if not values:
        return ""
    first = suite.methods[0].name
    rows = []
    for method in suite.methods:
        row = [escape_markdown(method.name)]
        for column in suite.overview:
            own, other = values.get((method.name, *column)), values.get((first, *column))
            row.append(_cell(own, other if method.name != first else None, column[1], confidence) if own else "")
        rows.append(row)
    titles = ["Method", *(f"{task}: {_title(name)}" for task, name in suite.overview)]
    seeds = max(len(found) for found in values.values())
    note = (
        f"Mean ± standard deviation over {seeds} seeds; below it the paired difference to {first} with its "
        f"{confidence:.0%} t interval, bold where that excludes 0. Each interval holds by itself."
    )
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _title(name: str) -> str:
    metric = metric_of(name)
    return metric.label if metric.higher_is_better else f"{metric.label} (lower is better)"


def _cell(own: Mapping[int, float], other: Mapping[int, float] | None, name: str, confidence: float) -> str:
    digits = metric_of(name).digits
    summary = summarise(list(own.values()), confidence)
    text = f"{summary.mean:.{digits}f}" + ("" if summary.std is None else f" ± {summary.std:.{digits}f}")
    if not other:
        return text
    found = seed_difference(own, other, confidence)
    change = f"{found.mean:+.{digits}f}"
    if found.low is not None and found.high is not None:
        change += f" ({found.low:+.{digits}f} to {found.high:+.{digits}f})"
    return f"{text}<br>{f'**{change}**' if found.is_clear else change}"
