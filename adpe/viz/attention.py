"""Attention maps of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adpe.models.vit import VisionTransformer
from adpe.viz.figures import panels, show_image


class _RecordAttention(TorchFunctionMode):
    """Keeps attention's weights: the softmax where it is written out, from its arguments where it is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            q, k = args[:2]
            scale = kwargs.get("scale")
            logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
            if kwargs.get("attn_mask") is not None:
                logits = logits + kwargs["attn_mask"]
            self.weights.append(logits.softmax(-1).cpu())
        out = function(*args, **kwargs)
        if function in (torch.softmax, Tensor.softmax, F.softmax):
            self.weights.append(out.cpu())
        return out


@torch.no_grad()
def attention_weights(encoder: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Attention of every block, ``(B, H, N, N)`` (image, head, query, key; class token first), on the CPU."""
    with _RecordAttention() as recorder:
        encoder.forward_features(images)
    if len(recorder.weights) != len(encoder.blocks):
        raise RuntimeError(f"{len(recorder.weights)} attention maps came from {len(encoder.blocks)} blocks.")
    return recorder.weights


def draw_attention(images: Tensor, maps: Mapping[str, Tensor], query: tuple[int, int] | None = None) -> Figure:
    """Attention of one query to the patches, over the images.

    Args:
        images: ``(B, 3, H, W)``, pixels in 0..1.
        maps: name of a column to weights ``(B, h, w)``; each map has its own scale, from 0 to its largest.
        query: ``(row, column)`` of the patch that asks, to be marked; None for the class token.
    """
    height, width = images.shape[-2:]
    who = "class token" if query is None else f"patch at row {query[0]}, column {query[1]}"
    figure, axes = panels(len(images), 1 + len(maps), 1.8, 1.8 * height / width, f"Attention of the {who}")
    for row, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        show_image(axes[row][0], image)
        for column, (name, weights) in enumerate(maps.items(), start=1):
            axis = axes[row][column]
            h, w = weights.shape[-2:]
            show_image(axis, np.repeat(image.mean(-1, keepdims=True), 3, axis=-1))
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(
                weights[row].numpy(), cmap="inferno", alpha=0.75, extent=extent, vmin=0, interpolation="bilinear"
            )
            if row == 0:
                axis.set_title(name, fontsize=9)
            if query is not None:
                place = (query[1] + 0.5) * width / w - 0.5, (query[0] + 0.5) * height / h - 0.5
                axis.plot(*place, "s", mfc="none", mec="cyan", ms=6)
    axes[0][0].set_title("image", fontsize=9)
    return figure
