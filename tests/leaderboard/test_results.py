"""What a table says of its rows: what it means, what was not learnt, who verified it; and how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adpe.files import ROOT
from adpe.leaderboard.formats import to_csv, to_latex, to_markdown
from adpe.leaderboard.html.page import write_page
from adpe.leaderboard.html.report import write_report
from adpe.leaderboard.protocol import fingerprint
from adpe.leaderboard.published import read_published
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.ranking.meaning import meaning
from adpe.leaderboard.readme import committed_records
from adpe.leaderboard.records import read_records, record_fault
from adpe.leaderboard.tables import captions
from adpe.leaderboard.tasks import metric_of


def record(method: str, seed: int, value: float, metric: str = "mIoU", **changes: Any) -> dict[str, Any]:
    classes = changes.pop("classes", None)
    protocol = {"version": 2, "facts": {"head": "UPerHead"}, "data": {"val": {"classes": classes}}}
    return {
        "schema": 1, "run": f"{method}/{seed}", "method": method, "task": "segmentation", "dataset": "scenes",
        "start": "pretrained", "seed": seed, "metrics": {metric: value}, "config": "c.py", "time": "now",
        "protocol": protocol, "fingerprint": fingerprint(protocol), **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "classes", "values", "learnt"),
    [
        ("mIoU", 80, (1.1, 1.25), False),
        ("mIoU", 80, (1.1, 1.26), True),
        ("mIoU", 2, (45.0, 50.0), False),
        ("mIoU", 2, (45.0, 51.0), True),
        ("mIoU", None, (1.0, 1.25), False),
        ("top1", 10, (9.0, 10.0), False),
        ("top1", 10, (9.0, 10.5), True),
        ("bbox_mAP", 80, (0.0003, 0.001), False),
        ("bbox_mAP", 80, (0.0003, 0.0011), True),
    ],
)
def test_what_a_constant_prediction_reaches_is_no_result(metric, classes, values, learnt) -> None:
    task = {"mIoU": "segmentation", "top1": "classification", "bbox_mAP": "detection"}[metric]
    found = [
        record(name, 0, value, metric, classes=classes, task=task) for name, value in zip("AB", values, strict=True)
    ]
    board = build_leaderboard(found, baseline="A")
    (table,) = board.tables
    assert len(table.rows) == 2 and len(table.results) == 2 * learnt and bool(table.unlearnt) != learnt
    markdown = to_markdown(board)
    assert ("| Method |" in markdown) == learnt and ("Nothing was learnt" in markdown) != learnt
    assert ("tabular" in to_latex(board)) == learnt and (
        "% Nothing" in to_latex(board).replace(table.title + ": ", "")
    ) != learnt
    # The numbers themselves are not lost.
    assert to_csv(board).count("\n") == 3


def test_the_protocol_that_learnt_keeps_its_rows() -> None:
    other = {"version": 2, "facts": {"head": "FCNHead"}, "data": {}}
    found = [record("A", 0, 1.0), record("B", 0, 40.0, protocol=other, fingerprint=fingerprint(other))]
    (table,) = build_leaderboard(found).tables
    assert [row.method for row in table.results] == ["B"]
    assert any("Nothing was learnt under protocol A: mIoU is at most 1.00" in text for text in captions(table))


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "x", build_leaderboard([record("A", 0, 1.0), record("B", 0, 0.5)]))
    text = (tmp_path / "index.html").read_text()
    assert "Nothing was learnt" in text and "<table" not in text and "data-chart" not in text.split("<script>")[0]


def test_what_a_table_means_follows_from_its_intervals() -> None:
    def rows(*means: float) -> list[dict[str, Any]]:
        spread = (-0.1, 0.0, 0.1)
        return [record(name, seed, mean + spread[(seed + step) % 3])
                for step, (name, mean) in enumerate(zip("ABCD", means, strict=False))
                for seed in range(3)]  # fmt: skip

    (table,) = build_leaderboard(rows(40.0, 45.0, 35.0, 40.05), baseline="A").tables
    assert meaning(table) == [
        "mIoU: B (pretrained) is better than A (pretrained) by more than seed noise; C (pretrained) is worse than A "
        "(pretrained) by more than seed noise; 3 seeds tell none of the others from A (pretrained)."
    ]
    (table,) = build_leaderboard([record("A", 0, 40.0), record("B", 0, 45.0)], baseline="A").tables
    assert meaning(table) == ["mIoU: one seed tells no row from A (pretrained)."]
    (table,) = build_leaderboard([record("A", 0, 40.0), record("B", 0, 45.0)]).tables
    assert meaning(table) == ["mIoU: B (pretrained) has the best mean; there is no baseline to compare with."]
    # Lower is better.
    lower = [record(name, seed, value + seed / 10, "loss", task="pretrain")
             for name, value in (("A", 1.0), ("B", 0.5)) for seed in range(3)]  # fmt: skip
    lower[3]["metrics"]["loss"] += 0.01
    (table,) = build_leaderboard(lower, baseline="A").tables
    assert meaning(table)[0].startswith("loss: B (pretrained) is better than A (pretrained)")


def test_every_table_of_the_readme_has_its_sentence() -> None:
    found, faults = committed_records()
    board = build_leaderboard(found, faults=faults)
    assert faults == [] and len(board.tables) >= 5
    for table in board.tables:
        assert bool(table.results) == bool(meaning(table)), table.title
        assert table.results or table.unlearnt, table.title
    # 60 iterations teach a detector of 80 classes nothing.
    assert [table.results for table in board.tables if table.title == "Detection on coco_mini"] == [[]]


def test_author_verified_rows_are_marked_everywhere(tmp_path: Path) -> None:
    verified = [record("A", seed, 40.0 + seed, author_verified=True) for seed in range(2)]
    half = [record("B", 0, 41.0, author_verified=True), record("B", 1, 41.5)]
    board = build_leaderboard([*verified, *half], baseline="A")
    (table,) = board.tables
    assert {row.method: row.author_verified for row in table.rows} == {"A": True, "B": False}
    assert "Author-verified" in to_markdown(board) and "author_verified" in to_csv(board).splitlines()[0]
    write_page(tmp_path / "index.html", "x", board)
    assert '<button type="button">Author-verified</button>' in (tmp_path / "index.html").read_text()
    assert "Author-verified" not in to_markdown(build_leaderboard(half, baseline="B"))
    assert "author_verified" in str(record_fault(record("A", 0, 1.0, author_verified="yes")))


def test_the_template_is_a_record_without_numbers(tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "record_template.json").read_text()
    template = json.loads(text)
    assert record_fault(template) is None and set(template["metrics"].values()) == {None}
    (tmp_path / "mine.jsonl").write_text(json.dumps(template) + "\n")
    (one,), faults = read_records(tmp_path / "mine.jsonl")
    (table,) = build_leaderboard([one | {"metrics": {"mIoU": 40.0}}]).tables
    assert faults == [] and table.protocols["A"]["head"] == "UperNet"


def test_the_page_of_all_records_is_under_a_megabyte(tmp_path: Path) -> None:
    found, faults = committed_records()
    published = read_published()
    board = build_leaderboard(found, published=published, faults=faults)
    path = write_report(tmp_path / "index.html", board, [(one, tmp_path / "gone") for one in found], published)
    assert path.stat().st_size < 1_000_000
    assert "font-style: italic" not in path.read_text()


def test_floors_are_below_every_published_number() -> None:
    for entry in read_published():
        for name, value in entry["metrics"].items():
            assert value > metric_of(name).floor_of(None), entry
