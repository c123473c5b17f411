"""Exact softmax attention by the fastest kernel of a device, without the (N, N) matrix where possible.

torch's fused kernels take no relative term but a whole (B, H, N, N) mask, and none that learns on the CPU. Two kinds of
relative terms are small enough to stay out of memory: decomposed ones, a number for every query and row or column of
keys, and a table of biases shared by all images. On a GPU the decomposed ones become further channels of queries and
keys; on the CPU :class:`StreamedAttention` works in pieces that fit its caches, and makes them anew in the backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.models.pos_embed import expand_bias

# From this many tokens on, bfloat16 attention on the CPU is fused as well, for the sake of memory.
FUSED_TOKENS = 600

# Logits in a piece of the streamed attention: 512 KiB in float32, about half of a core's second-level cache.
PIECE = 2**17


class Bias(NamedTuple):
    """A relative position bias that is expanded when it is needed; see :func:`adpe.models.pos_embed.expand_bias`."""

    table: Tensor
    table_grid: tuple[int, int]
    grid: tuple[int, int]
    class_token: bool

    def expand(self) -> Tensor:
        """``(H, N, N)``."""
        return expand_bias(*self)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor | None = None,
    decomposed: tuple[Tensor, Tensor] | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """``softmax(q k^T + logits + decomposed + bias) v``.

    torch's fused attention, except on the CPU with relative terms (with `logits` it there takes an unfused path, twice
    as slow in bfloat16 as three products), or in bfloat16, whose backward pass is four times slower (seen at 50 and 197
    tokens).

    Args:
        q: ``(B, H, N, d)``, scaled.
        k: ``(B, H, N, d)``.
        v: ``(B, H, N, d)``.
        logits: ``(B, H, N, N)``, or None.
        decomposed: ``(B, H, N, h)`` and ``(B, H, N, w)``, added where the key lies in that row and that column of
            patches, or None. N may exceed h * w by a class token, the first, whose keys get nothing.
        bias: the same for all images, or None.

    Returns:
        ``(B, H, N, d)``.
    """
    if logits is not None:
        if decomposed is not None:
            logits = logits + expand_decomposed(*decomposed)
        if bias is not None:
            logits = logits + bias.expand().to(logits.dtype)
        decomposed = bias = None
    on_cpu = q.device.type == "cpu"
    if on_cpu and (decomposed is not None or bias is not None) and not torch.compiler.is_compiling():
        rows, columns = decomposed or (None, None)
        return StreamedAttention.apply(q, k, v, rows, columns, bias and bias.table, bias)
    if decomposed is not None:
        q, k = with_decomposed(q, k, *decomposed)
    if bias is not None:
        logits = bias.expand().to(q.dtype).unsqueeze(0)
    written_out = logits is not None or (q.dtype == torch.bfloat16 and q.shape[2] <= FUSED_TOKENS)
    if not on_cpu or not written_out:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=logits, scale=1.0)
    products = q @ k.transpose(-2, -1)
    if logits is not None:
        products += logits
    return products.softmax(dim=-1) @ v


def expand_decomposed(rows: Tensor, columns: Tensor) -> Tensor:
    """``(B, H, N, h)`` and ``(B, H, N, w)`` to ``(B, H, N, N)``."""
    pairs = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    return F.pad(pairs, (rows.shape[2] - pairs.shape[-1], 0))


def with_decomposed(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product holds the decomposed terms: a key's further channels say where it lies.

    Channels are padded to a multiple of 8, as fused kernels want them.
    """
    h, w = rows.shape[-1], columns.shape[-1]
    where = torch.cat(
        [
            torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, dim=0),
            torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1),
        ],
        dim=1,
    )
    rest = -(q.shape[-1] + h + w) % 8
    where = F.pad(where, (0, rest, k.shape[2] - h * w, 0)).expand(*k.shape[:2], -1, -1)
    return F.pad(torch.cat([q, rows, columns], dim=-1), (0, rest)), torch.cat([k, where], dim=-1)


class StreamedAttention(torch.autograd.Function):
    """:func:`attend` for decomposed terms and a bias, in pieces of some heads' and queries' logits.

    Keeps only its arguments, its result and one number a query for the backward pass. Pieces are float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, columns: Tensor | None, table: Tensor | None,
        bias: Bias | None,
    ) -> Tensor:  # fmt: skip
        """See :func:`attend`; `table` is the one of `bias`, handed over for its gradient."""
        wide = torch.promote_types(q.dtype, torch.float32)
        out, scale = torch.empty_like(v, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=wide)
        for head in range(q.shape[1]):
            whole = _head_bias(bias, head, wide)
            for images, queries in _pieces(q):
                piece = images, head, queries
                logits = _logits(q, k, rows, columns, whole, piece)
                top = logits.amax(-1, keepdim=True)
                total = logits.sub_(top).exp_().sum(-1, keepdim=True)
                scale[piece] = (top + total.log()).squeeze(-1)
                out[piece] = (logits.to(v.dtype) @ v[images, head]).div_(total)
        ctx.save_for_backward(q, k, v, rows, columns, table, out, scale)
        ctx.bias = bias and bias[1:]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors; the logits' pieces are made anew."""
        q, k, v, rows, columns, table, out, scale = ctx.saved_tensors
        bias = None if table is None else Bias(table, *ctx.bias)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        drows, dcolumns = (None, None) if rows is None else (torch.empty_like(rows), torch.empty_like(columns))
        dtable = None if table is None else torch.zeros_like(table)
        inner = (gradient * out).sum(-1, dtype=scale.dtype)
        for head in range(q.shape[1]):
            whole = _head_bias(bias, head, scale.dtype)
            dwhole = None if whole is None else torch.zeros_like(whole)
            for images, queries in _pieces(q):
                piece, keys = (images, head, queries), (images, head)
                weights = _logits(q, k, rows, columns, whole, piece)
                weights.sub_(scale[piece].unsqueeze(-1)).exp_()
                g = gradient[piece]
                dv[keys] += weights.to(q.dtype).transpose(-2, -1) @ g
                dlogits = (g @ v[keys].transpose(-2, -1)).to(scale.dtype)
                dlogits.sub_(inner[piece].unsqueeze(-1)).mul_(weights)
                if drows is not None and dcolumns is not None:
                    pairs = dlogits[..., -rows.shape[-1] * columns.shape[-1] :]
                    pairs = pairs.unflatten(-1, (rows.shape[-1], columns.shape[-1]))
                    drows[piece], dcolumns[piece] = pairs.sum(-1), pairs.sum(-2)
                if dwhole is not None:
                    dwhole[queries] += dlogits.sum(0)
                narrow = dlogits.to(q.dtype)
                dq[piece] = narrow @ k[keys]
                dk[keys] += narrow.transpose(-2, -1) @ q[piece]
            if bias is not None and dtable is not None and dwhole is not None:
                with torch.enable_grad():
                    column = bias.table[:, head : head + 1].detach().requires_grad_()
                    expanded = bias._replace(table=column).expand()
                dtable[:, head : head + 1] = torch.autograd.grad(expanded, column, dwhole[None].to(column.dtype))[0]
        return dq, dk, dv, drows, dcolumns, dtable, None


def _pieces(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the images and of the queries that are worked on together."""
    b, _, n, _ = q.shape
    images, queries = max(PIECE // n**2, 1), min(max(PIECE // n, 1), n)
    for image in range(0, b, images):
        for query in range(0, n, queries):
            yield slice(image, image + images), slice(query, query + queries)


def _head_bias(bias: Bias | None, head: int, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias._replace(table=bias.table[:, head : head + 1]).expand()[0].to(dtype)


def _logits(
    q: Tensor, k: Tensor, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None, piece: tuple
) -> Tensor:
    """Logits of a piece, ``(images, queries, N)``, float32 at least."""
    images, head, queries = piece
    logits = q[piece] @ k[images, head].transpose(-2, -1)
    logits = logits.to(torch.promote_types(q.dtype, torch.float32))
    if rows is not None and columns is not None:
        h, w = rows.shape[-1], columns.shape[-1]
        pairs = logits[..., -h * w :].unflatten(-1, (h, w))
        pairs += rows[piece].unsqueeze(-1)
        pairs += columns[piece].unsqueeze(-2)
    return logits if bias is None else logits.add_(bias[queries])
