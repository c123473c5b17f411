"""Views of images of any number of channels, as DINO-MM (arXiv 2204.05381) draws them from bytes ``(H, W, C)``.

Every draw is handed over, so that a view is a function of its image and its numbers; `ViewDraw.of` draws them from one
generator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

from adpe.errors import UserError

Overflow = Literal["clip", "wrap"]
Solarize = Literal["above", "below"]
Grey = Literal["sensor", "all"]

# Sentinel-2 without B10, then radar VH and VV in dB: means and deviations by which bands become bytes.
OPTICAL = {
    "B01": (340.77, 554.81), "B02": (429.94, 572.42), "B03": (614.22, 582.88), "B04": (590.24, 675.89),
    "B05": (950.68, 729.90), "B06": (1792.46, 1096.01), "B07": (2075.47, 1273.45), "B08": (2218.95, 1365.46),
    "B8A": (2266.46, 1356.14), "B09": (2246.06, 1302.33), "B11": (1594.43, 1079.19), "B12": (1009.33, 818.87),
}  # fmt: skip
RADAR = {"VH": (-19.22, 5.42), "VV": (-12.59, 5.04)}
SENTINEL = {"radar": (12, 13), "optical": tuple(range(12))}


def band_to_bytes(band: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """``(x - (m - 2 s)) / 4 s * 255``, clipped to 0..255 and truncated, uint8."""
    low = mean - 2 * deviation
    return np.clip((band.astype(np.float64) - low) / (4 * deviation) * 255.0, 0, 255).astype(np.uint8)


def clamp_to_quantiles(band: np.ndarray, low: float = 0.01, high: float = 0.99) -> np.ndarray:
    """A band of radar between its own quantiles, interpolated linearly."""
    return np.clip(band, np.quantile(band, low), np.quantile(band, high))


class SensorDrop:
    """Zeroes the channels of one sensor, in a share of the views.

    Args:
        groups: channels of each sensor by name, at least two, none twice.
        probabilities: of each sensor to be the dropped one; equal if None.
        p: share of the views in which one is dropped.

    Raises:
        UserError: for groups or probabilities that do not go together.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[int]], probabilities: Sequence[float] | None = None, p: float = 0.5
    ) -> None:
        channels = [channel for group in groups.values() for channel in group]
        if len(groups) < 2 or len(set(channels)) != len(channels) or not all(groups.values()):
            raise UserError(
                f"sensor drop: groups = {dict(groups)}: expected at least two, none empty, no channel twice."
            )
        shares = list(probabilities or [1 / len(groups)] * len(groups))
        if len(shares) != len(groups) or min(shares) < 0 or not math.isclose(sum(shares), 1) or not 0 <= p <= 1:
            raise UserError(f"sensor drop: probabilities = {shares} of {len(groups)} groups must add up to 1, p = {p}.")
        self.groups = {name: tuple(group) for name, group in groups.items()}
        self.shares, self.p = shares, p

    def draw(self, generator: random.Random) -> str | None:
        """The sensor that is dropped, or None."""
        if generator.random() > self.p:
            return None
        return generator.choices(list(self.groups), self.shares)[0]

    def __call__(self, image: np.ndarray, sensor: str | None) -> np.ndarray:
        """A copy of ``(C, h, w)`` without a sensor's channels.

        Raises:
            UserError: for channels that the image does not have.
        """
        if sensor is None:
            return image
        group = self.groups[sensor]
        if max(group) >= len(image):
            raise UserError(f"sensor drop: {sensor} has channel {max(group)}, the image has {len(image)} channels.")
        dropped = image.copy()
        dropped[list(group)] = 0
        return dropped


class Crop(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(height: int, width: int, scale: tuple[float, float], generator: random.Random) -> Crop:
    """A share of the image: area uniform, aspect uniform in 3/4..4/3; the central square if none fits."""
    for _ in range(10):
        area = generator.uniform(*scale) * height * width
        ratio = generator.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if generator.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return Crop(generator.randint(0, height - h), generator.randint(0, width - w), h, w)
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def crop_and_resize(
    image: np.ndarray, crop: Crop, size: tuple[int, int], interpolation: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """A rectangle of bytes ``(H, W, C)`` to ``(*size, C)``, OpenCV's bicubic by default (no antialias)."""
    part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return _with_channels(cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=interpolation))


def brightness(image: np.ndarray, factor: float, overflow: Overflow = "clip") -> np.ndarray:
    """``x * factor`` in bytes."""
    return _to_bytes(image.astype(np.float64) * factor, overflow)


def contrast(image: np.ndarray, factor: float, overflow: Overflow = "clip") -> np.ndarray:
    """``(x - mean) * factor + mean`` in bytes, the mean per channel over the view."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return _to_bytes((image - mean) * factor + mean, overflow)


def grey(image: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The mean over the channels of each group in all of them, truncated to bytes."""
    found = image.copy()
    for group in groups:
        found[..., list(group)] = image[..., list(group)].mean(axis=-1, keepdims=True).astype(np.uint8)
    return found


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of bytes as OpenCV has it for size (0, 0): ``round(6 sigma + 1) | 1`` taps, reflect-101 borders."""
    return _with_channels(cv2.GaussianBlur(image, (0, 0), sigmaX=sigma, sigmaY=sigma))


def solarize(image: np.ndarray, which: Solarize = "above", threshold: int = 128) -> np.ndarray:
    """Pixels at or above the threshold, or "below" it (the reference), inverted."""
    inverted = image >= threshold if which == "above" else image < threshold
    return np.where(inverted, 255 - image, image)


def to_float(image: np.ndarray) -> np.ndarray:
    """Bytes ``(H, W, C)`` to float32 ``(C, H, W)`` in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / 255


@dataclass(frozen=True)
class ViewDraw:
    """The numbers that make a view.

    Attributes:
        crop: rectangle.
        flip: left to right.
        brightness: factor of the jitter, or None without it.
        contrast: likewise.
        grey: whether.
        sigma: of the blur, or None.
        solarize: whether.
        sensor: that is dropped, or None.
    """

    crop: Crop
    flip: bool = False
    brightness: float | None = None
    contrast: float | None = None
    grey: bool = False
    sigma: float | None = None
    solarize: bool = False
    sensor: str | None = None


class MultiBandViews:
    """Draws and makes views of bytes ``(H, W, C)``.

    Args:
        drop: of sensors.
        global_size: side of the two global views.
        local_size: side of the local ones.
        local_views: how many.
        global_scale: share of the area of global crops.
        local_scale: of local ones.
        overflow: "clip", or "wrap" round as the reference's casts do.
        solarize: "above" 128, or "below" it as in the reference.
        grey: within a "sensor", or over "all" channels as in the reference.

    Raises:
        UserError: for another word.
    """

    def __init__(
        self,
        drop: SensorDrop,
        global_size: int = 112,
        local_size: int = 48,
        local_views: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        overflow: Overflow = "clip",
        solarize: Solarize = "above",
        grey: Grey = "sensor",
    ) -> None:
        for name, word, known in (
            ("overflow", overflow, Overflow),
            ("solarize", solarize, Solarize),
            ("grey", grey, Grey),
        ):
            if word not in get_args(known):
                raise UserError(f"multi-band views: {name} = {word!r} is none of {', '.join(get_args(known))}.")
        self.drop, self.overflow, self.solarize, self.grey = drop, overflow, solarize, grey
        self.sizes = [global_size] * 2 + [local_size] * local_views
        self.scales = [global_scale] * 2 + [local_scale] * local_views
        self.blurred = [1.0, 0.1] + [0.5] * local_views
        self.solarized = [0.0, 0.2] + [0.0] * local_views

    def draw(self, height: int, width: int, number: int, generator: random.Random) -> ViewDraw:
        """The numbers of view `number`."""
        crop = draw_crop(height, width, self.scales[number], generator)
        flip = generator.random() < 0.5
        jitter = generator.random() <= 0.8
        bright, contrasted = (generator.uniform(0.6, 1.4) if jitter else None for _ in range(2))
        greyed = generator.random() <= 0.2
        sigma = generator.uniform(0.1, 2) if generator.random() <= self.blurred[number] else None
        solarized = generator.random() <= self.solarized[number]
        return ViewDraw(crop, flip, bright, contrasted, greyed, sigma, solarized, self.drop.draw(generator))

    def view(self, image: np.ndarray, size: int, draw: ViewDraw) -> np.ndarray:
        """``(C, size, size)`` float32 in 0..1 of bytes ``(H, W, C)``."""
        x = crop_and_resize(image, draw.crop, (size, size))
        if draw.flip:
            x = np.ascontiguousarray(x[:, ::-1])
        if draw.brightness is not None:
            x = brightness(x, draw.brightness, self.overflow)
        if draw.contrast is not None:
            x = contrast(x, draw.contrast, self.overflow)
        if draw.grey:
            channels = range(x.shape[-1])
            x = grey(x, [channels] if self.grey == "all" else list(self.drop.groups.values()))
        if draw.sigma is not None:
            x = blur(x, draw.sigma)
        if draw.solarize:
            x = solarize(x, self.solarize)
        return self.drop(to_float(x), draw.sensor)

    def __call__(self, image: np.ndarray, generator: random.Random) -> list[np.ndarray]:
        """Groups of views, ``(2, C, h, w)`` and, if there are any, ``(local_views, C, h, w)``.

        Raises:
            UserError: for anything but bytes of three dimensions.
        """
        if image.dtype != np.uint8 or image.ndim != 3:
            raise UserError(f"multi-band views: got {image.dtype} {image.shape}, expected uint8 (height, width, C).")
        made = [
            self.view(image, size, self.draw(image.shape[0], image.shape[1], number, generator))
            for number, size in enumerate(self.sizes)
        ]
        return [np.stack(made[:2]), *([np.stack(made[2:])] if made[2:] else [])]


def _to_bytes(x: np.ndarray, overflow: Overflow) -> np.ndarray:
    if overflow == "clip":
        return np.clip(x, 0, 255).astype(np.uint8)
    return (np.trunc(x).astype(np.int64) & 255).astype(np.uint8)


def _with_channels(image: np.ndarray) -> np.ndarray:
    """OpenCV drops the axis of a single channel."""
    return image[..., None] if image.ndim == 2 else image
