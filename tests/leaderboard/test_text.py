"""Text from records: nothing of it steers a terminal or runs in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adpe.leaderboard.compare import compare
from adpe.leaderboard.formats import print_terminal, to_csv
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import append_record, read_records
from adpe.leaderboard.text import spreadsheet_safe, without_controls

TITLE, CLEAR, LINK = "\x1b]0;owned\x07", "\x1b[2J\x1b[1;31m", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\"


def record(method: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "run": f"{method}/{seed}", "method": method, "task": "segmentation", "dataset": "scenes",
        "start": "pretrained", "seed": seed, "metrics": {"mIoU": 40.0 + seed}, "config": "c.py", "time": "now",
        "fingerprint": {"head": "UperNet"}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"{CLEAR}MAE{TITLE}", "MAE"),
        (LINK, "link"),
        ("a\x9b31mb\x9d0;t\x9cc", "abc"),
        ("\x1bcM\x08A\rE\x7f", "MAE"),
        ("\x1b]0;no end", ""),
        ("\u202eEAM", "EAM"),
        ("δ1 ± 2\n\tnext", "δ1 ± 2\n\tnext"),
    ],
)
def test_escape_sequences_and_controls_go(text: str, plain: str) -> None:
    assert without_controls(text) == plain
    assert without_controls({text: [text, 1, None, True]}) == {plain: [plain, 1, None, True]}


def test_records_are_read_and_written_without_escape_sequences(tmp_path: Path) -> None:
    hostile = record(f"{CLEAR}MAE{TITLE}", metrics={f"mIoU{TITLE}": 40.0})
    path = tmp_path / "records.jsonl"
    fault = record("x", task=f"{CLEAR}naps") | {"metrics": {f"{CLEAR}m": "text"}, "task": "segmentation"}
    path.write_text(json.dumps(hostile) + "\n" + json.dumps(fault) + "\n")
    found, faults = read_records(path)
    assert [one["method"] for one in found] == ["MAE"] and found[0]["metrics"] == {"mIoU": 40.0}
    assert len(faults) == 1 and "\x1b" not in faults[0] and "metric m is" in faults[0]
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    print_terminal(build_leaderboard(found, faults=faults), console)
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]
    # Another file gets it clean, and once.
    other = tmp_path / "other.jsonl"
    assert append_record(other, hostile) and not append_record(other, hostile)
    assert b"u001b" not in other.read_bytes()


@pytest.mark.parametrize("text", ["=1+1", "+SUM(A1)", "-x", "@cmd", "\t=1", "\r=1", "-1+2", "+1 =2"])
def test_what_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert spreadsheet_safe(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.5", "-0.5 +1e-3", "MAE+", "a=b", ""])
def test_numbers_and_words_stay(text: str) -> None:
    assert spreadsheet_safe(text) == text


def test_csv_runs_no_formula_and_keeps_numbers() -> None:
    board = build_leaderboard([record("=cmd|x", 0), record("=cmd|x", 1), record("MAE", 0), record("MAE", 1)],
                              baseline="MAE")  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert {row["method"] for row in rows} == {"'=cmd|x", "MAE"}
    assert {row["baseline"] for row in rows} == {"MAE (pretrained)"}
    negative = record("MAE", 2, metrics={"loss": -1.5}, task="pretrain")
    (row,) = csv.DictReader(io.StringIO(to_csv(build_leaderboard([negative]))))
    assert (row["mean"], row["values"]) == ("-1.5", "-1.5")


def test_compare_prints_no_heading_over_nothing() -> None:
    def pretraining(method: str) -> dict[str, Any]:
        return record(method, task="pretrain", metrics={})

    lines = compare([pretraining("A"), record("A")], [pretraining("B"), record("B")])
    assert [line for line in lines if line.endswith(":")] == ["Segmentation on scenes (head UperNet, recorded protocol "
                                                               "before version 2):"]  # fmt: skip
    assert sum(line.startswith("Not compared, neither has a metric: Pretrain on scenes") for line in lines) == 1
    heading = next(number for number, line in enumerate(lines) if line.endswith(":"))
    assert lines[heading + 1].startswith("  A (pretrained)")
