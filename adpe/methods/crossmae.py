"""CrossMAE (arXiv 2401.14391): every hidden patch is decoded on its own, by cross-attention to encoder tokens alone.

The prediction of a patch does not depend on which others are predicted, so that any subset of them may be. Each block
of the decoder looks at a mixture of the encoder's blocks of its own. The encoder has no final norm here, so that the
exported one starts with that of a new encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.mae import MAE
from adpe.methods.masks.masking import Mask
from adpe.models.layers import LayerNorm, Mlp, init_linear, run_blocks
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer


class CrossAttention(nn.Module):
    """Queries of width D_dec attend to tokens of width D.

    Args:
        dim: D_dec.
        context_dim: D.
        num_heads: heads.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Queries ``(B, Q, D_dec)`` and tokens ``(B, N, D)`` to ``(B, Q, D_dec)``."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        query = self.q(x).unflatten(-1, heads).transpose(1, 2)
        key, value = self.kv(context).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """``q += cross_attn(norm1(q), y); q += mlp(norm2(q))``, after ``q += self_attn(norm0(q))`` if there is one."""

    def __init__(self, dim: int, context_dim: int, num_heads: int, self_attn: bool) -> None:
        super().__init__()
        self.norm0 = LayerNorm(dim) if self_attn else nn.Identity()
        self.self_attn = CrossAttention(dim, dim, num_heads) if self_attn else None
        self.norm1 = LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, context_dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.self_attn is not None:
            queries = self.norm0(x)
            x = x + self.self_attn(queries, queries)
        x = x + self.cross_attn(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))


class CrossDecoder(nn.Module):
    """Blocks of cross-attention, each over its own mixture of the encoder's maps.

    Args:
        encoder_dim: D.
        patch_dim: pixels and channels of a patch.
        embed_dim: D_dec.
        depth: blocks.
        num_heads: heads.
        maps: maps of the encoder that are mixed.
        self_attn: let the queries see each other first.
        reference: initialise the mixture as the reference does (Xavier uniform); else every block starts with the mean
            of the maps.
    """

    def __init__(
        self,
        encoder_dim: int,
        patch_dim: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        maps: int,
        self_attn: bool,
        reference: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(embed_dim, encoder_dim, num_heads, self_attn) for _ in range(depth))
        self.norms = nn.ModuleList(LayerNorm(encoder_dim) for _ in range(depth))
        self.mixture = nn.Linear(maps, depth, bias=False)
        self.norm = LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_dim)
        self.apply(init_linear)
        if not reference:
            nn.init.constant_(self.mixture.weight, 1 / maps)

    def forward(self, queries: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Queries ``(B, Q, D_dec)`` and the encoder's maps ``(B, N, D)`` to pixels ``(B, Q, p * p * 3)``."""
        stacked = torch.stack(list(maps), dim=-1)
        x = queries
        for block, norm, weights in zip(self.blocks, self.norms, self.mixture.weight, strict=True):
            x = block(x, norm(stacked @ weights.to(stacked.dtype)))
        return self.pred(self.norm(x))


class CrossMAE(MAE):
    """Masked autoencoder with a decoder of cross-attention alone, on a subset of the hidden patches.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        mask_ratio: share of the patches that is hidden.
        predicted_ratio: share of the patches that is predicted, at most `mask_ratio`. The published runs multiply the
            learning rate by ``predicted_ratio / mask_ratio``.
        norm_pix_loss: regress pixels normalised per patch.
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder; 12 in all published runs.
        decoder_num_heads: heads of the decoder.
        mixed_blocks: blocks of the encoder whose outputs are mixed, negative from the end; None for all. Their order is
            that of depth.
        mix_input: mix the encoder's input too.
        self_attn: let the hidden patches see each other before they look at the encoder.
        reference: see :class:`CrossDecoder`; the mixture then decays, as it does in the reference.
        mask: see :class:`adpe.methods.mae.MAE`.

    Raises:
        ValueError: for options that do not go together.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        mask_ratio: float = 0.75,
        predicted_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 12,
        decoder_num_heads: int = 16,
        mixed_blocks: Sequence[int] | None = None,
        mix_input: bool = True,
        self_attn: bool = False,
        reference: bool = False,
        mask: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, mask_ratio, norm_pix_loss, decoder_embed_dim, 0, decoder_num_heads, mask=mask)
        if not 0 < predicted_ratio <= mask_ratio:
            raise ValueError(f"predicted_ratio={predicted_ratio} must be above 0 and at most mask_ratio={mask_ratio}.")
        depth = len(encoder.blocks)
        chosen = range(depth) if mixed_blocks is None else mixed_blocks
        if any(not -depth <= block < depth for block in chosen) or not (mix_input or chosen):
            raise ValueError(f"mixed_blocks={mixed_blocks}: expected blocks of an encoder of {depth}.")
        self.mixed = sorted({block % depth for block in chosen})
        self.mix_input, self.predicted_ratio, self.reference = mix_input, predicted_ratio, reference
        patch_dim = encoder.patch_embed.proj.in_channels * encoder.patch_size**2
        self.decoder = CrossDecoder(  # type: ignore[assignment]
            encoder.embed_dim, patch_dim, decoder_embed_dim, decoder_depth, decoder_num_heads,
            len(self.mixed) + mix_input, self_attn, reference,
        )  # fmt: skip
        self.encoder.norm.requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss over the predicted patches; arguments as :meth:`adpe.methods.mae.MAE.forward`."""
        mask = self.random_mask(images, noise)
        chosen = self.predicted_indices(mask)
        prediction = self.predict(self.maps(images, mask), chosen, self.encoder.patch_embed.grid(images))
        target = torch.take_along_dim(self.target(images), chosen.unsqueeze(-1), dim=1)
        return (prediction - target).square().mean()

    def predicted_indices(self, mask: Mask) -> Tensor:
        """``(B, Q)`` hidden patches that are predicted, those of largest noise, in raster order."""
        patches, visible = mask.hidden.shape[1], mask.visible_indices.shape[1]
        ignored = int(patches * (self.mask_ratio - self.predicted_ratio))
        chosen = mask.hidden_indices[:, ignored:]
        if not chosen.shape[1]:
            raise ValueError(
                f"predicted_ratio={self.predicted_ratio}: none of {patches - visible} patches is predicted."
            )
        return chosen.sort(dim=1).values

    def maps(self, images: Tensor, mask: Mask) -> list[Tensor]:
        """Tokens ``(B, 1 + V, D)`` of the class token and the visible patches, of the input and of chosen blocks."""
        encoder = self.encoder
        grid = encoder.patch_embed.grid(images)
        assert encoder.cls_token is not None
        table = encoder.position_table(grid, encoder.cls_token)
        prefix = encoder.num_prefix_tokens
        patches = mask.visible_of(encoder.patch_embed(images) + table[:, prefix:])
        x = torch.cat([(encoder.cls_token + table[:, :prefix]).expand(len(images), -1, -1), patches], dim=1)
        found = [x] if self.mix_input else []
        for number in range(self.mixed[-1] + 1 if self.mixed else 0):
            x = run_blocks([encoder.blocks[number]], x, [None], encoder.grad_checkpointing)
            if number in self.mixed:
                found.append(x)
        return found

    def predict(self, maps: Sequence[Tensor], chosen: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels ``(B, Q, p * p * 3)`` of chosen patches ``(B, Q)``."""
        assert self.mask_token is not None
        width = self.mask_token.shape[-1]
        table = sincos_table(*grid, width, self.mask_token.dtype, self.mask_token.device)[:, 1:]
        positions = torch.take_along_dim(table.expand(len(chosen), -1, -1), chosen.unsqueeze(-1), dim=1)
        return self.decoder(self.mask_token + positions, maps)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`adpe.methods.mae.MAE.reconstruct`; every patch is predicted, the visible ones too."""
        mask = self.random_mask(images, noise)
        everything = torch.arange(mask.hidden.shape[1], device=images.device).expand(len(images), -1)
        prediction = self.predict(self.maps(images, mask), everything, self.encoder.patch_embed.grid(images))
        return prediction, mask.hidden.float()

    def parameter_groups(
        self, lr: float, weight_decay: float, adversary_lr: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """MAE's; the mixture does not decay, unless `reference`: a norm follows it, so that decay only shrinks it."""
        groups = super().parameter_groups(lr, weight_decay, **options)
        mixture = cast(CrossDecoder, self.decoder).mixture.weight
        if not self.reference:
            for group in groups:
                group["params"] = [p for p in group["params"] if p is not mixture]
            groups[1]["params"].append(mixture)
        return groups

    @property
    def title(self) -> str:
        return "CrossMAE"
