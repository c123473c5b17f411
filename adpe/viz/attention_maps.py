"""Attention of one query to the patches, block by block: the weights, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from adpe.errors import UserError
from adpe.models.attention import Attention, AttentionTerms, attention_weights
from adpe.models.vit import VisionTransformer
from adpe.viz.figures import panels, show_image


@torch.no_grad()
def attention_maps(encoder: VisionTransformer, images: Tensor, query: tuple[int, int] | None = None) -> list[Tensor]:
    """Attention of one query to the patches in every block, ``(B, H, h, w)``, on the CPU.

    Args:
        encoder: in evaluation mode; every kind of positions and windows. Beyond a block's window the map is 0.
        images: ``(B, 3, H, W)`` normalised.
        query: ``(row, column)`` of the patch that asks; None for the class token.

    Raises:
        UserError: for the class token of an encoder that has none.
    """
    if query is None and not encoder.num_prefix_tokens:
        raise UserError("the encoder has no class token: name a patch by ROW,COLUMN.")
    maps: list[Tensor] = []

    def record(attention: Attention, inputs: tuple[Any, ...]) -> None:
        maps.append(_attention_map(attention, inputs, encoder.patch_embed.grid(images), query).cpu())

    handles = [attention.register_forward_pre_hook(record) for attention in encoder.attentions()]
    try:
        encoder.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _attention_map(
    attention: Attention, inputs: tuple[Any, ...], grid: tuple[int, int], query: tuple[int, int] | None
) -> Tensor:
    """``(B, H, h, w)`` of a layer's inputs (tokens, relative term, grid)."""
    terms = attention.terms(*inputs[:3])
    (h, w), side = grid, attention.window_size
    area, index, windows, corner = grid, 0, 1, (0, 0)
    prefix = terms.k.shape[2] - (side * side if side else h * w)
    if side:
        assert query is not None  # windows have no class token
        across = -(-w // side)
        area, windows = (side, side), -(-h // side) * across
        (top, row), (left, column) = divmod(query[0], side), divmod(query[1], side)
        index, corner, query = top * across + left, (top * side, left * side), (row, column)
    token = 0 if query is None else prefix + query[0] * area[1] + query[1]

    def of_window(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, windows))[:, index]

    chosen = AttentionTerms(
        of_window(terms.q),
        of_window(terms.k),
        of_window(terms.v),
        None if terms.logits is None else of_window(terms.logits),
        None if terms.decomposed is None else (of_window(terms.decomposed[0]), of_window(terms.decomposed[1])),
        terms.bias,
    )
    weights = attention_weights(chosen, slice(token, token + 1), prefix)[:, :, 0, prefix:].unflatten(-1, area)
    if not side:
        return weights
    whole = weights.new_zeros(*weights.shape[:2], h + side, w + side)
    whole[..., corner[0] : corner[0] + side, corner[1] : corner[1] + side] = weights
    return whole[..., :h, :w]


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
