"""Images as patches of pixels: what masked autoencoders predict."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """``(B, C, H, W)`` to ``(B, L, p * p * C)``, pixels in the order row, column, channel."""
    p = patch_size
    h, w = images.shape[-2] // p, images.shape[-1] // p
    x = images.reshape(len(images), -1, h, p, w, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Inverse of :func:`patchify`; `grid` ``(h, w)`` is needed for images that are not square."""
    p = patch_size
    h, w = grid or (round(patches.shape[1] ** 0.5),) * 2
    x = patches.reshape(len(patches), h, w, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * p, w * p)


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches ``(B, L, P)`` with mean 0 and variance 1 each (unbiased, eps 1e-6; MAE), their mean and deviation."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation
