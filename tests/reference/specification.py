"""The equations of MAE, MAE+ and AdPE as plainly as they can be written; slow, and meant for float64.

Every pair of tokens has its own row of the relative table here, ``(B, d, N, N)``, and the interpolated form reads the
table with torch's ``grid_sample``. Parameters come as the state dict of a :class:`adpe.MAE` or encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

A, B_, G = 1.9, 3.8, 15.2


def piecewise(x: Tensor, rounded: bool) -> Tensor:
    safe = torch.where(x.abs() <= A, A, x.abs())
    far = A + torch.log(safe / A) / math.log(G / A) * (B_ - A)
    far = (far.round() if rounded else far).clamp(max=B_)
    return torch.where(x.abs() <= A, x, x.sign() * far)


def sincos(columns: Tensor, rows: Tensor, dim: int) -> Tensor:
    k = torch.arange(dim // 4, dtype=torch.float64)
    omega = 10000 ** (-k / (dim / 4))
    halves = [
        torch.cat([torch.sin(c[..., None] * omega), torch.cos(c[..., None] * omega)], -1) for c in (columns, rows)
    ]
    return torch.cat(halves, -1)


def coordinates(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, ``(L,)`` each."""
    h, w = grid
    index = torch.arange(h * w)
    return (index // w).double(), (index % w).double()


def relative_rows(table: Tensor, grid: tuple[int, int], interpolate: bool, shift: Tensor | None = None) -> Tensor:
    """Row of the table for every pair of tokens, ``(d, N, N)``; shift is added to (row, column) offsets."""
    rows, columns = coordinates(grid)
    row, column = rows[:, None] - rows[None], columns[:, None] - columns[None]
    if shift is not None:
        row, column = row + shift[0], column + shift[1]
    patches = table[:, :49].reshape(1, -1, 7, 7)
    if interpolate:
        f_row, f_column = (piecewise(x, False).clamp(-B_, B_) / B_ for x in (row, column))
        points = torch.stack([f_row, f_column], -1)[None]  # x, then y
        read = F.grid_sample(patches, points, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    else:
        f_row, f_column = (piecewise(x, True).trunc().long() + 3 for x in (row, column))
        read = table[:, f_row * 7 + f_column]
    n = 1 + len(rows)
    out = table[:, 49:].expand(-1, n * n).reshape(-1, n, n).clone()
    out[:, 1:, 1:] = read
    return out


def block(
    x: Tensor, state: Mapping[str, Tensor], name: str, heads: int, rows: Tensor | None, query_scale: float = 1.0
) -> Tensor:
    """Pre-norm block; rows ``(B or 1, d, N, N)`` of the relative term."""

    def linear(y: Tensor, layer: str) -> Tensor:
        return y @ state[f"{name}.{layer}.weight"].T + state[f"{name}.{layer}.bias"]

    def norm(y: Tensor, layer: str) -> Tensor:
        return layer_norm(y, state, f"{name}.{layer}")

    b, n, dim = x.shape
    qkv = linear(norm(x, "norm1"), "attn.qkv").reshape(b, n, 3, heads, dim // heads)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    q = q / math.sqrt(dim // heads)
    logits = torch.einsum("bhid,bhjd->bhij", q, k)
    if rows is not None:
        logits = logits + torch.einsum("bhid,bdij->bhij", q * query_scale, rows.expand(b, -1, -1, -1))
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, dim)
    x = x + linear(out, "attn.proj")
    hidden = linear(norm(x, "norm2"), "mlp.fc1")
    return x + linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), "mlp.fc2")


def layer_norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def patchify(images: Tensor, p: int) -> Tensor:
    b, _, height, width = images.shape
    return torch.stack([
        images[:, :, y : y + p, x : x + p].permute(0, 2, 3, 1).reshape(b, -1)
        for y in range(0, height, p) for x in range(0, width, p)
    ], 1)  # fmt: skip


def depth_of(state: Mapping[str, Tensor], stage: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{stage}.blocks.")})


def autoencode(
    state: Mapping[str, Tensor],
    images: Tensor,
    noise: Tensor,
    patch_size: int,
    heads: int,
    decoder_heads: int,
    position: str = "absolute",
    mask_tokens: str = "encoder",
    adversary: str | None = None,
    variant: str = "masked_keys",
    mask_ratio: float = 0.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, prediction ``(B, L, p * p * 3)`` and mask ``(B, L)`` of MAE, MAE+ or AdPE with normalised targets."""
    b, p = len(images), patch_size
    grid = images.shape[2] // p, images.shape[3] // p
    rows, columns = coordinates(grid)
    length = len(rows)
    masked = torch.ones(b, length, dtype=torch.bool)
    for i in range(b):
        masked[i, noise[i].argsort()[: int(length * (1 - mask_ratio))]] = False

    def relative(stage: str, layer: int) -> Tensor | None:
        if position == "absolute":
            return None
        table, interpolate = state[f"{stage}.blocks.{layer}.attn.rel_pos_table"], position == "relative_interpolated"
        clean = relative_rows(table, grid, interpolate)[None]
        if adversary is None:
            return clean
        ours = state[f"adversary.{stage}"][layer]
        hidden = F.pad(masked, (1, 0))
        if adversary == "coordinate":
            return torch.where(hidden[:, None, :, None], relative_rows(table, grid, True, ours), clean)
        where = hidden[:, None, None, :] if variant == "masked_keys" else hidden[:, None, :, None]
        return clean + where * ours[None, :, None, None]

    dim, weight = state["encoder.cls_token"].shape[-1], state["encoder.patch_embed.proj.weight"]
    x = patchify(images, p) @ weight.permute(0, 2, 3, 1).flatten(1).T + state["encoder.patch_embed.proj.bias"]
    codes = sincos(columns, rows, dim).expand(b, -1, -1)
    if adversary == "coordinate" and position == "absolute":
        a = state["adversary.shift"]
        codes = torch.where(masked[..., None], sincos(columns + a[0], rows + a[1], dim), codes)
    if mask_tokens == "encoder":
        x = torch.where(masked[..., None], state.get("mask_token", state.get("adversary.token")), x) + codes
    else:
        x = torch.stack([(x[i] + codes[i])[~masked[i]] for i in range(b)])
    x = torch.cat([state["encoder.cls_token"].expand(b, -1, -1), x], 1)
    for layer in range(depth_of(state, "encoder")):
        x = block(x, state, f"encoder.blocks.{layer}", heads, relative("encoder", layer))
    x = layer_norm(x, state, "encoder.norm") @ state["decoder.embed.weight"].T + state["decoder.embed.bias"]
    if mask_tokens == "decoder":
        full = state["mask_token"].expand(b, length, -1).clone()
        for i in range(b):
            full[i, ~masked[i]] = x[i, 1:]
        x = torch.cat([x[:, :1], full], 1)
    x = x + F.pad(sincos(columns, rows, x.shape[-1]), (0, 0, 1, 0))
    for layer in range(depth_of(state, "decoder")):
        x = block(x, state, f"decoder.blocks.{layer}", decoder_heads, relative("decoder", layer))
    x = layer_norm(x, state, "decoder.norm")[:, 1:]
    prediction = x @ state["decoder.pred.weight"].T + state["decoder.pred.bias"]
    target = patchify(images, p)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (prediction - target)[masked].square().mean(), prediction, masked
