"""Which patches of an image are hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """Which patches of a batch are hidden; every image hides the same number.

    Attributes:
        hidden: ``(B, L)`` bool.
        hidden_indices: ``(B, M)``.
        visible_indices: ``(B, L - M)``.
    """

    hidden: Tensor
    hidden_indices: Tensor
    visible_indices: Tensor

    def hidden_of(self, x: Tensor) -> Tensor:
        """``(B, L, C)`` to the hidden patches, ``(B, M, C)``; no data-dependent shape, so no synchronisation."""
        return torch.take_along_dim(x, self.hidden_indices.unsqueeze(-1), dim=1)

    def visible_of(self, x: Tensor) -> Tensor:
        """``(B, L, C)`` to the visible patches, ``(B, L - M, C)``."""
        return torch.take_along_dim(x, self.visible_indices.unsqueeze(-1), dim=1)


def rank_mask(noise: Tensor, mask_ratio: float, visible: int | None = None) -> Mask:
    """Hide all but the ``int(L * (1 - mask_ratio))`` patches of smallest noise, ``(B, L)``.

    Uniform noise gives MAE's random masks (arXiv 2111.06377); other masks are other rankings
    (:mod:`adpe.methods.masks.rankings`).

    Args:
        noise: a number for every patch.
        mask_ratio: share of the patches that is hidden.
        visible: how many stay visible instead.
    """
    if visible is None:
        visible = int(noise.shape[1] * (1 - mask_ratio))
    shown, hidden = noise.argsort(dim=1, stable=True).tensor_split([visible], dim=1)
    return Mask(torch.ones_like(noise, dtype=torch.bool).scatter_(1, shown, False), hidden, shown)
