"""What stochastic positions do: reconstructions under several draws, and the loss against the deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adpe.viz.figures import draw_images, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adpe.methods.positions.stop import StochasticPositions

DRAWS = 8
# Of the noise, in its own unit: the published one lies within, and 1 is that of the normalised pixels or features.
DEVIATIONS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
_IMAGES = 2


@torch.no_grad()
def draw_noise(
    model: StochasticPositions, images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Figure]:
    """Two figures: "noisy_positions", reconstructions of the same masks, and "noise_and_loss".

    Args:
        model: in any mode.
        images: ``(B, 3, H, W)`` normalised by `mean` and `std`.
        mean: of the channels, for pixels in [0, 1].
        std: likewise.
    """
    images, grid = images[:_IMAGES], model.encoder.patch_embed.grid(images)
    generator = torch.Generator().manual_seed(0)
    mask_noise = torch.rand(len(images), grid[0] * grid[1], generator=generator).to(images.device)
    shape = model.noise_shape(len(images), grid)
    noises = [torch.randn(shape, generator=generator).to(images.device) for _ in range(DRAWS)]
    scale, shift = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (std, mean))
    columns = {"image": images}
    for number, noise in enumerate([torch.zeros_like(noises[0]), *noises]):
        with model.given(model.position_noise_std * noise):
            pixels, hidden = model.reconstructed_pixels(images, mask_noise)
        columns[f"draw {number}" if number else "no noise"] = torch.where(hidden, pixels, images)
    shown = {name: (values.float() * scale + shift).clamp(0, 1).cpu() for name, values in columns.items()}
    title = f"hidden patches under {DRAWS} draws of their positions, deviation {model.position_noise_std:g}"
    figure, ((axis,),) = panels(1, 1, 4.0, 2.6, f"loss of {len(images)} images, {DRAWS} draws each")
    losses = torch.tensor(
        [[float(model(images, mask_noise, deviation * noise)) for noise in noises] for deviation in DEVIATIONS]
    )
    axis.errorbar(DEVIATIONS, losses.mean(1).numpy(), losses.std(1).numpy(), marker="o", capsize=3)
    axis.axvline(model.position_noise_std, color="grey", linestyle=":")
    axis.set_xlabel("deviation of the noise")
    axis.set_ylabel("loss, mean and sd")
    return {"noisy_positions": draw_images(shown, title), "noise_and_loss": figure}
