"""MAE+ and AdPE written plainly from their equations: the executable specification that speed is measured against.

Ordinary eager PyTorch, as the equations read: the softmax of the attention is written out, every pair of tokens looks
up its own vector of the relative table (``N x N x d``), clean and perturbed vectors are both looked up and the mask
chooses between them, every patch is embedded, predicted and compared, and the mask selects afterwards. Parameter names
are those of :class:`adpe.MAE`: one state dict serves both.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import decay_groups
from adpe.methods.mae import MAE

ALPHA, BETA, GAMMA = 1.9, 3.8, 15.2


def piecewise(x: Tensor, discrete: bool) -> Tensor:
    """Piecewise index of signed offsets: continuous, or the integers -3..3."""
    logarithmic = ALPHA + torch.log(x.abs().clamp(min=ALPHA) / ALPHA) / math.log(GAMMA / ALPHA) * (BETA - ALPHA)
    if discrete:
        logarithmic = logarithmic.round()
    f = torch.where(x.abs() <= ALPHA, x, x.sign() * logarithmic.clamp(max=BETA))
    return f.trunc().long() if discrete else f


def sincos(columns: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Sine-cosine codes ``(L, dim)``: the column in the first half of the channels, the row in the second."""
    omega = 10000 ** (-torch.arange(dim // 4, dtype=columns.dtype, device=columns.device) / (dim // 4))
    x, y = columns[:, None] * omega, rows[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


class PlainAttention(nn.Module):
    """Softmax attention; `rel_pos_table` ``(d, 50)`` has a vector for each of 7 x 7 buckets and for the class token."""

    def __init__(self, dim: int, num_heads: int, relative: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_table = nn.Parameter(torch.zeros(dim // num_heads, 50)) if relative else None

    def forward(self, x: Tensor, relative: Tensor | None) -> Tensor:
        """``(B, N, D)`` and the relative vectors of all pairs, ``(d, N, N)`` or ``(B, d, N, N)``, to ``(B, N, D)``."""
        b, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = q * q.shape[-1] ** -0.5
        logits = q @ k.transpose(-2, -1)
        if relative is not None:
            pairs = "dij" if relative.ndim == 3 else "bdij"
            logits = logits + torch.einsum(f"bhid,{pairs}->bhij", q, relative)
        return self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, dim))


class PlainBlock(nn.Module):
    """Pre-norm block."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, relative: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(dim, num_heads, relative)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden_dim), "fc2": nn.Linear(hidden_dim, dim)})

    def forward(self, x: Tensor, relative: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), relative)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainAutoencoder(nn.Module):
    """MAE+ or AdPE with the sizes, options and weights of a :class:`adpe.MAE` (MAE+ side only).

    Raises:
        ValueError: for MAE, whose mask tokens stand before the decoder.
    """

    def __init__(self, model: MAE) -> None:
        super().__init__()
        if model.mask_tokens != "encoder":
            raise ValueError("The plain implementation covers MAE+ and AdPE, which put mask tokens before the encoder.")
        # Same parameters under the same names; every module that computes is replaced by a plain one.
        plain: Any = copy.deepcopy(model)
        self.encoder, self.decoder = plain.encoder, plain.decoder
        self.mask_token: Any = plain.mask_token
        self.adversary: Any = getattr(plain, "adversary", None)
        for stage in (self.encoder, self.decoder):
            stage.blocks = nn.ModuleList(
                PlainBlock(
                    block.attn.proj.in_features,
                    block.attn.num_heads,
                    block.mlp.fc1.out_features,
                    block.attn.rel_pos_table is not None,
                )
                for block in stage.blocks
            )
        self.interpolate = model.encoder.position == "relative_interpolated"
        self.variant = getattr(self.adversary, "variant", None)
        self.mask_ratio, self.norm_pix_loss = model.mask_ratio, model.norm_pix_loss
        self.patch_size = model.encoder.patch_size
        self.to(model.encoder.cls_token)
        self.load_state_dict(model.state_dict())

    def parameter_groups(self, lr: float, weight_decay: float, adversary_lr: float) -> list[dict[str, Any]]:
        """Those of :meth:`AdPE.parameter_groups`."""
        ascending = (
            {} if self.adversary is None else {f"adversary.{n}": p for n, p in self.adversary.named_parameters()}
        )
        ascent = {"params": list(ascending.values()), "lr": adversary_lr, "weight_decay": 0.0, "maximize": True}
        return decay_groups(self, lr, weight_decay, without=ascending) + ([ascent] if ascending else [])

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Scalar loss of ``(B, 3, H, W)`` images, whose patches of smallest noise ``(B, L)`` stay visible."""
        b, _, height, width = images.shape
        h, w, p = height // self.patch_size, width // self.patch_size, self.patch_size
        index = torch.arange(h * w, device=images.device)
        rows, columns = (index // w).to(images.dtype), (index % w).to(images.dtype)
        ranks = noise.argsort(dim=1).argsort(dim=1)
        mask = (ranks >= int(h * w * (1 - self.mask_ratio))).to(images.dtype)  # (B, L), 1 at masked patches

        x = self.encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
        codes = sincos(columns, rows, x.shape[-1]).expand(b, -1, -1)
        token = getattr(self.adversary, "token", self.mask_token)
        if hasattr(self.adversary, "shift"):
            a = self.adversary.shift
            codes = torch.where(mask[..., None] > 0, sincos(columns + a[0], rows + a[1], x.shape[-1]), codes)
        x = x * (1 - mask[..., None]) + token * mask[..., None] + codes
        x = torch.cat([self.encoder.cls_token.expand(b, -1, -1), x], dim=1)
        x = self.encoder.norm(self.run("encoder", x, rows, columns, mask))

        x = self.decoder.embed(x)
        x = x + F.pad(sincos(columns, rows, x.shape[-1]), (0, 0, 1, 0))
        x = self.decoder.norm(self.run("decoder", x, rows, columns, mask))
        prediction = self.decoder.pred(x)[:, 1:]

        target = images.reshape(b, 3, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, p * p * 3)
        if self.norm_pix_loss:
            target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        return ((prediction - target).square().mean(dim=-1) * mask).sum() / mask.sum()

    def run(self, stage: str, x: Tensor, rows: Tensor, columns: Tensor, mask: Tensor) -> Tensor:
        """The blocks of the encoder or of the decoder."""
        for layer, block in enumerate(getattr(self, stage).blocks):
            table = block.attn.rel_pos_table
            relative = None if table is None else self.relative(stage, layer, table, rows, columns, mask)
            x = block(x, relative)
        return x

    def relative(self, stage: str, layer: int, table: Tensor, rows: Tensor, columns: Tensor, mask: Tensor) -> Tensor:
        """Relative vectors of all pairs in one layer: ``(d, N, N)``, or ``(B, d, N, N)`` where the mask decides."""
        clean = self.lookup(table, rows, columns)
        if self.adversary is None:
            return clean
        a = getattr(self.adversary, stage)[layer]
        masked = F.pad(mask, (1, 0)) > 0
        if a.shape == (2,):
            return torch.where(masked[:, None, :, None], self.lookup(table, rows, columns, a), clean)
        where = masked[:, None, None, :] if self.variant == "masked_keys" else masked[:, None, :, None]
        return torch.where(where, self.lookup(table + a[:, None], rows, columns), clean)

    def lookup(self, table: Tensor, rows: Tensor, columns: Tensor, shift: Tensor | None = None) -> Tensor:
        """``(d, N, N)`` vectors of the table ``(d, 50)`` at all offsets, to which `shift` (row, column) is added."""
        offsets = torch.stack([rows[:, None] - rows, columns[:, None] - columns], dim=-1)  # (L, L, 2)
        if shift is not None:
            offsets = offsets + shift
        if self.interpolate:
            points = piecewise(offsets, discrete=False).clamp(-BETA, BETA) / BETA  # x is the row, y the column
            image = table[:, :49].reshape(1, -1, 7, 7)
            patches = F.grid_sample(image, points[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        else:
            index = piecewise(offsets, discrete=True) + 3
            patches = table[:, index[..., 0] * 7 + index[..., 1]]
        cls = table[:, 49:, None].expand(-1, len(rows) + 1, len(rows) + 1)
        return torch.cat([cls[:, :1], torch.cat([cls[:, 1:, :1], patches], dim=2)], dim=1)
