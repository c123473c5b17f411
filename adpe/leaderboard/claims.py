"""Which published rows the suites claim to reproduce, and whether the records confirm it.

A claim is of the suite's own runs: its protocol, start, length of pretraining and seeds. What comes near is told apart
from what was not run, with what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpe.leaderboard.protocol import BEFORE, LOST, changes, protocol_of, words
from adpe.leaderboard.tasks import is_defined, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import Summary, summarise
from adpe.suites.suite import Claim, Method, Suite, Task, slug, sweep_text

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
# Runs that are there, but not all that the claim is about, or not it at all.
INCOMPLETE, NEAR_MISS = "incomplete", "near miss"
STATES = (PASS, FAIL, INCOMPLETE, NEAR_MISS, NOT_RUN)
# The protocol of a task as the suite runs it for a method, without data; see `adpe.suites.expected`.
Expected = Callable[[Suite, Claim], Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """One metric of one claim.

    Attributes:
        published: the row of `benchmarks/published/`.
        expected: its value, in shown units.
        ours: over the seeds recorded under the suite's own protocol, None without any.
        state: `PASS` within the tolerance of the published value with all seeds, `FAIL` outside on either side,
            `INCOMPLETE` with seeds missing, `NEAR_MISS` for runs of another protocol, start or length, `NOT_RUN`.
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


def check_claims(suites: Iterable[Suite], records: Sequence[Mapping[str, Any]], expected: Expected) -> list[Verdict]:
    """Every claim of the suites against the records of their runs, then the rows that no config is there for.

    Args:
        suites: with claims.
        records: of any runs.
        expected: the protocol that a claim is about, asked for claims that have records alone.
    """
    verdicts = []
    for suite in suites:
        for claim in suite.claims:
            verdicts += [_verdict(suite, claim, name, records, expected) for name in claim.tolerance]
        for published, reason in suite.missing:
            for name, value in published["metrics"].items():
                verdicts.append(
                    Verdict(
                        suite.name, published["method"], published["protocol"]["head"], published, name,
                        float(value), None, None, None, NOT_RUN, reason,
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


def _verdict(
    suite: Suite, claim: Claim, name: str, records: Sequence[Mapping[str, Any]], expected: Expected
) -> Verdict:
    value, metric = float(claim.published["metrics"][name]), metric_of(name)
    task = next(task for task in suite.tasks if task.name == claim.task)
    method = next(method for method in suite.methods if method.name == claim.method)
    values: dict[int, float] = {}
    misses: dict[str, str] = {}
    for record in records:
        recorded: Any = short_names(record["metrics"]).get(name)
        if not _is_about(record, suite, claim, task) or not is_defined(name, recorded):
            continue
        miss = _miss(record, suite, method, task, claim, expected)
        if miss:
            misses[str(record.get("run"))] = miss
        else:
            values[record["seed"]] = float(recorded) * metric.scale  # the last one written counts
    ours = summarise(list(values.values())) if values else None
    state, notes = NOT_RUN, [claim.note]
    if ours is not None:
        off = ours.mean - value
        state = PASS if abs(off) <= claim.tolerance[name] + 1e-9 else FAIL
        seeds = (task.seeds or suite.seeds) if claim.point == task.reported else task.sweep_seeds
        if set(values) != set(seeds):
            state = INCOMPLETE
        told = f"{abs(off):.{metric.digits}f} {'above' if off > 0 else 'below'}"
        notes = [told, f"{len(values)} of {len(seeds)} seeds", claim.note]
    elif misses:
        state = NEAR_MISS
        run, miss = next(iter(misses.items()))
        notes = [f"{len(misses)} runs, such as {run}: {miss}" if len(misses) > 1 else f"{run}: {miss}", claim.note]
    return Verdict(
        suite.name, claim.method, claim.task, claim.published, name, value, claim.tolerance[name],
        claim.tolerance_source, ours, state, ", ".join(filter(None, notes)) or None,
    )  # fmt: skip


def _is_about(record: Mapping[str, Any], suite: Suite, claim: Claim, task: Task) -> bool:
    """Whether a record says of itself that it is a run of the claim: suite, method, task and point of the sweep."""
    same = (record.get("suite"), record.get("method"), record.get("task"), record.get("sweep")) == (
        suite.name, claim.method, claim.published["task"], sweep_text(claim.point),
    )  # fmt: skip
    # Two tasks of a suite may be of one kind: the run's folder, which the suite gives, says which.
    return same and (len(suite.tasks) == 1 or f"/{slug(task.name)}/" in f"/{record.get('run')}/")


def _miss(
    record: Mapping[str, Any], suite: Suite, method: Method, task: Task, claim: Claim, expected: Expected
) -> str | None:
    """In what a run is not the one that the claim is about; None if it is."""
    protocol = protocol_of(record)
    if protocol is None:
        return LOST if isinstance(record.get("fingerprint"), str) else BEFORE
    seeds = (task.seeds or suite.seeds) if claim.point == task.reported else task.sweep_seeds
    pretrained = bool(record.get("pretrained_sha256"))
    start = "pretrained" if method.pretraining or method.checkpoint else "random"
    found = [
        ("start", record.get("start") if pretrained or record.get("start") != "pretrained" else "unknown file", start),
        ("epochs of pretraining", record.get("pretraining_epochs"), method.epochs),
        ("seed", record["seed"] if record["seed"] not in seeds else None, None),
    ]
    if method.pretraining:
        recipe = (record.get("pretrained_from") or {}).get("recipe")
        found.append(("pretraining", recipe, method.pretraining))
    told = [f"{what} {mine} instead of {own}" for what, mine, own in found if mine != own and what != "seed"]
    told += [f"seed {mine} is none of the suite's" for what, mine, _ in found if what == "seed" and mine is not None]
    data = protocol.get("data") or {}
    for part, count in task.images.items():
        images = (data.get(part) or {}).get("images")
        if images != count:
            told.append(f"{images} {part} images instead of {count}")
    told += filter(None, [words(changes(protocol, expected(suite, claim), free=["data"]))])
    return "; ".join(told) or None


def _value(summary: Summary, digits: int) -> str:
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}"
