"""How EoMT reads an image of any size: windows along its longer side, averaged (arXiv 2503.19108)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.transfer.eomt.network import Prediction


def scaled_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image whose shorter side fits the window."""
    factor = max(window[0] / size[0], window[1] / size[1])
    return round(size[0] * factor), round(size[1] * factor)


def window_starts(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners ``(row, column)`` of the windows of a scaled image, evenly along its longer side."""
    side, length = min(window), max(size)
    count = -(-length // side)
    overlap = (count * side - length) / (count - 1) if count > 1 else 0.0
    starts = [int(number * (side - overlap)) for number in range(count)]
    return [(start, 0) if size[0] > size[1] else (0, start) for start in starts]


def class_scores(prediction: Prediction, size: tuple[int, int]) -> Tensor:
    """Scores ``(B, C, H, W)`` at the window's pixels: over queries, the mask's share times the class's probability."""
    masks = F.interpolate(prediction.masks.float(), size, mode="bilinear", align_corners=False)
    classes = prediction.classes.float().softmax(-1)[..., :-1]
    return torch.einsum("bqhw,bqc->bchw", masks.sigmoid(), classes)


def stitch(scores: Tensor, starts: Sequence[tuple[int, int]], scaled: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Scores ``(windows, C, h, w)`` of one image, averaged where windows overlap, to ``(C, H, W)`` of its own size."""
    height, width = scores.shape[-2:]
    total = scores.new_zeros(scores.shape[1], *scaled)
    count = scores.new_zeros(1, *scaled)
    for part, (top, left) in zip(scores, starts, strict=True):
        total[:, top : top + height, left : left + width] += part
        count[:, top : top + height, left : left + width] += 1
    return F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]
