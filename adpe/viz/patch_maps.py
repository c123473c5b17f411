"""Numbers of patches over the images they belong to: predicted losses, masks, parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 6


def draw_patch_maps(
    images: Tensor, maps: Mapping[str, Tensor], grid: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """A row for each image: the image, then every map over it in false colours.

    Args:
        images: ``(B, 3, H, W)`` normalised by `mean` and `std`; at most six are drawn.
        maps: ``(B, h * w)`` numbers by name.
        grid: ``(h, w)``.
        mean: of the channels, for pixels in [0, 1].
        std: likewise.
    """
    from matplotlib.figure import Figure

    count = min(len(images), _MOST)
    shown = images[:count].detach().float().cpu() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    pixels = shown.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(1.6 * (1 + len(maps)), 1.7 * count), layout="constrained")
    axes = np.atleast_2d(figure.subplots(count, 1 + len(maps), squeeze=False))
    height, width = pixels.shape[1:3]
    for row in range(count):
        axes[row, 0].imshow(pixels[row])
        for column, values in enumerate(maps.values(), start=1):
            axes[row, column].imshow(pixels[row])
            field = values[row].detach().float().cpu().reshape(grid).numpy()
            axes[row, column].imshow(
                field, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.65, interpolation="nearest"
            )
    for column, name in enumerate(["image", *maps]):
        axes[0, column].set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
