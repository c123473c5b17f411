"""What stands in the tables of a leaderboard, whatever they are written as: columns, cells, and the notes below."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adpe.leaderboard.protocol import plain
from adpe.leaderboard.ranking.rows import OURS, Cell, Row, Table
from adpe.leaderboard.tasks import metric_of
from adpe.leaderboard.uncertainty.seeds import Difference, describe_interval, usual_detectable

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Entry:
    """One table cell.

    Attributes:
        text: what is shown.
        is_best: whether it is its protocol's best.
        number: to sort by, if there is one.
        notes: numbers of the sentences in `Leaderboard.problems` about it.
    """

    text: str
    is_best: bool = False
    number: float | None = None
    notes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} [{', '.join(map(str, self.notes))}]" if self.notes else self.text


def header(table: Table) -> list[str]:
    """Titles of the columns that `body` fills: protocol, method, what else tells rows apart, metrics, source."""
    shown = _columns(table)
    titles = ["Protocol"] * shown.protocol + ["Method"] + ["Backbone"] * shown.backbone
    titles += ["Pretraining"] * shown.pretraining + ["Start"] * shown.start + ["Sweep"] * shown.sweep
    titles += ["Own settings"] * shown.own + ["Seeds"] * shown.seeds
    for name in table.metrics:
        titles += [metric_of(name).label] + ["Difference"] * _has_difference(table, name)
    return titles + ["Author-verified"] * shown.verified + ["Source"] * shown.source


def body(table: Table) -> list[list[Entry]]:
    """Cells of every row that is a result, in the order of `header`; ``str`` adds a cell's notes in brackets."""
    shown = _columns(table)
    compared = {name for name in table.metrics if _has_difference(table, name)}
    marks = _marks(table)
    lines = []
    for row in table.results:
        line = [Entry(row.protocol)] * shown.protocol + [Entry(row.method)]
        line += [Entry(row.backbone or "")] * shown.backbone + [Entry(row.pretraining or "")] * shown.pretraining
        line += [Entry(row.start or "")] * shown.start + [Entry(row.sweep or "")] * shown.sweep
        line += [Entry(marks[row.own] if row.own else "")] * shown.own
        line += [Entry(str(len(row.seeds)), number=len(row.seeds)) if row.kind == OURS else Entry("")] * shown.seeds
        for name in table.metrics:
            line.append(value_entry(name, row.cells.get(name)))
            if name in compared:
                line.append(difference_entry(name, row))
        line += [Entry("yes" if row.author_verified else "")] * shown.verified
        line += [Entry(_source(row))] * shown.source
        lines.append(line)
    return lines


def is_numeric(table: Table) -> list[bool]:
    """For every column, whether any of its cells holds a number."""
    lines = body(table)
    return [any(line[index].number is not None for line in lines) for index in range(len(header(table)))]


def value_entry(name: str, cell: Cell | None) -> Entry:
    """``"45.10 ± 0.52"``, or ``"none"`` without a usable run."""
    if cell is None:
        return Entry("")
    if cell.summary is None:
        return Entry("none", notes=tuple(cell.notes))
    digits = metric_of(name).digits
    spread = "" if cell.summary.std is None else f" ± {cell.summary.std:.{digits}f}"
    return Entry(f"{cell.summary.mean:.{digits}f}{spread}", cell.is_best, cell.summary.mean, tuple(cell.notes))


def difference_entry(name: str, row: Row) -> Entry:
    """``"+3.21 (1.10 to 5.32)"``, ``"+3.21 (one seed: no interval)"``, ``no spread: ...`` or ``"baseline"``."""
    cell = row.cells.get(name)
    if row.is_baseline:
        return Entry("baseline", number=0.0)
    if cell is None or cell.difference is None:
        return Entry("")
    return Entry(difference_text(name, cell.difference), number=cell.difference.mean)


def difference_text(name: str, difference: Difference) -> str:
    """A difference of a metric with its interval in brackets, or why there is none."""
    digits = metric_of(name).digits
    if difference.low is None or difference.high is None:
        doubt = describe_interval(difference)
    else:
        doubt = f"{difference.low:+.{digits}f} to {difference.high:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} ({doubt})"


def captions(table: Table) -> list[str]:
    """What the numbers of a table are, and its protocols."""
    lines = notes(table)
    for letter, text, difference in legend(table):
        lines.append(f"{letter}: {text}.")
        if difference:
            lines.append(f"{letter} {difference}.")
    return lines


def legend(table: Table) -> list[tuple[str, str, str]]:
    """Of every protocol: what it is called, its facts in words, and from which other it differs in what.

    A table with one protocol calls it ``"Protocol"``, others ``"Protocol A"`` and on.
    """
    found = []
    for letter in table.protocols:
        name = f"Protocol {letter}" if len(table.protocols) > 1 else "Protocol"
        differs = table.differences.get(letter)
        facts = table.protocols[letter]
        facts = {"head": facts.get("head"), **facts}  # what is trained on the encoder says most
        found.append((name, plain(facts) or "not recorded", f"differs from {differs}" * bool(differs)))
    return found


def notes(table: Table) -> list[str]:
    """What the numbers of a table are: spread, baseline, settings of their own, what was not learnt."""
    cells = [row.cells[name] for row in table.results for name in table.metrics if name in row.cells]
    lines = []
    if any(cell.summary is not None and cell.summary.std is not None for cell in cells):
        lines.append("Mean ± standard deviation over seeds.")
    differences = [cell.difference for cell in cells if cell.difference is not None]
    if differences:
        names = ", ".join(dict.fromkeys(str(row.baseline) for row in table.results if row.is_baseline))
        interval = f", {differences[0].confidence:.0%} t interval over seeds in brackets"
        lines.append(f"Difference to {names}{interval if any(item.method for item in differences) else ''}.")
        intervals = [item for item in differences if item.method]
        if len(intervals) > 3:
            chance = len(intervals) * (1 - intervals[0].confidence)
            lines.append(f"Each interval holds by itself: of {len(intervals)}, {chance:.1f} exclude 0 by chance.")
    lines += _power(table)
    lines += table.unlearnt
    if any(row.own for row in table.results):
        lines.append(
            "Own settings: in what the protocol of a row differs from its letter's, by its authors or its file."
        )
        lines += [f"({mark}) {text}." for text, mark in _marks(table).items()]
    if len({row.protocol for row in table.results}) > 1:
        lines.append("Different protocols: their rows are not comparable with one another.")
    if any(row.author_verified for row in table.results):
        lines.append("Author-verified: the method's authors confirmed the row.")
    return lines


def _marks(table: Table) -> dict[str, str]:
    """Settings of their own that rows have -> the letter that stands for them: many rows have the same."""
    marks: dict[str, str] = {}
    for row in table.results:
        if row.own:
            marks.setdefault(row.own, string.ascii_lowercase[len(marks) % 26] * (1 + len(marks) // 26))
    return marks


def _power(table: Table) -> list[str]:
    """Which difference the seeds could have shown, for the metric that ranks."""
    name = table.metrics[0] if table.metrics else ""
    size = usual_detectable(row.cells[name].difference for row in table.results if name in row.cells)
    if size is None:
        return []
    metric = metric_of(name)
    return [
        f"Power: seeds with this spread find a true difference of {size:.{metric.digits}f} {metric.label} "
        "in four of five repetitions (median over the rows); smaller ones are mostly missed."
    ]


class _Columns(NamedTuple):
    protocol: bool
    backbone: bool
    pretraining: bool
    start: bool
    sweep: bool
    own: bool
    seeds: bool
    verified: bool
    source: bool


def _columns(table: Table) -> _Columns:
    rows = table.results
    sourced = any(row.kind != OURS for row in rows)
    return _Columns(
        protocol=len({row.protocol for row in rows}) > 1,
        backbone=sourced or len({row.backbone for row in rows}) > 1,
        pretraining=any(row.pretraining for row in rows),
        start=any(row.start for row in rows),
        sweep=any(row.sweep for row in rows),
        own=any(row.own for row in rows),
        seeds=any(row.kind == OURS for row in rows),
        verified=any(row.author_verified for row in rows),
        source=sourced,
    )


def _has_difference(table: Table, name: str) -> bool:
    return any(row.cells[name].difference is not None for row in table.results if name in row.cells)


def _source(row: Row) -> str:
    if row.kind == OURS:
        return OURS
    return f"{row.kind}: {row.source}" + (f" ({row.note})" if row.note else "")
