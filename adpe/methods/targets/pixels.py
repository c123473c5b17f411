"""Images as patches of pixels: what masked autoencoders predict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD


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


def jitter_colors(
    images: Tensor,
    strength: float,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Brightness, contrast and saturation by factors of ``1 - strength`` to ``1 + strength``, in a random order.

    Each image of a batch ``(B, 3, H, W)``, normalised by `mean` and `std`, has its own factors and order, as
    torchvision's ``ColorJitter(strength, strength, strength)`` draws them.
    """
    center, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    x = images * scale + center
    weights = x.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)  # torchvision's grey
    factors = 1 + strength * (2 * torch.rand(3, len(x), 1, 1, 1, device=x.device) - 1)
    order = torch.rand(len(x), 3, device=x.device).argsort(dim=1)
    for step in range(3):
        grey = (x * weights).sum(dim=1, keepdim=True)
        others = torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True), grey
        mixed = [f * x + (1 - f) * other for f, other in zip(factors, others, strict=True)]
        kind = order[:, step].view(-1, 1, 1, 1)
        x = torch.where(kind == 0, mixed[0], torch.where(kind == 1, mixed[1], mixed[2])).clamp(0, 1)
    return (x - center) / scale
