"""Fixed styles that make a second domain of a data set at hand: a stand-in where there are no data of two domains.

A style depends on the image and its name alone: the same pixels in every run, order and process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from adpe.errors import UserError


def _edges(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Grey outlines, dark on light: the grey image's local range (3 x 3 largest minus smallest), inverted."""
    grey = ImageOps.grayscale(image)
    outline = ImageChops.subtract(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    return ImageOps.invert(ImageOps.autocontrast(outline)).convert("RGB")


def _noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Grey, blurred by 0.7 pixels, contrast halved, with Gaussian noise of standard deviation 25 of 255."""
    grey = ImageOps.grayscale(image).filter(ImageFilter.GaussianBlur(0.7))
    pixels = 128 + 0.5 * (np.asarray(grey, np.float32) - 128)
    pixels = pixels[..., None] + generator.normal(0, 25, (*pixels.shape, 3))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


STYLES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {"edges": _edges, "noise": _noise}


def check_style(style: str | None) -> None:
    """Raise UserError for a style that does not exist; None is no style."""
    if style is not None and style not in STYLES:
        raise UserError(f"style = {style!r} is none of {', '.join(STYLES)}.")


def stylise(image: Image.Image, style: str, path: str) -> Image.Image:
    """An RGB image in a style, of the same size.

    Args:
        image: in mode RGB.
        style: a key of `STYLES`.
        path: of the image; what is random is seeded by its last two parts, class folder and file.
    """
    name = "/".join(path.rsplit("/", 2)[-2:])
    return STYLES[style](image, np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape"))))
