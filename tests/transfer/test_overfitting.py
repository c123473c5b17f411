"""The shipped detectors and UperNet, narrow and shallow, learn four photographs by heart through the launcher.

The photographs are not square and are tested whole. A head that sees features in the wrong places, or targets that do
not lie on the pixels, cannot reach these bars, whatever its shapes and losses look like.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import narrow_configs
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import ROOT
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from photographs import CLASSES, write_photographs

from adpe.engine.config import read_config
from adpe.engine.hooks.checkpointing import latest_checkpoint
from adpe.engine.launch import train_main
from adpe.option_values import option_text

SIDE = 96  # pixels that the photographs' longer side is resized to: 6 patches
WIDTH = 125  # pixels of the files: boxes and masks have to come back to another size
PATCH = 16

IN_THIS_PROCESS = {"num_workers": 0, "persistent_workers": False, "pin_memory": False}


def options(iterations: int, lr: float) -> dict[str, Any]:
    """All four photographs in a batch, in float32 and as they are: no augmentation."""
    return {
        "max_iters": iterations,
        "lr": lr,
        "effective_batch": 4,
        "optim_wrapper.type": "OptimWrapper",
        "param_scheduler.0.end": iterations // 20,
        "train_cfg.val_interval": iterations,
        "default_hooks.checkpoint.interval": iterations,
        **{f"{one}_dataloader.{k}": v for one in ("train", "val", "test") for k, v in IN_THIS_PROCESS.items()},
    }


def detection(root: Path, *, cascade: bool, iterations: int) -> dict[str, Any]:
    return {
        **narrow_configs.detection(SIDE, len(CLASSES) - 1, cascade=cascade),
        **options(iterations, 4e-3),
        "data_root": str(root),
        **{f"{one}_dataloader.dataset.ann_file": "instances_training.json" for one in ("train", "val")},
        **{f"{one}_dataloader.dataset.data_prefix.img": "images/training" for one in ("train", "val")},
        "val_evaluator.ann_file": str(root / "instances_training.json"),
        "train_dataloader.dataset.pipeline.2.prob": 0.0,
        "train_dataloader.dataset.pipeline.3.ratio_range": (1.0, 1.0),
    }


def segmentation(root: Path, *, iterations: int) -> dict[str, Any]:
    pipeline = "train_dataloader.dataset.pipeline"
    return {
        **narrow_configs.segmentation(SIDE, len(CLASSES)),
        **options(iterations, 6e-3),
        "data_root": str(root),
        **{f"{one}_dataloader.dataset.type": "AdPESegmentationDataset" for one in ("train", "val")},
        "param_scheduler.1.begin": iterations // 20,
        f"{pipeline}.2.scale": (SIDE, SIDE),
        f"{pipeline}.2.ratio_range": (1.0, 1.0),
        f"{pipeline}.3.cat_max_ratio": 1.0,
        f"{pipeline}.4.prob": 0.0,
        f"{pipeline}.5.brightness_delta": 0,
        f"{pipeline}.5.contrast_range": (1.0, 1.0),
        f"{pipeline}.5.saturation_range": (1.0, 1.0),
        f"{pipeline}.5.hue_delta": 1,
        "val_dataloader.dataset.pipeline.1.scale": (SIDE, SIDE),
        "model.test_cfg.mode": "whole",
    }


def train(config: str, work_dir: Path, changes: dict[str, Any]) -> dict[str, float]:
    """Train with `tools/train.py`'s command. Returns the metrics of its record."""
    pairs = [f"{key}={option_text(value)}" for key, value in changes.items()]
    assert train_main([str(ROOT / config), "--work-dir", str(work_dir), "--cfg-options", *pairs]) == 0
    return json.loads((work_dir / "record.jsonl").read_text().splitlines()[-1])["metrics"]


@pytest.mark.slow(60)
@pytest.mark.parametrize(("config", "iterations"), [
    ("configs/coco_maskrcnn_vitb.py", 360),
    ("configs/coco_cascade_maskrcnn_vitb.py", 180),
])  # fmt: skip
def test_detector(config: str, iterations: int, tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "data", WIDTH)
    changes = detection(root, cascade="cascade" in config, iterations=iterations)
    metrics = train(config, tmp_path / "run", changes)
    assert metrics["bbox_mAP"] >= 0.9
    assert metrics["segm_mAP"] >= 0.75
    check_padding(tmp_path / "run" / Path(config).name)


def check_padding(config: Path) -> None:
    """Another column or row of patches, or none of the padding to a square, leaves the boxes where they were."""
    cfg = read_config(config)
    found = latest_checkpoint(config.parent)
    assert found is not None
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model).eval()
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model.load_state_dict(torch.load(found[0], weights_only=True)["state_dict"])
    for item in dataset:
        data = model.data_preprocessor(pseudo_collate([item]), False)
        assert data["inputs"].shape[-2:] == (SIDE, SIDE)
        height, width = item["data_samples"].img_shape
        assert height < width == SIDE
        whole = -(SIDE - PATCH * -(-height // PATCH))
        boxes = {}
        # Pixels to the left, right, top and bottom, and the IoU that stays.
        kept = {(0, PATCH, 0, 0): 0.8, (0, 0, 0, PATCH): 0.8, (0, 0, 0, whole): 0.6}
        for padding in ((0, 0, 0, 0), *kept):
            with torch.no_grad():
                predicted = model(F.pad(data["inputs"], padding), data["data_samples"], mode="predict")[
                    0
                ].pred_instances
            boxes[padding] = predicted[predicted.scores >= 0.5]
        square = boxes.pop((0, 0, 0, 0))
        assert len(square) > 0
        for padding, one in boxes.items():
            overlaps = bbox_overlaps(square.bboxes, one.bboxes) * (square.labels[:, None] == one.labels)
            assert overlaps.max(1).values.min() >= kept[padding], (item["data_samples"].img_path, padding, overlaps)


@pytest.mark.slow(12)
def test_segmentor(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "data", SIDE)
    metrics = train("configs/ade20k_upernet_vitb.py", tmp_path / "run", segmentation(root, iterations=320))
    assert metrics["mIoU"] >= 95.0
