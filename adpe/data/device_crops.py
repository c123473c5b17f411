"""Crops of a batch as two matrix products, on any device, equal in every bit to torch's resize of 8-bit images.

torch resizes 8-bit images as Pillow does: weights in fixed point, as many bits as leave the largest in 16, integer
sums, and rounding to 8 bits after the columns and after the rows. These sums are computed here in floating point, which
holds them exactly, so that neither the device nor the order of summation changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGEST = 256  # pixels along a side, which a table of weights of a few 100 MB goes with
_STEP = 32  # pixels, to which the size of the table of weights is rounded up
_WHITE = 255


class Weights(NamedTuple):
    """The weights of every length, in fixed point.

    Attributes:
        values: (L + 1, size, L) integers in floating point: of a line of ``length`` pixels, the weight that each has in
            each of the ``size`` that it is resized to. Zero beyond the length.
        bits: (L + 1,) int64, of the fixed point.
    """

    values: Tensor
    bits: Tensor


def crop_on_device(images: Tensor, boxes: Sequence[Tensor], groups: Sequence[tuple[int, str]]) -> list[Tensor]:
    """Resized crops of a batch.

    Args:
        images: (B, H, W, 3) uint8, each padded to the size of the batch, at most `LARGEST` pixels along a side.
        boxes: for each group (B, K, 5) integers: top, left, height, width, flipped.
        groups: the size of each group's crops in pixels, and ``"bicubic"`` or ``"bilinear"``, with antialiasing.

    Returns:
        for each group (B, K, 3, size, size) uint8, the values of `adpe.data.batch_crops.crop_batch`.
    """
    height, width = images.shape[1:3]
    length = -(-max(height, width) // _STEP) * _STEP
    # Neither autocast nor TF32 holds the sums.
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(images.device.type, enabled=False):
            return [
                _crop(images, mine, weights_of(length, size, interpolation, images.device))
                for mine, (size, interpolation) in zip(boxes, groups, strict=True)
            ]
    finally:
        torch.set_float32_matmul_precision(precision)


def _crop(images: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    (batch, crops), (_, height, width, channels) = boxes.shape[:2], images.shape
    size, dtype = weights.values.shape[1], weights.values.dtype
    top, left, heights, widths, flipped = boxes.long().unbind(-1)
    columns = _placed(weights.values, widths, left, width)  # (B, K, size, W)
    columns = torch.where(flipped[..., None, None] > 0, columns.flip(2), columns)
    rows = _placed(weights.values, heights, top, height)
    pixels = images.permute(0, 3, 1, 2).reshape(batch, channels * height, width).to(dtype)
    narrow = pixels @ columns.reshape(batch, crops * size, width).transpose(1, 2)
    narrow = narrow.view(batch, channels, height, crops, size).permute(0, 3, 2, 1, 4)  # (B, K, H, 3, size)
    narrow = _rounded(narrow, weights.bits[widths]).reshape(batch, crops, height, channels * size)
    out = _rounded((rows @ narrow)[:, :, None], weights.bits[heights])[:, :, 0]
    return (
        out.view(batch, crops, size, channels, size)
        .transpose(2, 3)
        .to(torch.uint8, memory_format=torch.contiguous_format)
    )


def _placed(table: Tensor, lengths: Tensor, starts: Tensor, extent: int) -> Tensor:
    """(B, K, size, extent) weights of the `lengths` (B, K), moved to where they start; zero elsewhere."""
    position = torch.arange(extent, device=table.device) - starts[..., None]
    inside = (position >= 0) & (position < lengths[..., None])
    position = position.clamp(0, table.shape[2] - 1)[:, :, None].expand(-1, -1, table.shape[1], -1)
    return table[lengths].gather(3, position) * inside[:, :, None]


def _rounded(sums: Tensor, bits: Tensor) -> Tensor:
    """Sums (B, K, ...) of three more dimensions, in fixed point of (B, K) bits, as levels 0..255."""
    unit = torch.exp2(bits.to(sums.dtype))[..., None, None, None]
    return sums.add(unit / 2).div_(unit).floor_().clamp_(0, _WHITE)


@lru_cache(maxsize=16)
def weights_of(length: int, size: int, interpolation: str, device: torch.device) -> Weights:
    """The weights of lines of 0 to `length` pixels.

    In float32 if it holds all sums exactly, which it does for reductions to about half, otherwise in float64.
    """
    table, bits = np.zeros((length + 1, size, length)), np.zeros(length + 1, dtype=np.int64)
    for pixels in range(1, length + 1):
        exact = resize_weights(pixels, size, interpolation)
        bits[pixels] = next((b for b in range(22) if int(0.5 + exact.max() * 2 ** (b + 1)) >= 2**15), 22)
        fixed = exact * 2.0 ** bits[pixels]
        table[pixels, :, :pixels] = np.trunc(fixed + np.copysign(0.5, fixed))
    sums = np.abs(table).sum(axis=2).max(axis=1) * _WHITE + 2.0 ** (bits - 1)
    dtype = torch.float32 if sums.max() < 2**24 else torch.float64
    return Weights(torch.from_numpy(table).to(device, dtype), torch.from_numpy(bits).to(device))


def resize_weights(length: int, size: int, interpolation: str) -> np.ndarray:
    """(size, length) float64, the weights of an antialiased resize of a line of pixels, as Pillow defines them.

    The kernel is stretched by the reduction, cut where the line ends, and its weights add up to 1.

    Args:
        length: pixels of the line.
        size: pixels that it is resized to.
        interpolation: ``"bicubic"`` (Keys' kernel, a = -0.5) or ``"bilinear"``.
    """
    reach, kernel = _KERNELS[interpolation]
    scale = length / size
    stretch = max(scale, 1.0)
    weights = np.zeros((size, length))
    for place in range(size):
        centre = scale * (place + 0.5)
        first = max(int(centre - reach * stretch + 0.5), 0)
        last = min(int(centre + reach * stretch + 0.5), length)
        values = kernel(np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / stretch)))
        weights[place, first:last] = values / values.sum()
    return weights


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0)


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
}
