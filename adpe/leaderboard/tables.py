"""A leaderboard as a terminal table, Markdown, CSV and LaTeX. Needs the standard library, but for colours rich."""

from __future__ import annotations

import csv
import io
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from adpe.leaderboard.protocol import plain
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.rows import OURS, Cell, Row, Table
from adpe.leaderboard.tasks import metric_of
from adpe.leaderboard.uncertainty.seeds import describe_interval, detectable

if TYPE_CHECKING:
    from rich.console import Console

CSV_COLUMNS = (
    *(
        "task",
        "dataset",
        "protocol",
        "fingerprint",
        "own_settings",
        "method",
        "backbone",
        "pretraining",
        "start",
        "sweep",
        "kind",
        "metric",
        "mean",
        "std",
        "seeds",
        "values",
    ),
    *("low", "high", "confidence", "difference", "difference_low", "difference_high", "interval", "baseline"),
    *("source", "notes"),
)


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
        return " ".join([self.text, *(f"[{number}]" for number in self.notes)])


def header(table: Table) -> list[str]:
    """Column titles: protocol (if there are several), method, what else tells rows apart, metrics, source."""
    shown = _columns(table)
    titles = ["Protocol"] * shown.protocol + ["Method"] + ["Backbone"] * shown.backbone
    titles += ["Pretraining"] * shown.pretraining + ["Start"] * shown.start + ["Sweep"] * shown.sweep
    titles += ["Own settings"] * shown.own + ["Seeds"] * shown.seeds
    for name in table.metrics:
        titles += [metric_of(name).label] + ["Difference"] * _has_difference(table, name)
    return titles + ["Source"] * shown.source


def body(table: Table) -> list[list[Entry]]:
    """Cells of every row, in the order of `header`; ``str`` of one adds its notes in square brackets."""
    shown = _columns(table)
    lines = []
    for row in table.rows:
        line = [Entry(row.protocol)] * shown.protocol + [Entry(row.method)]
        line += [Entry(row.backbone or "")] * shown.backbone + [Entry(row.pretraining or "")] * shown.pretraining
        line += [Entry(row.start or "")] * shown.start + [Entry(row.sweep or "")] * shown.sweep
        line += [Entry(row.own or "")] * shown.own
        line += [Entry(str(len(row.seeds)), number=len(row.seeds)) if row.kind == OURS else Entry("")] * shown.seeds
        for name in table.metrics:
            line.append(value_entry(name, row.cells.get(name)))
            if _has_difference(table, name):
                line.append(difference_entry(name, row))
        line += [Entry(_source(row))] * shown.source
        lines.append(line)
    return lines


def is_numeric(table: Table) -> list[bool]:
    """For every column, whether any of its cells holds a number."""
    return [any(entry.number is not None for entry in column) for column in zip(*body(table), strict=True)]


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
    digits, difference = metric_of(name).digits, cell.difference
    if difference.low is None or difference.high is None:
        doubt = describe_interval(difference)
    else:
        doubt = f"{difference.low:+.{digits}f} to {difference.high:+.{digits}f}"
    return Entry(f"{difference.mean:+.{digits}f} ({doubt})", number=difference.mean)


def captions(table: Table) -> list[str]:
    """What the numbers are: spread, baseline, protocols."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    lines = []
    if any(cell.summary is not None and cell.summary.std is not None for cell in cells):
        lines.append("Mean ± standard deviation over seeds.")
    differences = [cell.difference for cell in cells if cell.difference is not None]
    if differences:
        names = ", ".join(dict.fromkeys(str(row.baseline) for row in table.rows if row.is_baseline))
        interval = f", {differences[0].confidence:.0%} t interval over seeds in brackets"
        lines.append(f"Difference to {names}{interval if any(item.method for item in differences) else ''}.")
    lines += _power(table)
    lines += table.unlearnt
    if any(row.own for row in table.rows):
        lines.append(
            "Own settings: in what the protocol of a row differs from its letter's, by its authors or its file."
        )
    if len(table.protocols) > 1:
        lines.append("Different protocols: their rows are not comparable with one another.")
    for letter, protocol in table.protocols.items():
        name = f"Protocol {letter}" if len(table.protocols) > 1 else "Protocol"
        lines.append(f"{name}: {plain(protocol) or 'not recorded'}.")
        if letter in table.differences:
            lines.append(f"{name} differs from {table.differences[letter]}.")
    return lines


def _power(table: Table) -> list[str]:
    """Which difference the seeds could have shown, for the metric that ranks."""
    name = table.metrics[0] if table.metrics else ""
    found = [row.cells[name].difference for row in table.rows if name in row.cells]
    sizes = [size for one in found if one is not None and (size := detectable(one)) is not None]
    if not sizes:
        return []
    metric, size = metric_of(name), statistics.median(sizes)
    return [
        f"Power: seeds with this spread find a true difference of {size:.{metric.digits}f} {metric.label} "
        "in four of five repetitions (median over the rows); smaller ones are mostly missed."
    ]


def print_terminal(leaderboard: Leaderboard, console: Console | None = None) -> None:
    """Print every table, what its differences mean in words, and the problems; with rich, or else as Markdown."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as TerminalTable
        from rich.text import Text
    except ModuleNotFoundError:
        sys.stdout.write(to_markdown(leaderboard))
        return
    console = console or Console()
    for table in leaderboard.tables:
        grid = TerminalTable(title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for title, numeric in zip(header(table), is_numeric(table), strict=True):
            longest = max(map(len, title.split()))
            grid.add_column(
                Text(title, style="cyan"), justify="right" if numeric else "left", min_width=longest, overflow="fold"
            )
        for row, line, following in zip(table.rows, body(table), [*table.rows[1:], None], strict=True):
            texts = [Text(str(entry), style="bold green" if entry.is_best else "") for entry in line]
            grid.add_row(*texts, end_section=following is not None and following.protocol != row.protocol)
        console.print(grid)
        for text in captions(table):
            console.print(Text(text, style="dim"))
        for text in table.sentences():
            console.print(Text(f"• {text}"))
        console.print()
    for number, text in enumerate(leaderboard.problems, start=1):
        console.print(Text(f"[{number}] {text}", style="yellow"))


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text cells in GitHub-flavoured Markdown."""
    lines = [[escape_markdown(title) for title in titles], ["---"] * len(titles)]
    lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_markdown(leaderboard: Leaderboard, level: int = 2, sentences: bool = True) -> str:
    """GitHub-flavoured Markdown with headings of `level`; the best of each protocol in bold.

    With `sentences` every difference to the baseline is told in words, too.
    """
    parts = []
    for table in leaderboard.tables:
        rows = [[escape_markdown(str(item), item.is_best) for item in line] for line in body(table)]
        rule = ["---:" if numeric else "---" for numeric in is_numeric(table)]
        lines = [[escape_markdown(title) for title in header(table)], rule, *rows]
        parts.append(f"{'#' * level} {escape_markdown(table.title)}\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        parts.append("  \n".join(escape_markdown(text) for text in captions(table)) + "\n")
        if sentences and table.sentences():
            parts.append("\n".join(f"- {escape_markdown(text)}" for text in table.sentences()) + "\n")
    if leaderboard.problems:
        parts.append(f"{'#' * level} Reported\n")
        problems = (
            f"- [{number}] {escape_markdown(text)}" for number, text in enumerate(leaderboard.problems, start=1)
        )
        parts.append("\n".join(problems) + "\n")
    return "\n".join(parts)


def to_csv(leaderboard: Leaderboard) -> str:
    """One line per row and metric, all metrics, numbers unrounded, columns `CSV_COLUMNS`; lists joined by spaces."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in leaderboard.tables:
        for row in table.rows:
            for name, cell in row.cells.items():
                summary, difference = cell.summary, cell.difference
                writer.writerow(
                    {
                        "task": table.task,
                        "dataset": table.dataset,
                        "protocol": row.protocol,
                        "fingerprint": _facts(table.protocols[row.protocol]),
                        "own_settings": row.own,
                        "method": row.method,
                        "backbone": row.backbone,
                        "pretraining": row.pretraining,
                        "start": row.start,
                        "sweep": row.sweep,
                        "kind": row.kind,
                        "metric": name,
                        "mean": summary and summary.mean,
                        "std": summary and summary.std,
                        "seeds": " ".join(map(str, cell.values)),
                        "values": " ".join(map(repr, cell.values.values())),
                        "low": summary and summary.low,
                        "high": summary and summary.high,
                        "confidence": summary and summary.confidence,
                        "difference": difference and difference.mean,
                        "difference_low": difference and difference.low,
                        "difference_high": difference and difference.high,
                        "interval": difference and (difference.method or describe_interval(difference)),
                        "baseline": row.baseline,
                        "source": row.source,
                        "notes": " ".join(leaderboard.problems[number - 1] for number in cell.notes),
                    }
                )
    return stream.getvalue()


def to_latex(leaderboard: Leaderboard) -> str:
    r"""One ``table`` environment (package booktabs) per table, protocols parted by ``\midrule``."""
    parts = []
    for table in leaderboard.tables:
        columns = "".join("r" if numeric else "l" for numeric in is_numeric(table))
        lines = [" & ".join(_latex(title, True) for title in header(table)) + r" \\", r"\midrule"]
        previous = table.rows[0].protocol if table.rows else ""
        for row, line in zip(table.rows, body(table), strict=True):
            if row.protocol != previous:
                lines.append(r"\midrule")
            previous = row.protocol
            lines.append(" & ".join(_latex(str(item), item.is_best) for item in line) + r" \\")
        numbers = sorted({number for row in table.rows for cell in row.cells.values() for number in cell.notes})
        notes = (f"[{number}] {leaderboard.problems[number - 1]}" for number in numbers)
        caption = " ".join([f"{table.title}.", *captions(table), *notes])
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(caption)}}}",
            rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', table.title.lower())}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


class _Columns(NamedTuple):
    protocol: bool
    backbone: bool
    pretraining: bool
    start: bool
    sweep: bool
    own: bool
    seeds: bool
    source: bool


def _columns(table: Table) -> _Columns:
    rows = table.rows
    sourced = any(row.kind != OURS for row in rows)
    return _Columns(
        protocol=len(table.protocols) > 1,
        backbone=sourced or len({row.backbone for row in rows}) > 1,
        pretraining=any(row.pretraining for row in rows),
        start=any(row.start for row in rows),
        sweep=any(row.sweep for row in rows),
        own=any(row.own for row in rows),
        seeds=any(row.kind == OURS for row in rows),
        source=sourced,
    )


def _has_difference(table: Table, name: str) -> bool:
    return any(row.cells[name].difference is not None for row in table.rows if name in row.cells)


def _source(row: Row) -> str:
    if row.kind == OURS:
        return OURS
    return f"{row.kind}: {row.source}" + (f" ({row.note})" if row.note else "")


def _facts(protocol: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}={plain(value)}" for key, value in protocol.items())


def escape_markdown(text: str, bold: bool = False) -> str:
    """Text so that GitHub-flavoured Markdown shows it as it is, on one line."""
    text = re.sub(r"([\\`*_|<>~])", r"\\\1", text).replace("\n", " ")
    return f"**{text}**" if bold else text


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\n": " ",
}


def _latex(text: str, bold: bool = False) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    return rf"\textbf{{{text}}}" if bold else text
