"""Composing scenes of scanned digits over photographs, with exact masks; `adpe.data.scenes` writes them to files.

Scans of the digits 0, 1 and 2 from scikit-learn (8x8, values 0..16) are enlarged, turned, coloured and laid over crops
of the photographs that the scikit-image and scikit-learn packages carry. Digits and photographs of the validation
scenes never occur in the training or the unlabelled scenes. The digits are few, large and of three classes so that a
detector learns to tell them apart in a few hundred iterations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpe.errors import UserError, require

# Only files inside the installed packages: skimage.data would download the others.
TRAINING_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "china.jpg",
    "coffee.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
VALIDATION_PHOTOGRAPHS = ("cell.png", "chelsea.png", "coins.png", "flower.jpg", "gravel.png", "retina.jpg")
VALIDATION_FRACTION = 0.2  # of the digits
NUM_CLASSES = 3  # the digits 0, 1 and 2
DIGITS_PER_SCENE = (1, 2)
# Enlargement of the 8x8 scans in scenes of 96 pixels; it grows with the size of the scenes.
SCALE = (6.0, 9.0)
MAX_ANGLE = 10.0  # degrees
OPACITY = (0.8, 1.0)
MIN_VISIBLE_FRACTION = 0.75
MIN_VISIBLE_PIXELS = 12
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """One composed scene.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        instances: (size, size) uint8, 0 = background, k = visible pixels of the k-th digit.
        digits: the digits' classes, 0..2, in the order of `instances`.
        sources: what the scene is composed of, as written to ``scenes.json``.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    digits: list[int]
    sources: dict[str, Any]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(size, size) uint8 semantic labels: 1 = background, 2..4 = digits 0..2."""
        return np.array([1] + [2 + digit for digit in self.digits], dtype=np.uint8)[self.instances]


def compose_scenes(num: int, split: str, size: int = 96, seed: int = 0) -> Iterator[Scene]:
    """Compose scenes in memory.

    Args:
        num: number of scenes.
        split: ``"training"``, ``"validation"`` or ``"unlabelled"`` (training digits and photographs, other scenes).
        size: side of the scenes, pixels.
        seed: of the split of the digits and of the scenes.
    """
    scans, classes = _load_digits()
    order = np.random.default_rng([seed, 0]).permutation(np.flatnonzero(classes < NUM_CLASSES))
    num_val = round(VALIDATION_FRACTION * len(order))
    samples = order[:num_val] if split == "validation" else order[num_val:]
    names = VALIDATION_PHOTOGRAPHS if split == "validation" else TRAINING_PHOTOGRAPHS
    photographs = {name: _load_photograph(name) for name in names}
    stream = 1 + ("training", "validation", "unlabelled").index(split)
    for index in range(num):
        rng = np.random.default_rng([seed, stream, index])
        yield _compose(rng, scans, classes, samples, photographs, size)


def _compose(
    rng: np.random.Generator,
    scans: NDArray[np.uint8],
    classes: NDArray[np.int64],
    samples: NDArray[np.int64],
    photographs: dict[str, Image.Image],
    size: int,
) -> Scene:
    """Lay digits over a crop of a photograph; a digit that would hide too much of an earlier one is left out."""
    name = list(photographs)[rng.integers(len(photographs))]
    image, box = _crop(rng, photographs[name], size)
    instances: NDArray[np.uint8] = np.zeros((size, size), dtype=np.uint8)
    pixels: list[int] = []
    digits: list[int] = []
    placed: list[dict[str, Any]] = []
    for _ in range(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)):
        sample = int(samples[rng.integers(len(samples))])
        scale = rng.uniform(*SCALE) * size / 96
        angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
        radians = math.radians(angle)
        margin = 4 * scale * (math.cos(radians) + abs(math.sin(radians)))
        centre = rng.uniform(margin, size - margin, size=2)
        alpha = _render(scans[sample], scale, radians, centre, size)
        mask = alpha >= 0.5
        candidate = np.where(mask, np.uint8(len(placed) + 1), instances)
        visible = np.bincount(candidate.ravel(), minlength=len(placed) + 2)[1:]
        needed = [max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * area) for area in [*pixels, int(mask.sum())]]
        if any(seen < least for seen, least in zip(visible, needed, strict=True)):
            continue
        colour = _bright_colour(rng)
        opacity = (alpha * rng.uniform(*OPACITY))[..., None]
        image = opacity * colour + (1 - opacity) * image
        instances = candidate
        pixels.append(int(mask.sum()))
        digits.append(int(classes[sample]))
        placed.append(
            {
                "sample": sample,
                "digit": digits[-1],
                "scale": round(scale, 4),
                "angle": round(angle, 4),
                "centre": [round(float(value), 4) for value in centre],
            }
        )
    sources = {"photograph": name, "crop": box, "digits": placed}
    return Scene(np.round(255 * image).astype(np.uint8), instances, digits, sources)


def _crop(rng: np.random.Generator, photograph: Image.Image, size: int) -> tuple[NDArray[np.float64], list[int]]:
    """A random square of a photograph, dimmed, tinted, perhaps mirrored: (size, size, 3) in 0..1; its box in pixels."""
    shorter = min(photograph.size)
    side = int(rng.integers(shorter // 4, shorter + 1))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    box = [left, top, left + side, top + side]
    resized = photograph.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    image = np.asarray(resized, dtype=np.float64) / 255
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return image * rng.uniform(0.25, 0.55, size=3), box


def _render(
    scan: NDArray[np.uint8], scale: float, radians: float, centre: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Coverage of a digit in 0..1, (size, size): the 8x8 scan enlarged, turned, and centred at (x, y)."""
    padded = np.pad(np.round(scan * (255 / 16)).astype(np.uint8), 2)
    # The inverse map, from scene to scan, in continuous pixel coordinates.
    cos, sin = math.cos(radians) / scale, math.sin(radians) / scale
    x, y = (float(value) for value in centre)
    middle = padded.shape[0] / 2
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    turned = Image.fromarray(padded).transform(
        (size, size), Image.Transform.AFFINE, inverse, resample=Image.Resampling.BICUBIC
    )
    # A steeper edge than the scan's own.
    return np.clip((np.asarray(turned) / 255 - 0.2) / 0.35, 0, 1)


def _bright_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random RGB colour in 0..1 that is brighter than any dimmed photograph."""
    while True:
        colour = rng.random(3)
        if colour @ LUMINANCE >= 0.65:
            return colour


def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's digits: (1797, 8, 8) values 0..16, and (1797,) classes 0..9."""
    require("sklearn", "requirements/runtime.txt")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def _load_photograph(name: str) -> Image.Image:
    """A photograph, as RGB, out of the installed scikit-image or scikit-learn package."""
    folders = [
        Path(str(require("skimage", "requirements/runtime.txt").__file__)).parent / "data",
        Path(str(require("sklearn", "requirements/runtime.txt").__file__)).parent / "datasets" / "images",
    ]
    for folder in folders:
        if (folder / name).is_file():
            with Image.open(folder / name) as image:
                return image.convert("RGB")
    raise UserError(
        f"The photograph {name} is neither in {folders[0]} nor in {folders[1]}: reinstall the pinned scikit-image and "
        "scikit-learn (`pip install --force-reinstall -r requirements/runtime.txt`)."
    )
