"""The masks of COCO annotations: which can be read, their areas and extents, and those that need repair.

Polygons and run lengths are read for thousands of annotations at a time with NumPy; only what is not as COCO has it is
looked at one by one. Formats: cocodataset.org/#format-data; compressed run lengths: rleToString in cocoapi's maskApi.c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

# States of a mask.
GOOD, NONE, MALFORMED, WRONG_SIZE, WRONG_COUNTS, OUTSIDE = range(6)
_CHUNK = 20_000  # annotations whose coordinates are in memory at once
_NUMBERS = {int, float}


@dataclass
class Masks:
    """Of N annotations.

    Attributes:
        state: (N,) int8, `GOOD` or what is wrong.
        area: (N,) float64, in square pixels; 0 where there is no good mask.
        extent: (N, 4) float64, left, top, right and bottom in pixels; NaN where there is no good polygon.
        rewritten: position to the same mask in COCO's form: a flat list or points as pairs, without parts of no area.
        trimmed: position to the polygons without the parts that cannot be read.
    """

    state: NDArray[np.int8]
    area: NDArray[np.float64]
    extent: NDArray[np.float64]
    rewritten: dict[int, list[list[float]]] = field(default_factory=dict)
    trimmed: dict[int, list[list[float]]] = field(default_factory=dict)


def read_masks(segmentations: Sequence[Any], sizes: NDArray[np.float64]) -> Masks:
    """Look at the masks of annotations.

    Args:
        segmentations: N values of ``segmentation``; None where there is none.
        sizes: (N, 2) width and height of each annotation's image.
    """
    count = len(segmentations)
    masks = Masks(np.full(count, NONE, np.int8), np.zeros(count), np.full((count, 4), np.nan))
    for start in range(0, count, _CHUNK):
        rows = range(start, min(start + _CHUNK, count))
        polygons = [row for row in rows if type(segmentations[row]) is list]
        _read_polygons(segmentations, polygons, masks)
        lengths = [row for row in rows if type(segmentations[row]) is dict]
        _read_run_lengths(segmentations, lengths, sizes, masks)
        for row in rows:
            if segmentations[row] is not None and type(segmentations[row]) not in (list, dict):
                masks.state[row] = MALFORMED
    inside = np.minimum(masks.extent[:, 2:], sizes) - np.maximum(masks.extent[:, :2], 0)
    masks.state[(inside <= 0).any(1)] = OUTSIDE
    return masks


def _read_polygons(segmentations: Sequence[Any], rows: list[int], masks: Masks) -> None:
    regular = rows
    if not _are_regular([segmentations[row] for row in rows]):
        regular = [row for row in rows if _are_regular([segmentations[row]])]
    odd = set(rows) - set(regular)
    if regular:
        odd |= _measure([segmentations[row] for row in regular], np.asarray(regular), masks)
    for row in sorted(odd):
        _mend_polygons(segmentations[row], row, masks)


def _are_regular(polygons: list[Any]) -> bool:
    """Whether all are lists of lists of numbers, none of them empty."""
    parts = list(chain.from_iterable(polygons))
    return (
        all(polygons)
        and set(map(type, parts)) <= {list}
        and all(parts)
        and set(map(type, chain.from_iterable(parts))) <= _NUMBERS
    )


def _measure(polygons: list[list[list[float]]], rows: NDArray[np.int64], masks: Masks) -> set[int]:
    """Areas (shoelace formula) and extents of regular polygons. Returns the rows with parts that are not polygons."""
    parts = list(chain.from_iterable(polygons))
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    owner = np.repeat(np.arange(len(polygons)), np.fromiter(map(len, polygons), np.int64, len(polygons)))
    wrong = np.zeros(len(polygons), bool)
    wrong[owner[(lengths % 2 == 1) | (lengths < 6)]] = True
    kept = ~wrong[owner]
    parts, lengths, owner = [part for part, keep in zip(parts, kept, strict=True) if keep], lengths[kept], owner[kept]
    if len(parts):
        points = _coordinates(parts, int(lengths.sum())).reshape(-1, 2)
        starts = np.concatenate([[0], np.cumsum(lengths // 2)])
        following = np.arange(1, len(points) + 1)
        following[starts[1:] - 1] = starts[:-1]
        x, y = points.T
        with np.errstate(invalid="ignore", over="ignore"):
            areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts[:-1])) / 2
        wrong[owner[~(np.isfinite(areas) & (areas > 0))]] = True
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        whole = owner[first]
        masks.area[rows[whole]] = np.add.reduceat(areas, first)
        low = np.minimum.reduceat(np.minimum.reduceat(points, starts[:-1]), first)
        high = np.maximum.reduceat(np.maximum.reduceat(points, starts[:-1]), first)
        masks.extent[rows[whole]] = np.hstack([low, high])
    masks.state[rows[~wrong]] = GOOD
    return set(rows[wrong].tolist())


def _coordinates(parts: list[list[float]], count: int) -> NDArray[np.float64]:
    try:
        return np.fromiter(chain.from_iterable(parts), np.float64, count)
    except OverflowError:  # an integer of hundreds of digits
        values = (value if abs(value) < 1e300 else math.inf for value in chain.from_iterable(parts))
        return np.fromiter(values, np.float64, count)


def _mend_polygons(polygons: list[Any], row: int, masks: Masks) -> None:
    masks.area[row], masks.extent[row] = 0, np.nan
    rewritten = bool(polygons) and all(type(value) in _NUMBERS for value in polygons)
    good, unreadable, empty = [], 0, 0
    for part in [polygons] if rewritten else polygons:
        if type(part) is list and part and all(type(point) is list and len(point) == 2 for point in part):
            part, rewritten = list(chain.from_iterable(part)), True
        numbers = type(part) is list and all(type(value) in _NUMBERS and abs(value) < 1e300 for value in part)
        if not numbers or len(part) % 2:
            unreadable += 1
        elif len(part) < 6 or polygon_area(part) == 0:
            empty += 1
        else:
            good.append(part)
    if not good:
        masks.state[row] = MALFORMED if unreadable or any(polygons) else NONE
        return
    masks.state[row] = GOOD
    masks.area[row] = sum(map(polygon_area, good))
    points = np.asarray(list(chain.from_iterable(good))).reshape(-1, 2)
    masks.extent[row] = [*points.min(0), *points.max(0)]
    if unreadable:
        masks.trimmed[row] = good
    elif rewritten or empty:
        masks.rewritten[row] = good


def polygon_area(part: Sequence[float]) -> float:
    """Area enclosed by x1, y1, x2, y2, ..."""
    x, y = np.asarray(part, dtype=np.float64).reshape(-1, 2).T
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


def _read_run_lengths(segmentations: Sequence[Any], rows: list[int], sizes: NDArray[np.float64], masks: Masks) -> None:
    compressed = []
    for row in rows:
        mask = segmentations[row]
        counts, size = mask.get("counts"), mask.get("size")
        width, height = sizes[row]
        masks.state[row] = GOOD
        if type(size) is not list or len(size) != 2 or set(map(type, size)) - _NUMBERS:
            masks.state[row] = MALFORMED
        elif size != [height, width]:
            masks.state[row] = WRONG_SIZE
        elif type(counts) is str:
            compressed.append(row)
        elif type(counts) is not list or set(map(type, counts)) - {int}:
            masks.state[row] = MALFORMED
        elif sum(counts) != width * height or min(counts) < 0:
            masks.state[row] = WRONG_COUNTS
        else:
            masks.area[row] = sum(counts[1::2])
    if compressed:
        chosen = np.asarray(compressed)
        totals, areas = run_lengths([segmentations[row]["counts"] for row in compressed])
        right = totals == sizes[chosen].prod(1)
        masks.state[chosen[~right]] = WRONG_COUNTS
        masks.area[chosen[right]] = areas[right]
    empty = np.asarray([row for row in rows if masks.state[row] == GOOD and masks.area[row] == 0], dtype=np.int64)
    masks.state[empty] = NONE


def run_lengths(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of compressed run lengths: all, -1 where the text is none of a mask, and those of the mask.

    A number is written in groups of 5 bits, lowest first, as characters from "0" on whose bit 5 says that more
    follow; from the fourth on it is the difference to the number before the last.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ascii_texts = [text if text.isascii() else " " * len(text) for text in texts]
    codes = np.frombuffer("".join(ascii_texts).encode(), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(texts)), lengths)
    wrong = lengths == 0
    wrong[owner[(codes < 0) | (codes > 63)]] = True
    last = np.cumsum(lengths)[~wrong] - 1
    wrong[owner[last[codes[last] & 32 != 0]]] = True
    totals, areas = np.full(len(texts), -1), np.zeros(len(texts), np.int64)
    codes, owner = codes[~wrong[owner]], owner[~wrong[owner]]
    if not len(codes):
        return totals, areas
    ends = codes & 32 == 0
    starts = np.concatenate([[0], np.flatnonzero(ends)[:-1] + 1])
    digit = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    wrong[owner[digit > 11]] = True
    shift = 5 * np.minimum(digit, 11)
    values = np.add.reduceat((codes & 31) << shift, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (shift[ends] + 5), 0)
    number = owner[starts]
    first = np.flatnonzero(np.diff(number, prepend=-1))
    index = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    for parity in (1, 0):
        # Undo the differences: sums within each text, over every second number.
        chosen = np.flatnonzero((index % 2 == parity) & (index > 0))
        sums = np.cumsum(values[chosen])
        begin = np.flatnonzero(np.diff(number[chosen], prepend=-1))
        before = np.where(begin > 0, sums[begin - 1], 0)
        values[chosen] = sums - np.repeat(before, np.diff(begin, append=len(chosen)))
    wrong[number[values < 0]] = True
    totals[number[first]] = np.add.reduceat(values, first)
    areas[number[first]] = np.add.reduceat(np.where(index % 2 == 1, values, 0), first)
    totals[wrong] = -1
    return totals, areas
