"""The leaderboard as one self-contained HTML file: sortable tables, charts, pictures and a section per run.

The file needs no network and no server. Everything that came from records and logs is escaped, and the page's content
security policy lets nothing but its own script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adpe.files import atomic_write
from adpe.leaderboard.html.figures import Chart, Picture, chart_data, picture_data
from adpe.leaderboard.html.runs import Run, grouped, run_sections
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.meaning import meaning
from adpe.leaderboard.ranking.rows import Row, Table
from adpe.leaderboard.tables import body, difference_entry, header, is_numeric, legend, notes, value_entry
from adpe.leaderboard.tasks import metric_of

_FOLDER = Path(__file__).parent
# Columns of text that may be long, and from how many letters on it is: two lines are shown, the rest on hover.
_LONG, _SHORT = ("Pretraining", "Source"), 24


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
    sections_of_runs = grouped([run for run in runs if run.record.get("metrics") or run.charts or run.pictures])
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
        charts=[chart_data(chart) for chart in charts],
        pictures=[picture_data(picture, embedded) for picture in pictures],
        runs=run_sections(sections_of_runs, embedded),
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    return Path(path)


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
