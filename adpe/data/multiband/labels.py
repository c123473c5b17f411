"""Multi-band images with several labels each, for probes: any sensor may be taken away."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS

from adpe.data.checks.class_names import checked_names
from adpe.data.checks.inspection import PathLike, existing_folder, existing_root, first, read_json
from adpe.data.multi_label import LabelledRows, coco_rows, logger
from adpe.data.sources.bands import BandSource
from adpe.data.views.band_crops import BandCrops
from adpe.data.views.multiband import SensorDrop
from adpe.errors import UserError

BOTH = "both"
Rows = list[tuple[str, list[str]]]


@DATASETS.register_module()
class AdPEMultiBandLabels(LabelledRows):
    """Multi-band images as a probe sees them: a crop in 0..1, with all sensors or with one alone, the others zero.

    Args:
        data_root: folder with labels and images.
        ann_file: labels by image, below the root: a JSON ``{"name": ["label", ...]}``, a ``.csv`` of rows
            ``name,label,label,...`` without a header, or a COCO JSON, whose categories are the labels. Names are those
            of the files below ``data_prefix.img``; ``.npy`` may be left out. Images that it does not name are not used.
        data_prefix: ``img``: folder of the images below the root.
        groups: channels of each sensor by name.
        classes: names of the labels in their order; None for all that occur, sorted. A COCO JSON has its own.
        sensors: "both", or the name of the only one that is kept.
        transform: options of :class:`adpe.data.views.band_crops.BandCrops`.
        stand_in: make fourteen bands of RGB images, see :func:`adpe.data.sources.bands.bands_of_rgb`. The speckle of an
            image is always the same: it follows from its name.
        limit: images at most, evenly spaced.

    Raises:
        UserError: for names, labels, files or channels that are not as expected; it names the file and the value.
    """

    def __init__(
        self,
        data_root: PathLike,
        ann_file: str,
        data_prefix: Mapping[str, str],
        groups: Mapping[str, Sequence[int]],
        classes: Sequence[str] | None = None,
        sensors: str = BOTH,
        transform: Mapping[str, Any] | None = None,
        stand_in: bool = False,
        limit: int | None = None,
    ) -> None:
        if sensors != BOTH and sensors not in groups:
            raise UserError(f"sensors={sensors!r}: expected {BOTH}, or one of the sensors {first(groups, 8)}.")
        root = existing_root(data_root)
        names, targets, labels = read_labels(root / ann_file, classes)
        if not stand_in:
            names = [name if name.endswith(".npy") else f"{name}.npy" for name in names]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"{root / ann_file}: {first(twice)} repeated. Give each image one row.")
        folder = existing_folder(root / data_prefix["img"])
        images = BandSource(folder, groups, stand_in, on_corrupt="error")
        super().__init__(images, folder, names, targets, labels, str(root / ann_file), limit)
        if len(images) > len(names):
            logger.warning(
                "%s: says nothing of %d of the %d images in %s, which are not used.",
                root / ann_file, len(images) - len(names), len(images), folder,
            )  # fmt: skip
        self.groups, self.sensors, self.stand_in = images.groups, sensors, stand_in
        self.transform = BandCrops(**dict(transform or {}))
        self._drop = SensorDrop(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Returns:
            `inputs`: (C, h, w) float32 in 0..1; `data_samples` as of `told`.

        Raises:
            UserError: for a file of another type or shape.
            CorruptImageError: for an image of the stand-in that cannot be read.
        """
        told = self.told(index)
        speckle = random.Random("/".join(Path(told["img_path"]).parts[-2:]))
        view = self.transform(self.images.bands(self.chosen[index], speckle))
        for name in self.groups:
            if self.sensors not in (BOTH, name):
                view = self._drop(view, name)
        return {"inputs": torch.from_numpy(view), "data_samples": told}


def read_labels(path: Path, classes: Sequence[str] | None = None) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Names of N images, their labels ``(N, C)`` int8 and the names of the C labels, of a JSON or CSV.

    Args:
        path: see :class:`AdPEMultiBandLabels`.
        classes: likewise.

    Raises:
        UserError: naming the file and the name, label or value that is wrong.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    if rows is None:
        if classes is not None:
            raise UserError(f"{path} is a COCO JSON, which has the names of its categories. Leave classes away.")
        return coco_rows(path, "present", "repair")
    found = sorted({label for _, labels in rows for label in labels})
    known = tuple(found) if classes is None else checked_names(classes, "classes")
    columns = {label: column for column, label in enumerate(known)}
    targets = np.zeros((len(rows), len(known)), dtype=np.int8)
    for row, (name, labels) in enumerate(rows):
        for label in labels:
            if label not in columns:
                raise UserError(f"{path}: {name} has the label {label!r}, which is none of {first(known, 24)}.")
            targets[row, columns[label]] = 1
    return [name for name, _ in rows], targets, known


def _json_rows(path: Path) -> Rows | None:
    """None for a COCO JSON."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: a JSON {type(content).__name__}, expected {{"name": ["label", ...]}}.')
    if {"images", "annotations", "categories"} <= set(content):
        return None
    for name, labels in content.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UserError(f"{path}: {name} has {labels!r}, expected a list of the names of labels.")
    return list(content.items())


def _csv_rows(path: Path) -> Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Expected rows name,label,label,...") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}).") from None
    for number, row in enumerate(cells, start=1):
        if any(row) and not row[0]:
            raise UserError(f"{path}: row {number} has no name, but {first(row[1:])}.")
    return [(row[0], [label for label in row[1:] if label]) for row in cells if any(row)]
