"""Layers of the encoder and the decoder beside attention, and how a row of blocks is run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adpe.models.attention import Attention, RelativeTerm

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Training on a CPU in float32 runs them in oneDNN's layout, whose products are some 10% quicker than the default ones
    (measured on AMD Zen 4); two copies at the borders are cheap.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and x.dtype == torch.float32 and _onednn():
            return self.fc2(F.gelu(self.fc1(x.to_mkldnn()))).to_dense()
        return self.fc2(F.gelu(self.fc1(x)))


def _onednn() -> bool:
    """oneDNN's tensors can be used here: they know neither autocast nor the compiler."""
    free = not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    return free and torch.backends.mkldnn.is_available()


class DropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382): drop a residual branch with probability `rate` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual branch (CaiT, arXiv 2103.17239); timm's name, `gamma`."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: ``x += ls1(attn(norm1(x))); x += ls2(mlp(norm2(x)))``.

    Args:
        dim: width D.
        num_heads: H.
        mlp_ratio: hidden width of the MLP over D.
        relative: contextual relative positions, see :class:`adpe.models.attention.Attention`.
        drop_path_rate: stochastic depth of both branches.
        init_values: start of LayerScale; None has none.
        norm_eps: of both LayerNorms.
        attention: further options of :class:`adpe.models.attention.Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        relative: bool = False,
        drop_path_rate: float = 0.0,
        init_values: float | None = None,
        norm_eps: float = 1e-6,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, relative, **attention)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        x: Tensor,
        term: RelativeTerm | None = None,
        grid: tuple[int, int] | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`adpe.models.attention.Attention.forward`."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), term, grid, allowed)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Stride-p convolution of ``(B, C, H, W)`` into ``(B, L, D)`` patch embeddings."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches per column and row, ``(h, w)``.

        Raises:
            ValueError: if the patch does not divide the image.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"Images of {height}x{width} pixels are not divisible by patch_size={self.patch_size}.")
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


def run_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    x: Tensor,
    terms: Sequence[RelativeTerm | None],
    grad_checkpointing: bool = False,
    grid: tuple[int, int] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Run blocks one after the other, each with its relative term.

    `grid` is the image's, `allowed` a mask for every block's attention; see :class:`Block`.
    """
    mask = () if allowed is None else (allowed,)
    for block, term in zip(blocks, terms, strict=True):
        if grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, term, grid, *mask, use_reentrant=False)
        else:
            x = block(x, term, grid, *mask)
    return x


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weight and zero bias of a linear layer (MAE); other modules keep their own start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
