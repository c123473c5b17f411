"""The one vision transformer: pretraining, classification, segmentation and detection all use this encoder.

Pre-norm blocks, LayerNorm eps 1e-6, qkv bias, GELU MLP x4 (ViT, arXiv 2010.11929; MAE, arXiv 2111.06377), with fixed
sine-cosine or learned absolute positions and, optionally, contextual relative positions in every attention layer
(iRPE, arXiv 2107.14222). Parameter names are timm's, plus `attn.rel_pos_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adpe.positions import CLASS_BUCKET, NUM_BUCKETS, contract, relative_logits, sincos_table

Position = Literal["absolute", "relative", "relative_interpolated"]
RelativeQuery = Literal["scaled", "unscaled"]
LayerNorm = partial(nn.LayerNorm, eps=1e-6)

# From this many tokens on, bfloat16 attention on the CPU is fused as well, for the sake of memory.
FUSED_TOKENS = 600


@dataclass(frozen=True)
class RelativeTerm:
    """The relative term of one attention layer, with what an adversary does to it.

    Attributes:
        grid: ``(h, w)`` patches.
        interpolate: the interpolated form of the buckets.
        query: "scaled" multiplies the table by ``q / sqrt(d)``, "unscaled" by ``q``.
        masked: ``(B, 1, N, 1)``, 1 at masked patches; an adversary acts on those alone.
        displaced_weights: ``(N, 99, N)`` weights of the 49 buckets for visible queries, of the 49 for masked queries,
            and of the class bucket; replaces the grid's weights.
        key_shift: ``(d,)`` added to every bucket of the table where the key is masked.
        query_shift: ``(d,)`` added to every bucket of the table where the query is masked. The softmax does not see it.
    """

    grid: tuple[int, int]
    interpolate: bool
    query: RelativeQuery = "scaled"
    masked: Tensor | None = None
    displaced_weights: Tensor | None = None
    key_shift: Tensor | None = None
    query_shift: Tensor | None = None

    def keys(self, k: Tensor) -> Tensor:
        """Keys ``(B, H, N, d)`` with the key shift: ``q . (k_j + a)`` adds ``q . a`` to every bucket of key j."""
        if self.masked is None or self.key_shift is None:
            return k
        return k + (self.masked * self.key_shift).to(k.dtype)

    def logits(self, q: Tensor, table: Tensor) -> Tensor:
        """Relative logits ``(B, H, N, N)`` from scaled queries ``(B, H, N, d)`` and a table ``(d, 50)``."""
        if self.query == "unscaled":
            table = table * q.shape[-1] ** 0.5
        scores = q @ table.to(q.dtype)
        if self.masked is None:
            return relative_logits(scores, self.grid, self.interpolate)
        masked = self.masked.to(q.dtype)
        if self.query_shift is not None:
            scores = scores + masked * (q @ self.query_shift.to(q.dtype).unsqueeze(-1))
        if self.displaced_weights is None:
            return relative_logits(scores, self.grid, self.interpolate)
        patch, cls = scores.split([CLASS_BUCKET, 1], dim=-1)
        hidden = patch * masked
        return contract(torch.cat([patch - hidden, hidden, cls], dim=-1), self.displaced_weights.to(q.dtype))


class Attention(nn.Module):
    """Multi-head self-attention, with a relative term when `relative` is set.

    Args:
        dim: width D, divisible by `num_heads`.
        num_heads: H.
        relative: hold a table of relative positions, ``(D / H, 50)``, shared by all heads, zero at the start.
    """

    def __init__(self, dim: int, num_heads: int, relative: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_table = nn.Parameter(torch.zeros(dim // num_heads, NUM_BUCKETS)) if relative else None

    def forward(self, x: Tensor, term: RelativeTerm | None = None) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``; `term` is needed when the layer has relative positions."""
        b, n, dim = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        q = q * q.shape[-1] ** -0.5
        logits = None
        if self.rel_pos_table is not None:
            assert term is not None
            logits, k = term.logits(q, self.rel_pos_table), term.keys(k)
        return self.proj(attend(q, k, v, logits).transpose(1, 2).reshape(b, n, dim))


def attend(q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None = None) -> Tensor:
    """``softmax(q k^T + logits) v`` by the quickest exact way.

    torch's fused attention, except on the CPU with `logits`, which it there hands to an unfused path (twice as slow in
    bfloat16 as three products), or in bfloat16, whose backward pass is four times slower (seen at 50 and 197 tokens).

    Args:
        q: ``(B, H, N, d)``, scaled.
        k: ``(B, H, N, d)``.
        v: ``(B, H, N, d)``.
        logits: ``(B, H, N, N)``, or None.

    Returns:
        ``(B, H, N, d)``.
    """
    written_out = logits is not None or (q.dtype == torch.bfloat16 and q.shape[2] <= FUSED_TOKENS)
    if q.device.type != "cpu" or not written_out:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=logits, scale=1.0)
    products = q @ k.transpose(-2, -1)
    if logits is not None:
        products += logits
    return products.softmax(dim=-1) @ v


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


class Block(nn.Module):
    """Pre-norm transformer block: ``x += attn(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, relative: bool = False, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, relative)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, term: RelativeTerm | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), term))
        return x + self.drop_path(self.mlp(self.norm2(x)))


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


class VisionTransformer(nn.Module):
    """Vision transformer encoder.

    Args:
        img_size: pixels, or (height, width); fixes the length of learned positions, nothing else.
        patch_size: pixels p.
        in_chans: image channels.
        embed_dim: width D, divisible by 4 and by `num_heads`.
        depth: number of blocks.
        num_heads: heads H.
        mlp_ratio: hidden width of the MLP over D.
        position: "absolute" positions alone, or with "relative" (discrete buckets) or "relative_interpolated" terms in
            every block.
        relative_query: what the relative table is multiplied by: the "scaled" query ``q / sqrt(d)``, as in pretraining,
            or the "unscaled" one, as in the reference's fine-tuning encoder, where the same table thus weighs sqrt(d)
            times more (measured on its goldens; the paper does not mention it).
        learned_pos_embed: learn `pos_embed` instead of the fixed sine-cosine table.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        num_classes: 0 for features; otherwise the mean of the patch tokens, `fc_norm` and a linear `head` (std 2e-5)
            replace the final norm, as in MAE's fine-tuning.
        grad_checkpointing: recompute every block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: if widths do not divide, or `position` is unknown.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        position: Position = "absolute",
        relative_query: RelativeQuery = "scaled",
        learned_pos_embed: bool = False,
        drop_path_rate: float = 0.0,
        num_classes: int = 0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if position not in get_args(Position):
            raise ValueError(f"position must be one of {', '.join(get_args(Position))}; got {position!r}.")
        if relative_query not in get_args(RelativeQuery):
            raise ValueError(f"relative_query must be scaled or unscaled; got {relative_query!r}.")
        if embed_dim % num_heads or embed_dim % 4:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by 4 and by num_heads {num_heads}.")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        self.embed_dim = self.num_features = embed_dim
        self.num_heads = num_heads
        self.position = position
        self.relative_query = relative_query
        self.num_classes = num_classes
        self.grad_checkpointing = grad_checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        length = 1 + (height // patch_size) * (width // patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, embed_dim)) if learned_pos_embed else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, position != "absolute", drop_path_rate * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.norm = LayerNorm(embed_dim) if num_classes == 0 else nn.Identity()
        self.fc_norm = LayerNorm(embed_dim) if num_classes else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def patch_size(self) -> int:
        """Patch size in pixels."""
        return self.patch_embed.patch_size

    def reset_parameters(self) -> None:
        """MAE's initialisation: Xavier uniform matrices, the patch convolution as a matrix, tokens of std 0.02."""
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.embed_dim, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=2e-5)

    def position_table(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """``(1, 1 + h * w, D)`` absolute positions of a grid, in the dtype and on the device of `like`.

        The sine-cosine table is recomputed, exactly, for any grid; a learned one is resampled like timm's
        ``resample_abs_pos_embed`` (bicubic, antialiased, in float32).
        """
        if self.pos_embed is None:
            return sincos_table(*grid, self.embed_dim, like.dtype, like.device)
        old = (self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size)
        return self.pos_embed if grid == old else resample_pos_embed(self.pos_embed, old, grid)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens with positions ``(B, 1 + L, D)``, class token first, and the grid ``(h, w)``."""
        grid = self.patch_embed.grid(images)
        patches = self.patch_embed(images)
        positions = self.position_table(grid, self.cls_token)  # not rounded by autocast
        cls = (self.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls, patches + positions[:, 1:]], dim=1), grid

    def relative_term(self, grid: tuple[int, int]) -> RelativeTerm | None:
        """The relative term on a grid, the same for every block; None for absolute positions."""
        if self.position == "absolute":
            return None
        return RelativeTerm(grid, self.position == "relative_interpolated", self.relative_query)

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to ``(B, 1 + L, D)`` tokens after the final norm (timm's meaning)."""
        x, grid = self.embed(images)
        terms = [self.relative_term(grid)] * len(self.blocks)
        return self.norm(run_blocks(self.blocks, x, terms, self.grad_checkpointing))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean of the patch tokens, norm and, unless `pre_logits`, the linear head."""
        x = self.fc_norm(x[:, 1:].mean(dim=1))
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``, or the mean patch feature ``(B, D)`` without classes."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ):
        """Features after chosen blocks; arguments and results mean what timm's do.

        Args:
            images: ``(B, 3, H, W)``.
            indices: blocks, negative from the end; an int n for the last n; None for all.
            return_prefix_tokens: pair every map with its class token ``(B, 1, D)``.
            norm: apply the final norm to every map.
            stop_early: do not run the blocks after the last one asked for.
            output_fmt: maps ``(B, D, h, w)`` or patch tokens ``(B, L, D)``.
            intermediates_only: leave out the final tokens.

        Returns:
            The final tokens ``(B, 1 + L, D)`` and the list of maps, or the list alone.

        Raises:
            ValueError: for a block that does not exist or an unknown format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}.")
        depth = len(self.blocks)
        wanted = range(depth) if indices is None else range(depth)[-indices:] if isinstance(indices, int) else indices
        bad = [i for i in wanted if not -depth <= i < depth]
        if bad:
            raise ValueError(f"indices {bad} do not exist in an encoder of {depth} blocks.")
        keep = [i % depth for i in wanted]
        x, grid = self.embed(images)
        term = self.relative_term(grid)
        intermediates = []
        for i in range(max(keep, default=-1) + 1 if stop_early else depth):
            x = run_blocks([self.blocks[i]], x, [term], self.grad_checkpointing)
            if i in keep:
                intermediates.append(self.norm(x) if norm else x)
        maps = [y[:, 1:] for y in intermediates]
        if output_fmt == "NCHW":
            maps = [y.transpose(1, 2).reshape(len(y), -1, *grid) for y in maps]
        if return_prefix_tokens:
            maps = [(y, tokens[:, :1]) for y, tokens in zip(maps, intermediates, strict=True)]
        return maps if intermediates_only else (self.norm(x), maps)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass (timm's name)."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that fine-tuning recipes do not decay, beside 1-D tensors (timm's name)."""
        return {"pos_embed", "cls_token"}

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, and the number of depths.

        0 for tokens, positions and the patch embedding, i + 1 for block i, depth + 1 for what follows the blocks.

        Raises:
            KeyError: if the encoder has no such parameter.
        """
        if name not in dict(self.named_parameters()):
            raise KeyError(f"{name!r} is not a parameter of the encoder.")
        last = len(self.blocks) + 1
        if name.startswith(("cls_token", "pos_embed", "patch_embed.")):
            return 0, last + 1
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1, last + 1
        return last, last + 1


def resample_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned positions ``(1, 1 + h * w, D)`` of grid `old` for grid `new`, like timm's ``resample_abs_pos_embed``."""
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    image = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", antialias=True)
    return torch.cat([cls, image.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


def run_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    x: Tensor,
    terms: Sequence[RelativeTerm | None],
    grad_checkpointing: bool = False,
) -> Tensor:
    """Run blocks one after the other, each with its relative term."""
    for block, term in zip(blocks, terms, strict=True):
        if grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, term, use_reentrant=False)
        else:
            x = block(x, term)
    return x


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weight and zero bias of a linear layer (MAE); other modules keep their own start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
