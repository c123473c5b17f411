"""Labelled images under timm's transforms: class folders, or archives of them, for mmengine's configs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import Dataset

from adpe.data.sources.images import ImageSource
from adpe.errors import UserError, require


@DATASETS.register_module()
class AdPEClassificationDataset(Dataset):
    """Images of class folders, ``train/<class>/*.jpg``, under ``timm.data.create_transform``.

    Random transforms draw from the global generators, which the launcher seeds for every item of the training data.

    Attributes:
        classes: names of the class folders, sorted; a label is an index into them.

    Args:
        source: folder, archive, or list of them; see `ImageSource`.
        split: folder inside the source, e.g. ``"train"``.
        transform: options of ``timm.data.create_transform``: ``input_size``, ``is_training``, ``auto_augment``,
            ``re_prob``, ``crop_pct``...
        num_classes: class folders that have to be there; None takes any number.
        limit: images at most, evenly spaced, so that every class keeps its share.
        on_corrupt: ``"skip"`` or ``"error"``; see `ImageSource`.
        cache_dir: where compressed tars are unpacked; see `ImageSource`.

    Raises:
        UserError: what `ImageSource` raises; images outside of class folders; another number of classes; a transform
            that timm does not know.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str | None = None,
        transform: dict[str, Any] | None = None,
        num_classes: int | None = None,
        limit: int | None = None,
        on_corrupt: str = "skip",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.images = ImageSource(source, split=split, on_corrupt=on_corrupt, cache_dir=cache_dir)
        self.classes = tuple(self.images.classes)
        self._labels = self.images.labels
        loose = (self.images.labels < 0).nonzero()[0]
        if len(loose):
            raise UserError(
                f"{self.images.path(int(loose[0]))} lies in no class folder, as do {len(loose) - 1} other images: "
                f"expected {'<split>/' if split else ''}<class>/<image> in {source}."
            )
        if num_classes is not None and len(self.classes) != num_classes:
            names = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            raise UserError(
                f"{source}{f', split {split}' if split else ''}: {len(self.classes)} class folders ({names}), the "
                f"config says num_classes = {num_classes}. A folder is missing or one too many; or set num_classes."
            )
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UserError(f"limit={limit!r}: expected a positive number of images, or None for all.")
        self.chosen = spaced(len(self.images), limit)
        self.transform = timm_transform(transform or {})

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names, which mmengine stores in checkpoints."""
        return {"classes": self.classes}

    def match_classes(self, classes: Sequence[str]) -> None:
        """Number the class folders as `classes`, those of training, which may have folders that are not here.

        Raises:
            UserError: for folders that `classes` does not have.
        """
        self._labels = match_labels(self.images, classes)
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.chosen)

    def paths(self) -> list[str]:
        """Of the images, in order."""
        return [self.images.path(index) for index in self.chosen]

    def shown(self, image: Image.Image, index: int, label: int) -> Image.Image:
        """What the transform gets of the decoded image `index` of the source."""
        return image

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Returns:
            `inputs`: (3, H, W) float32 normalised; `data_samples`: dict of `img_path` (str), `index` (in the source)
            and `label` (int) of the image delivered, another than asked for where a corrupt one was skipped.
        """
        image, delivered = self.images.load(self.chosen[index])
        path, label = self.images.path(delivered), int(self._labels[delivered])
        return {
            "inputs": self.transform(self.shown(image, delivered, label)),
            "data_samples": {"img_path": path, "index": delivered, "label": label},
        }


def timm_transform(options: Mapping[str, Any]) -> Any:
    """What ``timm.data.create_transform`` makes of its options.

    Raises:
        UserError: for those that it does not take.
    """
    require("timm", "requirements/runtime.txt")
    from timm.data import create_transform

    try:
        return create_transform(**{"no_aug": False, **options})
    except (TypeError, AssertionError, KeyError) as error:
        raise UserError(f"transform {dict(options)}: timm.data.create_transform says: {error}") from None


def spaced(count: int, limit: int | None) -> list[int]:
    """All of ``range(count)``, or `limit` of them evenly spaced."""
    return list(range(count)) if limit is None or limit >= count else [i * count // limit for i in range(limit)]


def match_labels(images: ImageSource, classes: Sequence[str]) -> np.ndarray:
    """Labels ``(N,)`` int64 of the images of class folders as indices into `classes`; -1 outside of a folder.

    Raises:
        UserError: for folders that `classes` does not have.
    """
    # Of a name that stands twice, the first label.
    labels = {name: label for label, name in reversed(list(enumerate(classes)))}
    unknown = [name for name in images.classes if name not in labels]
    if unknown:
        raise UserError(
            f"{images!r}: the class folders {', '.join(unknown[:8])} are not among the {len(classes)} classes of "
            f"training ({', '.join(list(classes)[:8])}). Labels are matched by name: correct the folders' names."
        )
    return np.asarray([*(labels[name] for name in images.classes), -1], dtype=np.int64)[images.labels]
