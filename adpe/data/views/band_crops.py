"""Crops of multi-band images for a probe, as DINO-MM's linear evaluation takes them (arXiv 2204.05381)."""

from __future__ import annotations

import random

import cv2
import numpy as np

from adpe.data.views.multiband import Crop, crop_and_resize, draw_crop, to_float
from adpe.errors import UserError


class BandCrops:
    """Bytes ``(H, W, C)`` to a square view in 0..1; the names are timm's.

    In training a rectangle of random area and aspect, resized, and a flip; draws come from Python's global generator,
    one a view. Else the shorter side is resized and the central square is cut out. OpenCV's bilinear, no antialias.

    Args:
        input_size: side of the view, pixels.
        is_training: whether to draw.
        resize: shorter side before the central crop; `input_size` if None.
        scale: share of the area of a random crop.
        hflip: probability of a flip in training.

    Raises:
        UserError: for sizes, shares or probabilities that cannot be.
    """

    def __init__(
        self,
        input_size: int = 112,
        is_training: bool = False,
        resize: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
    ) -> None:
        side = input_size if resize is None else resize
        if not 0 < input_size <= side:
            raise UserError(f"transform: input_size = {input_size} of resize = {side}: expected 1 to {side} pixels.")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 <= hflip <= 1:
            raise UserError(f"transform: scale = {tuple(scale)}, hflip = {hflip}: expected shares in 0..1.")
        if is_training and resize is not None:
            raise UserError(f"transform: resize = {resize} is of the central crop; is_training draws crops by scale.")
        self.input_size, self.is_training, self.resize = input_size, is_training, side
        self.scale, self.hflip = (scale[0], scale[1]), hflip

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """``(C, input_size, input_size)`` float32 in 0..1 of bytes ``(H, W, C)``."""
        height, width = image.shape[:2]
        if not self.is_training:
            return to_float(self._central(image, height, width))
        generator = random.Random(random.getrandbits(64))
        crop = draw_crop(height, width, self.scale, generator)
        view = crop_and_resize(image, crop, (self.input_size, self.input_size), cv2.INTER_LINEAR)
        return to_float(view[:, ::-1] if generator.random() < self.hflip else view)

    def _central(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        shorter = min(height, width)
        size = (round(height * self.resize / shorter), round(width * self.resize / shorter))
        whole = crop_and_resize(image, Crop(0, 0, height, width), size, cv2.INTER_LINEAR)
        top, left = ((side - self.input_size) // 2 for side in size)
        return whole[top : top + self.input_size, left : left + self.input_size]
