"""MAE+ (arXiv 2303.07598), the baseline under AdPE: mask tokens stand at the hidden patches before the *encoder*.

The encoder then sees every position, so that positions can be relative; the decoder inserts nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adpe.methods.mae import MAE, MaskTokens
from adpe.methods.masks.masking import Mask


class MAEPlus(MAE):
    """Masked autoencoder with mask tokens before the encoder; arguments as :class:`MAE`."""

    mask_tokens: ClassVar[MaskTokens] = "encoder"

    def hide(self, patches: Tensor, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        token = self.masked_token()
        return torch.where(mask.hidden.unsqueeze(-1), token, patches) + self.patch_positions(positions, mask, grid)

    def masked_token(self) -> Tensor:
        """The vector ``(1, 1, D)`` that stands at hidden patches."""
        assert self.mask_token is not None
        return self.mask_token

    def patch_positions(self, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Absolute positions of the patches in the encoder, ``(1 or B, L, D)``, from the clean ones ``(1, L, D)``."""
        return positions

    def insert_mask_tokens(self, x: Tensor, mask: Mask) -> Tensor:
        return x

    @property
    def title(self) -> str:
        return "MAE+ APE" if self.encoder.position == "absolute" else "MAE+ RPE"
