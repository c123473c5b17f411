"""StoP (arXiv 2308.00566) on masked autoencoders: the positions of hidden patches are uncertain.

The paper adds Gaussian noise to the positions of I-JEPA's masked tokens (:mod:`adpe.methods.positions.ijepa`), through
the matrix that projects the context, so that the model cannot shrink the noise without shrinking the context; a
learned matrix of its own would shrink it to 0. The forms here carry that over to MAE and MAE+, and add two controls
without a matrix; nobody has published them. AdPE's control with ``adversary="random"`` is another: one shift for all
patches of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from adpe.methods.mae import MAE
from adpe.methods.mae_plus import MAEPlus
from adpe.methods.masks.masking import Mask
from adpe.models.pos_embed import grid_coordinates, sincos
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Literal["tied", "free", "coordinate"]


class StochasticPositions(MAE):
    """What MAE and MAE+ share: noise for every place, which acts at hidden patches, in training mode alone.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        position_noise_std: standard deviation; 0.25 in the paper.
        options: of the masked autoencoder.

    Raises:
        ValueError: for a negative deviation.
    """

    def __init__(self, encoder: VisionTransformer, position_noise_std: float = 0.25, **options: Any) -> None:
        super().__init__(encoder, **options)
        if not position_noise_std >= 0:
            raise ValueError(f"position_noise_std={position_noise_std} must not be negative.")
        self.position_noise_std = position_noise_std
        self._given: Tensor | None = None

    def forward(self, images: Tensor, noise: Tensor | None = None, position_noise: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            images: ``(B, 3, H, W)``.
            noise: of the mask.
            position_noise: of :meth:`noise_shape`, already scaled; in training mode drawn if None.
        """
        with self.given(position_noise):
            return super().forward(images, noise)

    @contextmanager
    def given(self, position_noise: Tensor | None) -> Iterator[None]:
        """Within it this noise acts, whatever the mode."""
        self._given = position_noise
        try:
            yield
        finally:
            self._given = None

    def noise_shape(self, images: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Of the noise of so many images on a grid ``(h, w)`` of patches."""
        raise NotImplementedError

    def position_noise(self, images: int, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """The noise that acts, in float32; None for none."""
        if self._given is not None or not (self.training and self.position_noise_std):
            return self._given
        return self.position_noise_std * torch.randn(self.noise_shape(images, grid), device=device)

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.methods.positions.stop_figures import draw_noise

        return {**super().figures(views, mean, std), **draw_noise(self, views[0][:, 0], mean, std)}


class StoPMAEPlus(StochasticPositions, MAEPlus):
    """MAE+ with noisy positions at hidden patches.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        form: "tied": a noise image ``(B, 3, H, W)`` through the patch embedding; "free": noise ``(B, L, D)`` of the
            encoder's width; "coordinate": a patch is encoded at its place plus ``(B, L, 2)`` (column, row), in patches.
        position_noise_std: standard deviation; for "coordinate" in patches, where 0.29 has the deviation of a uniform
            draw from +-0.5.
        options: of :class:`adpe.methods.mae_plus.MAEPlus`.

    Raises:
        ValueError: for an unknown form, or relative positions.
    """

    def __init__(
        self, encoder: VisionTransformer, form: Form = "tied", position_noise_std: float = 0.25, **options: Any
    ) -> None:
        super().__init__(encoder, position_noise_std, **options)
        if form not in get_args(Form):
            raise ValueError(f"form={form!r} is none of {', '.join(get_args(Form))}.")
        if encoder.position != "absolute" or (form == "coordinate" and encoder.pos_embed is not None):
            raise ValueError("StoP needs position='absolute', and form='coordinate' the sine-cosine code.")
        self.form = form

    def noise_shape(self, images: int, grid: tuple[int, int]) -> tuple[int, ...]:
        if self.form == "tied":
            projection = self.encoder.patch_embed
            return images, projection.proj.in_channels, *(side * projection.patch_size for side in grid)
        return images, grid[0] * grid[1], 2 if self.form == "coordinate" else self.encoder.embed_dim

    def hide(self, patches: Tensor, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        hidden = mask.hidden.unsqueeze(-1)
        clean = torch.where(hidden, self.masked_token(), patches)
        noise = self.position_noise(len(patches), grid, patches.device)
        if noise is None:
            return clean + positions
        if self.form == "coordinate":
            moved = sincos(grid_coordinates(*grid, noise.dtype, noise.device) + noise, patches.shape[-1])
            return clean + torch.where(hidden, moved.to(positions.dtype), positions)
        added = self.encoder.patch_embed(noise) if self.form == "tied" else noise
        return clean + positions + hidden * added

    @property
    def title(self) -> str:
        return f"MAE+ StoP {self.form}"


class StoPMAE(StochasticPositions):
    """MAE with noise through the decoder's first layer at hidden patches, its bias included: the paper's form."""

    def noise_shape(self, images: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return images, grid[0] * grid[1], self.encoder.embed_dim

    def decoder_input(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        x = super().decoder_input(tokens, mask, grid)
        noise = self.position_noise(len(tokens), grid, tokens.device)
        if noise is None:
            return x
        prefix = self.encoder.num_prefix_tokens
        patches = x[:, prefix:] + mask.hidden.unsqueeze(-1) * self.decoder.embed(noise)
        return torch.cat([x[:, :prefix], patches], dim=1)

    @property
    def title(self) -> str:
        return "MAE StoP"
