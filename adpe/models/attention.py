"""Multi-head self-attention of the encoder, with the kinds of relative positions that it can have.

Three kinds add up in the logits: contextual buckets (iRPE, arXiv 2107.14222; the method's own), decomposed positions
(ViTDet, arXiv 2203.16527) and a bias a pair (BEiT, arXiv 2106.08254). Inside windows all of them mean what they mean in
an image: a window keeps the offset of two patches, so the contextual table is read at the true offsets, but only pairs
within a window meet; padding counts as patches at the places that it takes.

Windows (ViTDet, section 3) of w x w patches do not overlap and start at the top left; the grid is padded at the right
and the bottom to whole windows. As published, padding enters after the first norm as zeros and takes part in the
attention as keys, which there have the biases of their projections for key and value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from adpe.models.fused_attention import Bias, attend
from adpe.models.pos_embed import NUM_BUCKETS, decomposed_scores, relative_logits

RelativeQuery = Literal["scaled", "unscaled"]


@dataclass(frozen=True)
class RelativeTerm:
    """The contextual relative term of one attention layer.

    Attributes:
        grid: ``(h, w)`` patches, of the window where there are windows.
        interpolate: the interpolated form of the buckets.
        query: "scaled" multiplies the table by ``q / sqrt(d)``, "unscaled" by ``q``.
        weights: of :func:`relative_weights` in pos_embed.py, made outside the layer so that a compiled one does not
            make them anew; None lets the layer look them up.
    """

    grid: tuple[int, int]
    interpolate: bool
    query: RelativeQuery = "scaled"
    weights: tuple[Tensor, ...] | None = None

    def keys(self, k: Tensor) -> Tensor:
        """Keys ``(B, H, N, d)`` that the queries meet."""
        return k

    def scores(self, q: Tensor, table: Tensor) -> Tensor:
        """Products ``(B, H, N, 50)`` of scaled queries ``(B, H, N, d)`` with the buckets of a table ``(d, 50)``."""
        if self.query == "unscaled":
            table = table * q.shape[-1] ** 0.5
        return q @ table.to(q.dtype)

    def logits(self, q: Tensor, table: Tensor) -> Tensor:
        """Relative logits ``(B, H, N, N)`` from scaled queries ``(B, H, N, d)`` and a table ``(d, 50)``."""
        return relative_logits(self.scores(q, table), self.grid, self.interpolate, self.weights)


class AttentionTerms(NamedTuple):
    """What a layer hands to :func:`adpe.models.fused_attention.attend`, whose names these are."""

    q: Tensor
    k: Tensor
    v: Tensor
    logits: Tensor | None
    decomposed: tuple[Tensor, Tensor] | None
    bias: Bias | None


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: width D, divisible by `num_heads`.
        num_heads: H.
        relative: hold a table of contextual relative positions, `rel_pos_table` ``(D / H, 50)``, shared by all heads,
            zero at the start.
        window_size: patches along a side of the windows that attend within themselves; 0 for the whole image. Windows
            have no place for a class token.
        rel_pos_grid: ``(h, w)`` of decomposed relative positions, `rel_pos_h` ``(2 h - 1, D / H)`` and `rel_pos_w`,
            zero at the start; for other grids they are resized linearly.
        bias_grid: ``(h, w)`` of `relative_position_bias_table` ``((2 h - 1) * (2 w - 1) + 3, H)``, zero at the start.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        relative: bool = False,
        window_size: int = 0,
        rel_pos_grid: tuple[int, int] | None = None,
        bias_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.bias_grid = bias_grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        head_dim = dim // num_heads
        self.rel_pos_table = _zeros(head_dim, NUM_BUCKETS) if relative else None
        self.rel_pos_h = _zeros(2 * rel_pos_grid[0] - 1, head_dim) if rel_pos_grid else None
        self.rel_pos_w = _zeros(2 * rel_pos_grid[1] - 1, head_dim) if rel_pos_grid else None
        self.relative_position_bias_table = (
            _zeros((2 * bias_grid[0] - 1) * (2 * bias_grid[1] - 1) + 3, num_heads) if bias_grid else None
        )

    def forward(
        self,
        x: Tensor,
        term: RelativeTerm | None = None,
        grid: tuple[int, int] | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``.

        Args:
            x: tokens, the class token, if there is one, first.
            term: needed with contextual relative positions.
            grid: ``(h, w)`` of the image's patches; needed with windows and with the other relative positions.
            allowed: ``(B, 1, N, N)`` bool, which keys (last) a query may attend to, at least one each; None for all.
                Not with relative positions or windows.
        """
        terms = self.terms(x, term, grid)
        if allowed is not None:
            if self.window_size or terms.logits is not None or terms.decomposed is not None or terms.bias is not None:
                raise ValueError("attention: a mask goes neither with relative positions nor with windows.")
            open_ = torch.zeros(allowed.shape, dtype=terms.q.dtype, device=terms.q.device)
            terms = terms._replace(logits=open_.masked_fill_(~allowed, -torch.inf))
        out = attend(*terms).transpose(1, 2).reshape(terms.q.shape[0], -1, x.shape[-1])
        if self.window_size:
            assert grid is not None
            out = unpartition(out, grid, self.window_size)
        return self.proj(out)

    def terms(self, x: Tensor, term: RelativeTerm | None = None, grid: tuple[int, int] | None = None) -> AttentionTerms:
        """Queries, keys, values and relative terms of :meth:`forward`'s arguments, B and N those of windows if any."""
        dim = x.shape[-1]
        qkv = self.qkv(x)
        if self.window_size:
            assert grid is not None
            # Padding before the projection is its bias after it: the projection need not see it.
            qkv = partition(qkv, grid, self.window_size, self.qkv.bias)
        heads = qkv.view(qkv.shape[0], -1, 3, self.num_heads, dim // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        q = q * q.shape[-1] ** -0.5
        logits, decomposed, bias = None, None, None
        if self.rel_pos_table is not None:
            assert term is not None
            logits, k = term.logits(q, self.rel_pos_table), term.keys(k)
        area = (self.window_size, self.window_size) if self.window_size else grid
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            assert area is not None
            scale = q.shape[-1] ** 0.5  # these tables meet unscaled queries
            decomposed = decomposed_scores(q, self.rel_pos_h * scale, self.rel_pos_w * scale, area)
        if self.relative_position_bias_table is not None:
            assert area is not None
            assert self.bias_grid is not None
            class_token = q.shape[2] > area[0] * area[1]
            bias = Bias(self.relative_position_bias_table, self.bias_grid, area, class_token)
        return AttentionTerms(q, k, v, logits, decomposed, bias)


def partition(x: Tensor, grid: tuple[int, int], window: int, padding: Tensor) -> Tensor:
    """Cut patches into windows.

    Args:
        x: ``(B, h * w, C)`` in raster order.
        grid: ``(h, w)``.
        window: patches along a side.
        padding: ``(C,)`` for the places beyond the grid.

    Returns:
        ``(B * windows, window ** 2, C)``, windows of an image in raster order.
    """
    (h, w), (b, _, c) = grid, x.shape
    x, padding = x.view(b, h, w, c), padding.to(x.dtype)
    bottom, right = -h % window, -w % window
    if right:
        x = torch.cat([x, padding.expand(b, h, right, c)], dim=2)
    if bottom:
        x = torch.cat([x, padding.expand(b, bottom, w + right, c)], dim=1)
    x = x.view(b, (h + bottom) // window, window, (w + right) // window, window, c)
    return x.transpose(2, 3).reshape(-1, window**2, c)


def unpartition(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Inverse of :func:`partition`: ``(B * windows, window ** 2, C)`` to ``(B, h * w, C)``; padding is dropped."""
    (h, w), c = grid, x.shape[-1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.view(-1, rows, columns, window, window, c).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, c)
    return x[:, :h, :w].reshape(x.shape[0], h * w, c)


def attention_weights(terms: AttentionTerms, queries: slice, prefix: int) -> Tensor:
    """What some queries of a layer attend to, ``(B, H, Q, N)`` float32: the softmax that `attend` does not keep.

    Args:
        terms: of :meth:`Attention.terms`.
        queries: tokens that ask.
        prefix: class tokens before those of the patches.
    """
    q, k, _, logits, decomposed, bias = terms
    scores = q[:, :, queries].float() @ k.float().transpose(2, 3)
    if logits is not None:
        scores = scores + logits[:, :, queries].float()
    if decomposed is not None:
        rows, columns = (part[:, :, queries].float() for part in decomposed)
        scores[..., prefix:] += (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    if bias is not None:
        scores = scores + bias.expand()[:, queries].float()
    return scores.softmax(dim=-1)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))
