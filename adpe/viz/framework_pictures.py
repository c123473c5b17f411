"""The visualizers of mmsegmentation and mmdetection, drawing on the pixels that the model saw.

Importing this module replaces ``SegLocalVisualizer`` and ``DetLocalVisualizer``, of the frameworks that are installed,
under their own names. The frameworks' hooks read the image again with OpenCV, which turns a photograph by its
orientation where the model saw the stored pixels, and gives others values than `adpe.data.sources.pixels`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import numpy as np
from mmengine import fileio

from adpe.data.sources.pixels import CorruptImageError, decode_picture


class _OnTheModelsPixels:
    def add_datasample(self, name: str, image: np.ndarray, data_sample: Any = None, *args: Any, **kwargs: Any) -> None:
        """As the framework's, on the image of `data_sample.img_path` if there is one."""
        path = data_sample.get("img_path") if data_sample is not None else None
        if path is not None:
            # A storage or format that the framework alone reads keeps the framework's pixels.
            with contextlib.suppress(CorruptImageError, OSError):
                image = np.array(decode_picture(fileio.get(path), path, data_sample.get("ori_shape")))
        super().add_datasample(name, image, data_sample, *args, **kwargs)  # type: ignore[misc]


if importlib.util.find_spec("mmseg"):
    from mmseg.registry import VISUALIZERS as SEGMENTATION
    from mmseg.visualization import SegLocalVisualizer

    @SEGMENTATION.register_module(name="SegLocalVisualizer", force=True)
    class AdPESegVisualizer(_OnTheModelsPixels, SegLocalVisualizer):
        """mmsegmentation's ``SegLocalVisualizer`` on the pixels that the model saw."""


if importlib.util.find_spec("mmdet"):
    from mmdet.registry import VISUALIZERS as DETECTION
    from mmdet.visualization import DetLocalVisualizer

    @DETECTION.register_module(name="DetLocalVisualizer", force=True)
    class AdPEDetVisualizer(_OnTheModelsPixels, DetLocalVisualizer):
        """mmdetection's ``DetLocalVisualizer`` on the pixels that the model saw."""
