"""Images of segmentation and detection, in mmcv's pipelines, through the project's one reader.

Importing this module replaces mmcv's ``LoadImageFromFile`` under its own name, so that the frameworks' own configs and
inferencers read as ours do.
"""

from __future__ import annotations

import io
import logging
from functools import partial
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from adpe.data.sources.images import MAX_CONSECUTIVE_CORRUPT
from adpe.data.sources.pixels import CorruptImageError, Size, decode_image, read_header, unreadable
from adpe.errors import UserError, require

require("mmcv", "requirements/mm.txt")
from mmcv.transforms import LoadImageFromFile  # noqa: E402

logger = logging.getLogger(__name__)


@TRANSFORMS.register_module(name="LoadImageFromFile", force=True)
class AdPELoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` whose pixels follow the policy of `adpe.data.sources.pixels`.

    Arguments, keys and results are mmcv's: ``img`` is (H, W, 3) in the order BGR, uint8, or float32 with `to_float32`.
    8-bit JPEGs and PNGs have the values that OpenCV gives them. An image with an EXIF orientation is turned as its
    annotations ask: the `height` and `width` of a COCO JSON, or the size of the label map `seg_map_path`.

    `color_type` other than ``"color"`` and ``"color_ignore_orientation"`` (which leaves the stored pixels as they are),
    and the backend ``"tifffile"`` for images of any number of channels, are left to mmcv.

    Args:
        on_corrupt: ``"error"`` raises `CorruptImageError`; ``"skip"``, for training, logs a warning with the path (once
            a path and process) and returns None, for which mmengine's data sets take another image at random.
        kwargs: of mmcv's ``LoadImageFromFile``. `ignore_empty` is ``on_corrupt="skip"`` without the warning.

    Raises:
        CorruptImageError: for an image that cannot be read, or does not fit its annotations.
        UserError: if 100 images in succession are skipped.
    """

    def __init__(self, *args: Any, on_corrupt: str = "error", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if on_corrupt not in ("skip", "error"):
            raise UserError(f"LoadImageFromFile: on_corrupt={on_corrupt!r}: expected 'skip' or 'error'.")
        self.on_corrupt = on_corrupt
        self._skipped = 0
        self._warned: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """As mmcv's."""
        if not self.color_type.startswith("color") or self.imdecode_backend == "tifffile":
            return super().transform(results)
        path = results["img_path"]
        try:
            image = self._read(path, results)
        except CorruptImageError as error:
            if self.on_corrupt == "error" and not self.ignore_empty:
                raise
            self._skip(path, error)
            return None
        self._skipped = 0
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _read(self, path: str, results: dict[str, Any]) -> np.ndarray:
        try:
            data = self._bytes(path)
        except Exception as error:  # of any storage
            raise unreadable(path, error) from error
        annotated = _size_in_json(results) or partial(self._size_of_label_map, results.get("seg_map_path"))
        image = decode_image(data, path, annotated, upright=self.color_type != "color_ignore_orientation")
        return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)

    def _bytes(self, path: str) -> bytes:
        if self.file_client_args is not None:
            return fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        return fileio.get(path, backend_args=self.backend_args)

    def _size_of_label_map(self, path: str | None) -> Size | None:
        """(width, height) of a label map as it is stored; None if there is none or it is no image."""
        if path is None:
            return None
        try:
            return read_header(io.BytesIO(self._bytes(path))).stored
        except (OSError, ValueError, SyntaxError):
            return None  # its own loading tells what is wrong

    def _skip(self, path: str, error: CorruptImageError) -> None:
        self._skipped += 1
        if self._skipped >= MAX_CONSECUTIVE_CORRUPT:
            raise UserError(f"{self._skipped} images cannot be read, one after the other; the last: {error}")
        if path not in self._warned and not self.ignore_empty:
            self._warned.add(path)
            logger.warning("skipped: %s", error)


class NamesFiles:
    """Before a data set of mmengine: an item that cannot be prepared is an error with the names of its files.

    Raises:
        UserError: for a file that is missing or damaged, or an image that a transform cannot resize or crop.
    """

    def prepare_data(self, idx: int) -> Any:
        """As in mmengine's ``BaseDataset``."""
        try:
            return super().prepare_data(idx)  # type: ignore[misc]
        except (OSError, SyntaxError, ValueError, cv2.error) as error:
            item = self.get_data_info(idx)  # type: ignore[attr-defined]
            files = " with ".join(str(item[key]) for key in ("img_path", "seg_map_path") if item.get(key))
            reason = f"{type(error).__name__}: {error}".replace("\n", " ").strip()
            raise UserError(f"{files}: the pipeline fails on it ({reason}). Mend or remove it.") from error


def _size_in_json(results: dict[str, Any]) -> Size | None:
    """(width, height) that an annotation file gives an image; None where it gives none."""
    width, height = results.get("width"), results.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and width * height > 0 else None
