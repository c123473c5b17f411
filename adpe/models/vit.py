"""The one vision transformer: pretraining, classification, segmentation and detection all use this encoder.

Pre-norm blocks, LayerNorm, qkv bias, GELU MLP x4 (ViT, arXiv 2010.11929; MAE, arXiv 2111.06377), with fixed
sine-cosine or learned absolute positions and, optionally, contextual relative positions in every attention layer
(iRPE, arXiv 2107.14222), windows and decomposed relative positions (ViTDet, arXiv 2203.16527), BEiT's relative bias and
LayerScale (arXiv 2106.08254). Parameter names are timm's, plus `attn.rel_pos_table`, ViTDet's `attn.rel_pos_h` and
`attn.rel_pos_w`, and BEiT's `attn.relative_position_bias_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from adpe.models.attention import Attention, RelativeQuery, RelativeTerm
from adpe.models.describe import describe_positions
from adpe.models.layers import Block, LayerNorm, PatchEmbed, init_linear, run_blocks
from adpe.models.options import LearnedPosEmbed, Position, Size, check_class_tokens, check_shapes, check_words
from adpe.models.pos_embed import relative_weights, sincos_table
from adpe.models.resampling import PosEmbedResize, resample_pos_embed, resampled_sincos

# The buffer of encoders with relative positions that says in every file which form reads their tables.
FORM = "rel_pos_interpolated"


class VisionTransformer(nn.Module):
    """Vision transformer encoder.

    Args:
        img_size: pixels, or (height, width); fixes the length of learned positions and of relative tables that depend
            on the grid, nothing else.
        patch_size: pixels p.
        in_chans: image channels.
        embed_dim: width D, divisible by 4 and by `num_heads`.
        depth: number of blocks.
        num_heads: heads H.
        mlp_ratio: hidden width of the MLP over D.
        position: "absolute" positions alone, or with "relative" (discrete buckets) or "relative_interpolated" terms in
            every block; "none" adds nothing to the tokens, as BEiT, which has `use_rel_pos_bias` alone.
        relative_query: what the relative table is multiplied by: the "scaled" query ``q / sqrt(d)``, as in pretraining,
            or the "unscaled" one, as in the reference's fine-tuning encoder, where the same table thus weighs sqrt(d)
            times more (measured on its goldens; the paper does not mention it).
        learned_pos_embed: train `pos_embed`, which starts as the sine-cosine table, or as that of a checkpoint: True
            for a table of `img_size`, resized once when it is loaded (MAE, AdPE, mmseg); "pretraining" for one of
            `pretrain_img_size` (224 if that is not known), resized in every forward pass (detectron2's ViTDet). False
            adds a fixed table.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        num_classes: 0 for features; otherwise the mean of the patch tokens, `fc_norm` and a linear `head` (std 2e-5)
            replace the final norm, as in MAE's fine-tuning.
        grad_checkpointing: recompute every block in the backward pass instead of keeping its activations.
        class_token: whether to prepend a class token; must be False with window attention, as in ViTDet. No other
            parameter changes its name without it, and a learned `pos_embed` keeps the class token's row, unused.
        pos_embed_resize: how a table of another grid is fitted, see :mod:`adpe.models.resampling`. None is "bicubic";
            but a fixed table of an encoder that knows of no pretraining is made for the grid at hand ("recompute").
        pretrain_img_size: pixels, or (height, width), of pretraining, whose sine-cosine table is resampled. None takes
            what a checkpoint says when it is loaded.
        window_size: patches along a side of attention windows, see :mod:`adpe.models.attention`; 0 has none.
        global_attn_indexes: blocks that attend to the whole image all the same.
        use_rel_pos: decomposed relative positions, with tables for `img_size`, or for the window in windowed blocks.
        use_rel_pos_bias: BEiT's relative position bias, a table a block for the same grids.
        init_values: start of LayerScale (0.1 in BEiT-Base and mmseg's MAE); None has none.
        norm_eps: of every LayerNorm.
        num_class_tokens: class tokens K, each with a position of its own where positions are learned (Pixio, arXiv
            2512.15715); none with ``class_token=False``.

    Raises:
        ValueError: if widths do not divide, an option is unknown, or options do not go together.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        position: Position = "absolute",
        relative_query: RelativeQuery = "scaled",
        learned_pos_embed: LearnedPosEmbed = False,
        drop_path_rate: float = 0.0,
        num_classes: int = 0,
        grad_checkpointing: bool = False,
        class_token: bool = True,
        pos_embed_resize: PosEmbedResize | None = None,
        pretrain_img_size: Size | None = None,
        window_size: int = 0,
        global_attn_indexes: Sequence[int] = (),
        use_rel_pos: bool = False,
        use_rel_pos_bias: bool = False,
        init_values: float | None = None,
        norm_eps: float = 1e-6,
        num_class_tokens: int = 1,
    ) -> None:
        super().__init__()
        check_class_tokens(num_class_tokens, position)
        check_words(position, relative_query, pos_embed_resize, learned_pos_embed, norm_eps)
        check_shapes(embed_dim, depth, num_heads, class_token, window_size, global_attn_indexes)
        height, width = _pair(img_size)
        self.img_size = (height, width)
        self.embed_dim = self.num_features = embed_dim
        self.num_heads = num_heads
        self.position = position
        self.relative_query = relative_query
        self.num_classes = num_classes
        self.grad_checkpointing = grad_checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, num_class_tokens, embed_dim)) if class_token else None
        self.norm_eps = norm_eps
        self._pos_embed_resize = pos_embed_resize
        self.pretrain_img_size = None if pretrain_img_size is None else _pair(pretrain_img_size)
        self.pos_embed: nn.Parameter | None = None
        if learned_pos_embed:
            known = _pair(224) if self.pretrain_img_size is None else self.pretrain_img_size
            self.table_size = known if learned_pos_embed == "pretraining" else self.img_size
            rows, columns = self.grid_of(self.table_size)
            self.pos_embed = nn.Parameter(torch.zeros(1, self._table_prefix + rows * columns, embed_dim))
        if self.relative:
            self.register_buffer(FORM, torch.tensor(float(position == "relative_interpolated")))
        grid = (height // patch_size, width // patch_size)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            window = 0 if i in global_attn_indexes else window_size
            area = (window, window) if window else grid
            self.blocks.append(
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    self.relative,
                    drop_path_rate * i / max(depth - 1, 1),
                    init_values,
                    norm_eps,
                    window_size=window,
                    rel_pos_grid=area if use_rel_pos else None,
                    bias_grid=area if use_rel_pos_bias else None,
                )
            )
        self.norm = LayerNorm(embed_dim, eps=norm_eps) if num_classes == 0 else nn.Identity()
        self.fc_norm = LayerNorm(embed_dim, eps=norm_eps) if num_classes else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def patch_size(self) -> int:
        """Patch size in pixels."""
        return self.patch_embed.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches: class tokens, 0 without them (timm's name)."""
        return 0 if self.cls_token is None else self.cls_token.shape[1]

    @property
    def _table_prefix(self) -> int:
        """Rows of the table of positions before the patches': one without a class token too."""
        return max(self.num_prefix_tokens, 1)

    @property
    def relative(self) -> bool:
        """Whether the blocks have contextual relative positions, in either form."""
        return self.position.startswith("relative")

    @property
    def pos_embed_resize(self) -> PosEmbedResize:
        """How a table of another grid is fitted; see the constructor."""
        unknown = self.pos_embed is None and self.pretrain_img_size is None
        return self._pos_embed_resize or ("recompute" if unknown else "bicubic")

    @property
    def pretraining_size(self) -> tuple[int, int]:
        """Pixels of pretraining; `img_size` where they are not known."""
        return self.pretrain_img_size or self.img_size

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patches ``(h, w)`` of images of so many pixels."""
        return size[0] // self.patch_size, size[1] // self.patch_size

    @property
    def needs_grid(self) -> bool:
        """Blocks work on a whole grid of patches: in windows, or with relative positions besides the buckets."""
        return any(a.window_size or a.rel_pos_h is not None or a.bias_grid is not None for a in self.attentions())

    def attentions(self) -> list[Attention]:
        """The attention layers of the blocks."""
        return [cast(Block, block).attn for block in self.blocks]

    def reset_parameters(self) -> None:
        """MAE's initialisation: Xavier uniform matrices, the patch convolution as a matrix, tokens of std 0.02."""
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.embed_dim, -1))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            grid, device = self.grid_of(self.table_size), self.pos_embed.device
            table = sincos_table(*grid, self.embed_dim, torch.float32, device, self._table_prefix)
            with torch.no_grad():
                self.pos_embed.copy_(table)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=2e-5)

    def position_table(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """``(1, K + h * w, D)`` absolute positions of a grid, in the dtype and on the device of `like`.

        The rows of the K class tokens come first, one row where there is none.
        """
        prefix = self._table_prefix
        if self.position == "none":
            return torch.zeros(1, prefix + grid[0] * grid[1], self.embed_dim, dtype=like.dtype, device=like.device)
        rule = self.pos_embed_resize
        if self.pos_embed is not None:
            return resample_pos_embed(self.pos_embed, self.grid_of(self.table_size), grid, rule)
        if rule == "recompute":
            return sincos_table(*grid, self.embed_dim, like.dtype, like.device, prefix)
        old = self.grid_of(self.pretraining_size)
        return resampled_sincos(old, grid, self.embed_dim, rule, like.dtype, like.device, prefix)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens with positions ``(B, K + L, D)``, class tokens first if there are any, and the grid ``(h, w)``."""
        grid = self.patch_embed.grid(images)
        patches = self.patch_embed(images)
        positions = self.position_table(grid, self.patch_embed.proj.weight)  # not rounded by autocast
        prefix = self._table_prefix
        patches = patches + positions[:, prefix:]
        if self.cls_token is None:
            return patches, grid
        cls = (self.cls_token + positions[:, :prefix]).expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1), grid

    def relative_term(self, grid: tuple[int, int]) -> RelativeTerm | None:
        """The relative term on a grid of patches, an image's or a window's; None without relative positions."""
        if not self.relative:
            return None
        weight, interpolate = self.patch_embed.proj.weight, self.position == "relative_interpolated"
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        weights = relative_weights(grid, interpolate, dtype, weight.device, self.cls_token is not None)
        return RelativeTerm(grid, interpolate, self.relative_query, weights=weights)

    def relative_terms(self, grid: tuple[int, int]) -> list[RelativeTerm | None]:
        """The relative term of every block on an image's grid."""
        windows = [attention.window_size for attention in self.attentions()]
        terms = {size: self.relative_term((size, size) if size else grid) for size in {*windows}}
        return [terms[size] for size in windows]

    def describe_positions(self) -> str:
        """See :func:`adpe.models.describe.describe_positions`."""
        return describe_positions(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to ``(B, K + L, D)`` tokens after the final norm (timm's meaning)."""
        x, grid = self.embed(images)
        return self.norm(run_blocks(self.blocks, x, self.relative_terms(grid), self.grad_checkpointing, grid))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean of the patch tokens, norm and, unless `pre_logits`, the linear head."""
        x = self.fc_norm(x[:, self.num_prefix_tokens :].mean(dim=1))
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
            return_prefix_tokens: pair every map with its class tokens ``(B, K, D)``, if there are any.
            norm: apply the final norm to every map.
            stop_early: do not run the blocks after the last one asked for.
            output_fmt: contiguous maps ``(B, D, h, w)`` or patch tokens ``(B, L, D)``.
            intermediates_only: leave out the final tokens.

        Returns:
            The final tokens ``(B, K + L, D)`` and the list of maps, or the list alone.

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
        terms = self.relative_terms(grid)
        intermediates = []
        for i in range(max(keep, default=-1) + 1 if stop_early else depth):
            x = run_blocks([self.blocks[i]], x, [terms[i]], self.grad_checkpointing, grid)
            if i in keep:
                intermediates.append(self.norm(x) if norm else x)
        maps = [y[:, self.num_prefix_tokens :] for y in intermediates]
        if output_fmt == "NCHW":
            maps = [y.transpose(1, 2).reshape(y.shape[0], -1, *grid).contiguous() for y in maps]
        if return_prefix_tokens and self.num_prefix_tokens:
            maps = [(y, tokens[:, : self.num_prefix_tokens]) for y, tokens in zip(maps, intermediates, strict=True)]
        return maps if intermediates_only else (self.norm(x), maps)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass (timm's name)."""
        self.grad_checkpointing = enable

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        # What was written before this buffer was there holds either form.
        if self.relative:
            own = torch.tensor(float(self.position == "relative_interpolated"))
            theirs = state_dict.setdefault(prefix + FORM, own)
            if theirs.numel() != 1 or bool(theirs.item() != own.item()):
                arguments[-1].append(
                    f"{prefix}{FORM} is {theirs.tolist()}, which is not of position={self.position!r}."
                )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def no_weight_decay(self) -> set[str]:
        """Parameters that fine-tuning recipes do not decay, beside 1-D tensors (timm's name; its BEiT's choice)."""
        biases = {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}
        return {"pos_embed", "cls_token"} | biases

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


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
