"""Detection and instance segmentation data of any COCO JSON, for mmdet's configs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from adpe.data.checks.coco import objects_of_categories
from adpe.data.checks.inspection import PathLike, first
from adpe.data.checks.layout import check_coco_root
from adpe.data.loading import NamesFiles
from adpe.errors import UserError, require

require("mmdet", "requirements/mm.txt")
from mmdet.datasets import CocoDataset  # noqa: E402

from adpe.evaluations.metrics.coco_ap import AdPECocoMetric as AdPECocoMetric  # noqa: E402  registers it, for configs

logger = logging.getLogger(__name__)


@DATASETS.register_module()
class AdPECocoDataset(NamesFiles, CocoDataset):
    """mmdet's `CocoDataset` whose classes are the categories of the JSON, checked against its images when it is built.

    Label i is the i-th class, whatever the categories' ids and order. Masks may be polygons or RLE: load them with
    ``LoadAnnotations(with_bbox=True, with_mask=True)``, whose default `poly2mask=True` gives bitmaps; with
    `poly2mask=False` mmdet ignores every instance that is RLE.

    Args:
        data_root: folder with the JSON and the images.
        ann_file: the JSON, absolute or below the root.
        data_prefix: folder of the images below the root.
        metainfo: may name `classes`, in the order of the labels; the categories have to be there.
        with_mask: whether every annotation needs a mask.
        classes: names in the order of the labels, or a COCO JSON (absolute, or below the root) whose categories they
            are: that of training, for validation and test. Categories are mapped by name; those of `classes` that the
            JSON lacks are without objects, and objects of others are an error if `classes` is a JSON, else left out.
            A JSON that is not there is passed over.
        label_policy: ``"strict"``, ``"repair"`` or ``"report"``: what is done about annotations that are wrong; see
            `adpe.data.checks.coco.checked_coco`.
        kwargs: as in `CocoDataset`. With `backend_args` the data may lie elsewhere than on a disk: `classes` are needed
            and the layout is not checked then.

    Raises:
        UserError: if the JSON, its categories or its images are not as expected.
    """

    METAINFO: dict[str, Any] = {}

    def __init__(
        self,
        data_root: PathLike,
        ann_file: str = "instances_training.json",
        data_prefix: dict[str, str] | None = None,
        metainfo: dict[str, Any] | None = None,
        with_mask: bool = True,
        classes: Sequence[str] | PathLike | None = None,
        label_policy: str = "repair",
        **kwargs: Any,
    ) -> None:
        data_prefix = data_prefix or {"img": "images/training"}
        metainfo = dict(metainfo or {})
        if kwargs.get("backend_args") is None:
            names = _names(Path(data_root), ann_file, metainfo.get("classes"), classes, with_mask)
            layout = check_coco_root(
                data_root,
                ann_file,
                Path(data_prefix["img"]),
                classes=names,
                with_mask=with_mask,
                policy=label_policy,
                without_annotations=bool(kwargs.get("test_mode")),
                on_corrupt="error" if kwargs.get("test_mode") else "skip",
            )
            metainfo["classes"], ann_file = layout.classes, str(layout.json.absolute())
        super().__init__(
            data_root=str(data_root), ann_file=ann_file, data_prefix=data_prefix, metainfo=metainfo, **kwargs
        )

    def filter_data(self) -> list[dict[str, Any]]:
        """As in `CocoDataset`, and the images that `filter_cfg` leaves out are logged."""
        kept = super().filter_data()
        if len(kept) < len(self.data_list):
            there = {item["img_id"] for item in kept}
            ids = [item["img_id"] for item in self.data_list if item["img_id"] not in there]
            logger.info(
                "%s: %d of %d images (ids %s) are left out by filter_cfg=%s",
                self.ann_file, len(ids), len(self.data_list), first(ids, 8), self.filter_cfg,
            )  # fmt: skip
        return kept


def _names(
    root: Path,
    ann_file: str,
    asked: Sequence[str] | None,
    classes: Sequence[str] | PathLike | None,
    with_mask: bool,
) -> Sequence[str] | None:
    """The names in the order of the labels, by `metainfo` or `classes`; None for those of the JSON."""
    path = root / ann_file
    if asked is None and (classes is None or not path.is_file()):
        return None
    own = objects_of_categories(path, with_mask)
    if asked is not None:
        unknown = [] if isinstance(asked, str) else [name for name in asked if name not in own]
        if unknown:
            raise UserError(f"{path}: has no category {first(unknown)}; it has {first(own, 10)}. Correct the classes.")
        return asked
    if not isinstance(classes, (str, os.PathLike)):
        return classes
    file = root / classes
    if not file.is_file():
        return None
    names = tuple(objects_of_categories(file, with_mask))
    foreign = [name for name, count in own.items() if count and name not in names]
    if foreign:
        raise UserError(
            f"{path}: has objects of {first(foreign)}, which {file} does not have; its categories are "
            f"{first(names, 10)}. Labels are matched by name: correct the names in one of the files."
        )
    return names
