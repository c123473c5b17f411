"""EoMT's augmentation, and the size at which it reads an image, as transforms of mmseg's pipelines."""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from adpe.transfer.eomt.inference import scaled_size

_ATTEMPTS = 100
_IGNORED = 255


def _generator() -> np.random.Generator:
    """Draws that follow numpy's global state, which the launcher seeds for every item."""
    return np.random.default_rng(np.random.randint(2**32, dtype=np.uint32))


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    return mmcv.imresize(image, (size[1], size[0]), interpolation=interpolation, backend="pillow")


@TRANSFORMS.register_module()
class AdPEEoMTJitter(BaseTransform):
    """Brightness, contrast, saturation and hue of a BGR image of bytes, each with probability 0.5.

    Contrast comes before saturation and hue, or after them, by a coin.

    Args:
        brightness: factors lie in 1 +- it.
        contrast: likewise.
        saturation: likewise.
        hue: in turns, +-.
    """

    def __init__(
        self, brightness: float = 32 / 255, contrast: float = 0.5, saturation: float = 0.5, hue: float = 0.05
    ) -> None:
        self.spans = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        from torchvision.transforms.v2 import functional as tv

        rng = _generator()
        order = ["brightness", "contrast", "saturation", "hue"]
        if rng.integers(2):
            order = ["brightness", "saturation", "hue", "contrast"]
        image = torch.from_numpy(np.ascontiguousarray(results["img"][..., ::-1].transpose(2, 0, 1)))
        for name in order:
            value = rng.uniform(-self.spans[name], self.spans[name])
            if rng.integers(2):
                image = getattr(tv, f"adjust_{name}")(image, value if name == "hue" else 1 + value)
        results["img"] = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[..., ::-1])
        return results


@TRANSFORMS.register_module()
class AdPEEoMTCrop(BaseTransform):
    """Scale jitter, padding and a random crop, which is drawn again while no labelled pixel is left in it.

    The image is scaled by what fits it into the crop, times u in `ratio_range`, padded with 0 at bottom and right
    (labels with 255), and cropped. None, for which mmengine takes another image, after 100 crops without a label.

    Args:
        crop_size: height and width.
        ratio_range: of u.
    """

    def __init__(self, crop_size: tuple[int, int], ratio_range: tuple[float, float] = (0.5, 2.0)) -> None:
        self.crop_size, self.ratio_range = (crop_size[0], crop_size[1]), ratio_range

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        rng = _generator()
        image, labels = results["img"], results["gt_seg_map"]
        fits = min(crop / side for crop, side in zip(self.crop_size, image.shape[:2], strict=True))
        factor = fits * rng.uniform(*self.ratio_range)
        size = max(int(image.shape[0] * factor), 1), max(int(image.shape[1] * factor), 1)
        labels = _resized(labels, size, "nearest")
        rooms = [max(side - crop, 0) for side, crop in zip(size, self.crop_size, strict=True)]
        for _ in range(_ATTEMPTS):
            top, left = (int(rng.integers(room + 1)) for room in rooms)
            seen = self._cut(labels, top, left, _IGNORED)
            if (seen != _IGNORED).any():
                results["img"] = self._cut(_resized(image, size, "bilinear"), top, left, 0)
                results["gt_seg_map"] = seen
                results["img_shape"] = self.crop_size
                return results
        return None

    def _cut(self, pixels: np.ndarray, top: int, left: int, fill: int) -> np.ndarray:
        part = pixels[top : top + self.crop_size[0], left : left + self.crop_size[1]]
        out = np.full((*self.crop_size, *pixels.shape[2:]), fill, pixels.dtype)
        out[: part.shape[0], : part.shape[1]] = part
        return out


@TRANSFORMS.register_module()
class AdPEEoMTFit(BaseTransform):
    """An image at the size at which windows are cut: its shorter side fits the window; bilinear with antialias.

    Args:
        window: height and width.
    """

    def __init__(self, window: tuple[int, int]) -> None:
        self.window = window[0], window[1]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        size = scaled_size((height, width), self.window)
        results["img"] = _resized(results["img"], size, "bilinear")
        results["img_shape"] = size
        results["scale_factor"] = (size[1] / width, size[0] / height)
        results["keep_ratio"] = True
        return results
