"""PASCAL VOC 2012, Cityscapes and COCO-Stuff 164k for mmseg's configs, in mmseg's layouts, checked when they are built.

In all three label 0 is a class: background, road, person.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from mmengine.registry import DATASETS

from adpe.data.checks.inspection import PathLike
from adpe.data.checks.public_layouts import CITYSCAPES, COCO_STUFF, VOC, PublicLayout, check_images_there
from adpe.data.loading import NamesFiles
from adpe.data.segmentation import checked_data_list
from adpe.errors import UserError, require

require("mmseg", "requirements/mm.txt")
from mmseg.datasets import BaseSegDataset, CityscapesDataset, COCOStuffDataset, PascalVOCDataset  # noqa: E402

logger = logging.getLogger(__name__)


class OfficialSplit(NamesFiles, BaseSegDataset):
    """Before a data set of mmseg: a split by its official name, with layout, labels and sizes checked.

    Items are mmseg's. A split that has another number of images than the official one is used with a warning.

    Args:
        data_root: folder with the layout of `adpe.data.checks.public_layouts`, on a disk.
        split: one of the layout's `counts`.
        reduce_zero_label: must be False: label 0 is a class.
        kwargs: of mmseg's data set, without ``data_prefix`` and ``ann_file``, which follow from the split.

    Raises:
        UserError: if the root's layout or label maps are not as expected, or label 0 is to be dropped.
    """

    layout: ClassVar[PublicLayout]

    def __init__(self, data_root: PathLike, split: str, reduce_zero_label: bool = False, **kwargs: Any) -> None:
        if reduce_zero_label:
            raise UserError(
                f"{self.layout.name}: reduce_zero_label=True would drop the class of label 0 "
                f"({self.METAINFO['classes'][0]}). Set it to False."
            )
        self.split = split
        images, maps = self.layout.images.format(split=split), self.layout.maps.format(split=split)
        super().__init__(
            data_root=str(data_root),
            data_prefix={"img_path": images, "seg_map_path": maps},
            reduce_zero_label=False,
            **kwargs,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """The items of the split, after the checks."""
        pairs = self.layout.pairs(self.data_root, self.split)
        check_images_there(pairs, self.layout)
        expected = self.layout.counts[self.split]
        if len(pairs) != expected:
            logger.warning("%s: %s has %d images, expected %d.", self.data_root, self.split, len(pairs), expected)
        shared = {"label_map": self.label_map, "reduce_zero_label": False}
        items = [
            {"img_path": str(image), "seg_map_path": str(label_map), **shared, "seg_fields": []}
            for image, label_map in pairs
        ]
        return checked_data_list(self, lambda: items)


@DATASETS.register_module()
class AdPEPascalVOCDataset(OfficialSplit, PascalVOCDataset):
    """PASCAL VOC 2012, 21 classes: "train", "trainaug" (with SBD's annotations) or "val"."""

    layout = VOC

    def __init__(self, data_root: PathLike, split: str, **kwargs: Any) -> None:
        super().__init__(data_root, split, ann_file=f"{VOC.lists}/{split}.txt", **kwargs)


@DATASETS.register_module()
class AdPECityscapesDataset(OfficialSplit, CityscapesDataset):
    """Cityscapes with fine annotations, 19 classes: "train" or "val"."""

    layout = CITYSCAPES


@DATASETS.register_module()
class AdPECOCOStuffDataset(OfficialSplit, COCOStuffDataset):
    """COCO-Stuff 164k, 171 classes: "train2017" or "val2017"."""

    layout = COCO_STUFF
