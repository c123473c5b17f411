"""Images with several labels each: which categories of a COCO JSON, or classes of label maps, are in them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from adpe.data.checks.coco import checked_coco
from adpe.data.checks.inspection import (
    PathLike,
    absent,
    existing_folder,
    existing_root,
    first,
    list_images,
    read_label_map,
)
from adpe.data.checks.layout import IGNORE_LABEL, read_classes, with_label_maps
from adpe.data.classification import spaced, timm_transform
from adpe.data.sources.bands import BandSource
from adpe.data.sources.images import ImageSource
from adpe.data.views.cutout import Cutout
from adpe.errors import UserError

Crowds = Literal["present", "unknown"]
UNKNOWN = -1
logger = logging.getLogger(__name__)


class LabelledRows(Dataset):
    """What data sets with several labels an image share: the images that are named, and the row of labels of each.

    Attributes:
        images: the source.
        chosen: index in it of each image.
        classes: C names.
        targets: ``(N, C)`` int8: 1 present, 0 absent, -1 unknown.

    Args:
        images: a source with `paths`, `path` and, for the record, `read`.
        folder: that its paths begin with.
        names: N images in it.
        targets: their labels.
        classes: C names.
        said: where labels and names come from, for messages.
        limit: images at most, evenly spaced.

    Raises:
        UserError: for images that are not there, or labels that say nothing.
    """

    def __init__(
        self,
        images: ImageSource | BandSource,
        folder: PathLike,
        names: Sequence[str],
        targets: np.ndarray,
        classes: Sequence[str],
        said: str,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit!r}: expected a positive number of images, or None for all.")
        if not classes or not len(names):
            raise UserError(f"{said}: {len(names)} images and {len(classes)} classes: expected some of both.")
        self.images: Any = images
        at = {os.path.relpath(path, folder): index for index, path in enumerate(images.paths)}
        lacking = [name for name in names if os.path.normpath(name) not in at]
        if lacking:
            raise UserError(
                f"{said}: {len(lacking)} of its {len(names)} images are not in {folder} ({first(lacking)}). Correct "
                "the folder or the file."
            )
        kept = spaced(len(names), limit)
        self.chosen = [at[os.path.normpath(names[index])] for index in kept]
        self._targets, self.classes, self._said = targets[kept].astype(np.int8), tuple(classes), said

    @property
    def targets(self) -> np.ndarray:
        """``(N, C)`` int8."""
        return self._targets

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names."""
        return {"classes": self.classes}

    def match_classes(self, classes: Sequence[str]) -> None:
        """Order the labels as `classes`, those of training, by name; one that is not known here is unknown everywhere.

        Raises:
            UserError: for a label that occurs and that `classes` does not have, or none in common.
        """
        own = {name: column for column, name in enumerate(self.classes)}
        foreign = [
            name for name, column in own.items() if name not in classes and (self._targets[:, column] == 1).any()
        ]
        if foreign or not {*own} & {*classes}:
            raise UserError(
                f"{self._said}: has {first(foreign or own, 8)}, which training does not have; its classes are "
                f"{first(classes, 8)}. Labels are matched by name: correct the names in one of them."
            )
        missing = [name for name in classes if name not in own]
        if missing:
            logger.warning("%s: has no class %s: nothing is known of it there.", self._said, first(missing, 8))
        columns = [self._targets[:, own[name]] if name in own else np.full(len(self), UNKNOWN) for name in classes]
        self._targets, self.classes = np.stack(columns, axis=1).astype(np.int8), tuple(classes)

    def __len__(self) -> int:
        return len(self.chosen)

    def paths(self) -> list[str]:
        """Of the images, in order."""
        return [self.images.path(index) for index in self.chosen]

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Path and labels of an item, without reading it."""
        return {"img_path": self.images.path(self.chosen[index]), "label": self._targets[index].tolist()}

    def told(self, index: int) -> dict[str, Any]:
        """`data_samples` of an item: `img_path` (str), `index` (here) and `label` ((C,) int64)."""
        path = self.images.path(self.chosen[index])
        return {"img_path": path, "index": index, "label": self._targets[index].astype(np.int64)}


class MultiLabelImages(LabelledRows):
    """Images and the row of labels of each, under ``timm.data.create_transform``.

    An image that cannot be read is an error: it has labels of its own. Random changes draw from the global generators.

    Args:
        folder: of the images, searched recursively, or an archive; see :class:`adpe.data.sources.images.ImageSource`.
        names: see :class:`LabelledRows`, as for `targets`, `classes`, `said` and `limit`.
        targets: likewise.
        classes: likewise.
        said: likewise.
        transform: options of ``timm.data.create_transform``.
        cutout: share of the side of a rectangle that is painted over, before RandAugment; 0 for none.
        rand_augment: torchvision's RandAugment with its defaults. With one of both, the image is first brought to
            ``transform.input_size``, its aspect not kept.
        limit: likewise.

    Raises:
        UserError: for images that are not there, labels that say nothing, or a transform that timm does not know.
    """

    def __init__(
        self,
        folder: PathLike,
        names: Sequence[str],
        targets: np.ndarray,
        classes: Sequence[str],
        said: str,
        transform: Mapping[str, Any] | None = None,
        cutout: float = 0.0,
        rand_augment: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(ImageSource(folder, on_corrupt="error"), folder, names, targets, classes, said, limit)
        self.cutout, self.rand_augment = cutout, rand_augment
        self.transform = timm_transform(transform or {})
        self._augment = _augmentation(transform or {}, cutout, rand_augment)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Returns:
            `inputs`: (3, H, W) float32 normalised; `data_samples` as of `told`.

        Raises:
            CorruptImageError: for an image that cannot be read.
        """
        image = self.images.open(self.chosen[index])
        if self._augment is not None:
            image = self._augment(image)
        return {"inputs": self.transform(image), "data_samples": self.told(index)}


def coco_rows(path: Path, crowds: Crowds, label_policy: str) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """File names of the images of a COCO JSON, their labels ``(N, C)`` int8 and the names of the C categories.

    Args:
        path: of the JSON.
        crowds: see :class:`AdPEMultiLabelCoco`.
        label_policy: likewise.

    Raises:
        UserError: if the JSON is not as expected.
    """
    checked = checked_coco(path, label_policy, with_mask=False)
    content = json.loads(checked.json.read_text(encoding="utf-8-sig"))
    rows = {image["id"]: row for row, image in enumerate(content["images"])}
    names = {category["id"]: category["name"] for category in content["categories"]}
    columns = {name: column for column, name in enumerate(checked.classes)}
    targets = np.zeros((len(rows), len(columns)), dtype=np.int8)
    for crowd in (1, 0):  # an object on its own is present, whatever crowds there are
        value = UNKNOWN if crowd and crowds == "unknown" else 1
        for one in content["annotations"]:
            if one.get("iscrowd", 0) == crowd:
                targets[rows[one["image_id"]], columns[names[one["category_id"]]]] = value
    return [image["file_name"] for image in content["images"]], targets, checked.classes


@DATASETS.register_module()
class AdPEMultiLabelCoco(MultiLabelImages):
    """Whether an object of a category is in an image, by a COCO JSON of instances; boxes and masks are not needed.

    Labels follow the categories' names, in the order of the file; their ids mean nothing. Objects of any size count, as
    in DualCoOp's reference, which takes the maximum over COCO's three ranges of area.

    Args:
        data_root: folder with the JSON and the images.
        ann_file: the JSON, absolute or below the root; checked by :func:`adpe.data.checks.coco.checked_coco`.
        data_prefix: ``img``: folder of the images below the root.
        crowds: what a category is of which an image has crowds (``iscrowd``) alone: "present", as in the reference, or
            "unknown". Annotations marked ``ignore``, as difficult ones of VOC are, are read as crowds.
        label_policy: what is done about annotations that are wrong, see `checked_coco`.
        options: of :class:`MultiLabelImages`.

    Raises:
        UserError: if the JSON or its images are not as expected.
    """

    def __init__(
        self,
        data_root: PathLike,
        ann_file: str,
        data_prefix: Mapping[str, str],
        crowds: Crowds = "present",
        label_policy: str = "repair",
        **options: Any,
    ) -> None:
        if crowds not in get_args(Crowds):
            raise UserError(f"crowds={crowds!r}: expected one of {', '.join(get_args(Crowds))}.")
        self.crowds = crowds
        root = existing_root(data_root)
        files, targets, classes = coco_rows(root / ann_file, crowds, label_policy)
        folder = existing_folder(root / data_prefix["img"])
        super().__init__(folder, files, targets, classes, str(root / ann_file), **options)


@DATASETS.register_module()
class AdPEMultiLabelMasks(MultiLabelImages):
    """Whether a class is in an image, by label maps in ADE20K's layout; every map is read when it is built.

    Args:
        data_root: folder with images and label maps.
        data_prefix: ``img_path`` and ``seg_map_path``: their folders below the root.
        classes: see :func:`adpe.data.checks.layout.read_classes`.
        reduce_zero_label: label 0 is unlabelled, and class i has label i + 1; otherwise class i has label i.
        ignore_labels: values that are no class, besides.
        min_area: pixels below which a class counts as absent.
        without: classes that are left out, such as a background that is in every image.
        options: of :class:`MultiLabelImages`.

    Raises:
        UserError: for folders, maps or labels that are not as expected; it names the file.
    """

    def __init__(
        self,
        data_root: PathLike,
        data_prefix: Mapping[str, str],
        classes: Sequence[str] | PathLike | None = None,
        reduce_zero_label: bool = True,
        ignore_labels: Sequence[int] = (IGNORE_LABEL,),
        min_area: int = 1,
        without: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if isinstance(min_area, bool) or not isinstance(min_area, int) or min_area < 1:
            raise UserError(f"min_area={min_area!r}: expected a number of pixels, at least 1.")
        self.reduce_zero_label, self.ignore_labels, self.min_area = reduce_zero_label, tuple(ignore_labels), min_area
        self.without = tuple(without)
        root = existing_root(data_root)
        folder, maps = (existing_folder(root / data_prefix[key]) for key in ("img_path", "seg_map_path"))
        parts = Path(data_prefix["seg_map_path"])
        annotations = parts if parts.is_absolute() else parts.parts[0]
        names = read_classes(root, classes, annotations, reduce_zero_label=reduce_zero_label)
        unknown = [name for name in without if name not in names]
        if unknown:
            raise UserError(f"without={list(without)}: {first(unknown)} is none of the classes {first(names, 8)}.")
        pairs = with_label_maps(list_images(folder), folder, maps, None, ".png")
        lacking = absent([label_map for _, label_map in pairs])
        if lacking:
            raise UserError(f"{len(lacking)} of {len(pairs)} images in {folder} have no label map ({first(lacking)}).")
        targets = np.stack([self._present(label_map, len(names)) for _, label_map in pairs])
        kept = [column for column, name in enumerate(names) if name not in without]
        files = [str(image.relative_to(folder)) for image, _ in pairs]
        super().__init__(folder, files, targets[:, kept], [names[c] for c in kept], str(maps), **options)

    def _present(self, path: Path, classes: int) -> np.ndarray:
        counts = np.bincount(read_label_map(path).ravel(), minlength=256)
        counts[list(self.ignore_labels)] = 0
        lowest = int(self.reduce_zero_label)
        counts = counts[lowest:]
        beyond = np.flatnonzero(counts[classes:])
        if len(beyond):
            raise UserError(
                f"{path}: has label {classes + lowest + int(beyond[0])}, expected {lowest}..{classes + lowest - 1} for "
                f"{classes} classes, or one of ignore_labels={list(self.ignore_labels)}."
            )
        return (counts[:classes] >= self.min_area).astype(np.int8)


def _augmentation(transform: Mapping[str, Any], cutout: float, rand_augment: bool) -> Any:
    """On an image, before the transform; None for nothing."""
    if not 0 <= cutout < 1:
        raise UserError(f"cutout={cutout!r}: expected a share of the side, at least 0 and below 1.")
    if not cutout and not rand_augment:
        return None
    from torchvision.transforms import Compose, InterpolationMode, RandAugment, Resize

    size = transform.get("input_size", 224)
    squash = Resize((size, size), InterpolationMode(transform.get("interpolation", "bilinear")))
    return Compose([squash, *([Cutout(cutout)] if cutout else []), *([RandAugment()] if rand_augment else [])])
