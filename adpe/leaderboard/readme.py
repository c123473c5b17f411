"""benchmarks/README.md: the tables that follow from the published rows, the suites and the committed records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adpe.errors import UserError
from adpe.files import ROOT, atomic_write
from adpe.leaderboard.claims import HEADER, check_claims, lines, sources
from adpe.leaderboard.formats import escape_markdown, markdown_table, to_markdown
from adpe.leaderboard.overview import overview
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import read_records
from adpe.suites.expected import expected_protocol
from adpe.suites.suite import Suite, expand, suite_files
from adpe.suites.suite_file import read_suite

# Differences in the README are to what AdPE adds its adversary to; where a protocol has no such row, to a random start.
BASELINES = ("MAE+ APE", "MAE+", "random")
RECORDS = ROOT / "benchmarks" / "records"
README = ROOT / "benchmarks" / "README.md"
START, END = "<!-- leaderboard: start, written by tools/benchmark.py readme -->", "<!-- leaderboard: end -->"


def committed_records() -> tuple[list[dict[str, object]], list[str]]:
    """Records and faults of every file in `benchmarks/records/`."""
    records, faults = [], []
    for file in sorted(RECORDS.glob("*.jsonl")):
        found, wrong = read_records(file)
        records += found
        faults += [fault.replace(f"{ROOT}/", "") for fault in wrong]
    return records, faults


def generated() -> str:
    """What stands between the markers."""
    records, faults = committed_records()
    suites = [read_suite(name) for name in suite_files()]
    verdicts = check_claims(suites, records, expected_protocol)
    done = sum(item.ours is not None for item in verdicts)
    listed = "  \n".join(map(escape_markdown, sources(verdicts)))
    parts = [
        f"Of {len(verdicts)} published numbers that the suites claim, {done} have been run so far. *Implied*:\n"
        "calculated from what the source prints. `python tools/benchmark.py check` prints this table for any records.",
        markdown_table(HEADER, lines(verdicts)),
        f"<details><summary>Sources</summary>\n\n{listed}\n\n</details>",
    ]
    if records or faults:
        board = build_leaderboard(records, baseline=BASELINES, faults=faults)
        sizes = [one for suite in suites for one in (suite, *map(suite.sized, suite.budgets))]
        told = [text for suite in sizes for text in (_told(suite, records), overview(suite, records))]
        parts += ["### Our runs", *filter(None, told), to_markdown(board, level=4, sentences=False).strip()]
    return "\n\n".join(parts)


def _told(suite: Suite, records: Sequence[Mapping[str, object]]) -> str:
    """What the suite is and how many of its runs have a record; nothing if none has."""
    declared = {run.name for run in expand(suite, Path(suite.name))}
    done = declared & {str(record["run"]) for record in records if record.get("suite") == suite.name}
    if not done:
        return ""
    shared = suite.shared_pretraining
    done |= declared & {str(record["run"]) for record in records if shared and record.get("suite") == shared}
    state = f"{len(done)} of {len(declared)} runs have been made."
    return f"{escape_markdown(suite.title, bold=True)}. {escape_markdown(suite.text)} {state}"


def render(text: str) -> str:
    """`text` of a README with the part between the markers made anew.

    Raises:
        UserError: if it has not both markers, in order and once.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise UserError(f"{README} must have the lines {START!r} and {END!r} once each and in this order.")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{generated()}\n\n{END}{rest.partition(END)[2]}"


def update(path: Path, check: bool = False) -> bool:
    """Rewrite the tables of the README at `path`.

    Args:
        path: of the README.
        check: only look.

    Returns:
        whether it was, or with `check` is, up to date.
    """
    text = path.read_text(encoding="utf-8")
    new = render(text)
    if new != text and not check:
        with atomic_write(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new == text
