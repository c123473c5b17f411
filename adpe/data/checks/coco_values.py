"""The values of COCO annotations that training and evaluation use: what is wrong with them, and how it is repaired."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpe.data.checks.coco_masks import (
    GOOD,
    MALFORMED,
    NONE,
    OUTSIDE,
    WRONG_COUNTS,
    WRONG_SIZE,
    Masks,
    read_masks,
)

_NUMBERS = {int, float}
_CROWD_TEXT = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
# COCO's own boxes are rounded, and other tools count pixels from 1.
_TOLERANCE = 1.0
_ABSENT = object()


@dataclass(frozen=True)
class Kind:
    """One way in which annotations differ from what the frameworks need.

    Attributes:
        words: what they are, after a count.
        level: "normalised" keeps its meaning in another form, under every policy; "note" is told and changed by
            none; "problem" is refused, repaired or reported; "unreadable" is a problem that would crash a run.
    """

    words: str
    level: str


KINDS = {
    "id": Kind("ids that are no positive integers of their own", "normalised"),
    "iscrowd_absent": Kind("annotations without iscrowd", "normalised"),
    "mask_form": Kind("masks in another form than lists of coordinates, or with parts of no area", "normalised"),
    "narrow": Kind("boxes narrower than one pixel, which mmdet leaves out of training", "note"),
    "apart": Kind("boxes that are not those of their masks (IoU below 0.5)", "note"),
    "id_repeated": Kind("ids that several annotations have", "problem"),
    "repeated": Kind("annotations that are in the file twice", "problem"),
    "box_text": Kind("boxes of text", "unreadable"),
    "box_unreadable": Kind("boxes that are not four numbers", "unreadable"),
    "box_not_finite": Kind("boxes with NaN or infinity", "unreadable"),
    "box_flat": Kind("boxes of no or negative width or height", "problem"),
    "box_outside": Kind("boxes outside their image", "problem"),
    "box_beyond": Kind("boxes that reach beyond their image", "problem"),
    "area_unreadable": Kind("areas that are not a number", "unreadable"),
    "area_not_positive": Kind("areas of zero or less", "problem"),
    "crowd_value": Kind("values of iscrowd other than 0 and 1", "unreadable"),
    "ignore": Kind(
        "annotations marked ignore, which mmdet leaves out of training and pycocotools evaluates", "problem"
    ),
    "mask_none": Kind("annotations without a mask", "unreadable"),
    "mask_malformed": Kind("masks that are neither polygons nor run lengths", "unreadable"),
    "mask_part": Kind("masks with a part that is no polygon", "problem"),
    "mask_outside": Kind("masks outside their image", "problem"),
    "mask_size": Kind("run lengths of another size than their image", "unreadable"),
    "mask_counts": Kind("run lengths that do not add up to their image", "unreadable"),
}
_MASK_KINDS = {
    NONE: "mask_none",
    MALFORMED: "mask_malformed",
    WRONG_SIZE: "mask_size",
    WRONG_COUNTS: "mask_counts",
    OUTSIDE: "mask_outside",
}
LEFT_OUT = "left out"
IGNORED = "ignored as crowds are, in training and evaluation"


@dataclass
class Examination:
    """What was found in N annotations.

    Attributes:
        found: (kind, what `repair` does about it) to positions in the list.
        normalised: position to keys with other values of the same meaning.
        repaired: position to keys with corrected values; None for an annotation to leave out.
    """

    found: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    normalised: dict[int, dict[str, Any]] = field(default_factory=dict)
    repaired: dict[int, dict[str, Any] | None] = field(default_factory=dict)

    def add(self, kind: str, action: str, rows: Iterable[int]) -> None:
        """Note positions."""
        rows = [int(row) for row in rows]
        if rows:
            self.found.setdefault((kind, action), []).extend(rows)

    def normalise(self, row: int, **values: Any) -> None:
        """Give a key another form."""
        self.normalised.setdefault(row, {}).update(values)

    def repair(self, row: int, **values: Any) -> None:
        """Correct a key, unless the annotation is left out."""
        known = self.repaired.setdefault(row, {})
        if known is not None:
            known.update(values)


def examine(annotations: Sequence[dict[str, Any]], sizes: NDArray[np.float64], with_mask: bool) -> Examination:
    """Examine annotations whose images and categories are known.

    Args:
        annotations: N of them.
        sizes: (N, 2) width and height of each one's image in pixels.
        with_mask: whether every annotation needs a mask.
    """
    result = Examination()
    _check_ids(annotations, result)
    masks = read_masks([annotation.get("segmentation") for annotation in annotations], sizes)
    boxes = _check_boxes(annotations, sizes, masks, result)
    _check_areas(annotations, boxes, masks, result)
    _check_crowds(annotations, result)
    if with_mask:
        _check_masks(boxes, sizes, masks, result)
    return result


def _check_ids(annotations: Sequence[dict[str, Any]], result: Examination) -> None:
    ids = [annotation.get("id") for annotation in annotations]
    wrong = [row for row, value in enumerate(ids) if type(value) is not int or value < 1]
    if not wrong and len(set(ids)) == len(ids):
        return
    count = Counter(str(value) for value in ids)
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(ids):
        if value is not None and count[str(value)] > 1:
            groups.setdefault(str(value), []).append(row)
    for rows in groups.values():
        copies = [row for row in rows[1:] if annotations[row] == annotations[rows[0]]]
        result.add("repeated", LEFT_OUT, copies)
        result.repaired.update(dict.fromkeys(copies))
        if len(copies) < len(rows) - 1:
            result.add("id_repeated", "renumbered", rows)
    result.add("id", "renumbered", wrong)
    for row in range(len(ids)):
        result.normalise(row, id=row + 1)


def _check_boxes(
    annotations: Sequence[dict[str, Any]], sizes: NDArray[np.float64], masks: Masks, result: Examination
) -> NDArray[np.float64]:
    """The boxes (N, 4) as left, top, width, height, corrected; NaN for those that are left out."""
    values = [annotation.get("bbox") for annotation in annotations]
    boxes, text, unreadable = _rows_of_four(values)
    result.add("box_text", "read as numbers", text)
    for row in text:
        result.repair(row, bbox=boxes[row].tolist())
    finite = np.isfinite(boxes).all(1)
    flat = finite & (boxes[:, 2:] <= 0).any(1)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
        outside = finite & ~flat & (high - low <= 0).any(1)
        right = finite & ~flat & ~outside
        over = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, :2] + boxes[:, 2:] > sizes + _TOLERANCE)
    beyond = np.flatnonzero(right & over.any(1))
    result.add("box_beyond", "cut at its edges", beyond)
    boxes[beyond] = np.hstack([low, high - low])[beyond]
    for row in beyond:
        result.repair(int(row), bbox=boxes[row].tolist())
    bad = np.zeros(len(boxes), bool)
    bad[unreadable] = True
    kinds = {"box_unreadable": bad, "box_not_finite": ~finite & ~bad, "box_flat": flat, "box_outside": outside}
    for kind, chosen in kinds.items():
        rows = np.flatnonzero(chosen)
        for row in rows:
            boxes[row] = _box_of_mask(annotations[row], masks, int(row), sizes[row])
        lost = np.isnan(boxes[rows, 0])
        result.add(kind, "taken from the mask", rows[~lost])
        result.add(kind, LEFT_OUT, rows[lost])
        for row in rows[~lost]:
            result.repair(int(row), bbox=boxes[row].tolist())
        result.repaired.update(dict.fromkeys(rows[lost].tolist()))
    result.add("narrow", "nothing changed", np.flatnonzero(right & (boxes[:, 2:] < 1).any(1)))
    _compare_with_masks(boxes, right, masks, result)
    return boxes


def _compare_with_masks(boxes: NDArray[np.float64], right: NDArray[Any], masks: Masks, result: Examination) -> None:
    known = np.flatnonzero(right & ~np.isnan(masks.extent[:, 0]) & (masks.state == GOOD))
    box, mask = boxes[known].copy(), masks.extent[known]
    box[:, 2:] += box[:, :2]
    shared = np.clip(np.minimum(box[:, 2:], mask[:, 2:]) - np.maximum(box[:, :2], mask[:, :2]), 0, None).prod(1)
    union = (box[:, 2:] - box[:, :2]).prod(1) + (mask[:, 2:] - mask[:, :2]).prod(1) - shared
    result.add("apart", "nothing changed", known[shared < 0.5 * union])


def _box_of_mask(annotation: dict[str, Any], masks: Masks, row: int, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Left, top, width, height inside of the image; NaN without a mask that can be read."""
    nothing = np.full(4, np.nan)
    if masks.state[row] != GOOD:
        return nothing
    extent = masks.extent[row]
    if np.isnan(extent[0]):
        from pycocotools import mask as coco_mask

        lengths = annotation["segmentation"]
        width, height = (int(value) for value in size)
        if isinstance(lengths["counts"], list):
            lengths = coco_mask.frPyObjects(lengths, height, width)
        return np.asarray(coco_mask.toBbox(lengths), dtype=np.float64)
    low, high = np.maximum(extent[:2], 0), np.minimum(extent[2:], size)
    return np.concatenate([low, high - low])


def _rows_of_four(values: Sequence[Any]) -> tuple[NDArray[np.float64], list[int], list[int]]:
    """The values as (N, 4); the rows of text that are numbers; the rows that are not four numbers, NaN in the array."""
    boxes = np.full((len(values), 4), np.nan)
    lists = [row for row, value in enumerate(values) if type(value) is list and len(value) == 4]
    flat = list(chain.from_iterable(values[row] for row in lists))
    if set(map(type, flat)) - _NUMBERS or not _fits(flat):
        text, unreadable = [], []
        for row, value in enumerate(values):
            numbers = [_number(item) for item in value] if type(value) is list and len(value) == 4 else [None]
            if None in numbers:
                unreadable.append(row)
                continue
            boxes[row] = numbers
            if any(type(item) is str for item in value):
                text.append(row)
        return boxes, text, unreadable
    boxes[lists] = np.asarray(flat, dtype=np.float64).reshape(-1, 4)
    if len(lists) == len(values):
        return boxes, [], []
    known = set(lists)
    return boxes, [], [row for row in range(len(values)) if row not in known]


def _fits(numbers: Sequence[float]) -> bool:
    return not numbers or max(numbers) < 1e300


def _number(value: Any) -> float | None:
    """A number, or a text of one, as a float; None if it is neither."""
    if type(value) not in (int, float, str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _check_areas(
    annotations: Sequence[dict[str, Any]], boxes: NDArray[np.float64], masks: Masks, result: Examination
) -> None:
    values: list[Any] = [annotation.get("area") for annotation in annotations]
    if set(map(type, values)) <= _NUMBERS and _fits(values):
        areas = np.asarray(values, dtype=np.float64)
        unreadable = ~np.isfinite(areas)
    else:
        areas = np.asarray([value if type(value) in _NUMBERS and abs(value) < 1e300 else np.nan for value in values])
        unreadable = ~np.isfinite(areas)
    for kind, chosen in (("area_unreadable", unreadable), ("area_not_positive", ~unreadable & (areas <= 0))):
        rows = np.flatnonzero(chosen)
        lost = np.isnan(boxes[rows, 0])
        by_mask = (masks.state[rows] == GOOD) & ~lost
        result.add(kind, "taken from the mask", rows[by_mask])
        result.add(kind, "taken from the box", rows[~by_mask & ~lost])
        result.add(kind, LEFT_OUT, rows[lost])
        for row, from_mask in zip(rows.tolist(), by_mask, strict=True):
            area = masks.area[row] if from_mask else boxes[row, 2] * boxes[row, 3]
            if math.isfinite(area):
                result.repair(row, area=float(area))


def _check_crowds(annotations: Sequence[dict[str, Any]], result: Examination) -> None:
    values = [annotation.get("iscrowd", _ABSENT) for annotation in annotations]
    if not (set(map(type, values)) <= {int} and set(values) <= {0, 1}):
        absent = [row for row, value in enumerate(values) if value is _ABSENT]
        result.add("iscrowd_absent", "taken as 0", absent)
        for row in absent:
            result.normalise(row, iscrowd=0)
        for row, value in enumerate(values):
            if value is _ABSENT or (type(value) is int and value in (0, 1)):
                continue
            if isinstance(value, (bool, float)) and value in (0, 1):
                result.normalise(row, iscrowd=int(value))
                continue
            # Something is special about it: neither rewarded nor punished.
            meaning = 0 if value is None else _CROWD_TEXT.get(str(value).lower(), 1)
            result.add("crowd_value", f"taken as {meaning}", [row])
            result.repair(row, iscrowd=meaning)
    ignored = [row for row, annotation in enumerate(annotations) if annotation.get("ignore")]
    result.add("ignore", IGNORED, ignored)
    for row in ignored:
        result.repair(row, iscrowd=1, ignore=0)


def _check_masks(boxes: NDArray[np.float64], sizes: NDArray[np.float64], masks: Masks, result: Examination) -> None:
    result.add("mask_form", "rewritten", masks.rewritten)
    for row, polygons in masks.rewritten.items():
        result.normalise(row, segmentation=polygons)
    result.add("mask_part", "trained without that part", masks.trimmed)
    for row, polygons in masks.trimmed.items():
        result.repair(row, segmentation=polygons)
    for state, kind in _MASK_KINDS.items():
        for row in np.flatnonzero(masks.state == state).tolist():
            if np.isnan(boxes[row, 0]):  # left out for its box
                result.add(kind, LEFT_OUT, [row])
                continue
            result.add(kind, IGNORED, [row])
            result.repair(row, iscrowd=1, segmentation=_filled(boxes[row], sizes[row]))


def _filled(box: NDArray[np.float64], size: NDArray[np.float64]) -> list[list[float]]:
    """A mask of the box, at least a pixel wide, which says where an object without a mask is ignored."""
    low = np.clip(np.floor(box[:2]), 0, size - 1)
    high = np.clip(np.ceil(box[:2] + box[2:]), low + 1, size)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    return [[left, top, right, top, right, bottom, left, bottom]]
