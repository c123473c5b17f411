"""Detection and instance segmentation data of any COCO JSON, for mmdet's configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from adpe.data.checks.inspection import PathLike
from adpe.data.checks.layout import check_coco_root
from adpe.data.loading import NamesFiles
from adpe.errors import require

require("mmdet", "requirements/mm.txt")
from mmdet.datasets import CocoDataset  # noqa: E402


@DATASETS.register_module()
class AdPECocoDataset(NamesFiles, CocoDataset):
    """mmdet's `CocoDataset` whose classes are the categories of the JSON, checked against its images when it is built.

    Label i is the i-th category in the JSON's order, whatever the categories' ids. Masks may be polygons or RLE: load
    them with ``LoadAnnotations(with_bbox=True, with_mask=True)``, whose default `poly2mask=True` gives bitmaps; with
    `poly2mask=False` mmdet ignores every instance that is RLE.

    Args:
        data_root: folder with the JSON and the images.
        ann_file: the JSON, absolute or below the root.
        data_prefix: folder of the images below the root.
        metainfo: may name `classes` in the JSON's order, e.g. those of the training JSON for the validation JSON.
        with_mask: whether every annotation needs a mask.
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
        **kwargs: Any,
    ) -> None:
        data_prefix = data_prefix or {"img": "images/training"}
        metainfo = dict(metainfo or {})
        if kwargs.get("backend_args") is None:
            layout = check_coco_root(
                data_root,
                ann_file,
                Path(data_prefix["img"]),
                classes=metainfo.get("classes"),
                with_mask=with_mask,
                on_corrupt="error" if kwargs.get("test_mode") else "skip",
            )
            metainfo["classes"] = layout.classes
        super().__init__(
            data_root=str(data_root), ann_file=ann_file, data_prefix=data_prefix, metainfo=metainfo, **kwargs
        )
