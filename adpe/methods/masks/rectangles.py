"""Sets of patches that are unions of rectangles, as BEiT (arXiv 2106.08254, algorithm 1) hides them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Rectangles that are drawn; what they have not covered is filled up at random.
_MOST = 32


def rectangles(noise: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Exactly `count` patches of every image, True, that are a union of rectangles but for a few.

    Rectangles of at least ``min(16, L / 12)`` patches and of aspect 0.3 to 1 / 0.3 are added until `count` is reached;
    the surplus of least `noise` is given back, what lacks is filled up by that of largest.

    Args:
        noise: ``(B, L)``.
        grid: ``(h, w)`` patches.
        count: patches of the set, 0 to L.

    Returns:
        ``(B, L)`` bool.
    """
    (h, w), (batch, patches) = grid, noise.shape
    draw = torch.rand(_MOST, 4, batch, 1, device=noise.device)
    rows = torch.arange(h, device=noise.device)
    columns = torch.arange(w, device=noise.device)
    covered = torch.zeros(batch, h, w, dtype=torch.bool, device=noise.device)
    least = min(16.0, patches / 12)
    for area, aspect, top, left in draw:
        lacking = (count - covered.sum(dim=(1, 2))).unsqueeze(1)
        size = least + area * (lacking - least).clamp(min=0)
        ratio = (math.log(0.3) * (1 - 2 * aspect)).exp()
        height = (size * ratio).sqrt().round().clamp(1, h)
        width = (size / ratio).sqrt().round().clamp(1, w)
        first, second = (top * (h - height + 1)).floor(), (left * (w - width + 1)).floor()
        inside = ((rows >= first) & (rows < first + height)).unsqueeze(2) & (
            (columns >= second) & (columns < second + width)
        ).unsqueeze(1)
        covered |= inside & (lacking > 0).unsqueeze(2)
    order = (noise + covered.flatten(1)).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :count], True)
