"""Masks of instances as detectron2 trains on them: polygons that stay polygons until a proposal crops them."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from adpe.errors import require

require("mmdet", "requirements/mm.txt")
from mmdet.datasets.transforms import LoadAnnotations  # noqa: E402


@TRANSFORMS.register_module()
class AdPELoadInstances(LoadAnnotations):
    """Boxes, labels and masks of an image; masks as polygons where its annotations are, else as bitmaps.

    A target drawn from a polygon at the mask head's 28 x 28 is exact, one from a bitmap that was resized with the image
    is not: at a fifth of the size a 20-pixel object's overlaps the exact one by an IoU of about 0.6. mmdet's
    ``LoadAnnotations(poly2mask=False)`` keeps polygons too, but leaves out every RLE mask without a word and truncates
    the coordinates of polygons written as whole numbers when it resizes them. Here an image with an RLE mask of a
    single object has bitmaps, and coordinates are float64. Masks of crowds are not trained on, whatever they are.

    Args:
        kwargs: of mmdet's LoadAnnotations (box_type, backend_args).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(with_bbox=True, with_mask=True, poly2mask=False, **kwargs)

    def _load_masks(self, results: dict[str, Any]) -> None:
        instances = results.get("instances", [])
        self.poly2mask = any(isinstance(one["mask"], dict) and not one["ignore_flag"] for one in instances)
        super()._load_masks(results)
        if not self.poly2mask:
            masks = results["gt_masks"]
            masks.masks = [[np.asarray(polygon, dtype=np.float64) for polygon in one] for one in masks.masks]
