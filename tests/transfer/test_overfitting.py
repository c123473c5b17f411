"""The shipped pipelines learn four photographs by heart, tested whole: narrower and shallower, through the launcher.

Scrambled features, wrong targets or boxes that are put back wrongly keep a detector far below these bars, while shapes
are right and losses fall.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import narrow_configs
import pytest
from photographs import CLASSES, write_photographs

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from adpe.engine.launch import train_main
from adpe.option_values import option_text

ROOT = Path(__file__).resolve().parents[2]
SIDE = 96
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

pytestmark = pytest.mark.slow


def options(root: Path, iterations: int, lr: float) -> dict[str, Any]:
    """What both tasks share: the data, the length, no workers, float32."""
    return {
        "data_root": str(root),
        "max_iters": iterations,
        "lr": lr,
        "effective_batch": 4,
        "optim_wrapper.type": "OptimWrapper",
        "train_cfg.val_interval": iterations,
        "default_hooks.checkpoint.interval": iterations,
        "default_hooks.logger.interval": 50,
        "param_scheduler.0.end": iterations // 20,
        **{f"{loader}.num_workers": 0 for loader in LOADERS},
        **{f"{loader}.persistent_workers": False for loader in LOADERS},
    }


def learned(config: str, values: dict[str, Any], run: Path) -> dict[str, float]:
    """Metrics of the final state on the photographs it was trained on."""
    given = [f"{name}={option_text(value)}" for name, value in values.items()]
    assert train_main([str(ROOT / "configs" / config), "--work-dir", str(run), "--cfg-options", *given]) == 0
    return json.loads((run / "record.jsonl").read_text().splitlines()[-1])["metrics"]


@pytest.mark.parametrize(
    ("config", "iterations", "lr"),
    [("coco_maskrcnn_vitb.py", 320, 6e-3), ("coco_cascade_maskrcnn_vitb.py", 240, 5e-3)],
)
def test_detectors_learn_four_photographs(config: str, iterations: int, lr: float, tmp_path: Path):
    root = write_photographs(tmp_path / "data", SIDE)
    values = {
        **options(root, iterations, lr),
        **narrow_configs.detection(SIDE, len(CLASSES) - 1, cascade="cascade" in config),
        "train_dataloader.dataset.ann_file": "instances_training.json",
        "train_dataloader.dataset.data_prefix.img": "images/training",
        "train_dataloader.dataset.pipeline.3.ratio_range": (1.0, 1.0),
        "val_dataloader.dataset.ann_file": "instances_validation.json",
        "val_dataloader.dataset.data_prefix.img": "images/validation",
        "val_evaluator.ann_file": str(root / "instances_validation.json"),
    }
    metrics = learned(config, values, tmp_path / "run")
    assert metrics["bbox_mAP"] >= 0.9 and metrics["segm_mAP"] >= 0.75, metrics


def test_upernet_learns_four_photographs(tmp_path: Path):
    root = write_photographs(tmp_path / "data", SIDE)
    values = {
        **options(root, 300, 4e-3),
        **narrow_configs.segmentation(SIDE, len(CLASSES)),
        "param_scheduler.1.begin": 15,
        "train_dataloader.dataset.type": "AdPESegmentationDataset",
        "val_dataloader.dataset.type": "AdPESegmentationDataset",
        "train_dataloader.dataset.pipeline.2.scale": (4 * SIDE, SIDE),
        "train_dataloader.dataset.pipeline.2.ratio_range": (1.0, 1.0),
        "train_dataloader.dataset.pipeline.3.cat_max_ratio": 1.0,
        "val_dataloader.dataset.pipeline.1.scale": (4 * SIDE, SIDE),
    }
    assert learned("ade20k_upernet_vitb.py", values, tmp_path / "run")["mIoU"] >= 95
