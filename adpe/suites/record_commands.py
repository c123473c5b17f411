"""The commands of `tools/benchmark.py` that read records: tables, page, comparison, claims; and protocols.

A table is made of records: torch, mmengine and rich are imported by the commands that need them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.files import ROOT, atomic_write
from adpe.leaderboard.formats import print_terminal, to_csv, to_latex, to_markdown
from adpe.leaderboard.published import read_published
from adpe.leaderboard.ranking import Leaderboard, build_leaderboard
from adpe.leaderboard.records import read_records, share_protocols

RECORDS = ROOT / "benchmarks" / "records"
SUITES_DIR = "work_dirs/suites"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _records(args: argparse.Namespace) -> tuple[list[tuple[dict[str, Any], Path]], list[str]]:
    """Records with the folder of each run, every record once, and what is wrong with the other lines."""
    paths = [Path(path) for path in args.records or [RECORDS, ROOT / SUITES_DIR]]
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            collected = sorted(path.rglob("records.jsonl")) + sorted(path.glob("*.jsonl"))
            # A run's own file repeats a line of its suite's, unless it belongs to none.
            files += collected or sorted(path.rglob("record.jsonl"))
        elif path.is_file():
            files.append(path)
        elif args.records:
            raise UserError(f"--records {path} does not exist.")
    records: list[tuple[dict[str, Any], Path]] = []
    faults: list[str] = []
    for file in dict.fromkeys(file.resolve() for file in files):
        found, wrong = read_records(file)
        faults += wrong
        # A shared pretraining stands in the file of every suite that uses it.
        records += [(one, _run_folder(file, one)) for one in found if all(one != known for known, _ in records)]
    share_protocols(record for record, _ in records)
    return records, faults


def _run_folder(file: Path, record: dict[str, Any]) -> Path:
    folder = file.parent / str(record["run"])
    return folder if folder.is_dir() else file.parent


def _board(args: argparse.Namespace) -> tuple[Leaderboard, list[tuple[dict[str, Any], Path]], list[dict[str, Any]]]:
    records, faults = _records(args)
    published = [] if args.no_published else read_published()
    board = build_leaderboard(
        [record for record, _ in records], baseline=args.baseline, published=published, faults=faults
    )
    return board, records, published


def table(args: argparse.Namespace) -> int:
    """The leaderboard as text."""
    board, records, _ = _board(args)
    if not board.tables:
        wrong = "".join(f"\n  {problem}" for problem in board.problems)
        found = f"no table of {len(records)} records" if records else "no records"
        raise UserError(f"there is nothing to show: {found} and no published rows.{wrong}")
    if args.format == "terminal" and not args.out:
        print_terminal(board)
        return 0
    formats = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}
    if args.format == "terminal":
        raise UserError("--out needs --format markdown, csv or latex.")
    text = formats[args.format](board)
    if args.out:
        with atomic_write(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def page(args: argparse.Namespace) -> int:
    """The leaderboard as one HTML file."""
    from adpe.leaderboard.html.report import write_report

    board, records, published = _board(args)
    write_report(args.out, board, records, published)
    say(f"Page: {args.out}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Whether one row or run differs from another."""
    from adpe.leaderboard import compare as comparison

    found, faults = _records(args)
    records = [record for record, _ in found]
    for line in comparison.compare(
        comparison.select(args.a, records), comparison.select(args.b, records), resamples=args.resamples
    ):
        say(line)
    for fault in faults:
        say(f"Reported: {fault}")
    return 0


def protocol(args: argparse.Namespace) -> int:
    """The resolved protocol of a config, as JSON."""
    from adpe.engine.config import mistake_in_config
    from adpe.engine.resolved_protocol import resolve

    # Whatever building the objects prints is not part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            resolved = resolve(args.config, args.cfg_options or {})
        except UserError:
            raise
        except Exception as error:
            mistake = mistake_in_config(error)
            if mistake is None:
                raise
            raise mistake from None
    json.dump(resolved, sys.stdout, indent=1, sort_keys=True)
    print()
    missing = [name for name, data in resolved["protocol"]["data"].items() if data is None]
    if missing:
        print(f"Not here, and so not in the fingerprint: the images of {', '.join(missing)}.", file=sys.stderr)
    return 0


def check(args: argparse.Namespace) -> int:
    """Every claim of the suites; status 1 if one fails."""
    from rich.console import Console
    from rich.table import Table as TerminalTable
    from rich.text import Text

    from adpe.leaderboard import claims
    from adpe.suites.expected import expected_protocol
    from adpe.suites.suite import suite_files
    from adpe.suites.suite_file import read_suite

    console = Console()
    suites = [read_suite(name) for name in args.suites or suite_files()]
    found, faults = _records(args)
    verdicts = claims.check_claims(suites, [record for record, _ in found], expected_protocol)
    grid = TerminalTable()
    styles = dict(zip(claims.STATES, ("green", "red", "cyan", "yellow", "dim"), strict=True))
    for title in claims.HEADER:
        grid.add_column(title, overflow="fold")
    for verdict, cells in zip(verdicts, claims.lines(verdicts), strict=True):
        grid.add_row(*map(Text, cells), style=styles[verdict.state])
    console.print(grid)
    for line in claims.sources(verdicts):
        console.print(Text(line, style="dim"))
    counts = {state: sum(item.state == state for item in verdicts) for state in styles}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    for fault in faults:
        console.print(Text(f"Reported: {fault}", style="yellow"))
    return 1 if counts[claims.FAIL] else 0


def metafile(args: argparse.Namespace) -> int:
    """OpenMMLab's files about the models of the records."""
    from adpe.leaderboard.metafile import write_metafiles

    found, faults = _records(args)
    if not found and faults:
        raise UserError("no record can be read:" + "".join(f"\n  {fault}" for fault in faults))
    for path in write_metafiles([record for record, _ in found], Path(args.out)):
        say(str(path))
    return 0


def collect(args: argparse.Namespace) -> int:
    """Copy the records of a suite's runs."""
    from adpe.leaderboard import records

    folder = Path(args.folder)
    target = Path(args.out) if args.out else RECORDS / f"{folder.resolve().name}.jsonl"
    added, known, faults = records.collect(folder, target)
    say(f"{target}: {added} of {known} records added.")
    for fault in faults:
        say(f"Reported: {fault}")
    return 0


def readme(args: argparse.Namespace) -> int:
    """Write benchmarks/README.md anew, or tell whether it is up to date."""
    from adpe.leaderboard import readme as generated

    path = generated.README
    name = path.relative_to(ROOT)
    if generated.update(path, check=args.check):
        say(f"{name} is up to date.")
        return 0
    say(f"{name} is stale: run tools/benchmark.py readme." if args.check else f"{name} was rewritten.")
    return 1 if args.check else 0
