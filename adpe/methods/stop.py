"""StoP (arXiv 2308.00566) on masked autoencoders: the positions of hidden patches are uncertain.

The paper adds Gaussian noise to the positions of I-JEPA's masked tokens (:mod:`adpe.methods.ijepa`), through the matrix
that projects the context, so that the model cannot shrink the noise without shrinking the context. The forms here carry
that over to MAE and MAE+, and add two controls; nobody has published them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adpe.methods.mae import MAE
from adpe.methods.mae_plus import MAEPlus
from adpe.methods.masking import Mask
from adpe.models.pos_embed import grid_coordinates, sincos
from adpe.models.vit import VisionTransformer

Form = Literal["tied", "free", "coordinate"]


class StoPMAEPlus(MAEPlus):
    """MAE+ with noisy positions at hidden patches, in training mode alone.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        form: "tied": a noise image through the patch embedding; "free": noise of the encoder's width; "coordinate": a
            patch is encoded at its place plus noise, in patches.
        position_noise_std: standard deviation; 0.25 in the paper. 0.29 patches has the deviation of a uniform draw from
            +-0.5.
        options: of :class:`adpe.methods.mae_plus.MAEPlus`.

    Raises:
        ValueError: for an unknown form, or relative positions.
    """

    def __init__(
        self, encoder: VisionTransformer, form: Form = "tied", position_noise_std: float = 0.25, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        if form not in get_args(Form) or position_noise_std < 0:
            raise ValueError(f"form={form!r} is none of {', '.join(get_args(Form))}, or the deviation is negative.")
        if encoder.position != "absolute" or (form == "coordinate" and encoder.pos_embed is not None):
            raise ValueError("StoP needs position='absolute', and form='coordinate' the sine-cosine code.")
        self.form, self.position_noise_std = form, position_noise_std
        self._given: Tensor | None = None

    def forward(self, images: Tensor, noise: Tensor | None = None, position_noise: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            images: ``(B, 3, H, W)``.
            noise: of the mask.
            position_noise: already scaled: ``(B, 3, H, W)`` tied, ``(B, L, D)`` free, ``(B, L, 2)`` (column, row) of
                the coordinates; drawn if None.
        """
        self._given = position_noise
        try:
            return super().forward(images, noise)
        finally:
            self._given = None

    def hide(self, patches: Tensor, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        hidden = mask.hidden.unsqueeze(-1)
        clean = torch.where(hidden, self.masked_token(), patches)
        if not (self.training or self._given is not None) or not self.position_noise_std:
            return clean + positions
        draw = self._given
        if self.form == "coordinate":
            draw = self._draw((len(patches), patches.shape[1], 2), patches) if draw is None else draw
            places = grid_coordinates(*grid, torch.float32, patches.device) + draw
            return clean + torch.where(hidden, sincos(places, patches.shape[-1]).to(positions.dtype), positions)
        if self.form == "free":
            added = self._draw(patches.shape, patches) if draw is None else draw
        else:
            p = self.encoder.patch_size
            channels = self.encoder.patch_embed.proj.in_channels
            shape = (len(patches), channels, grid[0] * p, grid[1] * p)
            added = self.encoder.patch_embed(self._draw(shape, patches) if draw is None else draw)
        return clean + positions + hidden * added

    def _draw(self, shape: Any, like: Tensor) -> Tensor:
        return self.position_noise_std * torch.randn(shape, device=like.device)

    @property
    def title(self) -> str:
        return f"MAE+ StoP {self.form}"


class StoPMAE(MAE):
    """MAE with noise through the decoder's first layer at hidden patches, its bias included: the paper's form.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        position_noise_std: standard deviation.
        options: of :class:`adpe.methods.mae.MAE`.
    """

    def __init__(self, encoder: VisionTransformer, position_noise_std: float = 0.25, **options: Any) -> None:
        super().__init__(encoder, **options)
        if position_noise_std < 0:
            raise ValueError(f"position_noise_std={position_noise_std} must not be negative.")
        self.position_noise_std = position_noise_std
        self._given: Tensor | None = None

    def forward(self, images: Tensor, noise: Tensor | None = None, position_noise: Tensor | None = None) -> Tensor:
        """The loss; `position_noise` ``(B, L, D)`` is already scaled, and drawn if None."""
        self._given = position_noise
        try:
            return super().forward(images, noise)
        finally:
            self._given = None

    def insert_mask_tokens(self, x: Tensor, mask: Mask) -> Tensor:
        tokens = super().insert_mask_tokens(x, mask)
        if not (self.training or self._given is not None) or not self.position_noise_std:
            return tokens
        draw = self._given
        if draw is None:
            shape = (*mask.hidden.shape, self.encoder.embed_dim)
            draw = self.position_noise_std * torch.randn(shape, device=x.device)
        prefix = self.encoder.num_prefix_tokens
        patches = tokens[:, prefix:] + mask.hidden.unsqueeze(-1) * self.decoder.embed(draw)
        return torch.cat([tokens[:, :prefix], patches], dim=1)

    @property
    def title(self) -> str:
        return "MAE StoP"
