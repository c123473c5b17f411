"""Metrics are pycocotools' and mmseg's own, to the last digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")

from mmdet.evaluation.metrics import CocoMetric, coco_metric
from mmseg.evaluation import IoUMetric

from adpe.engine.config import read_config
from adpe.evaluations.metrics.coco_ap import AdPECocoMetric
from adpe.evaluations.metrics.iou import AdPEIoUMetric
from adpe.evaluations.metrics.unrounded import use_unrounded_metrics


def detected(metric: CocoMetric, images: int = 7) -> dict[str, float]:
    draw = np.random.default_rng(1)
    metric.dataset_meta = {"classes": ("a", "b")}
    for index in range(images):
        boxes = draw.uniform(0, 50, (4, 2))
        boxes = np.concatenate([boxes, boxes + draw.uniform(10, 40, (4, 2))], axis=1)
        labels = draw.integers(0, 2, 4)
        instances = [
            {"bbox": box.tolist(), "bbox_label": int(label), "ignore_flag": 0}
            for box, label in zip(boxes, labels, strict=True)
        ]
        found = torch.tensor(boxes + draw.normal(0, 3, boxes.shape), dtype=torch.float32)
        predictions = {"bboxes": found, "scores": torch.tensor(draw.uniform(size=4)), "labels": torch.tensor(labels)}
        sample: dict[str, Any] = {
            "img_id": index, "ori_shape": (100, 100), "instances": instances, "pred_instances": predictions,
        }  # fmt: skip
        metric.process({}, [sample])
    return metric.evaluate(images)


def test_ap_is_that_of_coco_eval() -> None:
    made: list[Any] = []

    class Seen(coco_metric.COCOeval):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_metric, "COCOeval", Seen)
        exact = detected(AdPECocoMetric(metric="bbox"))
        rounded = detected(CocoMetric(metric="bbox"))
        assert coco_metric.COCOeval is Seen
    stats = made[0].stats
    assert [exact[f"coco/bbox_{name}"] for name in ("mAP", "mAP_50", "mAP_75")] == stats[:3].tolist()
    assert exact.keys() == rounded.keys()
    assert {name: round(value, 3) for name, value in exact.items()} == rounded
    assert exact["coco/bbox_mAP"] != rounded["coco/bbox_mAP"]
    assert exact["coco/bbox_mAP_l"] == -1 == stats[5]  # no object is that large


def test_means_over_classes_are_not_rounded() -> None:
    draw = torch.Generator().manual_seed(2)
    results = []
    for _ in range(50):
        union, label = (torch.randint(1 << 20, 1 << 22, (3,), generator=draw).float() for _ in range(2))
        results.append((torch.floor(union * torch.rand(3, generator=draw)), union, label, label))
    values = {}
    for kind in (AdPEIoUMetric, IoUMetric):
        metric = kind(iou_metrics=["mIoU"])
        metric.dataset_meta = {"classes": ("a", "b", "c")}
        values[kind] = metric.compute_metrics(list(results))
    intersection, union = (sum(result[k].double() for result in results) for k in (0, 1))
    expected = float((intersection / union).mean() * 100)
    assert values[AdPEIoUMetric]["mIoU"] == pytest.approx(expected, abs=1e-11)
    assert values[IoUMetric]["mIoU"] == pytest.approx(expected, abs=0.006)
    assert values[AdPEIoUMetric].keys() == values[IoUMetric].keys()


def test_every_config_gets_them() -> None:
    for config, kind in (("segmentation", "AdPEIoUMetric"), ("detection", "AdPECocoMetric")):
        cfg = read_config(f"configs/demo/{config}.py")
        use_unrounded_metrics(cfg)
        assert cfg.val_evaluator.type == cfg.test_evaluator.type == kind
    cfg = Config({"val_evaluator": [{"type": "mmdet.CocoMetric"}, {"type": "Other"}], "test_evaluator": None})
    use_unrounded_metrics(cfg)
    assert [evaluator["type"] for evaluator in cfg.val_evaluator] == ["AdPECocoMetric", "Other"]
