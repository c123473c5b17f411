"""Per-image statistics of an evaluation, so that two models can be compared over images when there is one seed.

What mmseg's IoUMetric, mmdet's CocoMetric and `AdPEAccuracy` sum up is kept image by image and written to one ``.npz``
file of plain arrays (``numpy.load(..., allow_pickle=False)`` reads it):

- segmentation: ``images (N,)`` names, ``classes (C,)`` names, ``intersection (N, C)`` and ``union (N, C)`` in pixels;
- detection: ``images (N,)`` COCO ids, ``classes (K,)`` names and, for each of ``bbox`` and ``segm``, one entry a
  detection, ``<type>/image`` and ``<type>/category`` (indices), ``<type>/score``, ``<type>/matched`` and
  ``<type>/ignored`` (bit t: at IoU threshold 0.50 + 0.05 t), and one entry per image and category that has objects,
  ``<type>/truth_image``, ``<type>/truth_category``, ``<type>/truth_count``;
- classification: ``images (N,)`` names, ``classes (C,)`` names, ``label``, ``prediction`` and ``rank (N,)``, classes
  that stood before the label's; of further models of the run ``<name>_rank (N,)``;
- several labels an image: ``images (N,)`` names, ``classes (C,)`` names, ``scores (N, C)`` and ``targets (N, C)`` of 1,
  0 and -1 for unknown.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, is_main_process

from adpe.files import atomic_write

MAX_DETECTIONS = 100  # an image and category, as COCO's AP


class PerImageStatistics:
    """Collects, beside an evaluator's IoUMetric, CocoMetric or AdPEAccuracy, the statistics of the images it saw."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []
        self.seen = 0

    def start(self) -> None:
        """Forget what was collected, before a pass over the data."""
        self.entries, self.seen = [], 0

    def collect(self, evaluator: Any, outputs: Sequence[Any]) -> None:
        """Take what the metric added to its results for a batch.

        Args:
            evaluator: mmengine's Evaluator after it processed the batch.
            outputs: the batch's data samples.
        """
        metric = _supported(evaluator)
        if metric is None:
            return
        new = metric.results[self.seen :]
        self.seen = len(metric.results)
        # Without annotations (format_only) the metric keeps nothing.
        if len(new) == len(outputs):
            self.entries += [(_name(sample), result) for sample, result in zip(outputs, new, strict=True)]

    def save(self, evaluator: Any, path: str | Path) -> bool:
        """Write the file from what every process collected; the main process writes.

        Returns:
            whether there was anything to write.
        """
        metric = _supported(evaluator)
        own: dict[str, Any] = {}
        if metric is not None and self.entries:
            if _is_a(metric, "AdPEAccuracy"):
                own = _ranks(self.entries)
            else:
                own = _areas(self.entries) if _is_a(metric, "IoUMetric") else _matches(metric, self.entries)
        gathered = [part for part in all_gather_object(own) if part]
        if not gathered:
            return False
        if is_main_process():
            assert metric is not None
            classes = np.asarray(metric.dataset_meta["classes"])
            arrays: dict[str, Any] = {"classes": classes, **_merge(gathered)}
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
        return True


def _is_a(metric: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(metric).__mro__)


def _supported(evaluator: Any) -> Any | None:
    for metric in evaluator.metrics:
        if any(_is_a(metric, name) for name in ("IoUMetric", "AdPEAccuracy")):
            return metric
        if _is_a(metric, "CocoMetric") and _ground_truth(metric) is not None:
            return metric
    return None


def _ground_truth(metric: Any) -> Any:
    from adpe.engine.mmengine_internals import coco_ground_truth  # adpe.engine imports this module

    return coco_ground_truth(metric)


def _name(sample: Any) -> str:
    """Of an image: the id in COCO's files, else the last two parts of its path, which machines agree on."""
    image = sample.get("img_id")
    return "/".join(Path(sample.get("img_path")).parts[-2:]) if image is None else str(image)


def _areas(entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    pairs = [[np.asarray(area.cpu(), dtype=np.float64) for area in areas[:2]] for _, areas in entries]
    both = np.rint(np.asarray(pairs)).astype(np.int64)  # (N, 2, C)
    return {"images": np.asarray([name for name, _ in entries]), "intersection": both[:, 0], "union": both[:, 1]}


def _ranks(entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    columns = np.asarray([result for _, result in entries], dtype=np.int32)  # (N, 3)
    names = np.asarray([name for name, _ in entries])
    return {"images": names, "label": columns[:, 0], "prediction": columns[:, 1], "rank": columns[:, 2]}


def _matches(metric: Any, entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    truth = _ground_truth(metric)
    categories = truth.get_cat_ids(cat_names=metric.dataset_meta["classes"])
    results = {result["img_id"]: result for _, (_, result) in entries}  # samplers repeat images to fill the last batch
    arrays: dict[str, Any] = {"images": np.asarray([str(image) for image in results])}
    for kind in metric.metrics:
        if kind in ("bbox", "segm"):
            arrays |= {f"{kind}/{name}": array for name, array in _evaluate(truth, categories, results, kind).items()}
    return arrays


def _evaluate(truth: Any, categories: list[int], results: dict[Any, Any], kind: str) -> dict[str, np.ndarray]:
    from pycocotools.cocoeval import COCOeval

    found = [item for result in results.values() for item in _detections(result, categories, kind)]
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("image", "category", "score", "matched", "ignored", "truth_image", "truth_category", "truth_count")
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(truth, truth.loadRes(found) if found else truth.__class__(), kind)
        evaluation.params.imgIds = list(results)
        evaluation.params.catIds = categories
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    bits = 1 << np.arange(len(evaluation.params.iouThrs), dtype=np.int64)
    image_index = {image: index for index, image in enumerate(results)}
    category_index = {category: index for index, category in enumerate(categories)}
    for item in evaluation.evalImgs:
        if item is None:
            continue
        image, category = image_index[item["image_id"]], category_index[item["category_id"]]
        columns["image"] += [image] * len(item["dtScores"])
        columns["category"] += [category] * len(item["dtScores"])
        columns["score"] += list(item["dtScores"])
        columns["matched"] += ((np.asarray(item["dtMatches"]) > 0) * bits[:, None]).sum(0).tolist()
        columns["ignored"] += (np.asarray(item["dtIgnore"], dtype=bool) * bits[:, None]).sum(0).tolist()
        count = int(np.sum(np.asarray(item["gtIgnore"]) == 0))
        if count:
            columns["truth_image"].append(image)
            columns["truth_category"].append(category)
            columns["truth_count"].append(count)
    types = {"score": np.float64}
    return {name: np.asarray(column, dtype=types.get(name, np.int32)) for name, column in columns.items()}


def _detections(result: dict[str, Any], categories: list[int], kind: str) -> list[dict[str, Any]]:
    """Detections of an image in COCO's result format."""
    scores = result.get("mask_scores", result["scores"]) if kind == "segm" else result["scores"]
    items = []
    for index, (label, score) in enumerate(zip(result["labels"], scores, strict=True)):
        item = {"image_id": result["img_id"], "category_id": categories[int(label)], "score": float(score)}
        if kind == "bbox":
            left, top, right, bottom = map(float, result["bboxes"][index])
            item["bbox"] = [left, top, right - left, bottom - top]
        else:
            item["segmentation"] = result["masks"][index]
        items.append(item)
    return items


def _merge(parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Join the processes' arrays, every image once."""
    merged: dict[str, list[np.ndarray]] = {}
    known: dict[str, int] = {}
    for part in parts:
        keep = []
        for index, image in enumerate(part["images"]):
            if str(image) not in known:
                known[str(image)] = len(known)
                keep.append(index)
        kept = np.zeros(len(part["images"]), dtype=bool)
        kept[keep] = True
        index_of = np.asarray([known[str(image)] for image in part["images"]], dtype=np.int32)
        for name, array in part.items():
            kind, _, column = name.rpartition("/")
            if not kind:
                merged.setdefault(name, []).append(array[kept])
                continue
            owner = part[f"{kind}/{'truth_image' if column.startswith('truth') else 'image'}"]
            chosen = array[kept[owner]] if len(owner) else array
            merged.setdefault(name, []).append(index_of[chosen] if column in ("image", "truth_image") else chosen)
    return {name: np.concatenate(arrays) for name, arrays in merged.items()}
