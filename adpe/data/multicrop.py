"""Several random resized crops of one decoded image, drawn from a generator of their own.

The crops have the distribution of torchvision's `RandomResizedCrop` (Szegedy et al., arXiv 1409.4842): area uniform,
aspect ratio log-uniform, position uniform, ten attempts, then a central crop; then a horizontal flip.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from adpe.data.color import ColorAugmentation
from adpe.data.pixels import FACTORS
from adpe.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ATTEMPTS = 10
PILLOW_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

CropBox = tuple[int, int, int, int, bool]  # top, left, height, width in pixels; flipped


def crop_generator(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one sample: a function of the three alone, whatever process or order asks for them.

    The standard library's generator promises the same `random()` in every version, and starts faster than numpy's.

    Args:
        seed: 0 or more.
        epoch: 0 .. 2^64 - 1.
        index: 0 .. 2^64 - 1.
    """
    return random.Random(seed << 128 | epoch << 64 | index)


def reduced(boxes: Sequence[CropBox], factor: int) -> list[CropBox]:
    """The boxes in an image reduced by `factor`, their edges rounded to its pixels, halves up."""
    if factor == 1:
        return list(boxes)
    scaled = []
    for top, left, h, w, flipped in boxes:
        low, start, high, end = ((edge + factor // 2) // factor for edge in (top, left, top + h, left + w))
        scaled.append((low, start, high - low, end - start, flipped))
    return scaled


def normalize_crops(
    crops: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """`(crops / 255 - mean) / std` on the device where they are.

    Args:
        crops: (..., 3, H, W) uint8.
        mean: of the three channels, for pixels in 0..1.
        std: likewise.

    Returns:
        (..., 3, H, W) float32.
    """
    return _normalize_(crops.to(torch.float32, copy=True), tuple(mean), tuple(std))


def _normalize_(crops: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    scale, shift = _scale_and_shift(mean, std, crops.device)
    return crops.mul_(scale).add_(shift)


@lru_cache(maxsize=16)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale[:, None, None], shift[:, None, None]


def first_group(crops: Any) -> dict[str, Any]:
    """Of a config's ``crops``, which are one group or a list of them: the first, whose crops are the largest."""
    if isinstance(crops, (list, tuple)):
        crops = crops[0] if crops else None
    return crops if isinstance(crops, dict) else {}


class MultiCrop:
    """`num_crops` random resized crops with flip and normalisation from one decoded image.

    Args:
        size: height and width of the crops in pixels.
        num_crops: crops per image, K.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width over height.
        interpolation: ``"bicubic"`` or ``"bilinear"``, with antialiasing.
        hflip: probability of a horizontal flip, drawn for each crop.
        mean: of the three channels, for pixels in 0..1.
        std: likewise.
        normalize: ``"cpu"`` returns float32 normalised crops; ``"device"`` returns uint8, a quarter of the bytes to
            hand over, for the model side to pass through `normalize_crops`.
        color: arguments of :class:`adpe.data.color.ColorAugmentation` for all crops, or a list with one for each; what
            it draws comes after all boxes.
        resize: ``"torch"`` gives the values of torchvision on uint8 tensors; ``"pillow"`` those of torchvision on
            Pillow images, at about half the speed. Both round after each of the two passes, and differ by at most 1 of
            255 where Pillow takes rows first, like torch; recent Pillow takes columns first where that is cheaper,
            which changes one value in 10,000 by more, next to saturated ones.

    Raises:
        UserError: for values outside these.
    """

    def __init__(
        self,
        size: int = 112,
        num_crops: int = 4,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        hflip: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        normalize: str = "cpu",
        resize: str = "torch",
        color: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    ) -> None:
        _expect(isinstance(size, int) and size > 0, "size", size, "a positive number of pixels")
        _expect(isinstance(num_crops, int) and num_crops > 0, "num_crops", num_crops, "a positive number")
        _expect(len(scale) == 2 and 0 < scale[0] <= scale[1], "scale", scale, "(smallest, largest) share of the area")
        _expect(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], "ratio", ratio, "(smallest, largest) width over height")
        _expect(interpolation in PILLOW_FILTERS, "interpolation", interpolation, "'bicubic' or 'bilinear'")
        _expect(0 <= hflip <= 1, "hflip", hflip, "a probability")
        _expect(len(mean) == 3, "mean", mean, "three numbers")
        _expect(len(std) == 3 and min(std) > 0, "std", std, "three positive numbers")
        _expect(normalize in ("cpu", "device"), "normalize", normalize, "'cpu' or 'device'")
        _expect(resize in ("torch", "pillow"), "resize", resize, "'torch' or 'pillow'")
        self.size, self.num_crops, self.hflip, self.interpolation = size, num_crops, hflip, interpolation
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.mean, self.std = tuple(mean), tuple(std)
        self.normalize, self.resize = normalize, resize
        colors = [color] * num_crops if color is None or isinstance(color, dict) else list(color)
        _expect(
            len(colors) == num_crops, "color", color, f"one entry for each of the {num_crops} crops, or one for all"
        )
        self.colors = [None if one is None else ColorAugmentation(**one) for one in colors]

    def __call__(self, image: Image.Image, generator: random.Random) -> Tensor:
        """Crops of `image`: (K, 3, size, size) float32 normalised, or uint8 with ``normalize="device"``."""
        return self.apply(image, self.sample(image.height, image.width, generator), generator)

    def sample(self, height: int, width: int, generator: random.Random) -> list[CropBox]:
        """Draw the K crops of an image of `height` x `width` pixels."""
        return [(*self._box(height, width, generator), generator.random() < self.hflip) for _ in range(self.num_crops)]

    def reduction(self, boxes: Sequence[CropBox]) -> int:
        """The largest of `adpe.data.pixels.FACTORS` at which every box still has `size` pixels along both sides."""
        return next(
            factor
            for factor in FACTORS
            if factor == 1 or all(min(h, w) >= self.size for _, _, h, w, _ in reduced(boxes, factor))
        )

    def _box(self, height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width of one crop."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(ATTEMPTS):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * generator.random())
            ratio = math.exp(log_low + (log_high - log_low) * generator.random())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(generator.random() * (height - h + 1)), int(generator.random() * (width - w + 1)), h, w
        h, w = height, width  # the largest central crop within the range of ratios
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(
        self, image: Image.Image | np.ndarray, boxes: Sequence[CropBox], generator: random.Random | None = None
    ) -> Tensor:
        """The given crops, as `__call__` returns them, of an image or of its pixels (H, W, 3), uint8.

        In other colours only with a `generator`.
        """
        resize = self._resize_pillow if self.resize == "pillow" else self._resize_torch
        dtype = torch.uint8 if self.normalize == "device" else torch.float32
        crops = torch.empty(len(boxes), 3, self.size, self.size, dtype=dtype)
        colors = self.colors if generator is not None else [None] * len(boxes)
        made = zip(crops.unbind(), resize(image, boxes), boxes, colors, strict=True)
        for out, crop, (*_, flipped), color in made:
            crop = crop.flip(-1) if flipped else crop
            out.copy_(crop if color is None or generator is None else color(crop, generator))
        return self.finish(crops)

    def finish(self, crops: Tensor) -> Tensor:
        """Levels (..., 3, size, size), uint8 or float32, as `normalize` asks for them."""
        if self.normalize == "device":
            return crops
        return _normalize_(crops.to(torch.float32), self.mean, self.std)

    def _resize_torch(self, image: Image.Image | np.ndarray, boxes: Sequence[CropBox]) -> Iterator[Tensor]:
        """Every box as (3, size, size) uint8."""
        if isinstance(image, Image.Image):
            image = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.asarray(image)
        for top, left, h, w, _ in boxes:
            # Channels stay interleaved: torch's vectorised 8-bit resize reads and writes them so.
            crop = torch.from_numpy(pixels[top : top + h, left : left + w].copy()).permute(2, 0, 1)[None]
            yield interpolate(crop, (self.size, self.size), mode=self.interpolation, antialias=True)[0]

    def _resize_pillow(self, image: Image.Image | np.ndarray, boxes: Sequence[CropBox]) -> Iterator[Tensor]:
        """Every box as (3, size, size) uint8."""
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image = image if image.mode == "RGB" else image.convert("RGB")
        for top, left, h, w, _ in boxes:
            # Not resize(box=...): its filter would reach over the crop's edge, which torchvision's does not.
            crop = image.crop((left, top, left + w, top + h))
            crop = crop.resize((self.size, self.size), PILLOW_FILTERS[self.interpolation])
            yield torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def _expect(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise UserError(f"crops: {key}={value!r}, expected {expected}.")
