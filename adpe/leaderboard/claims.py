"""Which published rows the suites claim to reproduce, and whether the records bear it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpe.leaderboard.statistics import Summary, summarise
from adpe.leaderboard.tasks import is_defined, metric_of, short_names
from adpe.suites.suite import Claim, Suite, sweep_text

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


@dataclass(frozen=True)
class Verdict:
    """One metric of one claim.

    Attributes:
        published: the row of `benchmarks/published/`.
        expected: its value, in shown units.
        ours: over the seeds recorded, None without any.
        state: `PASS` within the tolerance of the published value, `FAIL` outside on either side, `NOT_RUN`.
        note: what a reader has to know, e.g. why it cannot run yet.
    """

    suite: str
    method: str
    task: str
    published: Mapping[str, Any]
    metric: str
    expected: float
    tolerance: float | None
    tolerance_source: str | None
    ours: Summary | None
    state: str
    note: str | None = None


HEADER = ("Claim", "Published", "Ours", "Tolerance", "Result")


def check_claims(suites: Iterable[Suite], records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Every claim of the suites against the records of their runs, then the rows that no config is there for."""
    verdicts = []
    for suite in suites:
        for claim in suite.claims:
            verdicts += [_verdict(suite, claim, name, records) for name in claim.tolerance]
        for published, reason in suite.missing:
            for name, expected in published["metrics"].items():
                verdicts.append(
                    Verdict(
                        suite.name, published["method"], published["protocol"]["head"], published, name,
                        float(expected), None, None, None, NOT_RUN, reason,
                    )
                )  # fmt: skip
    return verdicts


def lines(verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """Cells of a table with `HEADER`, one line a verdict."""
    rows: list[tuple[str, ...]] = []
    for item in verdicts:
        metric, kind = metric_of(item.metric), item.published["kind"]
        value = f"{item.expected:.{metric.digits}f} {metric.label}" + ("" if kind == "published" else f" ({kind})")
        ours = "" if item.ours is None else _value(item.ours, metric.digits)
        tolerance = "" if item.tolerance is None else f"± {item.tolerance:g}"
        claim = f"{item.method} {item.published['backbone']}, {item.task}, {item.published['dataset']}"
        rows.append((claim, value, ours, tolerance, item.state + (f"; {item.note}" if item.note else "")))
    return rows


def sources(verdicts: Iterable[Verdict]) -> list[str]:
    """Where the published values and the tolerances come from, each once."""
    found: dict[str, None] = {}
    for item in verdicts:
        metric = metric_of(item.metric)
        found[f"{item.expected:.{metric.digits}f} {metric.label}: {item.published['source']}."] = None
        if item.tolerance is not None:
            found[f"± {item.tolerance:g} {metric.label}: {item.tolerance_source}."] = None
    return list(found)


def _verdict(suite: Suite, claim: Claim, name: str, records: Sequence[Mapping[str, Any]]) -> Verdict:
    expected, metric = float(claim.published["metrics"][name]), metric_of(name)
    task = next(task for task in suite.tasks if task.name == claim.task)
    values: dict[int, float] = {}
    for record in records:
        same = (record.get("suite"), record.get("method"), record.get("config"), record.get("sweep")) == (
            suite.name, claim.method, task.config, sweep_text(claim.point),
        )  # fmt: skip
        value: Any = short_names(record["metrics"]).get(name)
        if same and is_defined(name, value):
            values[record["seed"]] = float(value) * metric.scale  # the last one written counts
    ours = summarise(list(values.values())) if values else None
    state, note = NOT_RUN, claim.note
    if ours is not None:
        off = ours.mean - expected
        state = PASS if abs(off) <= claim.tolerance[name] + 1e-9 else FAIL
        words = f"{abs(off):.{metric.digits}f} {'above' if off > 0 else 'below'}"
        seeds = "1 seed" if ours.count == 1 else f"{ours.count} seeds"
        note = ", ".join(filter(None, (words, seeds, claim.note)))
    return Verdict(
        suite.name, claim.method, claim.task, claim.published, name, expected, claim.tolerance[name],
        claim.tolerance_source, ours, state, note,
    )  # fmt: skip


def _value(summary: Summary, digits: int) -> str:
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}"
