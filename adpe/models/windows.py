"""Window attention: an image's patches in windows that do not overlap (ViTDet, arXiv 2203.16527, section 3).

Windows of w x w patches start at the top left; the grid is padded at the right and the bottom to whole windows. As
published, padding enters after the first norm as zeros and takes part in the attention as keys, which there have the
biases of their projections for key and value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def partition(x: Tensor, grid: tuple[int, int], window: int, padding: Tensor) -> Tensor:
    """Cut patches into windows.

    Args:
        x: ``(B, h * w, C)`` in raster order.
        grid: ``(h, w)``.
        window: patches along a side.
        padding: ``(C,)`` for the places beyond the grid.

    Returns:
        ``(B * windows, window ** 2, C)``, windows of an image in raster order.
    """
    (h, w), (b, _, c) = grid, x.shape
    x, padding = x.view(b, h, w, c), padding.to(x.dtype)
    bottom, right = -h % window, -w % window
    if right:
        x = torch.cat([x, padding.expand(b, h, right, c)], dim=2)
    if bottom:
        x = torch.cat([x, padding.expand(b, bottom, w + right, c)], dim=1)
    x = x.view(b, (h + bottom) // window, window, (w + right) // window, window, c)
    return x.transpose(2, 3).reshape(-1, window**2, c)


def unpartition(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Inverse of :func:`partition`: ``(B * windows, window ** 2, C)`` to ``(B, h * w, C)``; padding is dropped."""
    (h, w), c = grid, x.shape[-1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.view(-1, rows, columns, window, window, c).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, c)
    return x[:, :h, :w].reshape(x.shape[0], h * w, c)
