"""Changes of a crop's colours, sharpness and exposure, as DINO (arXiv 2104.14294) and BYOL draw them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from adpe.errors import UserError


class ColorAugmentation:
    """Jitter in random order, grey, Gaussian blur, solarise: each with its own probability, in this order.

    The pixels are torchvision's on Pillow images, the blur is Pillow's; every draw is from the sample's generator.

    Args:
        jitter: largest change of brightness, contrast, saturation (factors ``1 - x`` to ``1 + x``) and hue (turns,
            at most 0.5).
        jitter_p: probability of the jitter.
        grey_p: of grey values.
        blur_p: of the blur.
        radius: range of the blur's standard deviation in pixels, uniform.
        solarize_p: of inverting the values at or above `threshold`.
        threshold: 0..255.

    Raises:
        UserError: for values outside these.
    """

    def __init__(
        self,
        jitter: Sequence[float] = (0.4, 0.4, 0.2, 0.1),
        jitter_p: float = 0.8,
        grey_p: float = 0.2,
        blur_p: float = 0.5,
        radius: Sequence[float] = (0.1, 2.0),
        solarize_p: float = 0.0,
        threshold: int = 128,
    ) -> None:
        for key, p in (("jitter_p", jitter_p), ("grey_p", grey_p), ("blur_p", blur_p), ("solarize_p", solarize_p)):
            if not 0 <= p <= 1:
                raise UserError(f"color: {key}={p!r}, expected a probability.")
        if len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5:
            raise UserError(f"color: jitter={tuple(jitter)!r}, expected three numbers in 0..1 and a hue in 0..0.5.")
        if len(radius) != 2 or not 0 <= radius[0] <= radius[1]:
            raise UserError(f"color: radius={tuple(radius)!r}, expected (smallest, largest) pixels.")
        self.jitter, self.radius, self.threshold = tuple(jitter), tuple(radius), threshold
        self.jitter_p, self.grey_p, self.blur_p, self.solarize_p = jitter_p, grey_p, blur_p, solarize_p

    def __call__(self, crop: Tensor, generator: random.Random) -> Tensor:
        """``(3, h, w)`` uint8 to the same."""
        changes = self.draw(generator)
        if not changes:
            return crop
        image = Image.fromarray(crop.permute(1, 2, 0).numpy())
        for change in changes:
            image = change(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def draw(self, generator: random.Random) -> list[Callable[[Image.Image], Image.Image]]:
        """What happens to a crop, in order."""
        from torchvision.transforms import functional as F  # slow to import

        changes: list[Callable[[Image.Image], Image.Image]] = []
        if generator.random() < self.jitter_p:
            factors = [generator.uniform(max(0, 1 - x), 1 + x) for x in self.jitter[:3]]
            turn = generator.uniform(-self.jitter[3], self.jitter[3])
            drawn: list[Callable[[Image.Image], Image.Image]] = [
                lambda image: F.adjust_brightness(image, factors[0]),
                lambda image: F.adjust_contrast(image, factors[1]),
                lambda image: F.adjust_saturation(image, factors[2]),
                lambda image: F.adjust_hue(image, turn),
            ]
            drawn.sort(key=lambda _: generator.random())
            changes += drawn
        if generator.random() < self.grey_p:
            changes.append(lambda image: F.to_grayscale(image, 3))
        if generator.random() < self.blur_p:
            blur = ImageFilter.GaussianBlur(generator.uniform(*self.radius))
            changes.append(lambda image: image.filter(blur))
        if generator.random() < self.solarize_p:
            changes.append(lambda image: F.solarize(image, self.threshold))
        return changes
