"""Grouping, comparing, ranking and rendering of records, with numbers made up for the purpose."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from adpe.errors import UserError
from adpe.leaderboard.formats import print_terminal, to_csv, to_latex, to_markdown
from adpe.leaderboard.ranking import Leaderboard, build_leaderboard
from adpe.leaderboard.ranking.rows import Row, Table
from adpe.leaderboard.tables import captions

UPERNET = {"head": "UperNet", "crop": [112, 112], "iterations": 400}
PUBLISHED: dict[str, Any] = {
    "method": "MAE",
    "backbone": "ViT-B/16",
    "pretraining": {"data": "ImageNet-1K", "epochs": 1600},
    "task": "segmentation",
    "dataset": "scenes",
    "protocol": {"head": "UperNet", "crop": 512, "schedule": None, "batch": 16, "scales": "single"},
    "extra_data": "none",
    "metrics": {"mIoU": 48.1},
    "kind": "published",
    "source": "a paper, table 5",
}


def record(
    start: str | None = "pretrained", seed: int | None = 0, miou: float = 40.0, **changes: Any
) -> dict[str, Any]:
    method = changes.get("method", "AdPE")
    return {
        "run": f"{method}-{start}-{seed}",
        "method": method,
        "task": "segmentation",
        "dataset": "scenes",
        "start": start,
        "seed": seed,
        "metrics": {"mIoU": miou, "aAcc": 80.0},
        "fingerprint": UPERNET,
        "precision": "float32",
        "effective_batch": 8,
        **changes,
    }


def three_seeds() -> list[dict[str, Any]]:
    pretrained = [record("pretrained", seed, value) for seed, value in enumerate([40.0, 42.0, 44.5])]
    return pretrained + [record("random", seed, value) for seed, value in enumerate([36.0, 37.0, 36.5])]


def only_table(leaderboard: Leaderboard) -> Table:
    assert len(leaderboard.tables) == 1
    return leaderboard.tables[0]


def row(leaderboard: Leaderboard, name: str, protocol: str = "A") -> Row:
    return next(row for row in only_table(leaderboard).rows if (row.name, row.protocol) == (name, protocol))


def terminal(leaderboard: Leaderboard, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_terminal(leaderboard, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_mean_spread_and_difference_to_random() -> None:
    leaderboard = build_leaderboard(three_seeds())
    cell = row(leaderboard, "AdPE (pretrained)").cells["mIoU"]
    assert cell.summary is not None and cell.difference is not None
    assert cell.summary.mean == pytest.approx(126.5 / 3)
    assert cell.summary.std == pytest.approx(math.sqrt(((13 / 6) ** 2 + (1 / 6) ** 2 + (14 / 6) ** 2) / 2))
    expected = stats.ttest_1samp([4.0, 5.0, 8.0], 0).confidence_interval()
    assert cell.difference.mean == pytest.approx(17 / 3)
    assert (cell.difference.low, cell.difference.high) == pytest.approx((expected.low, expected.high))
    baseline = row(leaderboard, "AdPE (random)")
    assert baseline.is_baseline and baseline.cells["mIoU"].difference is None
    assert [r.name for r in only_table(leaderboard).rows] == ["AdPE (pretrained)", "AdPE (random)"]
    assert cell.is_best and not baseline.cells["mIoU"].is_best
    assert leaderboard.problems == []
    assert only_table(leaderboard).sentences() == [
        "AdPE (pretrained) is 5.67 mIoU above AdPE (random) (95% interval 0.50 to 10.84, paired t over 3 seeds): "
        "more than seed noise."
    ]


def test_one_seed_says_so_in_every_rendering() -> None:
    leaderboard = build_leaderboard([record("pretrained", 0, 40.0), record("random", 0, 36.5)])
    for text in (terminal(leaderboard), to_markdown(leaderboard), to_csv(leaderboard), to_latex(leaderboard)):
        assert "one seed: no interval" in text
        assert "±" not in text and r"$\pm$" not in text
    assert "+3.50 (one seed: no interval)" in to_markdown(leaderboard)


def test_ap_is_shown_in_percent_points() -> None:
    detection = [
        record(start, 0, task="detection", metrics={"bbox_mAP": value, "segm_mAP": value / 2, "bbox_mAP_s": -1.0})
        for start, value in (("pretrained", 0.231), ("random", 0.152))
    ]
    leaderboard = build_leaderboard(detection)
    assert "| AdPE | pretrained | 1 | **23.10** | +7.90 (one seed: no interval) | **11.55** |" in to_markdown(
        leaderboard
    )
    # pycocotools' -1 for "no such object" is no AP of -100, and no fault of the run.
    assert row(leaderboard, "AdPE (pretrained)").cells["bbox_mAP_s"].summary is None
    assert leaderboard.problems == []


def test_protocols_are_neither_averaged_nor_ranked_together() -> None:
    wide = {**UPERNET, "crop": [224, 224]}
    records = [
        *three_seeds(),
        record("pretrained", 3, 60.0, fingerprint=wide),
        record("random", 3, 50.0, fingerprint=wide),
    ]
    leaderboard = build_leaderboard(records)
    table = only_table(leaderboard)
    assert [(r.protocol, r.name) for r in table.rows] == [
        ("A", "AdPE (pretrained)"),
        ("A", "AdPE (random)"),
        ("B", "AdPE (pretrained)"),
        ("B", "AdPE (random)"),
    ]
    assert row(leaderboard, "AdPE (pretrained)", "A").cells["mIoU"].summary.mean == pytest.approx(126.5 / 3)  # type: ignore[union-attr]
    assert row(leaderboard, "AdPE (pretrained)", "B").cells["mIoU"].difference.mean == 10.0  # type: ignore[union-attr]
    assert [r.cells["mIoU"].is_best for r in table.rows] == [True, False, True, False]
    assert "Different protocols: their rows are not comparable with one another." in captions(table)
    assert "| B | AdPE | pretrained |" in to_markdown(leaderboard)
    assert "Protocol B: head UperNet, crop 224x224, iterations 400, recorded protocol before version 2." in terminal(
        leaderboard
    )
    assert to_latex(leaderboard).count(r"\midrule") == 2


def test_key_order_and_tuples_are_no_other_protocol() -> None:
    same = {"iterations": 400, "crop": (112, 112), "head": "UperNet"}
    leaderboard = build_leaderboard([record("random", 0, 36.0), record("random", 1, 37.0, fingerprint=same)])
    assert list(only_table(leaderboard).protocols) == ["A"]
    assert row(leaderboard, "AdPE (random)").cells["mIoU"].summary.count == 2  # type: ignore[union-attr]


def test_what_cannot_be_averaged_is_reported_by_name() -> None:
    leaderboard = build_leaderboard(
        [
            *three_seeds(),
            record("pretrained", 3, math.nan),
            record("pretrained", None, 99.0),
            record("random", 3, 36.9, metrics={"aAcc": 70.0}),
            {"run": "torn"},
        ]
    )
    where = "segmentation on scenes, AdPE"
    assert leaderboard.problems == [
        "run torn: the record has no method, task, dataset, metrics, fingerprint; left out.",
        f"{where} (pretrained): run AdPE-pretrained-None has no seed (None); left out of the mean.",
        f"{where} (pretrained): run AdPE-pretrained-3 (seed 3): mIoU is nan; left out of the mean.",
        f"{where} (random): run AdPE-random-3 (seed 3): no mIoU; left out of the mean.",
    ]
    cell = row(leaderboard, "AdPE (pretrained)").cells["mIoU"]
    assert cell.summary is not None and cell.summary.mean == pytest.approx(126.5 / 3)
    assert "42.17 ± 2.25 [2, 3]" in to_markdown(leaderboard)
    assert "[3] segmentation on scenes, AdPE (pretrained): run AdPE-pretrained-3" in terminal(leaderboard)
    assert "left out of the mean" in to_csv(leaderboard) and "[4]" in to_latex(leaderboard)


def test_a_row_without_any_usable_run_stays_visible() -> None:
    leaderboard = build_leaderboard([record("pretrained", 0, math.nan), record("random", 0, 36.0)])
    assert "| AdPE | pretrained | 1 | none [1] |" in to_markdown(leaderboard)
    assert only_table(leaderboard).rows[-1].name == "AdPE (pretrained)"


def test_records_on_disk(tmp_path: Path) -> None:
    from adpe.leaderboard.records import append_record, read_records

    path = tmp_path / "records.jsonl"
    for start, ap in (("pretrained", 0.2), ("random", math.nan)):
        metrics = {"coco/bbox_mAP": ap, "coco/segm_mAP": 0.1}
        full = record(
            start, task="detection", metrics=metrics, schema=1, config="c.py", time="2026-01-01T00:00:00+00:00"
        )
        append_record(path, full)
    with open(path, "a") as file:
        file.write('{"schema": 1, "run": "to')
    records, faults = read_records(path)
    leaderboard = build_leaderboard(records, faults=faults)
    assert only_table(leaderboard).metrics == ("bbox_mAP", "segm_mAP")
    assert row(leaderboard, "AdPE (pretrained)").cells["bbox_mAP"].values == {0: 20.0}
    assert leaderboard.problems == [
        f"{path}:3: not a JSON line, truncated while it was written; skipped",
        "detection on scenes, AdPE (random): run AdPE-random-0 (seed 0): bbox_mAP is not finite; left out of the mean.",
    ]


def test_pretraining_without_a_validation_is_no_table() -> None:
    pretraining = record(None, 0, task="pretrain", metrics={})
    assert build_leaderboard([pretraining]).tables == []
    leaderboard = build_leaderboard([record("random", 0, metrics={})])
    assert leaderboard.problems == ["segmentation on scenes, AdPE (random): none of its runs recorded a metric."]
    assert "| AdPE | random | 1 |" in to_markdown(leaderboard)


def test_duplicates_are_reported_and_the_last_one_counts() -> None:
    again = record("pretrained", 0, 41.0, run="second try")
    leaderboard = build_leaderboard([*three_seeds(), again, again])
    assert leaderboard.problems == [
        "segmentation on scenes, AdPE (pretrained): duplicate for seed 0: run AdPE-pretrained-0 and run second try; "
        "the last one written is used.",
        "segmentation on scenes, AdPE (pretrained): duplicate for seed 0: the same record twice; "
        "the last one written is used.",
    ]
    assert row(leaderboard, "AdPE (pretrained)").cells["mIoU"].values == {0: 41.0, 1: 42.0, 2: 44.5}


def test_two_suites_that_agree_on_an_encoder_are_no_duplicates() -> None:
    one = record("random", 0, suite="a", pretrained_sha256="x")
    assert build_leaderboard([one, {**one, "suite": "b"}]).problems == []
    for other in ({"pretrained_sha256": "y"}, {"metrics": {"mIoU": 1.0}}):
        assert "duplicate for seed 0" in build_leaderboard([one, {**one, "suite": "b", **other}]).problems[0]


def test_seeds_that_a_row_lacks_and_settings_that_differ_are_reported() -> None:
    records = [*three_seeds()[:5], record("pretrained", 3, 41.0, precision="bfloat16")]
    problems = build_leaderboard(records).problems
    assert problems == [
        "segmentation on scenes, AdPE (pretrained): its seeds differ in precision: bfloat16, float32.",
        "segmentation on scenes, AdPE (random): no run for seed 2, 3, which other rows have.",
    ]


def test_different_configs_in_one_row_are_reported() -> None:
    changed = [record("random", 0, config_sha256="a"), record("random", 1, config_sha256="b")]
    assert build_leaderboard(changed).problems == [
        "segmentation on scenes, AdPE (random): its seeds ran different configs (config_sha256) from the same start."
    ]
    # A pretraining per seed changes the hash by the checkpoint's path alone.
    paired = [record("random", seed, config_sha256=str(seed), pretrained_sha256=f"sha {seed}") for seed in range(2)]
    assert build_leaderboard(paired).problems == []


def test_equal_means_are_both_best() -> None:
    leaderboard = build_leaderboard([record("pretrained", 0, 40.0), record("random", 0, 40.0)])
    assert [r.cells["mIoU"].is_best for r in only_table(leaderboard).rows] == [True, True]
    assert "have the same mean mIoU to 2 decimals" in only_table(leaderboard).sentences()[0]


def test_named_baseline() -> None:
    records = [*three_seeds(), *(record("pretrained", seed, 39.0, method="MAE") for seed in range(3))]
    leaderboard = build_leaderboard(records, baseline="MAE")
    assert row(leaderboard, "MAE (pretrained)").is_baseline
    assert row(leaderboard, "AdPE (random)").cells["mIoU"].difference.mean == pytest.approx(-2.5)  # type: ignore[union-attr]
    with pytest.raises(
        UserError, match="'BEiT' names no row; there are: AdPE, AdPE \\(pretrained\\), AdPE \\(random\\)"
    ):
        build_leaderboard(three_seeds(), baseline="BEiT")


def test_every_method_is_compared_with_its_own_random_start() -> None:
    records = [record(start, 0, value) for start, value in (("pretrained", 40.0), ("random", 36.0))]
    records += [record(start, 0, value, method="MAE") for start, value in (("pretrained", 39.0), ("random", 38.0))]
    records += [record("pretrained", 0, 35.0, method="BEiT")]
    leaderboard = build_leaderboard(records)
    assert row(leaderboard, "MAE (pretrained)").cells["mIoU"].difference.mean == 1.0  # type: ignore[union-attr]
    assert row(leaderboard, "AdPE (pretrained)").cells["mIoU"].difference.mean == 4.0  # type: ignore[union-attr]
    assert leaderboard.problems == [
        "segmentation on scenes, BEiT (pretrained): 'random' names AdPE (random), MAE (random); "
        "choose one of them as the baseline."
    ]


def test_a_lower_pretraining_loss_ranks_first() -> None:
    records = [
        record(None, 0, task="pretrain", method=method, metrics={"loss": loss}, fingerprint={"epochs": 2})
        for method, loss in (("MAE", 0.8), ("AdPE", 0.5))
    ]
    leaderboard = build_leaderboard(records)
    assert [r.name for r in only_table(leaderboard).rows] == ["AdPE", "MAE"]
    assert row(leaderboard, "AdPE").cells["loss"].is_best and leaderboard.problems == []


def test_published_rows_stand_beside_ours_with_their_source() -> None:
    implied = {
        **PUBLISHED,
        "method": "AdPE",
        "metrics": {"mIoU": 50.7},
        "kind": "implied",
        "note": "MAE's 48.1 + 2.6",
    }
    leaderboard = build_leaderboard(three_seeds(), published=[PUBLISHED, implied])
    table = only_table(leaderboard)
    assert [(r.kind, r.protocol) for r in table.rows] == [
        ("ours", "A"),
        ("ours", "A"),
        ("implied", "B"),
        ("published", "B"),
    ]
    assert all(r.cells["mIoU"].difference is None for r in table.rows if r.kind != "ours")
    markdown = to_markdown(leaderboard)
    assert (
        "| B | MAE | ViT-B/16 | ImageNet-1K, 1600 epochs |  |  | 48.10 |  | published: a paper, table 5 |" in markdown
    )
    assert "implied: a paper, table 5 (MAE's 48.1 + 2.6)" in markdown


def test_renderings_quote_what_came_from_files() -> None:
    name = "50%_|A & <b>*$"
    leaderboard = build_leaderboard(
        [record("pretrained", 0, 40.0, method=name), record("random", 0, 30.0, method="[red]B")]
    )
    assert r"| 50%\_\|A & \<b\>\*$ | pretrained |" in to_markdown(leaderboard)
    assert r"50\%\_|A \& \textless{}b\textgreater{}*\$" in to_latex(leaderboard)
    assert "[red]B" in terminal(leaderboard)
    assert next(csv.DictReader(io.StringIO(to_csv(leaderboard))))["method"] == name


def test_csv_holds_every_metric_unrounded() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(build_leaderboard(three_seeds())))))
    assert [(line["start"], line["metric"]) for line in lines] == [
        ("pretrained", "mIoU"),
        ("pretrained", "aAcc"),
        ("random", "mIoU"),
        ("random", "aAcc"),
    ]
    assert (lines[0]["seeds"], lines[0]["values"], lines[0]["interval"]) == ("0 1 2", "40.0 42.0 44.5", "paired t")
    assert float(lines[0]["mean"]) == pytest.approx(126.5 / 3, abs=1e-12)
    assert lines[0]["fingerprint"].startswith("head=UperNet; crop=112x112; iterations=400; ")
    assert lines[2]["difference"] == ""


def test_a_narrow_terminal_loses_no_digit() -> None:
    text = "".join(terminal(build_leaderboard(three_seeds()), width=60).split())
    assert "42.17" in text and "+0.50" in text and "+10.84" in text and "…" not in text


def test_no_records() -> None:
    leaderboard = build_leaderboard([])
    assert leaderboard.tables == [] and to_markdown(leaderboard) == "" and to_latex(leaderboard) == ""


def test_points_of_a_sweep_are_rows_of_their_own() -> None:
    records = [
        record(start, seed, value + bonus, sweep=sweep)
        for start, value in (("pretrained", 40.0), ("random", 36.0))
        for sweep, bonus, seeds in (("lr 0.0001", 0.0, range(2)), ("lr 0.0002", 2.0, range(1)))
        for seed in seeds
    ]
    leaderboard = build_leaderboard(records)
    names = {r.name: r for r in only_table(leaderboard).rows}
    assert set(names) == {f"AdPE ({start}, lr {lr})" for start in ("pretrained", "random") for lr in (0.0001, 0.0002)}
    # Each point against the same point of the baseline; fewer seeds at the others are as declared.
    assert names["AdPE (pretrained, lr 0.0002)"].baseline == "AdPE (random, lr 0.0002)"
    assert names["AdPE (pretrained, lr 0.0001)"].cells["mIoU"].difference.mean == 4.0  # type: ignore[union-attr]
    assert leaderboard.problems == []
    assert "| AdPE | pretrained | lr 0.0002 | 1 | **42.00** |" in to_markdown(leaderboard)


def test_sizes_and_extra_data_of_published_rows_are_marked() -> None:
    large = {**PUBLISHED, "backbone": "ViT-L/16", "metrics": {"mIoU": 53.6}}
    beit = {**PUBLISHED, "method": "BEiT", "metrics": {"mIoU": 47.1}, "extra_data": "DALL-E tokenizer"}
    table = only_table(build_leaderboard([], published=[PUBLISHED, large, beit]))
    assert [(r.protocol, r.method, r.backbone, r.cells["mIoU"].is_best) for r in table.rows] == [
        ("A", "MAE", "ViT-B/16", True),
        ("A", "BEiT", "ViT-B/16", False),
        ("B", "MAE", "ViT-L/16", False),
    ]
    assert table.rows[1].pretraining == "ImageNet-1K, 1600 epochs, extra: DALL-E tokenizer"


def of_suite(suite: str, method: str, epochs: int | None, values: list[float]) -> list[dict[str, Any]]:
    more = {
        "suite": suite,
        "method": method,
        "pretraining_epochs": epochs,
        "pretrained_sha256": f"{suite} {method}" if epochs else None,
    }
    start = "pretrained" if epochs else "random"
    return [record(start, seed, value, **more) for seed, value in enumerate(values)]


def test_encoders_of_two_lengths_are_two_rows_each_against_its_own_suite() -> None:
    """A suite that pretrains for longer calls its methods as another one does, under one protocol of the task."""
    long = of_suite("long", "MAE", 4, [50, 51, 52]) + of_suite("long", "MAE+", 4, [40, 41, 42])
    short = of_suite("short", "MAE", 1, [20, 21]) + of_suite("short", "MAE+", 1, [10, 11])
    starts = of_suite("long", "none", None, [30, 31, 32]) + of_suite("short", "none", None, [30, 31])
    board = build_leaderboard([*long, *short, *starts], baseline=("MAE+", "random"))
    assert board.problems == []
    rows = {(row.method, row.pretraining): row.cells["mIoU"] for row in board.tables[0].rows}
    assert {key: list(cell.values.values()) for key, cell in rows.items()} == {
        ("MAE", "4 epochs"): [50, 51, 52],
        ("MAE+", "4 epochs"): [40, 41, 42],
        ("MAE", "1 epoch"): [20, 21],
        ("MAE+", "1 epoch"): [10, 11],
        ("none", None): [30, 31, 32],
    }
    differences = [rows["MAE", length].difference for length in ("4 epochs", "1 epoch")]
    assert [one and one.mean for one in differences] == [10, 10]
    # What a suite ran with fewer seeds than its others is told.
    board = build_leaderboard([*long[1:], *short, *starts], baseline=("MAE+", "random"))
    assert len(board.problems) == 1 and "MAE (pretrained)" in board.problems[0] and "seed 0" in board.problems[0]
