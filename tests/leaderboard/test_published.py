"""Files of published rows: what is read, which faults are named, and that the committed ones are sound."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adpe.errors import UserError
from adpe.leaderboard.published import read_published, read_yaml
from adpe.leaderboard.tasks import METRICS
from adpe.suites.suite_file import read_suite

YAML = """
- id: mae
  method: MAE
  backbone: ViT-B/16
  pretraining: {data: ImageNet-1K, epochs: 1600}
  task: segmentation
  dataset: scenes
  protocol: {head: UperNet, crop: 512, schedule: 160k iterations, batch: null, scales: single}
  extra_data: none
  metrics: {mIoU: 48.1}
  kind: published
  source: a paper, table 5
"""


def test_published_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "segmentation.yaml").write_text(YAML)
    assert read_published(tmp_path) == [
        {
            "id": "mae",
            "method": "MAE",
            "backbone": "ViT-B/16",
            "pretraining": {"data": "ImageNet-1K", "epochs": 1600},
            "task": "segmentation",
            "dataset": "scenes",
            "protocol": {
                "head": "UperNet",
                "crop": 512,
                "schedule": "160k iterations",
                "batch": None,
                "scales": "single",
            },
            "extra_data": "none",
            "metrics": {"mIoU": 48.1},
            "kind": "published",
            "source": "a paper, table 5",
        }
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("kind: published", "kind: heard"), "row 1: kind 'heard' is none of published, implied, quoted"),
        (YAML.replace("task: segmentation", "task: naps"), "row 1: task 'naps' is none of segmentation"),
        (YAML.replace("  source: a paper, table 5\n", ""), "row 1: 'source' must be text and not empty, found None"),
        (YAML.replace("  extra_data: none\n", ""), "row 1: 'extra_data' must be text and not empty"),
        (YAML.replace("crop: 512, ", ""), "row 1: protocol must have head, crop, schedule, batch, scales, found head"),
        (YAML.replace("epochs: 1600", "length: 1600"), "row 1: pretraining must have data, epochs, found data, length"),
        (YAML.replace("head: UperNet", "head: null"), "row 1: protocol.head must be text"),
        (YAML.replace("48.1", ".nan"), "row 1: metric mIoU must be a finite number, found nan"),
        (YAML.replace("kind:", "sort:"), "row 1: unknown key 'sort'"),
        (YAML + YAML, "row 2: the same method and protocol as .*row 1"),
        (YAML + YAML.replace("512", "640"), "row 2: 'id mae' is that of .*row 1"),
        ("method: MAE", "expected a list of rows, found dict"),
        ("- [", "not valid YAML"),
        ("- !!python/object/apply:os.system ['touch owned']", "line 1: not valid YAML: .*nothing is executed"),
    ],
)
def test_faults_of_published_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(UserError, match=f"rows.yaml.*{message}"):
        read_published(tmp_path)


def test_the_committed_rows_are_sound() -> None:
    entries = read_published()
    by_dataset = {name: [e for e in entries if e["dataset"] == name] for name in ("ADE20K", "COCO", "ImageNet-1K")}
    assert all(len(rows) >= 40 for rows in by_dataset.values())
    percent = {name for name, metric in METRICS.items() if metric.unit == "%"}
    for entry in entries:
        # A paper's table or a file of a repository, not a memory.
        assert re.search(r"table|README|\.md|repository|abstract|leaderboard page|notes on", entry["source"]), entry
        for name, value in entry["metrics"].items():
            # SimMIM's 8.59 by k-NN and MAE's 7.8 without standardisation are the lowest.
            assert name in METRICS and (name not in percent or 7 < value < 100), entry
    methods = {entry["method"].split(" ")[0].rstrip(",") for entry in entries}
    assert {"MAE", "MAE+", "AdPE", "BEiT", "CAE", "MIMDet", "SelfPatch", "MFM", "SemMAE", "iBOT", "DINO", "MoCo", "GC",
            "SP-ViT", "EVA-02"} <= methods  # fmt: skip


def test_what_the_abstract_implies_is_called_so() -> None:
    adpe = {e["id"]: e for e in read_published() if e["method"].startswith("AdPE")}
    ade20k, coco = adpe["adpe-vitb-ade20k"], adpe["adpe-vitb-coco"]
    assert (ade20k["kind"], ade20k["metrics"]) == ("implied", {"mIoU": 50.7, "mIoU_ms": 50.7})
    assert (coco["kind"], coco["metrics"]) == ("implied", {"bbox_mAP": 53.5, "segm_mAP": 46.5})
    assert {e["kind"] for name, e in adpe.items() if "imagenet" in name} == {"published"}
    # The baseline under AdPE's sums is Mask R-CNN with an FPN; ViTDet's two detectors are rows of their own.
    heads = {e["id"]: e["protocol"]["head"] for e in read_published() if e.get("id", "").startswith("mae-vitb-coco")}
    assert len(set(heads.values())) == 3


def rows(**values: Any) -> list[dict[str, Any]]:
    return [e for e in read_published() if all(e.get(name) == value for name, value in values.items())]


def test_rows_say_what_their_sources_say() -> None:
    """Epochs, batches and values as read at the sources (READMEs of the named repositories)."""
    mae = [e for e in rows(method="MAE", task="classification") if "FINETUNE" in e["source"]]
    assert len(mae) == 6 and {e["pretraining"]["epochs"] for e in mae} == {1600}  # its notes: 1600 epochs
    epochs = {
        ("SimMIM", "ViT-B/16", "classification"): {800},
        ("CAE", "ViT-B/16", "classification"): {1600},
        ("CAE", "ViT-L/16", "classification"): {1600},
        ("ConvMAE", "ConvMAE-B (hybrid)", "detection"): {1600},
        ("HPM", "ViT-B/16", "classification"): {200, 800},
    }
    for (method, backbone, task), expected in epochs.items():
        found = [e for e in rows(method=method, backbone=backbone, task=task) if "results.csv" not in e["source"]]
        assert {e["pretraining"]["epochs"] for e in found} == expected, method
    (beit,) = rows(method="BEiT (mmsegmentation)", backbone="ViT-L/16")
    assert (beit["protocol"]["batch"], beit["protocol"]["schedule"]) == (8, "320k iterations")
    large = rows(method="MAE (mmpretrain)", backbone="ViT-L/16")
    assert {(e["protocol"]["head"], e["pretraining"]["epochs"], e["metrics"]["top1"]) for e in large} == {
        ("fine-tuning", 400, 85.2), ("fine-tuning", 800, 85.4), ("fine-tuning", 1600, 85.7),
        ("linear probe", 400, 70.7), ("linear probe", 800, 73.7), ("linear probe", 1600, 75.5),
    }  # fmt: skip
    huge = rows(method="MAE (mmpretrain)", backbone="ViT-H/14")
    assert {(e["protocol"]["crop"], e["protocol"]["batch"], e["metrics"]["top1"]) for e in huge} == {
        (224, 1024, 86.9), (448, 256, 87.3),
    }  # fmt: skip
    v2 = [e for e in rows(method="BEiT v2", task="classification") if e["protocol"]["head"] == "fine-tuning"]
    assert {(e["backbone"], e["protocol"]["crop"], e["metrics"]["top1"]) for e in v2} == {
        ("ViT-B/16", 224, 85.5), ("ViT-L/16", 224, 87.3),
    }  # fmt: skip
    mln = {e["protocol"]["schedule"]: e["metrics"] for e in rows(method="ViT with MLN")}
    assert mln == {
        "80k iterations": {"mIoU": 47.71, "mIoU_ms": 49.51}, "160k iterations": {"mIoU": 46.75, "mIoU_ms": 48.46},
    }  # fmt: skip


def test_frozen_rows_say_how_they_were_read() -> None:
    """Values of efficient-probing's results.csv, CAPI, Pixio and DINOv3 as printed there."""
    mae = {e["protocol"]["head"]: e["metrics"]["top1"] for e in rows(method="MAE", backbone="ViT-B/16")
           if "efficient-probing" in e["source"]}  # fmt: skip
    assert mae == {
        "k-NN, class token before the final norm": 35.57,
        "linear probe, class token": 67.78,
        "EP, 32 queries on patch tokens": 75.46,
    }
    # Three protocols are called linear segmentation: 512 and 256 pixels, and 224 patch labels.
    crops = {e["protocol"]["crop"] for e in rows(task="segmentation", dataset="ADE20K")
             if "frozen" in e["protocol"]["head"] or "patch labels" in e["protocol"]["head"]}  # fmt: skip
    assert crops == {512, 256, 224}
    pixio = {(e["method"], e["dataset"], e["protocol"]["head"][:3]): next(iter(e["metrics"].values()))
             for e in read_published() if e["source"] == "facebookresearch/pixio README.md"}  # fmt: skip
    assert pixio["MAE", "ADE20K", "lin"] == 35.2 and pixio["MAE", "ADE20K", "DPT"] == 37.6
    assert pixio["MAE", "NYUv2", "lin"] == 70.3 and pixio["Pixio", "NYUv2", "lin"] == 90.8
    second_hand = [e for e in read_published() if "quotes" in e["source"]]
    assert second_hand and {e["kind"] for e in second_hand} == {"quoted"}


def test_mae_frozen_claims_what_is_measured_without_the_final_norm() -> None:
    suite = read_suite("mae_frozen")
    claimed = {claim.task: claim.published["metrics"]["top1"] for claim in suite.claims}
    assert claimed == {"k-NN": 35.57, "linear probe": 67.8, "EP": 75.46}
    knn = next(task for task in suite.tasks if task.name == "k-NN")
    assert knn.options == {"model.global_pool": "token", "model.final_norm": False}
    full = {claim.method: claim.published["metrics"]["top1"] for claim in read_suite("mim_imagenet").claims}
    assert full == {"CrossMAE": 83.722, "HPM 200": 83.0, "HPM 800": 84.2, "DropPos": 84.2}


def test_tolerances_have_a_source_or_say_that_they_are_chosen() -> None:
    for name in ("adpe_ade20k", "adpe_coco", "adpe_imagenet", "adpe_imagenet_vitl", "mae_frozen", "mim_imagenet"):
        for claim in read_suite(name).claims:
            measured = "standard deviation" in claim.tolerance_source
            assert measured != claim.tolerance_source.startswith("chosen"), (name, claim.tolerance_source)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("- a: 1\n  b: &b {c: 1}\n- <<: *b\n  d: 2\n  d: 3\n")
    with pytest.raises(UserError, match=r"twice\.yaml, line 5.*'d' stands twice"):
        read_yaml(path)
    path.write_text("- &b {c: 1}\n- {<<: *b, c: 2}\n")
    assert read_yaml(path) == [{"c": 1}, {"c": 2}]
