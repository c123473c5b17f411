"""Protocols compared: in words, under marks in tables and `compare`, and as claims; made up, or resolved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpe.errors import UserError
from adpe.leaderboard.claims import FAIL, INCOMPLETE, NEAR_MISS, NOT_RUN, PASS, check_claims
from adpe.leaderboard.compare import compare
from adpe.leaderboard.formats import to_csv, to_markdown
from adpe.leaderboard.protocol import changes, facts, fingerprint, own_settings, protocol_key, words
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.ranking.rows import Table
from adpe.leaderboard.records import append_record, read_records
from adpe.leaderboard.tables import captions
from adpe.suites.expected import expected_protocol
from adpe.suites.suite import Suite
from adpe.suites.suite_file import read_suite

MAE = "configs/pretrain/mae_vitb_1600e.py"
PROTOCOL: dict[str, Any] = {
    "version": 2,
    "facts": {"backbone": "vit", "head": "UPerHead", "batch": 16},
    "config": {
        "model": {"test_cfg": {"mode": "slide"}, "backbone": {"position": "absolute"}},
        "train_dataloader": {"dataset": {"pipeline": [{"type": "Resize", "scale": [64, 64]}, {"type": "RandomFlip"}]}},
    },
    "model": {"backbone": {"position": "absolute"}},
    "optimizer": {"class": "AdamW"},
    "data": {"train": {"images": 10}, "val": {"images": 5}},
}


def changed(**values: Any) -> dict[str, Any]:
    """`PROTOCOL` with values at paths of which ``__`` is the dot."""
    protocol = copy.deepcopy(PROTOCOL)
    for path, value in values.items():
        *parents, last = path.split("__")
        node = protocol
        for name in parents:
            node = node[name]
        node[last] = value
    return protocol


def record(
    method: str, seed: int, miou: float, own: dict[str, Any] = PROTOCOL, task: dict[str, Any] = PROTOCOL, **more: Any
) -> dict[str, Any]:
    found = changes(own, task)
    return {
        "schema": 1, "run": f"{method}-{seed}", "method": method, "task": "segmentation", "dataset": "scenes",
        "start": "pretrained", "seed": seed, "metrics": {"mIoU": miou}, "config": "c.py", "time": "2026",
        "protocol": own, "fingerprint": fingerprint(own), "task_fingerprint": fingerprint(task),
        "own": {"changes": [list(change) for change in found]} if found else None, **more,
    }  # fmt: skip


WHOLE = changed(config__model__test_cfg__mode="whole")
RELATIVE = changed(
    config__model__backbone__position="relative", model__backbone__position="relative", facts__batch=4096
)


def only(records: list[dict[str, Any]], **options: Any) -> Table:
    (table,) = build_leaderboard(records, **options).tables
    return table


def test_changes_are_told_once_and_the_readable_first() -> None:
    found = changes(PROTOCOL, RELATIVE)
    assert [change.path for change in found] == [
        "facts.batch", "config.model.backbone.position", "model.backbone.position",
    ]  # fmt: skip
    assert words(found) == "batch 16 against 4096; model.backbone.position absolute against relative"
    assert words(found, 1) == "batch 16 against 4096; and 1 more"
    # A step that comes first shifts no other.
    steps = [{"type": "Load"}, {"type": "Resize", "scale": [32, 32]}, {"type": "RandomFlip"}]
    inserted = changed(config__train_dataloader={"dataset": {"pipeline": steps}})
    assert [change.path.rpartition("pipeline.")[2] for change in changes(PROTOCOL, inserted)] == [
        "Resize.scale", "Load.type",
    ]  # fmt: skip
    assert (
        words(changes(PROTOCOL, inserted))
        == "pipeline.Resize.scale 64x64 against 32x32; pipeline.Load.type absent against Load"
    )
    assert changes(PROTOCOL, RELATIVE, free=["config.model", "model", "facts"]) == []
    assert changes(PROTOCOL, copy.deepcopy(PROTOCOL)) == []


def test_other_protocols_stand_under_other_letters_and_it_is_said_in_what_they_differ() -> None:
    table = only([record("A", 0, 40.0), record("B", 0, 50.0, WHOLE, WHOLE), record("C", 0, 30.0)], baseline="A")
    assert [(row.protocol, row.method, row.cells["mIoU"].is_best) for row in table.rows] == [
        ("A", "A", True), ("A", "C", False), ("B", "B", False),
    ]  # fmt: skip
    assert table.differences == {"B": "A: model.test_cfg.mode slide against whole"}
    assert "Protocol B differs from A: model.test_cfg.mode slide against whole." in captions(table)
    assert table.rows[2].cells["mIoU"].difference is None
    assert table.protocols["A"] == {**PROTOCOL["facts"], "fingerprint": fingerprint(PROTOCOL)}


def test_a_method_with_settings_of_its_own_is_ranked_under_a_mark() -> None:
    records = [record("MAE", seed, 40.0 + seed) for seed in range(2)]
    records += [record("RPE", seed, 42.0 + 2 * seed, RELATIVE) for seed in range(2)]
    table = only(records, baseline="MAE")
    assert [(row.protocol, row.method, row.own) for row in table.rows] == [
        ("A", "RPE", "batch 4096 against 16; model.backbone.position relative against absolute"), ("A", "MAE", None),
    ]  # fmt: skip
    assert table.rows[0].cells["mIoU"].difference.mean == 2.5  # type: ignore[union-attr]
    board = build_leaderboard(records, baseline="MAE")
    assert "| RPE | pretrained | a | " in to_markdown(board) and "(a) batch 4096 against 16; " in to_markdown(board)
    assert "Own settings" in to_markdown(board) and "batch 4096 against 16" in to_csv(board)
    # The letter is headed by the task's protocol, whoever comes first.
    assert only(records[::-1], baseline="MAE").protocols["A"]["batch"] == 16
    # One method under both is two rows, never one mean.
    both = only([record("RPE", 0, 40.0), record("RPE", 1, 42.0, RELATIVE)], baseline="RPE")
    assert [list(row.cells["mIoU"].values) for row in both.rows] == [[1], [0]]


def test_records_from_before_are_marked_and_apart() -> None:
    old = {**record("old", 0, 60.0), "fingerprint": {"head": "UPerHead"}}
    for name in ("protocol", "task_fingerprint", "own"):
        old.pop(name)
    table = only([old, record("new", 0, 40.0)], baseline="new")
    assert [(row.protocol, row.method) for row in table.rows] == [("A", "old"), ("B", "new")]
    assert table.protocols["A"] == {"head": "UPerHead", "recorded": "protocol before version 2"}
    assert own_settings(old) is None and protocol_key(old) != protocol_key(record("new", 0, 40.0))


def test_compare_says_in_what_protocols_differ() -> None:
    lines = compare([record("A", 0, 40.0)], [record("B", 0, 42.0, WHOLE, WHOLE)])
    assert lines[1] == "  Different protocols: model.test_cfg.mode slide against whole."
    assert "2.00 mIoU below B" in lines[2]
    marked = compare([record("MAE", 0, 40.0)], [record("RPE", 0, 42.0, RELATIVE)])
    assert marked[1].startswith("  Own settings of RPE (pretrained): batch 4096 against 16; ")
    with pytest.raises(UserError, match="under one protocol each in common"):
        compare([record("A", 0, 40.0)], [record("B", 0, 42.0, dataset="other")])


def test_a_table_of_zeros_has_no_best_and_says_so() -> None:
    records = [
        record(name, seed, 0.0, metrics={"bbox_mAP": value, "segm_mAP": segm}, task="detection")
        for name, value, segm in (("A", 0.0, 0.1), ("B", 0.00004, 0.2))
        for seed in range(3)
    ]
    table = only(records, baseline="A")
    assert table.unlearnt == ["Nothing was learnt: box AP is 0.00 in every row."]
    assert table.unlearnt[0] in captions(table)
    cells = {row.method: row.cells for row in table.rows}
    assert not cells["A"]["bbox_mAP"].is_best and not cells["B"]["bbox_mAP"].is_best
    assert cells["B"]["bbox_mAP"].difference is None
    # The other metric was learnt, and has its best; its seeds have no spread, and so no interval.
    assert cells["B"]["segm_mAP"].is_best
    difference = cells["B"]["segm_mAP"].difference
    assert difference is not None and difference.low is None and difference.reason == "no spread"
    assert "+10.00 (no spread: no interval)" in to_markdown(build_leaderboard(records, baseline="A"))


def test_a_file_of_records_holds_a_protocol_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = [record("A", 0, 40.0), record("A", 1, 41.0), record("B", 0, 42.0, WHOLE, WHOLE)]
    for one in records:
        assert append_record(path, one)
    lines = path.read_text().splitlines()
    assert ['"protocol"' in line for line in lines] == [True, False, True]
    assert read_records(path) == (records, [])
    # Whose protocol nobody has is neither old nor nameless.
    path.write_text(lines[1] + "\n")
    (lone,), _ = read_records(path)
    assert "recorded" in facts(lone) and protocol_key(lone) == fingerprint(PROTOCOL)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_suite("adpe_ade20k")


def run_of(suite: Suite, claim: Any, seed: int, miou: float, **more: Any) -> dict[str, Any]:
    data = {name: {"images": count} for name, count in suite.tasks[0].images.items()}
    protocol = {**expected_protocol(suite, claim), "data": data}
    one = record(claim.method, seed, miou, protocol, protocol)
    return {
        **one, "suite": suite.name, "run": f"x/upernet/seed{seed}", "dataset": "ADE20K", "sweep": "lr 0.0001",
        "pretrained_sha256": "sha", "pretraining_epochs": 1600, "pretrained_from": {"recipe": MAE}, **more,
    }  # fmt: skip


def test_a_claim_is_of_the_suites_own_runs_alone(suite: Suite) -> None:
    claim = suite.claims[0]
    alone = replace(suite, claims=(replace(claim, tolerance={"mIoU": 1.0}),))

    def verdict(*records: dict[str, Any]) -> tuple[str, str]:
        (one,) = check_claims([alone], records, expected_protocol)
        return one.state, one.note or ""

    def near(what: str, **more: Any) -> None:
        state, note = verdict({**run_of(suite, claim, 0, 48.0), **more})
        assert state == NEAR_MISS and what in note, note

    # At lr 1e-4 the suite runs one seed.
    assert verdict(run_of(suite, claim, 0, 48.0))[0] == PASS
    assert verdict(run_of(suite, claim, 0, 50.0))[0] == FAIL == verdict(run_of(suite, claim, 0, 46.0))[0]
    assert verdict()[0] == NOT_RUN == verdict(run_of(suite, claim, 0, 48.0, sweep="lr 0.0002"))[0]
    near("start random instead of pretrained", start="random", pretrained_sha256=None)
    near("start unknown file instead of pretrained", pretrained_sha256=None)
    near(f"pretraining None instead of {MAE}", pretrained_from=None)
    near("epochs of pretraining 40 instead of 1600", pretraining_epochs=40)
    near("seed 5 is none of the suite's", seed=5)
    near("protocol before version 2", protocol=None, fingerprint={"head": "UPerHead"})
    protocol = run_of(suite, claim, 0, 48.0)["protocol"]
    short = copy.deepcopy(protocol)
    short["config"]["train_cfg"]["max_iters"] = 100
    near("train_cfg.max_iters 100 against 160000", protocol=short)
    tenth = {**protocol, "data": {**protocol["data"], "train": {"images": 2021}}}
    near("2021 train images instead of 20210", protocol=tenth)
    # At the reported rate every seed is needed.
    reported = replace(alone, claims=(replace(alone.claims[0], point={"lr": 2e-4}),))
    runs = [run_of(reported, reported.claims[0], seed, 48.0 + seed / 10, sweep="lr 0.0002") for seed in range(3)]
    states = [check_claims([reported], runs[:count], expected_protocol)[0].state for count in range(4)]
    assert states == [NOT_RUN, INCOMPLETE, INCOMPLETE, PASS]


def test_tiny_encoders_and_crops_pass_no_claim(suite: Suite) -> None:
    """A random start, 100 iterations, another size of encoder: the resolved protocol tells."""
    claim = suite.claims[0]
    other = replace(suite, tasks=(replace(suite.tasks[0], options={"max_iters": 100, "crop_size": [64, 64]}),))
    run = run_of(other, claim, 0, 48.13)
    (verdict,) = check_claims(
        [replace(suite, claims=(replace(claim, tolerance={"mIoU": 1.0}),))], [run], expected_protocol
    )
    assert verdict.state == NEAR_MISS and verdict.note and "crop 64x64 against 512x512" in verdict.note
