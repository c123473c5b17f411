"""A leaderboard as a terminal table, Markdown, CSV and LaTeX. Needs the standard library, but for colours rich."""

from __future__ import annotations

import csv
import io
import re
import statistics
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from adpe.leaderboard.protocol import plain
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.meaning import meaning
from adpe.leaderboard.ranking.rows import OURS, Cell, Row, Table
from adpe.leaderboard.tasks import metric_of
from adpe.leaderboard.text import spreadsheet_safe
from adpe.leaderboard.uncertainty.seeds import Difference, describe_interval, detectable

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
    *("source", "author_verified", "notes"),
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
    found = [row.cells[name].difference for row in table.results if name in row.cells]
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
        if not table.results:
            console.print(Text(table.title, style="bold"))
            console.print(Text(" ".join(table.unlearnt), style="dim"))
            console.print()
            continue
        grid = TerminalTable(title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for title, numeric in zip(header(table), is_numeric(table), strict=True):
            longest = max(map(len, title.split()))
            grid.add_column(
                Text(title, style="cyan"), justify="right" if numeric else "left", min_width=longest, overflow="fold"
            )
        for row, line, following in zip(table.results, body(table), [*table.results[1:], None], strict=True):
            texts = [Text(str(entry), style="bold green" if entry.is_best else "") for entry in line]
            grid.add_row(*texts, end_section=following is not None and following.protocol != row.protocol)
        console.print(grid)
        for text in meaning(table):
            console.print(Text(text))
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
        if not table.results:
            parts += [
                f"{'#' * level} {escape_markdown(table.title)}\n",
                escape_markdown(" ".join(table.unlearnt)) + "\n",
            ]
            continue
        rows = [[escape_markdown(str(item), item.is_best) for item in line] for line in body(table)]
        rule = ["---:" if numeric else "---" for numeric in is_numeric(table)]
        lines = [[escape_markdown(title) for title in header(table)], rule, *rows]
        parts.append(f"{'#' * level} {escape_markdown(table.title)}\n")
        parts.append("  \n".join(escape_markdown(text) for text in meaning(table)) + "\n")
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
    """One line per row and metric, all metrics, numbers unrounded, columns `CSV_COLUMNS`; lists joined by spaces.

    Rows that learnt nothing are among them. Texts are such that no spreadsheet runs them as a formula.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in leaderboard.tables:
        for row in table.rows:
            for name, cell in row.cells.items():
                summary, difference = cell.summary, cell.difference
                values = {
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
                    "author_verified": "yes" if row.author_verified else "",
                    "notes": " ".join(leaderboard.problems[number - 1] for number in cell.notes),
                }
                texts = {key: value for key, value in values.items() if isinstance(value, str)}
                writer.writerow(values | {key: spreadsheet_safe(text) for key, text in texts.items()})
    return stream.getvalue()


def to_latex(leaderboard: Leaderboard) -> str:
    r"""One ``table`` environment (package booktabs) per table, protocols parted by ``\midrule``."""
    parts = []
    for table in leaderboard.tables:
        if not table.results:
            parts += [f"% {table.title}: {' '.join(table.unlearnt)}".replace("\n", " "), ""]
            continue
        columns = "".join("r" if numeric else "l" for numeric in is_numeric(table))
        lines = [" & ".join(_latex(title, True) for title in header(table)) + r" \\", r"\midrule"]
        previous = table.results[0].protocol
        for row, line in zip(table.results, body(table), strict=True):
            if row.protocol != previous:
                lines.append(r"\midrule")
            previous = row.protocol
            lines.append(" & ".join(_latex(str(item), item.is_best) for item in line) + r" \\")
        numbers = sorted({number for row in table.rows for cell in row.cells.values() for number in cell.notes})
        noted = (f"[{number}] {leaderboard.problems[number - 1]}" for number in numbers)
        caption = " ".join([f"{table.title}.", *meaning(table), *captions(table), *noted])
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
