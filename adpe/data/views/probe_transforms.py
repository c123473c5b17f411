"""The augmentation of the linear segmentation probes as transforms of mmseg's pipelines."""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.data.views.probe_augmentation import crop_offset, distort, draw_distortion, resized_size


def _generator() -> np.random.Generator:
    """Draws that follow numpy's global state, which the launcher seeds for every item."""
    return np.random.default_rng(np.random.randint(2**32, dtype=np.uint32))


@TRANSFORMS.register_module()
class AdPEProbeResize(BaseTransform):
    """Shorter side to ``int(short * u)``, u uniform in `ratio_range`: image with antialias, labels nearest.

    Args:
        short: pixels; None for the shorter side that the image has.
        ratio_range: of u; (1, 1) for evaluation, where labels keep their size because they are loaded later.
        interpolation: of the image: "bilinear" (DINOv3), or "bicubic" (Pixio).
    """

    def __init__(
        self,
        short: int | None = None,
        ratio_range: tuple[float, float] = (1.0, 1.0),
        interpolation: str = "bilinear",
    ) -> None:
        self.short, (self.smallest, self.largest) = short, ratio_range
        self.interpolation = interpolation

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        short = int((self.short or min(height, width)) * _generator().uniform(self.smallest, self.largest))
        size = resized_size(width, height, short)
        results["img"] = mmcv.imresize(results["img"], size, interpolation=self.interpolation, backend="pillow")
        for key in results.get("seg_fields", []):
            results[key] = mmcv.imresize(results[key], size, interpolation="nearest", backend="pillow")
        results["img_shape"] = results["img"].shape[:2]
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True
        return results


@TRANSFORMS.register_module()
class AdPEProbeCrop(BaseTransform):
    """A crop with two classes or more, see :func:`crop_offset`; a smaller image is kept whole.

    Args:
        crop_size: height and width.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        self.crop_size = crop_size[0], crop_size[1]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        rng = _generator()
        height, width = results["img"].shape[:2]

        def draw() -> tuple[int, int]:
            tops, lefts = max(height - self.crop_size[0], 0), max(width - self.crop_size[1], 0)
            return int(rng.integers(tops + 1)), int(rng.integers(lefts + 1))

        top, left = crop_offset(results["gt_seg_map"], self.crop_size, draw)
        window = slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1])
        for key in ("img", *results.get("seg_fields", [])):
            results[key] = results[key][window]
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class AdPEProbeDistortion(BaseTransform):
    """Photometric distortion of a BGR image of bytes, see :func:`distort`: any hue, mmseg turns by 36 degrees."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = torch.from_numpy(np.ascontiguousarray(results["img"][..., ::-1].transpose(2, 0, 1)))
        distorted = distort(image, draw_distortion(_generator())).numpy()
        results["img"] = np.ascontiguousarray(distorted.transpose(1, 2, 0)[..., ::-1])
        return results


@TRANSFORMS.register_module()
class AdPESquash(BaseTransform):
    """Image and label map at one square size, aspect ratio not kept, for evaluations on patch features (CAPI).

    The image is bicubic with antialias and normalised, labels are nearest. It ends a pipeline: the result is
    ``inputs`` (3, size, size) float32 and ``data_samples`` with ``img_path`` and ``label`` (size, size) uint8, the
    values of the file: what ``reduce_zero_label`` took away is put back, unlabelled pixels being 0.

    Args:
        size: pixels.
        mean: of the channels, RGB in [0, 1].
        std: likewise.
    """

    def __init__(
        self, size: int, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
    ) -> None:
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        size = (self.size, self.size)
        image = mmcv.imresize(results["img"], size, interpolation="bicubic", backend="pillow")
        labels = mmcv.imresize(results["gt_seg_map"], size, interpolation="nearest", backend="pillow")
        if results.get("reduce_zero_label"):
            labels = np.where(labels == 255, 0, labels + 1)
        pixels = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        sample = {"img_path": results["img_path"], "label": torch.from_numpy(labels.astype(np.uint8))}
        return {"inputs": (torch.from_numpy(pixels) / 255 - mean) / std, "data_samples": sample}
