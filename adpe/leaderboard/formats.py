"""A leaderboard as a terminal table, Markdown, CSV and LaTeX. Needs the standard library, but for colours rich."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adpe.leaderboard.protocol import plain
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.meaning import meaning
from adpe.leaderboard.tables import body, captions, header, is_numeric
from adpe.leaderboard.text import spreadsheet_safe
from adpe.leaderboard.uncertainty.seeds import describe_interval

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
