"""Positions of patches: absolute sine-cosine codes and contextual relative terms.

Absolute (MAE, arXiv 2111.06377, sec. A.1; ViT without learned positions): a fixed 2-D sine-cosine code is added to
every patch. Relative (iRPE, arXiv 2107.14222, contextual product on keys): with ``q' = q / sqrt(d)`` every logit gains
``q'_i . r[:, bucket(i, j)]``, where the table ``r`` has 7 x 7 buckets of the piecewise offset and one more for every
pair with the class token.

Shapes: ``h, w`` the patch grid, ``L = h * w``, ``N = 1 + L`` with the class token first, ``D`` the width, ``d`` the
width of a head, ``H`` the number of heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS_PER_AXIS = 7
CLASS_BUCKET = BUCKETS_PER_AXIS**2
NUM_BUCKETS = CLASS_BUCKET + 1

# Piecewise index of iRPE with ratio 1.9: identity up to ALPHA, logarithmic up to BETA, which GAMMA reaches.
ALPHA, BETA, GAMMA = 1.9, 3.8, 15.2

# Above this many tokens the (N, 50, N) weights no longer pay, and the two axes are contracted one after the other.
DENSE_TOKENS = 400


def cached_table(function: Callable) -> Any:
    """Keep the last 32 tables that `function` made, by its arguments.

    Nothing is kept while a model is compiled: the tensors of a tracer must not outlive it. An exported model holds the
    table as a constant, not the float64 arithmetic that makes it, which other runtimes lack.
    """
    cached = lru_cache(maxsize=32)(function)

    @wraps(function)
    def table(*key: Any) -> Any:
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            # The exporter traces its own thread alone; a strict export reads the code, which then must be traceable.
            with ThreadPoolExecutor(1) as outside:
                return outside.submit(cached, *key).result()
        traced = torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor
        return function(*key) if traced else cached(*key)

    table.cache_info = cached.cache_info  # type: ignore[attr-defined]
    return table


def sincos(coordinates: Tensor, dim: int) -> Tensor:
    """Sine-cosine code of (column, row) coordinates, differentiable in them.

    Args:
        coordinates: ``(..., 2)``, column then row, in patches; any real value.
        dim: width of the code, a multiple of 4. The first half encodes the column, the second the row, each as
            ``[sin(c * omega) | cos(c * omega)]`` with ``omega_k = 10000 ** (-k / (dim / 4))``.

    Returns:
        ``(..., dim)`` in the dtype of `coordinates`.

    Raises:
        ValueError: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"A 2-D sine-cosine code needs a width divisible by 4, got {dim}.")
    k = torch.arange(dim // 4, dtype=torch.float64, device=coordinates.device)
    omega = (10000.0 ** (-k / (dim // 4))).to(coordinates.dtype)
    angles = coordinates.unsqueeze(-1) * omega  # (..., 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def grid_coordinates(h: int, w: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """``(h * w, 2)`` coordinates (column, row) of a patch grid in raster order."""
    rows = torch.arange(h, dtype=dtype, device=device)
    columns = torch.arange(w, dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)


@cached_table
def sincos_table(h: int, w: int, dim: int, dtype: torch.dtype, device: torch.device, prefix: int = 1) -> Tensor:
    """``(1, prefix + h * w, dim)`` fixed position table: a zero row for each class token, then the patches."""
    with torch.inference_mode(False):  # a table first needed in evaluation must serve training too
        code = sincos(grid_coordinates(h, w, _exact(device), device), dim)
        return torch.cat([code.new_zeros(prefix, dim), code]).to(dtype).unsqueeze(0)


def square_side(table: Tensor | None) -> int:
    """Patches along a side of the square grid of a table ``(1, [1 +] side ** 2, D)``; 0 if there is none."""
    if table is None or table.ndim != 3:
        return 0
    for rows in (table.shape[1] - 1, table.shape[1]):
        side = round(max(rows, 0) ** 0.5)
        if side and rows == side**2:
            return side
    return 0


def is_sincos(table: Tensor) -> bool:
    """Whether a table ``(1, [1 +] side ** 2, D)`` is the fixed sine-cosine one, by its values."""
    side = square_side(table)
    if not side or table.shape[2] % 4:
        return False
    exact = sincos_table(side, side, table.shape[2], torch.float32, torch.device("cpu"))[:, -table.shape[1] :]
    # Half-precision copies are rounded to 1/256.
    return torch.allclose(exact, table.float().cpu(), atol=1e-5 if table.dtype == torch.float32 else 4e-3)


def piecewise_index(offset: Tensor) -> Tensor:
    """Continuous piecewise index of signed offsets (iRPE eq. 18), in ``[-BETA, BETA]``, differentiable.

    Identity where ``|x| <= ALPHA``, else
    ``sign(x) * (ALPHA + log(|x| / ALPHA) / log(GAMMA / ALPHA) * (BETA - ALPHA))``.
    """
    return _piecewise(offset, rounded=False)


def _piecewise(offset: Tensor, rounded: bool) -> Tensor:
    magnitude = offset.abs()
    far = magnitude > ALPHA
    # The inner `where` keeps log(0) out of the backward pass.
    ratio = torch.where(far, magnitude, ALPHA) / ALPHA
    logarithmic = ALPHA + torch.log(ratio) / math.log(GAMMA / ALPHA) * (BETA - ALPHA)
    if rounded:
        logarithmic = logarithmic.round()
    return torch.where(far, offset.sign() * logarithmic.clamp(max=BETA), offset)


def bucket_weights(offset: Tensor, interpolate: bool) -> Tensor:
    """Weights of the 7 buckets of one axis for signed offsets in patches.

    Discrete: one weight of 1 at ``trunc(f(offset)) + 3``. Interpolated: the two linear weights at which ``grid_sample``
    (``align_corners=False``, zero padding) reads a row of 7 at ``f(offset) / BETA``.

    Args:
        offset: ``(...)`` floating point.
        interpolate: linear weights instead of one bucket.

    Returns:
        ``(..., 7)`` in the dtype of `offset`.
    """
    centre = BUCKETS_PER_AXIS // 2
    bucket = torch.arange(BUCKETS_PER_AXIS, device=offset.device)
    if not interpolate:
        index = _piecewise(offset, rounded=True).trunc() + centre
        return (index.unsqueeze(-1) == bucket).to(offset.dtype)
    sample = (piecewise_index(offset) / BETA * (BUCKETS_PER_AXIS / 2) + centre).unsqueeze(-1)
    lower = sample.detach().floor()
    fraction = sample - lower
    return torch.where(bucket == lower, 1 - fraction, torch.where(bucket == lower + 1, fraction, 0.0))


def axis_weights(
    h: int, w: int, interpolate: bool, dtype: torch.dtype, device: torch.device, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bucket weights of all row offsets and of all column offsets of a grid.

    Args:
        shift: ``(..., 2)`` added to the (row, column) offset, one pair for each of the leading dimensions.

    Returns:
        ``(..., h, h, 7)`` for ``row_i - row_j`` and ``(..., w, w, 7)`` for ``col_i - col_j``.
    """
    weights = []
    for axis, length in enumerate((h, w)):
        position = torch.arange(length, dtype=dtype, device=device)
        offset = position[:, None] - position[None, :]
        if shift is not None:
            offset = offset + shift[..., axis, None, None]
        weights.append(bucket_weights(offset, interpolate))
    return weights[0], weights[1]


def pair_weights(rows: Tensor, columns: Tensor, interpolate: bool) -> Tensor:
    """``(..., L, 49, L)`` weights of every bucket for every pair of patches, from :func:`axis_weights`.

    The discrete form numbers a bucket ``7 * row + column``. The interpolated form reads the same table transposed, as
    the reference does (the row component is ``grid_sample``'s x): published weights depend on it.
    """
    h, w = rows.shape[-2], columns.shape[-2]
    equation = "...abm,...cdn->...acnmbd" if interpolate else "...abm,...cdn->...acmnbd"
    return torch.einsum(equation, rows, columns).reshape(*rows.shape[:-3], h * w, CLASS_BUCKET, h * w)


@cached_table
def token_weights(h: int, w: int, interpolate: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(N, 50, N)`` weights of every bucket for every pair of tokens (query, bucket, key), class token first."""
    with torch.inference_mode(False):
        exact = _exact(device)
        weights = torch.zeros(1 + h * w, NUM_BUCKETS, 1 + h * w, dtype=exact, device=device)
        weights[1:, :CLASS_BUCKET, 1:] = pair_weights(*axis_weights(h, w, interpolate, exact, device), interpolate)
        weights[0, CLASS_BUCKET, :] = 1
        weights[:, CLASS_BUCKET, 0] = 1
        return weights.to(dtype)


def _exact(device: torch.device) -> torch.dtype:
    """Tables are made in float64 and rounded once; MPS has none."""
    return torch.float32 if device.type == "mps" else torch.float64


@cached_table
def cached_axis_weights(
    h: int, w: int, interpolate: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """:func:`axis_weights` without a shift, in `dtype`, made once for a grid."""
    with torch.inference_mode(False):
        rows, columns = axis_weights(h, w, interpolate, _exact(device), device)
        return rows.to(dtype), columns.to(dtype)


def relative_weights(
    grid: tuple[int, int], interpolate: bool, dtype: torch.dtype, device: torch.device, class_token: bool = True
) -> tuple[Tensor, ...]:
    """Weights of the buckets that :func:`relative_logits` needs on a grid, made once for a grid, dtype and device.

    Returns:
        ``(N, 50, N)`` alone (``(L, 49, L)`` without a class token), or, beyond `DENSE_TOKENS`, those of the two axes.
    """
    h, w = grid
    if h * w + class_token > DENSE_TOKENS:
        return cached_axis_weights(h, w, interpolate, dtype, device)
    weights = token_weights(h, w, interpolate, dtype, device)
    return (weights if class_token else weights[1:, :CLASS_BUCKET, 1:],)


def relative_logits(
    scores: Tensor, grid: tuple[int, int], interpolate: bool, weights: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Logits of the relative term from the scores of the buckets.

    Args:
        scores: ``(B, H, N, 50)``, ``q'_i . r`` for every bucket.
        grid: ``(h, w)`` with ``N = 1 + h * w``, or ``N = h * w`` without a class token.
        interpolate: the interpolated form instead of the discrete one.
        weights: of :func:`relative_weights`, if they are at hand.

    Returns:
        ``(B, H, N, N)``; ``[..., i, j]`` is the score of the pair's bucket, or the interpolated score.
    """
    h, w = grid
    b, heads, n, _ = scores.shape
    class_token = n > h * w
    if weights is None:
        weights = relative_weights(grid, interpolate, scores.dtype, scores.device, class_token)
    weights = tuple(weight.to(scores.dtype) for weight in weights)
    if len(weights) == 1:
        return contract(scores if class_token else scores[..., :CLASS_BUCKET], weights[0])
    rows, columns = weights
    # One small product per query: along one axis of the keys, then along the other.
    patches = scores[:, :, n - h * w :, :CLASS_BUCKET].reshape(b, heads, h, w, BUCKETS_PER_AXIS, BUCKETS_PER_AXIS)
    if interpolate:
        patches = patches.transpose(-1, -2)
    along_rows = rows[:, None] @ patches  # (B, H, h, w, h', 7)
    pairs = (along_rows @ columns.transpose(-1, -2)).reshape(b, heads, h * w, h * w)  # from (B, H, h, w, h', w')
    if not class_token:
        return pairs
    logits = scores[..., CLASS_BUCKET:].expand(b, heads, n, n).clone()
    logits[:, :, 1:, 1:] = pairs
    return logits


def contract(scores: Tensor, weights: Tensor) -> Tensor:
    """``sum_k scores[b, h, i, k] * weights[i, k, j]`` as one batched product over the queries.

    Args:
        scores: ``(B, H, N, K)``.
        weights: ``(N, K, N)``.

    Returns:
        ``(B, H, N, N)``.
    """
    b, heads, n, k = scores.shape
    product = scores.permute(2, 0, 1, 3).reshape(n, b * heads, k) @ weights
    return product.view(n, b, heads, n).permute(1, 2, 0, 3)


def decomposed_scores(q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Decomposed relative positions (MViTv2, arXiv 2112.01526; ViTDet): ``q_i . r_h[row_i - row_j]``, and of columns.

    Args:
        q: ``(B, H, N, d)``, not scaled.
        rel_pos_h: ``(2 h' - 1, d)``, resized linearly, as detectron2 does, if h' is not the grid's height.
        rel_pos_w: ``(2 w' - 1, d)``.
        grid: ``(h, w)``.

    Returns:
        ``(B, H, N, h)`` for every row of keys and ``(B, H, N, w)`` for every column; 0 for a class token's query.
    """
    h, w = grid
    patches = q[:, :, -h * w :].unflatten(2, grid)
    rows = torch.einsum("bnhwd,hkd->bnhwk", patches, _offsets(rel_pos_h, h).to(q.dtype)).flatten(2, 3)
    columns = torch.einsum("bnhwd,wkd->bnhwk", patches, _offsets(rel_pos_w, w).to(q.dtype)).flatten(2, 3)
    prefix = q.shape[2] - h * w
    return F.pad(rows, (0, 0, prefix, 0)), F.pad(columns, (0, 0, prefix, 0))


def _offsets(table: Tensor, length: int) -> Tensor:
    """``(length, length, d)``: the row of a table of offsets for every query and key of an axis."""
    if len(table) != 2 * length - 1:
        table = F.interpolate(table.T.unsqueeze(0), size=2 * length - 1, mode="linear")[0].T
    return table.unfold(0, length, 1).flip(-1).transpose(1, 2)


def expand_bias(table: Tensor, table_grid: tuple[int, int], grid: tuple[int, int], class_token: bool) -> Tensor:
    """Relative position bias of every pair of tokens (BEiT, arXiv 2106.08254; mmseg's BEiT and MAE).

    Args:
        table: ``((2 h' - 1) * (2 w' - 1) + 3, H)``: every offset (row, column), then class token to patch, patch to
            class token, class token to itself.
        table_grid: ``(h', w')``.
        grid: ``(h, w)``; for another one than the table's the offsets are resized bicubically, like timm's
            ``resize_rel_pos_bias_table_simple``.
        class_token: whether a class token comes first.

    Returns:
        ``(H, N, N)``.
    """
    (h, w), heads = grid, table.shape[1]
    offsets = table[:-3].T.reshape(heads, 2 * table_grid[0] - 1, 2 * table_grid[1] - 1)
    if grid != table_grid:
        offsets = F.interpolate(offsets.unsqueeze(0), size=(2 * h - 1, 2 * w - 1), mode="bicubic")[0]
    pairs = offsets.unfold(1, h, 1).unfold(2, w, 1).flip(-1, -2).reshape(heads, h * w, h * w)
    if not class_token:
        return pairs
    first, column, corner = table[-3:].unsqueeze(-1).unsqueeze(-1)
    top = torch.cat([corner, first.expand(-1, 1, h * w)], dim=2)
    return torch.cat([top, torch.cat([column.expand(-1, h * w, 1), pairs], dim=2)], dim=1)
