"""Figures of panels, and how they are written. Needs matplotlib; drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from adpe.files import atomic_write

DPI = 110


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def to_array(figure: Figure) -> np.ndarray:
    """A figure as ``(H, W, 3)`` uint8, for a visualizer."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def panels(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels of `width` x `height` inches."""
    figure = Figure(figsize=(width * columns, height * rows + 0.7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure, [list(line) for line in figure.subplots(rows, columns, squeeze=False)]


def show_image(axis: Axes, image: np.ndarray) -> None:
    """Draw an image ``(H, W, 3)``, pixels in 0..1, without axes."""
    axis.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 256 else "antialiased")
    axis.set_axis_off()


def show_heat(
    figure: Figure, axis: Axes, values: Tensor, x: str, y: str, aspect: Literal["equal", "auto"] = "equal"
) -> None:
    """Draw a matrix in colours symmetric about zero, with a colour bar; `x` and `y` name its axes."""
    limit = max(values.abs().max().item(), 1e-12)
    shown = axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    figure.colorbar(shown, ax=axis, shrink=0.8)


def draw_images(columns: Mapping[str, Tensor], title: str = "") -> Figure:
    """One row per image, one column per kind; each ``(B, 3, H, W)``, pixels in 0..1."""
    rows, (height, width) = len(next(iter(columns.values()))), next(iter(columns.values())).shape[-2:]
    figure, axes = panels(rows, len(columns), 2.1, 2.1 * height / width, title)
    for column, (name, images) in enumerate(columns.items()):
        axes[0][column].set_title(name, fontsize=10)
        for row, image in enumerate(images):
            show_image(axes[row][column], image.permute(1, 2, 0).numpy())
    return figure
