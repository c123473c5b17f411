"""Per-image statistics: what evaluation saves gives back the metric it reported, and a draw of images its own."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adpe.errors import UserError
from adpe.evaluations.metrics.per_image import PerImageStatistics
from adpe.leaderboard.uncertainty.paired_images import compare_images, metrics_of, read_per_image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")


def segmentation(path: Path, seed: int, noise: float, images: int = 6) -> dict[str, float]:
    """Evaluate random label maps as mmengine's loop does, batches of two, and save the statistics."""
    from mmengine.structures import PixelData
    from mmseg.evaluation import IoUMetric
    from mmseg.structures import SegDataSample

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": ("sky", "sea", "sand")}
    evaluator = SimpleNamespace(metrics=[metric])
    statistics = PerImageStatistics()
    statistics.start()
    truth, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    for start in range(0, images, 2):
        batch = []
        for index in range(start, start + 2):
            label = torch.randint(0, 3, (1, 8, 9), generator=truth)
            wrong = torch.rand(label.shape, generator=own) < noise
            predicted = torch.where(wrong, torch.randint(0, 3, label.shape, generator=own), label)
            sample = SegDataSample(metainfo={"img_path": f"/data/ade/validation/{index}.jpg"})
            sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=label), PixelData(data=predicted)
            batch.append(sample)
        metric.process({}, [sample.to_dict() for sample in batch])
        statistics.collect(evaluator, batch)
    reported = metric.evaluate(images)
    assert statistics.save(evaluator, path)
    return reported


def test_areas_give_the_reported_miou(tmp_path: Path) -> None:
    reported = segmentation(tmp_path / "a.npz", seed=1, noise=0.4)
    arrays = read_per_image(tmp_path / "a.npz")
    assert list(arrays["images"]) == [f"validation/{index}.jpg" for index in range(6)]
    assert list(arrays["classes"]) == ["sky", "sea", "sand"]
    assert arrays["union"].shape == (6, 3) and arrays["union"].dtype == np.int64
    metrics = metrics_of(arrays, arrays["images"])
    assert metrics["mIoU"](np.arange(6)) == pytest.approx(reported["mIoU"], abs=0.005)
    assert 40 < reported["mIoU"] < 80
    one = arrays["intersection"][2] / arrays["union"][2]
    assert metrics["mIoU"](np.asarray([2, 2])) == pytest.approx(100 * one.mean())


def test_bootstrap_tells_a_clear_difference_from_none(tmp_path: Path) -> None:
    for name, seed, noise in (("good", 1, 0.1), ("bad", 2, 0.6), ("again", 3, 0.1)):
        segmentation(tmp_path / name, seed, noise)
    clear = compare_images(tmp_path / "good", tmp_path / "bad", ["mIoU", "bbox_mAP"])
    assert list(clear) == ["mIoU"] and clear["mIoU"].is_clear and clear["mIoU"].mean > 20
    assert clear["mIoU"].counts == (6, 6) and clear["mIoU"].low < clear["mIoU"].mean < clear["mIoU"].high  # type: ignore[operator]
    unclear = compare_images(tmp_path / "good", tmp_path / "again", ["mIoU"])["mIoU"]
    assert not unclear.is_clear and abs(unclear.mean) < 8


def coco(folder: Path, images: int = 5, seed: int = 0) -> Path:
    draw = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for _ in range(4):
            x, y, w, h = (*draw.integers(0, 40, 2).tolist(), *draw.integers(8, 24, 2).tolist())
            number = len(annotations) + 1
            crowd = int(number % 7 == 0)
            annotations.append({"id": number, "image_id": image + 10, "category_id": 3 + number % 2,
                                "bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd,
                                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})  # fmt: skip
    content = {
        "images": [
            {"id": image + 10, "width": 64, "height": 64, "file_name": f"{image}.png"} for image in range(images)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def detection(path: Path, annotations: Path, seed: int, jitter: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate jittered boxes of the truth, some missing and some added. Returns the metrics and the results."""
    from mmdet.evaluation import CocoMetric
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    metric = CocoMetric(ann_file=str(annotations), metric=["bbox"])
    metric.dataset_meta = {"classes": ("cat", "dog")}
    evaluator, statistics, draw = SimpleNamespace(metrics=[metric]), PerImageStatistics(), np.random.default_rng(seed)
    statistics.start()
    content, found = json.loads(annotations.read_text()), []
    for image in content["images"]:
        own = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        boxes = np.asarray([item["bbox"] for item in own if draw.random() < 0.8] + [[1, 1, 9, 9]], dtype=float)
        boxes = np.concatenate([boxes, boxes[:2] + 2])
        boxes[:, 2:] += boxes[:, :2]
        boxes += draw.normal(0, jitter, boxes.shape)
        labels, scores = draw.integers(0, 2, len(boxes)), draw.random(len(boxes))
        instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels), scores=torch.tensor(scores))
        sample = DetDataSample(metainfo={"img_id": image["id"], "ori_shape": (64, 64), "img_path": "x/y.png"})
        sample.pred_instances = instances
        metric.process({}, [sample.to_dict()])
        statistics.collect(evaluator, [sample])
        found += [{"image_id": image["id"], "category_id": 3 + int(label), "score": float(score),
                   "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
                  for b, label, score in zip(boxes.tolist(), labels, scores, strict=True)]  # fmt: skip
    reported = metric.evaluate(len(content["images"]))
    assert statistics.save(evaluator, path)
    return reported, found


def test_matches_give_the_reported_ap_and_that_of_any_draw(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = coco(tmp_path)
    reported, found = detection(tmp_path / "a.npz", annotations, seed=1, jitter=1.0)
    arrays = read_per_image(tmp_path / "a.npz")
    metric = metrics_of(arrays, arrays["images"])["bbox_mAP"]
    assert metric(np.arange(5)) / 100 == pytest.approx(reported["coco/bbox_mAP"], abs=0.0006)  # mmdet rounds to 0.001
    assert 0.02 < reported["coco/bbox_mAP"] < 0.9

    # A draw with repeats against pycocotools on a data set in which the images really are repeated.
    drawn = [0, 3, 3, 1, 3]
    content = json.loads(annotations.read_text())
    repeated: dict[str, Any] = {"images": [], "annotations": [], "categories": content["categories"]}
    results = []
    for new, old in enumerate(drawn):
        old_id = int(arrays["images"][old])
        repeated["images"].append({"id": new, "width": 64, "height": 64})
        for item in content["annotations"]:
            if item["image_id"] == old_id:
                repeated["annotations"].append({**item, "id": len(repeated["annotations"]) + 1, "image_id": new})
        results += [{**item, "image_id": new} for item in found if item["image_id"] == old_id]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = repeated
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert metric(np.asarray(drawn)) == pytest.approx(100 * evaluation.stats[0], abs=1e-9)


def test_different_images_and_bad_files_are_refused(tmp_path: Path) -> None:
    segmentation(tmp_path / "six.npz", 1, 0.3)
    segmentation(tmp_path / "four.npz", 1, 0.3, images=4)
    with pytest.raises(UserError, match=r"different images \(6 and 4, 4 in common\)"):
        compare_images(tmp_path / "six.npz", tmp_path / "four.npz", ["mIoU"])
    with pytest.raises(UserError, match=r"none\.npz: the file of per-image statistics .* does not exist"):
        read_per_image(tmp_path / "none.npz")
    content = (tmp_path / "six.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"torn\.npz cannot be read"):
        read_per_image(tmp_path / "torn.npz")
    (tmp_path / "code.npz").write_bytes(pickle.dumps({"images": print}))
    with pytest.raises(UserError, match=r"code\.npz cannot be read"):
        read_per_image(tmp_path / "code.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(UserError, match=r"other\.npz holds no per-image statistics"):
        read_per_image(tmp_path / "other.npz")


def test_processes_are_joined_and_every_image_counts_once(tmp_path: Path) -> None:
    from adpe.evaluations.metrics.per_image import _merge

    detection(tmp_path / "a.npz", coco(tmp_path), seed=1, jitter=1.0)
    segmentation(tmp_path / "s.npz", seed=1, noise=0.4)
    for path, name in ((tmp_path / "a.npz", "bbox_mAP"), (tmp_path / "s.npz", "mIoU")):
        whole = read_per_image(path)
        # Two processes, the second of which repeats an image of the first, as a sampler does to fill up.
        parts = [part_of(whole, [0, 2, 4]), part_of(whole, [3, 1, 0])]
        joined = {"classes": whole["classes"], **_merge(parts)}
        assert [str(image) for image in joined["images"]] == [str(whole["images"][i]) for i in (0, 2, 4, 3, 1)]
        order = whole["images"][:5]
        for drawn in (np.arange(5), np.asarray([4, 4, 0, 2, 1])):
            assert metrics_of(joined, order)[name](drawn) == pytest.approx(metrics_of(whole, order)[name](drawn))


def part_of(whole: dict[str, np.ndarray], images: list[int]) -> dict[str, np.ndarray]:
    """What a process that saw these images would have gathered."""
    part = {}
    for name, array in whole.items():
        kind, _, column = name.rpartition("/")
        if name == "classes":
            continue
        if not kind:
            part[name] = array[images]
            continue
        owner = whole[f"{kind}/{'truth_image' if column.startswith('truth') else 'image'}"]
        chosen = np.concatenate([np.flatnonzero(owner == image) for image in images])
        new = np.concatenate([np.full((owner == image).sum(), index) for index, image in enumerate(images)])
        part[name] = new if column in ("image", "truth_image") else array[chosen]
    return part
