"""Labelled images in the midst of a coloured border, whose colour may give their class away: a shortcut on purpose."""

from __future__ import annotations

import colorsys
import random
from typing import Any, Literal, get_args

from mmengine.registry import DATASETS
from PIL import Image

from adpe.data.classification import AdPEClassificationDataset
from adpe.errors import UserError

Border = Literal["class", "random", "none"]
Place = Literal["centre", "random"]
_GREY = (128, 128, 128)


@DATASETS.register_module()
class AdPEBorderedDataset(AdPEClassificationDataset):
    """`AdPEClassificationDataset` whose images are shrunk and pasted on a canvas of one colour.

    What an image is pasted on, and where, depends on its index and `seed` alone.

    Args:
        border: "class": the colour of the image's class in a share `agreement` of the images, that of another class,
            drawn uniformly, in the others; "random": of any class; "none": grey.
        agreement: of ``border="class"``, in [0, 1].
        canvas: its side in pixels.
        inner: side of the pasted image in pixels.
        place: "centre", or "random": anywhere on the canvas.
        seed: of colours and places.
        options: of `AdPEClassificationDataset`.

    Raises:
        UserError: for options out of range, besides what `AdPEClassificationDataset` raises.
    """

    def __init__(
        self,
        *args: Any,
        border: Border = "class",
        agreement: float = 0.95,
        canvas: int = 48,
        inner: int = 24,
        place: Place = "centre",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        for key, value, kind in (("border", border, Border), ("place", place, Place)):
            if value not in get_args(kind):
                raise UserError(f"{key}={value!r} is none of {', '.join(get_args(kind))}.")
        if not 0 <= agreement <= 1 or not 0 < inner <= canvas:
            raise UserError(f"agreement={agreement}, inner={inner}, canvas={canvas}: expected [0, 1], inner <= canvas.")
        self.border, self.agreement, self.place, self.seed = border, agreement, place, seed
        self.canvas, self.inner = canvas, inner

    def shown(self, image: Image.Image, index: int, label: int) -> Image.Image:
        """The image on its canvas, ``(canvas, canvas)`` RGB."""
        drawn = random.Random(f"{self.seed} {index}")
        count = len(self.classes)
        coloured = drawn.randrange(count)
        if self.border == "class":
            other = (label + 1 + drawn.randrange(max(1, count - 1))) % count
            coloured = label if drawn.random() < self.agreement else other
        colour = _GREY if self.border == "none" else class_colour(coloured, count)
        room = self.canvas - self.inner
        left, top = (
            (room // 2, room // 2) if self.place == "centre" else (drawn.randint(0, room), drawn.randint(0, room))
        )
        canvas = Image.new("RGB", (self.canvas, self.canvas), colour)
        canvas.paste(image.resize((self.inner, self.inner), Image.Resampling.BICUBIC), (left, top))
        return canvas


def class_colour(label: int, count: int) -> tuple[int, int, int]:
    """One of `count` hues, evenly spaced, as RGB in 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(label / count, 1.0, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
