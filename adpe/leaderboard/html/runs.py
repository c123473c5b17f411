"""The page's sections of runs: facts of a record, as a reader wants them, and what the seeds of a row do not share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from adpe.leaderboard.html.figures import Chart, Picture, chart_data, picture_data
from adpe.leaderboard.protocol import plain
from adpe.leaderboard.tasks import metric_of, show_metric

# What the seeds of a row have in common, and what the rows of a task.
_ROW = ("suite", "method", "start", "task", "dataset", "sweep", "fingerprint")
_KIND = ("suite", "task", "dataset")
# Letters of a hash that are shown: enough to find the record that has the whole.
_HASH = 12
# What serves programs, which read the records themselves, and what stands beside the tables already.
_LEFT_OUT = (
    "schema", "run", "checkpoint", "checkpoint_sha256", "per_image", "per_image_sha256", "task_fingerprint", "own",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A section of its own for one record, with its curves and pictures."""

    record: Mapping[str, Any]
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A record's fields as a reader wants them: units written out, mappings on one line, empty ones left out."""
    lines = []
    for key, value in record.items():
        if key in _LEFT_OUT or value is None or value == {}:
            continue
        if key == "wall_time_s":
            minutes, seconds = divmod(round(float(value)), 60)
            lines.append(("wall time", f"{minutes} min {seconds} s"))
        elif key == "peak_memory_bytes":
            lines.append(("peak memory", f"{float(value) / 2**30:.2f} GiB"))
        elif key == "iterations_per_s":
            lines.append(("iterations/s", f"{float(value):.2f}"))
        elif key == "metrics":
            labels = Counter(metric_of(name).label for name in value)
            lines += [(_label(name, labels), show_metric(name, number)) for name, number in value.items()]
        elif key == "protocol":
            lines.append((key, plain(value.get("facts", value))))
        elif key == "time":
            lines.append((key, _utc(str(value))))
        elif key == "commit":
            lines.append((key, re.sub(rf"^(\w{{{_HASH}}})\w*", r"\1", str(value))))
        elif key.endswith("sha256"):
            lines.append((key.replace("_", " "), str(value)[:_HASH]))
        elif key == "pretrained_from" and isinstance(value, Mapping):
            told = {"config_sha256": value.get("config_sha256"), "seed": record.get("seed")}
            lines.append(("pretrained from", plain({k: v for k, v in value.items() if k not in told or v != told[k]})))
        else:
            lines.append((key.replace("_", " "), plain(value)))
    return lines


def _label(name: str, labels: Mapping[str, int]) -> str:
    """Of a metric; its whole name where another has the same label."""
    label = metric_of(name).label
    return label if labels[label] == 1 else name


def _utc(text: str) -> str:
    """A time to the minute; as it stands if it is none, or has no zone."""
    with suppress(ValueError):
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return text


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of every section: those that differ in their seed share one if they have no charts and no pictures."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for number, run in enumerate(runs):
        alone = number if run.charts or run.pictures else None
        told = (plain(run.record.get(name)) for name in _ROW)
        key = _without_seed(run), alone, *told
        groups.setdefault(key, []).append(run)
    return [
        sorted(members, key=lambda run: (type(run.record.get("seed")).__name__, run.record.get("seed") or 0))
        for members in groups.values()
    ]


def _without_seed(run: Run) -> str:
    """The name of a run without its seed, which ends it: of a suite's run, or of one by itself."""
    name, seed = str(run.record.get("run", "unnamed run")), run.record.get("seed")
    return name.removesuffix(f"/seed{seed}").removesuffix(f"-{seed}")


def run_sections(runs: Sequence[Sequence[Run]], embedded: dict[str, int]) -> list[dict[str, Any]]:
    """Every section; a further one of a suite's task tells what differs from the first, to which it links.

    What its line tells is not told again, nor the config's hash, which the seed changes.
    """
    first: dict[tuple[Any, ...], tuple[int, dict[str, str]]] = {}
    sections = []
    for number, members in enumerate(runs, start=1):
        known = [dict(facts(run.record)) for run in members]
        kind = (*(members[0].record.get(name) for name in _KIND), *known[0])
        other = first.setdefault(kind, (number, _shared(known)))
        sections.append(_section(members, known, embedded, other if other[0] != number else None))
    return sections


def _shared(known: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The facts that all of some runs have in common."""
    return {name: text for name, text in known[0].items() if all(other.get(name) == text for other in known[1:])}


def _section(
    members: Sequence[Run],
    known: Sequence[Mapping[str, str]],
    embedded: dict[str, int],
    other: tuple[int, dict[str, str]] | None,
) -> dict[str, Any]:
    record, shared = members[0].record, _shared(known)
    seeds = [_seed(run) for run in members]
    numbers = list(record.get("metrics", {}).items())[:2]
    metrics = [(metric_of(name).label, show_metric(name, value)) for name, value in numbers]
    told = {"seed", "config sha256", *dict(metrics)}
    own = [fact for fact in shared.items() if other is None or (fact not in other[1].items() and fact[0] not in told)]
    alone = len(members) == 1
    return {
        "name": record.get("run", "unnamed run") if alone else _without_seed(members[0]),
        "summary": " · ".join(filter(None, (seeds[0], ", ".join(map(" ".join, metrics)))) if alone else seeds),
        "other": other and other[0],
        "facts": own,
        "by_seed": [] if alone else _by_seed(seeds, known, shared),
        "charts": [chart_data(chart) for run in members for chart in run.charts],
        "pictures": [picture_data(picture, embedded) for run in members for picture in run.pictures],
    }


def _seed(run: Run) -> str:
    seed = run.record.get("seed")
    return "no seed" if seed is None else f"seed {seed}"


def _by_seed(seeds: Sequence[str], known: Sequence[Mapping[str, str]], shared: Mapping[str, str]) -> list[list[str]]:
    """A table of what several runs do not share: its head, and a line for each."""
    names = dict.fromkeys(name for one in known for name in one if name not in {*shared, "seed", "config sha256"})
    lines = [[seed.removeprefix("seed "), *(one.get(name, "") for name in names)]
             for seed, one in zip(seeds, known, strict=True)]  # fmt: skip
    return [["seed", *names], *lines]
