"""Cutout on images, as multi-label recognition uses it."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw


class Cutout:
    """Paint a rectangle of a random colour over a random place (arXiv 1708.04552), from Python's generator.

    Args:
        share: its sides as a share of the image's; parts that reach beyond an edge are lost.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image of mode RGB to another of its size."""
        painted = image.copy()
        width, height = (round(self.share * side) for side in image.size)
        left = random.randrange(image.width) - width // 2
        top = random.randrange(image.height) - height // 2
        colour = tuple(random.randrange(256) for _ in range(3))
        # The last row and column belong to Pillow's rectangles.
        ImageDraw.Draw(painted).rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
        return painted
