"""Reconstructions of masked images, as columns of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor

from adpe.viz.figures import draw_images

GREY = 0.78


class Autoencoder(Protocol):
    """What reconstructs images from a part of their patches, as :class:`adpe.methods.mae.MAE` does."""

    mask_ratio: float
    norm_pix_loss: bool

    def reconstructed_pixels(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstructions in the units of `images`, and which pixels were hidden."""


@torch.no_grad()
def reconstruct(
    model: Autoencoder, images: Tensor, noise: Tensor, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Images, what the model sees of them, its reconstruction, and that in the masked patches alone.

    Args:
        model: in whatever mode it is; evaluation mode has no stochastic depth.
        images: ``(B, 3, H, W)``, normalised by `mean` and `std`.
        noise: ``(B, L)``; the patches of smallest noise stay visible.
        mean: of the channels, for pixels in 0..1.
        std: likewise.

    Returns:
        Columns "image", "visible", "reconstruction" and "pasted", each ``(B, 3, H, W)`` on the CPU, pixels in 0..1.
    """
    prediction, hidden = model.reconstructed_pixels(images, noise)
    scale, shift = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (std, mean))
    image, predicted = ((values.float() * scale + shift).clamp(0, 1) for values in (images, prediction))
    columns = {
        "image": image,
        "visible": torch.where(hidden, GREY, image),
        "reconstruction": predicted,
        "pasted": torch.where(hidden, predicted, image),
    }
    return {name: column.cpu() for name, column in columns.items()}


def describe_reconstruction(model: Autoencoder) -> str:
    """What the columns of :func:`reconstruct` show, for a title."""
    hidden = f"{model.mask_ratio:.0%} of the patches hidden"
    return f"{hidden}; shown with the true mean and deviation of each patch" if model.norm_pix_loss else hidden


def draw_reconstructions(
    model: Autoencoder, images: Tensor, noise: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """The columns of :func:`reconstruct`, a row per image."""
    return draw_images(reconstruct(model, images, noise, mean, std), describe_reconstruction(model))
