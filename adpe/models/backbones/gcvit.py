"""GC ViT (arXiv 2206.09959): attention inside windows, in turn with queries of the whole image.

Maps are channels-last ``(B, H, W, C)`` inside; stages have strides 4, 8, 16, 32. Images of a batch do not influence
each other, and sizes need no window to divide them: maps are padded with zeros, right and below, after the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adpe.models.layers import DropPath

# Widths, depths, heads, MLP ratio, start of LayerScale, stochastic depth (arXiv 2206.09959 and its code).
VARIANTS: dict[str, dict[str, Any]] = {
    "xxtiny": {"dim": 64, "depths": (2, 2, 6, 2), "heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "drop_path_rate": 0.2},
    "xtiny": {"dim": 64, "depths": (3, 4, 6, 5), "heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "drop_path_rate": 0.2},
    "tiny": {"dim": 64, "depths": (3, 4, 19, 5), "heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "drop_path_rate": 0.2},
    "tiny2": {"dim": 64, "depths": (3, 4, 29, 5), "heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "drop_path_rate": 0.25},
    "small": {"dim": 96, "depths": (3, 4, 19, 5), "heads": (3, 6, 12, 24), "mlp_ratio": 2.0, "drop_path_rate": 0.3,
              "layer_scale": 1e-5},
    "small2": {"dim": 96, "depths": (3, 4, 23, 5), "heads": (3, 6, 12, 24), "mlp_ratio": 3.0, "drop_path_rate": 0.35,
               "layer_scale": 1e-5},
    "base": {"dim": 128, "depths": (3, 4, 19, 5), "heads": (4, 8, 16, 32), "mlp_ratio": 2.0, "drop_path_rate": 0.5,
             "layer_scale": 1e-5},
    "large": {"dim": 192, "depths": (3, 4, 19, 5), "heads": (6, 12, 24, 48), "mlp_ratio": 2.0, "drop_path_rate": 0.5,
              "layer_scale": 1e-5},
}  # fmt: skip


class SqueezeExcitation(nn.Module):
    """Channels ``(B, C, H, W)`` scaled by their means over the map, through ``C / 4``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(dim * 0.25)
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class Fused(nn.Module):
    """Depthwise 3x3 convolution, GELU, squeeze-excitation, 1x1 convolution, plus the input; channels first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.GELU(),
            SqueezeExcitation(dim),
            nn.Conv2d(dim, dim, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Reduce(nn.Module):
    """Norm, fused block, 3x3 convolution of stride 2, norm; channels last, to `out_dim` channels."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*Fused(dim).conv)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)
        self.norm1 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x).permute(0, 3, 1, 2)
        x = self.reduction(x + self.conv(x))
        return self.norm2(x.permute(0, 2, 3, 1))


class Stem(nn.Module):
    """Images ``(B, 3, H, W)`` to ``(B, ceil(H / 4), ceil(W / 4), C)``."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1)
        self.conv_down = Reduce(dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_down(self.proj(images).permute(0, 2, 3, 1))


class QueryGenerator(nn.Module):
    """The queries of a stage's global blocks, from its input.

    Args:
        dim: channels.
        heads: of the stage.
        window: side that the result has; another is resized bicubically, without antialias.
        pools: fused blocks with a 3x3 max pooling of stride 2; 0 is one block without.
    """

    def __init__(self, dim: int, heads: int, window: int, pools: int) -> None:
        super().__init__()
        self.heads, self.window, self.pools = heads, window, pools
        self.to_q_global = nn.Sequential(*(Fused(dim) for _ in range(max(pools, 1))))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, heads, window ** 2, C / heads)``."""
        for block in self.to_q_global:
            x = block(x)
            if self.pools:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        if x.shape[-2:] != (self.window, self.window):
            x = F.interpolate(x, size=(self.window, self.window), mode="bicubic", align_corners=False)
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)


class WindowAttention(nn.Module):
    """Attention inside windows, with a table of position biases.

    Args:
        dim: channels.
        heads: heads.
        window: side.
        asked: keys and values alone come from the window, the queries are given.
    """

    def __init__(self, dim: int, heads: int, window: int, asked: bool) -> None:
        super().__init__()
        self.heads, self.window, self.asked = heads, window, asked
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, (2 if asked else 3) * dim)
        self.proj = nn.Linear(dim, dim)

    def bias(self) -> Tensor:
        """``(heads, N, N)``."""
        places = torch.arange(self.window, device=self.relative_position_bias_table.device)
        offset = places[:, None] - places[None, :] + self.window - 1
        index = offset[:, None, :, None] * (2 * self.window - 1) + offset[None, :, None, :]
        area = self.window**2
        return self.relative_position_bias_table[index.reshape(area, area)].permute(2, 0, 1)

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """Windows ``(B, n, N, C)`` and, if asked, queries ``(B, heads, N, C / heads)``, the same for every window."""
        images, windows = x.shape[:2]
        parts = self.qkv(x).unflatten(-1, (-1, self.heads, x.shape[-1] // self.heads)).permute(3, 0, 1, 4, 2, 5)
        if self.asked:
            assert query is not None
            key, value = parts
            own = query[:, None].expand(-1, windows, -1, -1, -1)
        else:
            own, key, value = parts
        bias = self.bias().to(x.dtype)
        mixed = F.scaled_dot_product_attention(
            own.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), attn_mask=bias
        )
        return self.proj(mixed.transpose(1, 2).flatten(2).unflatten(0, (images, windows)))


class GCMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GCBlock(nn.Module):
    """``x += gamma1 * attn(norm1(x)); x += gamma2 * mlp(norm2(x))`` on windows.

    Args:
        dim: channels.
        heads: heads.
        window: side.
        asked: a global block.
        mlp_ratio: hidden width of the MLP over the channels.
        drop_path_rate: stochastic depth of both branches.
        layer_scale: start of the scales; None has none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        asked: bool,
        mlp_ratio: float = 3.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, asked)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GCMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        self.gamma1: nn.Parameter | None = None
        self.gamma2: nn.Parameter | None = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """Maps ``(B, H, W, C)``."""
        height, width = x.shape[1:3]
        w = self.window
        y = F.pad(self.norm1(x), (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = y.shape[1] // w, y.shape[2] // w
        windows = y.unflatten(1, (rows, w)).unflatten(3, (columns, w)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        y = self.attn(windows, query if self.attn.asked else None)
        y = y.unflatten(1, (rows, columns)).unflatten(3, (w, w)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        y = y[:, :height, :width]
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        z = self.mlp(self.norm2(x))
        return x + self.drop_path(z if self.gamma2 is None else self.gamma2 * z)


class GCStage(nn.Module):
    """A stage: queries once, then blocks, local and global in turn; and what leads to the next stage.

    Args:
        dim: channels.
        depth: blocks.
        heads: heads.
        window: side.
        pools: of the query generator.
        downsample: whether another stage follows.
        mlp_ratio: see :class:`GCBlock`.
        drop_path_rates: of the blocks.
        layer_scale: see :class:`GCBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        window: int,
        pools: int,
        downsample: bool,
        mlp_ratio: float = 3.0,
        drop_path_rates: Sequence[float] | None = None,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        rates = drop_path_rates or [0.0] * depth
        self.blocks = nn.ModuleList(
            GCBlock(dim, heads, window, bool(i % 2), mlp_ratio, rates[i], layer_scale) for i in range(depth)
        )
        self.downsample = Reduce(dim, 2 * dim) if downsample else None
        self.q_global_gen = QueryGenerator(dim, heads, window, pools)

    def forward(self, x: Tensor, grad_checkpointing: bool = False) -> Tensor:
        """Maps ``(B, H, W, C)`` before the downsampling."""
        query = self.q_global_gen(x.permute(0, 3, 1, 2))
        for block in self.blocks:
            if grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, query, use_reentrant=False)
            else:
                x = block(x, query)
        return x


class GCViT(nn.Module):
    """The network; `num_classes` of 0 gives pooled features, `dense_norms` the norms of its four maps.

    Args:
        variant: name in :data:`VARIANTS`, whose values the other options go before; None takes them all from options.
        dim: channels of the first stage; they double from stage to stage.
        depths: blocks of the stages.
        heads: of the stages.
        window_size: sides of the stages' windows: (7, 7, 14, 7) as published for 224 pixels, 24 for dense prediction.
        mlp_ratio: hidden width of the MLPs over the channels.
        drop_path_rate: stochastic depth, growing linearly from 0 over all blocks.
        layer_scale: start of the scales of residual branches; None has none.
        num_classes: of the classifier.
        in_chans: image channels.
        stage3_pool: pool in the query generator of the third stage: True as published for dense prediction, False as
            published for classification.
        dense_norms: have a norm for each map instead of one for the last.
        grad_checkpointing: recompute blocks in the backward pass.

    Raises:
        ValueError: for an unknown variant, or sizes that do not go together.
    """

    def __init__(
        self,
        variant: str | None = "tiny",
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        window_size: int | Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        layer_scale: float | None = None,
        num_classes: int = 0,
        in_chans: int = 3,
        stage3_pool: bool = False,
        dense_norms: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if variant is not None and variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} is none of {', '.join(VARIANTS)}.")
        known: dict[str, Any] = dict(VARIANTS[variant]) if variant else {"mlp_ratio": 3.0, "drop_path_rate": 0.0}
        given = {"dim": dim, "depths": depths, "heads": heads, "mlp_ratio": mlp_ratio,
                 "drop_path_rate": drop_path_rate, "layer_scale": layer_scale}  # fmt: skip
        known |= {name: value for name, value in given.items() if value is not None}
        missing = [name for name in ("dim", "depths", "heads") if name not in known]
        if missing:
            raise ValueError(f"without a variant GC ViT needs {', '.join(missing)}.")
        windows = (window_size,) * 4 if isinstance(window_size, int) else tuple(window_size)
        dim, depths, heads = int(known["dim"]), tuple(known["depths"]), tuple(known["heads"])
        if not len(depths) == len(heads) == len(windows) == 4:
            raise ValueError(f"depths={depths}, heads={heads} and window_size={windows}: expected four of each.")
        if any((dim << i) % n for i, n in enumerate(heads)):
            raise ValueError(f"dim={dim} doubles from stage to stage and must be divisible by heads={heads}.")
        self.depths, self.windows, self.channels = depths, windows, tuple(dim << i for i in range(4))
        self.grad_checkpointing, self.num_classes = grad_checkpointing, num_classes
        total = sum(depths)
        rates = [known["drop_path_rate"] * i / max(total - 1, 1) for i in range(total)]
        self.patch_embed = Stem(in_chans, dim)
        self.levels = nn.ModuleList(
            GCStage(
                dim << i, depths[i], heads[i], windows[i], (3, 2, int(stage3_pool), 0)[i], i < 3, known["mlp_ratio"],
                rates[sum(depths[:i]) : sum(depths[: i + 1])], known.get("layer_scale"),
            )
            for i in range(4)
        )  # fmt: skip
        if dense_norms:
            for i, width in enumerate(self.channels):
                self.add_module(f"norm{i}", nn.LayerNorm(width))
        else:
            self.norm = nn.LayerNorm(self.channels[-1])
            self.head = nn.Linear(self.channels[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to the four maps ``(B, h, w, C)`` before each downsampling, without a norm."""
        x = self.patch_embed(images)
        maps = []
        levels: Any = self.levels
        for stage in levels:
            x = stage(x, self.grad_checkpointing)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """The normed last map ``(B, h, w, C)``."""
        norm: Any = self.norm
        return norm(self.forward_maps(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``, or the mean feature ``(B, C)`` without classes."""
        head: Any = self.head
        return head(self.forward_features(images).mean(dim=(1, 2)))

    def no_weight_decay(self) -> set[str]:
        """None: the reference names `rpb`, which no parameter is called, so that its bias tables decay."""
        return set()

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay: the stem 0, block by block, and what stands between stages with
        the block that follows; and the number of depths.

        Raises:
            KeyError: if there is no such parameter.
        """
        if name not in dict(self.named_parameters()):
            raise KeyError(f"{name!r} is not a parameter of GC ViT.")
        last = sum(self.depths) + 1
        parts = name.split(".")
        if parts[0] == "patch_embed":
            return 0, last + 1
        if parts[0] != "levels":
            return last, last + 1
        before = sum(self.depths[: int(parts[1])])
        if parts[2] == "blocks":
            return before + int(parts[3]) + 1, last + 1
        if parts[2] == "downsample":
            return min(before + self.depths[int(parts[1])] + 1, last), last + 1
        return before + 1, last + 1  # the queries of a stage, with its first block


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """A table ``((2 w - 1) ** 2, heads)`` for another window, bicubically without antialias, as ``(heads, S, S)``."""
    side = round(table.shape[0] ** 0.5)
    if side == 2 * window - 1:
        return table
    image = table.T.reshape(1, -1, side, side)
    resized = F.interpolate(image, size=(2 * window - 1,) * 2, mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].T.contiguous()


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
