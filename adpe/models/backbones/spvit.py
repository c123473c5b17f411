"""SP-ViT (arXiv 2206.07662): attention logits multiplied by a learned function of the offset between patches.

The function is :mod:`adpe.models.backbones.spatial_prior`'s. The network around it is LV-ViT's: a convolutional stem,
residual branches divided by a number, a depthwise convolution after every block, a class token that joins after the
blocks with a prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adpe.models.backbones.spatial_prior import SpatialPrior
from adpe.models.layers import DropPath
from adpe.models.resampling import resample_pos_embed

OffsetScale = Literal["raw", "train_grid"]

# Width, blocks, heads, divisor of residual branches, channels of the stem, blocks with a prior, stochastic depth.
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 384, "depth": 16, "num_heads": 6, "skip_lam": 2.0, "stem": 64, "prior_blocks": 14,
              "drop_path_rate": 0.1},
    "medium": {"embed_dim": 512, "depth": 20, "num_heads": 8, "skip_lam": 2.0, "stem": 64, "prior_blocks": 10,
               "drop_path_rate": 0.2},
    # The released code asks for 22 blocks with a prior in L and builds none; the published numbers are of that.
    "large": {"embed_dim": 768, "depth": 24, "num_heads": 12, "skip_lam": 3.0, "stem": 128, "prior_blocks": 22,
              "drop_path_rate": 0.3},
    "large_as_released": {"embed_dim": 768, "depth": 24, "num_heads": 12, "skip_lam": 3.0, "stem": 128,
                          "prior_blocks": 0, "drop_path_rate": 0.3},
}  # fmt: skip


class PriorAttention(SpatialPrior):
    """Attention among patches whose scaled logits are multiplied by the spatial prior.

    Args:
        dim: width D.
        num_heads: heads.
        train_grid: see :class:`adpe.models.backbones.spatial_prior.SpatialPrior`.
    """

    def __init__(self, dim: int, num_heads: int, train_grid: int | None = None) -> None:
        super().__init__(dim, num_heads, train_grid)
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def weights(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention ``(B, H, L, L)``."""
        heads = (2, self.num_heads, x.shape[-1] // self.num_heads)
        query, key = self.qk(x).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (logits * self.multiplier(grid)).softmax(dim=-1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, L, D)`` to the same."""
        value = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.proj((self.weights(x, grid) @ value).transpose(1, 2).flatten(2))


class PlainAttention(nn.Module):
    """Attention without biases of queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        heads = (3, self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = self.qkv(x).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class PositionBlock(nn.Module):
    """``map += depthwise 3x3 convolution(map)`` on the patch tokens; a class token passes by."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix = x.shape[1] - grid[0] * grid[1]
        image = x[:, prefix:].transpose(1, 2).unflatten(2, grid)
        patches = (image + self.proj(image)).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :prefix], patches], dim=1)


class SPMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SPBlock(nn.Module):
    """``x += attn(norm1(x)) / s; x += mlp(norm2(x)) / s``, then the position block.

    Args:
        dim: width.
        num_heads: heads.
        prior: whether attention has the spatial prior; it then takes patches alone.
        mlp_ratio: hidden width of the MLP over the width.
        skip_lam: the divisor s.
        drop_path_rate: stochastic depth of both branches, before the division.
        train_grid: see :class:`PriorAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int, prior: bool, mlp_ratio: float = 3.0, skip_lam: float = 1.0,
        drop_path_rate: float = 0.0, train_grid: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip_lam = skip_lam
        self.norm1 = nn.LayerNorm(dim)
        self.attn = PriorAttention(dim, num_heads, train_grid) if prior else PlainAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = SPMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        self.pos_block = PositionBlock(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid)) / self.skip_lam
        x = x + self.drop_path(self.mlp(self.norm2(x))) / self.skip_lam
        return self.pos_block(x, grid)


class ConvStem(nn.Module):
    """Three convolutions with BatchNorm and ReLU at half the size, then patches of half the pixels."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, filters, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(filters)
        self.proj = nn.Conv2d(filters, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.proj(F.relu(self.bn3(self.conv3(x))))


class PatchStem(nn.Module):
    """The plain patch convolution."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class SPViT(nn.Module):
    """The network.

    Args:
        variant: name in :data:`VARIANTS`, before whose values the other options go; None takes them all from options.
        img_size: pixels of a side, of the learned positions.
        patch_size: pixels.
        options: ``embed_dim``, ``depth``, ``num_heads``, ``prior_blocks`` (the first ones, without a class token),
            ``skip_lam``, ``stem`` (channels; 0 is the plain patch convolution), ``drop_path_rate``.
        mlp_ratio: hidden width of the MLPs over the width.
        num_classes: of the heads; 0 has none.
        dense_head: a linear layer on every patch too (LV-ViT's token labelling).
        offset_scale: "raw" as published, or "train_grid": offsets of other grids scaled to that of training.
        in_chans: image channels.
        grad_checkpointing: recompute blocks in the backward pass.

    Raises:
        ValueError: for an unknown variant, or sizes that do not go together.
    """

    def __init__(
        self,
        variant: str | None = "small",
        img_size: int = 224,
        patch_size: int = 16,
        mlp_ratio: float = 3.0,
        num_classes: int = 0,
        dense_head: bool = False,
        offset_scale: OffsetScale = "raw",
        in_chans: int = 3,
        grad_checkpointing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        said = self._settled(variant, options)
        dim, depth, prior = said["embed_dim"], said["depth"], said["prior_blocks"]
        if dim % said["num_heads"] or img_size % patch_size or patch_size % 2:
            raise ValueError(
                f"embed_dim={dim}, {said['num_heads']} heads, img_size={img_size}, patch_size={patch_size}."
            )
        if not 0 <= prior < depth:
            raise ValueError(
                f"prior_blocks={prior} of {depth}: the class token joins behind them, one block at least follows."
            )
        if offset_scale not in ("raw", "train_grid"):
            raise ValueError(f"offset_scale={offset_scale!r} is none of raw, train_grid.")
        self.patch_size, self.embed_dim, self.prior_blocks = patch_size, dim, prior
        self.train_side, self.offset_scale = img_size // patch_size, offset_scale
        self.num_classes, self.grad_checkpointing = num_classes, grad_checkpointing
        self.patch_embed: nn.Module
        if said["stem"]:
            self.patch_embed = ConvStem(patch_size, in_chans, dim, said["stem"])
        else:
            self.patch_embed = PatchStem(patch_size, in_chans, dim)
        # The class token has no place in it.
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.train_side**2, dim), std=0.02))
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        scaled = self.train_side if offset_scale == "train_grid" else None
        rates = [said["drop_path_rate"] * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            SPBlock(dim, said["num_heads"], i < prior, mlp_ratio, said["skip_lam"], rates[i], scaled)
            for i in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.aux_head = nn.Linear(dim, num_classes) if num_classes and dense_head else None
        self.apply(_init)

    @staticmethod
    def _settled(variant: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        known = {"embed_dim", "depth", "num_heads", "prior_blocks", "skip_lam", "stem", "drop_path_rate"}
        if set(options) - known:
            raise ValueError(f"SP-ViT has no option {', '.join(sorted(set(options) - known))}.")
        if variant is not None and variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} is none of {', '.join(VARIANTS)}.")
        start: dict[str, Any] = {"skip_lam": 1.0, "stem": 0, "drop_path_rate": 0.0, "prior_blocks": 0}
        said = {**(VARIANTS[variant] if variant else start), **options}
        missing = {"embed_dim", "depth", "num_heads"} - said.keys()
        if missing:
            raise ValueError(f"without a variant SP-ViT needs {', '.join(sorted(missing))}.")
        return said

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch embeddings ``(B, L, D)`` without positions, and the grid."""
        x = self.patch_embed(images)
        return x.flatten(2).transpose(1, 2), (x.shape[-2], x.shape[-1])

    def block_tokens(self, x: Tensor, grid: tuple[int, int], count: int | None = None) -> list[Tensor]:
        """Tokens after every block, from patch embeddings; the class token joins behind the blocks with a prior.

        Args:
            x: ``(B, L, D)`` of :meth:`embed`.
            grid: ``(h, w)`` of the patches.
            count: so many blocks are run; None runs all.
        """
        side = (self.train_side, self.train_side)
        cls = self.cls_token.expand(len(x), -1, -1)
        x = x + resample_pos_embed(self.pos_embed, side, grid, "timm")
        found = []
        for number, block in enumerate(islice(self.blocks, count)):
            if number == self.prior_blocks:
                x = torch.cat([cls, x], dim=1)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
            found.append(x)
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, 1 + L, D)`` after the final norm, class token first."""
        return self.norm(self.block_tokens(*self.embed(images))[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the class token; with a dense head, plus half of the maximum over patches."""
        tokens = self.forward_features(images)
        logits = self.head(tokens[:, 0])
        if self.aux_head is not None:
            logits = logits + 0.5 * self.aux_head(tokens[:, 1:]).amax(dim=1)
        return logits

    def forward_mixed(self, images: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Class logits ``(B, C)`` and patch logits ``(B, L, C)`` under MixToken (LV-ViT).

        Args:
            images: ``(B, 3, H, W)``.
            box: first row, first column, and those behind the last: patches inside come from the batch reversed. The
                patch logits are swapped back, so that their targets stay in place.
        """
        if self.aux_head is None:
            raise ValueError("MixToken needs dense_head=True.")
        x, grid = self.embed(images)
        inside = torch.zeros(grid, dtype=torch.bool, device=x.device)
        inside[box[0] : box[2], box[1] : box[3]] = True
        chosen = inside.flatten()[None, :, None]
        tokens = self.norm(self.block_tokens(torch.where(chosen, x.flip(0), x), grid)[-1])
        dense = self.aux_head(tokens[:, 1:])
        return self.head(tokens[:, 0]), torch.where(chosen, dense.flip(0), dense)

    def no_weight_decay(self) -> set[str]:
        """Positions, the class token, and the last layers of the prior's small networks."""
        tiny = {name for name, _ in self.named_parameters() if name.endswith(("attn.w2", "attn.b2"))}
        return {"pos_embed", "cls_token"} | tiny

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of depths: the stem 0, block by block, the rest.

        Raises:
            KeyError: if there is no such parameter.
        """
        if name not in dict(self.named_parameters()):
            raise KeyError(f"{name!r} is not a parameter of SP-ViT.")
        last = len(self.blocks) + 1
        if name.startswith(("patch_embed.", "pos_embed", "cls_token")):
            return 0, last + 1
        return (int(name.split(".")[1]) + 1 if name.startswith("blocks.") else last), last + 1


def draw_box(grid: tuple[int, int], generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
    """MixToken's box: its share of the area is ``1 - lam``, ``lam ~ Beta(1, 1)``, clipped to the grid; may be empty."""
    lam = float(torch.rand((), generator=generator))
    halves = [int(math.sqrt(1 - lam) * side) // 2 for side in grid]
    centre = [int(torch.randint(side, (), generator=generator)) for side in grid]
    low = [max(c - half, 0) for c, half in zip(centre, halves, strict=True)]
    high = [min(c + half, side) for c, half, side in zip(centre, halves, grid, strict=True)]
    return low[0], low[1], high[0], high[1]


def token_label_loss(
    class_logits: Tensor, patch_logits: Tensor, target: Tensor, box: tuple[int, int, int, int], grid: tuple[int, int],
    dense_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """LV-ViT's: soft cross-entropy of the class, mixed by the box's true area, and of the patches.

    Args:
        class_logits: ``(B, C)``.
        patch_logits: ``(B, L, C)``.
        target: ``(B, C, 2 + L)``: channel 1 is the class's, the others from 2 on the patches'.
        box: of :meth:`SPViT.forward_mixed`.
        grid: of the patches.
        dense_weight: of the patches' part.
    """
    share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (grid[0] * grid[1])
    own = target[:, :, 1]
    mixed = share * own + (1 - share) * own.flip(0)
    whole = -(mixed * class_logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    patches = -(target[:, :, 2:].transpose(1, 2) * patch_logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    return whole + dense_weight * patches


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
