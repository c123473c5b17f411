"""Crops of a whole batch of small images by a few calls, equal in every bit to resizing each crop by itself.

torch resizes 8-bit images in two passes, columns first, and rounds after each. Here the first is done for all crops of
one width together, the second for all of one height: about 36 calls for 512 crops of CIFAR-10, instead of 512 whose
work is mostly that of being called.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn.functional import interpolate

SMALL = 64  # pixels; the first pass resizes rows that the crop leaves out, which for larger images costs more


def crop_batch(images: np.ndarray, boxes: np.ndarray, size: int, interpolation: str) -> Tensor:
    """Resized crops of images of one size.

    Args:
        images: (B, H, W, 3) uint8, contiguous.
        boxes: (B, K, 5) integers: top, left, height, width, flipped; see `adpe.data.multicrop.CropBox`.
        size: height and width of the crops in pixels.
        interpolation: ``"bicubic"`` or ``"bilinear"``, with antialiasing.

    Returns:
        (B, K, 3, size, size) uint8, the values of `MultiCrop.apply` with ``resize="torch"``.
    """
    batch, height = images.shape[:2]
    top, left, heights, widths, flipped = boxes.reshape(-1, 5).T
    which = np.repeat(np.arange(batch), boxes.shape[1])
    narrow = np.empty((len(which), height, size, 3), np.uint8)
    for width, crops in _groups(widths):
        windows = sliding_window_view(images, width, axis=2)  # (B, H, W - width + 1, 3, width)
        columns = windows.transpose(0, 2, 1, 4, 3)[which[crops], left[crops]]
        narrow[crops] = _resize(columns, (height, size), interpolation)
    out = np.empty((len(which), size, size, 3), np.uint8)
    for length, crops in _groups(heights):
        windows = sliding_window_view(narrow, length, axis=1)  # (B K, H - length + 1, size, 3, length)
        rows = windows.transpose(0, 1, 4, 2, 3)[crops, top[crops]]
        out[crops] = _resize(rows, (size, size), interpolation)
    mirrored = flipped.astype(bool)
    out[mirrored] = out[mirrored, :, ::-1]
    channels = torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
    return channels.view(*boxes.shape[:2], 3, size, size)


def _groups(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every value with the positions where it stands."""
    order = np.argsort(values, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        yield int(values[positions[0]]), positions


def _resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, *size, 3); the channels are interleaved in memory, as torch's fast path reads them."""
    resized = interpolate(
        torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2), size, mode=interpolation, antialias=True
    )
    return resized.permute(0, 2, 3, 1).numpy()
