"""The leaderboard as one self-contained HTML file: sortable tables, charts, pictures and a section per run.

The file needs no network and no server. Everything that came from records and logs is escaped, and the page's content
security policy lets nothing but its own script run.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, UnidentifiedImageError

from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.leaderboard.protocol import plain
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.meaning import meaning
from adpe.leaderboard.ranking.rows import Row, Table
from adpe.leaderboard.tables import body, difference_entry, header, is_numeric, legend, notes, value_entry
from adpe.leaderboard.tasks import metric_of, show_metric

_FOLDER = Path(__file__).parent
_MOST_POINTS = 1000
# What the seeds of a row have in common.
_KIND = ("suite", "task", "dataset")
# Letters of a hash that are shown: enough to find the record that has the whole.
_HASH = 12
# What serves programs, which read the records themselves, and what stands beside the tables already.
_LEFT_OUT = (
    "schema", "run", "checkpoint", "checkpoint_sha256", "per_image", "per_image_sha256", "task_fingerprint", "own",
)  # fmt: skip
# Columns of text that may be long, and from how many letters on it is: two lines are shown, the rest on hover.
_LONG, _SHORT = ("Pretraining", "Source"), 24


@dataclass(frozen=True)
class Chart:
    """Lines or points in one pair of axes.

    Attributes:
        title: above the chart.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        series: name -> points (x, y) or, with error bars, (x, y, low, high). Values that are not finite leave a gap.
        lines: join the points of a series, as for losses; False draws points alone, as for speed against accuracy.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, ...]]]
    lines: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file, embedded in the page, and what it shows. One that was embedded before is linked to."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Run:
    """A section of its own for one record, with its curves and pictures."""

    record: Mapping[str, Any]
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()


def write_page(
    path: str | Path,
    title: str,
    leaderboard: Leaderboard,
    *,
    introduction: Sequence[str] = (),
    charts: Sequence[Chart] = (),
    pictures: Sequence[Picture] = (),
    runs: Sequence[Run] = (),
) -> Path:
    """Write the page atomically; the same input gives the same bytes.

    A link can hold a view: ``#sort=2`` sorts by the second column, ``#sort=-2`` descending, ``#filter=words`` filters,
    ``#mixed=1`` sorts across protocols, under a caption that says so.

    Args:
        path: HTML file to write.
        title: heading of the page.
        leaderboard: tables and problems.
        introduction: paragraphs below the heading.
        charts: curves of several runs together.
        pictures: of the whole comparison.
        runs: sections, linked from the seeds of their rows: one for each run with charts or pictures, one for those of
            the others that differ in their seed. Without runs that have nothing to show, such as pretrainings of which
            only the record is left.

    Raises:
        UserError: if a picture is missing or not an image.
    """
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    embedded: dict[str, int] = {}
    sections_of_runs = _grouped([run for run in runs if run.record.get("metrics") or run.charts or run.pictures])
    sections = {
        "leaderboard": ("Leaderboard", leaderboard.tables),
        "reported": ("Reported", leaderboard.problems),
        "curves": ("Curves", charts),
        "pictures": ("Pictures", pictures),
        "runs": ("Runs", sections_of_runs),
    }
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}
    html = environment.get_template("page_template.html").render(
        title=title,
        introduction=introduction,
        sections=[(anchor, name) for anchor, (name, content) in sections.items() if content],
        tables=[_table(table, sections_of_runs) for table in leaderboard.tables],
        problems=leaderboard.problems,
        charts=[_chart(chart) for chart in charts],
        pictures=[_picture(picture, embedded) for picture in pictures],
        runs=_runs(sections_of_runs, embedded),
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


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
            lines += [(metric_of(name).label, show_metric(name, number)) for name, number in value.items()]
        elif key == "protocol":
            lines.append((key, plain(value.get("facts", value))))
        elif key == "time":
            lines.append((key, f"{str(value)[:16].replace('T', ' ')} UTC"))
        elif key == "commit":
            lines.append((key, re.sub(rf"^(\w{{{_HASH}}})\w*", r"\1", str(value))))
        elif key.endswith("sha256"):
            lines.append((key.replace("_", " "), str(value)[:_HASH]))
        elif key == "pretrained_from" and isinstance(value, Mapping):
            lines.append(("pretrained from", plain({k: v for k, v in value.items() if k != "config_sha256"})))
        else:
            lines.append((key.replace("_", " "), plain(value)))
    return lines


def _table(table: Table, runs: Sequence[Sequence[Run]]) -> dict[str, Any]:
    numeric, titles = is_numeric(table), header(table)
    protocols = {letter: {"letter": letter, "name": name, "text": text, "difference": difference}
                 for letter, (name, text, difference) in zip(table.protocols, legend(table), strict=True)}  # fmt: skip
    rows = []
    for row, line in zip(table.results, body(table), strict=True):
        cells = [
            {
                "text": entry.text,
                "number": None if entry.number is None else _rounded(entry.number),
                "numeric": numeric[index],
                "is_best": entry.is_best,
                "notes": entry.notes,
                "is_long": titles[index] in _LONG and len(entry.text) > _SHORT,
                "seeds": _seeds(row, runs) if titles[index] == "Seeds" else [],
            }
            for index, entry in enumerate(line)
        ]
        rows.append({"kind": row.kind, "is_baseline": row.is_baseline, "protocol": row.protocol, "cells": cells})
    groups = groupby(rows, key=lambda row: row["protocol"])
    return {
        "title": table.title,
        "columns": list(zip(titles, numeric, strict=True)),
        "groups": [{"protocol": protocols[letter], "rows": list(members)} for letter, members in groups],
        "meaning": meaning(table),
        "captions": notes(table),
        "sentences": table.sentences(),
        "charts": [_bars(table, name) for name in table.metrics if rows],
    }


def _seeds(row: Row, runs: Sequence[Sequence[Run]]) -> list[tuple[str, int | None]]:
    """Seeds of the row, with the number of the section of the run where there is one."""
    sections = {
        run.record.get("seed"): number
        for number, members in enumerate(runs, start=1)
        for run in members
        if run.record in row.records
    }
    return [(str(seed), sections.get(seed)) for seed in sorted(row.seeds)]


def _bars(table: Table, name: str) -> dict[str, Any]:
    """The metric of every row by protocol, the rows in the table's order."""
    metric, bars = metric_of(name), []
    rows = [row for row in table.results if name in row.cells and row.cells[name].summary is not None]
    names = Counter((row.protocol, row.name) for row in rows)
    for row in rows:
        cell = row.cells[name]
        details = [f"mean {value_entry(name, cell).text}", difference_entry(name, row).text]
        details += [f"seed {seed}: {value:.{metric.digits}f}" for seed, value in cell.values.items()]
        details += [row.pretraining or "", row.source or ""]
        alike = names[row.protocol, row.name] > 1
        bars.append(
            {
                "label": f"{row.name}, {row.pretraining}" if alike and row.pretraining else row.name,
                "group": row.protocol,
                "kind": "baseline" if row.is_baseline else row.kind,
                "mean": _rounded(cell.summary.mean) if cell.summary else None,
                "std": _rounded(cell.summary.std) if cell.summary and cell.summary.std is not None else None,
                "values": [_rounded(value) for value in cell.values.values()] if len(cell.values) > 1 else [],
                "detail": "\n".join(filter(None, details)),
            }
        )
    shown = dict.fromkeys(row.protocol for row in rows)
    return {
        "title": f"{metric.label} by method" + (", grouped by protocol" if len(shown) > 1 else ""),
        "digits": metric.digits,
        "named": len(table.protocols) > 1,
        "groups": [letter for letter in table.protocols if letter in shown],
        "bars": bars,
    }


def _rounded(number: float) -> float:
    """To six digits, more than any column shows."""
    return float(f"{number:.6g}")


def _chart(chart: Chart) -> dict[str, Any]:
    series = [
        {"name": name, "points": [_point(point) for point in _thin(points)]} for name, points in chart.series.items()
    ]
    return {"title": chart.title, "x": chart.x, "y": chart.y, "lines": chart.lines, "series": series}


def _thin(points: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    """At most `_MOST_POINTS` of them, evenly spaced, the last one included."""
    if len(points) <= _MOST_POINTS:
        return points
    step = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(index * step)] for index in range(_MOST_POINTS)]


def _point(point: Iterable[float]) -> list[float | None]:
    # JSON has no NaN.
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in point]


def _picture(picture: Picture, embedded: dict[str, int]) -> dict[str, Any]:
    """Source, size and caption; of a picture whose bytes are in `embedded` its number there alone."""
    try:
        with Image.open(picture.path) as image:
            (width, height), kind = image.size, Image.MIME[str(image.format)]
    except FileNotFoundError:
        raise UserError(f"{picture.path}: there is no such picture for the page.") from None
    except UnidentifiedImageError:
        raise UserError(f"{picture.path}: not an image; the page embeds PNG or JPEG files.") from None
    content = Path(picture.path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest in embedded:
        return {"number": embedded[digest], "source": None, "caption": picture.caption}
    embedded[digest] = len(embedded) + 1
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {
        "number": embedded[digest], "source": source, "width": width, "height": height, "caption": picture.caption
    }  # fmt: skip


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of every section: those that differ in their seed share one if they have no charts and no pictures."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for number, run in enumerate(runs):
        alone = bool(run.charts or run.pictures) and number
        key = run.record.get("suite"), _without_seed(run), plain(run.record.get("fingerprint")), alone
        groups.setdefault(key, []).append(run)
    return [sorted(members, key=lambda run: run.record.get("seed") or 0) for members in groups.values()]


def _without_seed(run: Run) -> str:
    return re.sub(r"/seed\d+$", "", str(run.record.get("run", "unnamed run")))


def _runs(runs: Sequence[Sequence[Run]], embedded: dict[str, int]) -> list[dict[str, Any]]:
    """Every section; a further one of a suite's task tells what differs from the first, to which it links.

    What its line tells is not told again, nor the config's hash, which the seed changes.
    """
    first: dict[tuple[Any, ...], tuple[int, dict[str, str]]] = {}
    sections = []
    for number, members in enumerate(runs, start=1):
        record, shared = members[0].record, _shared(members)
        kind = (*(record.get(name) for name in _KIND), *dict(facts(record)))
        other = first.setdefault(kind, (number, shared))
        sections.append(_section(members, embedded, shared, other if other[0] != number else None))
    return sections


def _shared(members: Sequence[Run]) -> dict[str, str]:
    """The facts that all of some runs have in common."""
    known = [dict(facts(run.record)) for run in members]
    return {name: text for name, text in known[0].items() if all(other.get(name) == text for other in known[1:])}


def _section(
    members: Sequence[Run],
    embedded: dict[str, int],
    shared: Mapping[str, str],
    other: tuple[int, dict[str, str]] | None,
) -> dict[str, Any]:
    record = members[0].record
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
        "by_seed": [] if alone else _by_seed(members, shared),
        "charts": [_chart(chart) for run in members for chart in run.charts],
        "pictures": [_picture(picture, embedded) for run in members for picture in run.pictures],
    }


def _seed(run: Run) -> str:
    seed = run.record.get("seed")
    return "no seed" if seed is None else f"seed {seed}"


def _by_seed(members: Sequence[Run], shared: Mapping[str, str]) -> list[list[str]]:
    """A table of what several runs do not share: its head, and a line for each."""
    known = [dict(facts(run.record)) for run in members]
    names = dict.fromkeys(name for one in known for name in one if name not in {*shared, "seed", "config sha256"})
    lines = [[_seed(run).removeprefix("seed "), *(one.get(name, "") for name in names)]
             for run, one in zip(members, known, strict=True)]  # fmt: skip
    return [["seed", *names], *lines]
