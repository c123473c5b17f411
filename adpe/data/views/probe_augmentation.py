"""The augmentation of DINOv3's linear segmentation probe (arXiv 2508.10104), with its draws apart from what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.5
# Of the labelled pixels, what one class may cover in a crop.
LARGEST_SHARE = 0.75
ATTEMPTS = 10


def resized_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height with the shorter side `short`; the other rounds half up."""
    long = int(short * max(width, height) / min(width, height) + 0.5)
    return (short, long) if width <= height else (long, short)


def draw_distortion(rng: np.random.Generator) -> dict[str, Any]:
    """Factors of :func:`distort`, each with probability 0.5; ``contrast_first`` is a coin of its own."""
    draws: dict[str, Any] = {"contrast_first": bool(rng.integers(2))}
    for name, low, high in (
        ("brightness", -BRIGHTNESS, BRIGHTNESS),
        ("contrast", *CONTRAST),
        ("saturation", *SATURATION),
        ("hue", -HUE, HUE),
    ):
        if rng.integers(2):
            draws[name] = float(rng.uniform(low, high))
    return draws


def distort(image: Tensor, draws: Mapping[str, Any]) -> Tensor:
    """Photometric distortion of bytes ``(3, H, W)``: brightness, (contrast), saturation, hue, (contrast).

    Args:
        image: uint8 RGB; every step is rounded down to a byte.
        draws: ``brightness`` is added, ``contrast`` and ``saturation`` multiply, ``hue`` is in turns (any hue; mmseg
            turns by 18 of 180 at most); a factor that is absent is not applied.
    """
    from torchvision.transforms.v2 import functional as tv

    def linear(pixels: Tensor, factor: float = 1.0, shift: float = 0.0) -> Tensor:
        return (pixels.float() * factor + shift).clamp(0, 255).to(torch.uint8)

    steps: dict[str, Callable[[Tensor, float], Tensor]] = {
        "brightness": lambda pixels, value: linear(pixels, shift=value),
        "contrast": lambda pixels, value: linear(pixels, value),
        "saturation": tv.adjust_saturation,
        "hue": tv.adjust_hue,
    }
    order = ["brightness", "contrast", "saturation", "hue"]
    if not draws["contrast_first"]:
        order = ["brightness", "saturation", "hue", "contrast"]
    for name in order:
        if name in draws:
            image = steps[name](image, draws[name])
    return image


def crop_offset(
    label: np.ndarray, crop: tuple[int, int], draw: Callable[[], tuple[int, int]], ignored: int = 255
) -> tuple[int, int]:
    """Row and column of a crop with at least two classes, none of which covers 75 % of the labelled pixels.

    Args:
        label: ``(H, W)``.
        crop: height and width.
        draw: gives an offset; after ten that fail, the eleventh is taken unchecked.
        ignored: label that does not count.
    """
    for _ in range(ATTEMPTS):
        top, left = draw()
        labels, counts = np.unique(label[top : top + crop[0], left : left + crop[1]], return_counts=True)
        counts = counts[labels != ignored]
        if len(counts) > 1 and counts.max() < LARGEST_SHARE * counts.sum():
            return top, left
    return draw()
