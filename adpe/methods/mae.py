"""MAE (arXiv 2111.06377): encode the visible patches, put mask tokens before the decoder, predict the hidden pixels.

The loss is the mean squared error over hidden patches against pixels normalised per patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.masks.masking import Mask, rank_mask
from adpe.methods.masks.rankings import BlockRanking, build_ranking
from adpe.methods.targets.pixels import normalize_patches, patchify, unpatchify
from adpe.models.attention import RelativeTerm
from adpe.models.layers import Block, LayerNorm, init_linear, run_blocks
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MaskTokens = Literal["encoder", "decoder"]
Stage = Literal["encoder", "decoder"]


class Decoder(nn.Module):
    """Linear, sine-cosine positions, blocks, norm, linear to the pixels of a patch (row, column, channel).

    Args:
        encoder_dim: width of the tokens it is given.
        patch_dim: pixels and channels of a patch.
        embed_dim: its own width.
        depth: blocks.
        num_heads: heads.
        relative: contextual relative positions.
        learned_tokens: rows of a trained table of positions, those of the class tokens included; 0 has the fixed one.
    """

    def __init__(
        self,
        encoder_dim: int,
        patch_dim: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        relative: bool,
        learned_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, relative=relative) for _ in range(depth))
        self.norm = LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_dim)
        self.pos_embed: nn.Parameter | None = None
        if learned_tokens:
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, learned_tokens, embed_dim), std=0.02))
        self.apply(init_linear)


class MAE(PretrainingMethod):
    """Masked autoencoder.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        mask_ratio: share of the patches that is hidden.
        norm_pix_loss: regress pixels normalised per patch (unbiased variance, eps 1e-6).
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: heads of the decoder.
        decoder_learned_pos_embed: train the decoder's positions, those of the class tokens too (Pixio), for crops of
            the encoder's `img_size` alone.
        mask: which patches are hidden, see :func:`adpe.methods.masks.rankings.build_ranking`; None hides them at
            random.

    Raises:
        ValueError: for options that do not go together; the message says which.
    """

    mask_tokens: ClassVar[MaskTokens] = "decoder"

    def __init__(
        self,
        encoder: VisionTransformer,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_learned_pos_embed: bool = False,
        mask: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}.")
        if self.mask_tokens == "decoder" and encoder.relative:
            raise ValueError("Relative positions need mask tokens before the encoder: method='mae_plus' or 'adpe'.")
        if encoder.cls_token is None or encoder.needs_grid:
            raise ValueError("Pretraining needs a class token, and no windows, use_rel_pos or use_rel_pos_bias.")
        if encoder.num_classes:
            raise ValueError("Pretraining needs an encoder without classes: set num_classes=0.")
        if decoder_embed_dim % decoder_num_heads or decoder_embed_dim % 4:
            raise ValueError(
                f"decoder_embed_dim={decoder_embed_dim} must be divisible by 4 and by {decoder_num_heads} heads."
            )
        self.encoder: VisionTransformer = encoder
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.ranking = build_ranking(mask)
        grid = encoder.grid_of(encoder.img_size)
        patch_dim = encoder.patch_embed.proj.in_channels * encoder.patch_size**2
        self.decoder = Decoder(
            encoder.embed_dim,
            patch_dim,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            encoder.relative,
            encoder.num_prefix_tokens + grid[0] * grid[1] if decoder_learned_pos_embed else 0,
        )
        dim = encoder.embed_dim if self.mask_tokens == "encoder" else decoder_embed_dim
        self.mask_token: nn.Parameter | None = nn.Parameter(torch.randn(1, 1, dim) * 0.02)

    # The objective -----------------------------------------------------------------------------------------------

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        return {"loss": self(views[0].flatten(0, 1))}

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            images: ``(B, 3, H, W)``, normalised; crops of one image are separate samples.
            noise: ``(B, L)``; the patches of smallest noise stay visible. Drawn uniformly if None.

        Returns:
            Scalar: mean squared error over the hidden patches.
        """
        mask = self.random_mask(images, noise)
        features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        prediction = self.decoder.pred(mask.hidden_of(features))
        return (prediction - mask.hidden_of(self.target(images))).square().mean()

    def encode(self, images: Tensor, mask: Mask) -> Tensor:
        """Tokens ``(B, N, D)`` of partly hidden images: the visible ones, or all where mask tokens enter here."""
        encoder = self.encoder
        grid = encoder.patch_embed.grid(images)
        patches = encoder.patch_embed(images)
        assert encoder.cls_token is not None
        table = encoder.position_table(grid, encoder.cls_token)  # not rounded by autocast
        prefix = encoder.num_prefix_tokens
        patches = self.hide(patches, table[:, prefix:], mask, grid)
        cls = (encoder.cls_token + table[:, :prefix]).expand(len(images), -1, -1)
        terms = self.relative_terms("encoder", grid, mask)
        return encoder.norm(run_blocks(encoder.blocks, torch.cat([cls, patches], 1), terms, encoder.grad_checkpointing))

    def hide(self, patches: Tensor, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Patch embeddings ``(B, L, D)`` and positions ``(1, L, D)`` to what the encoder sees, ``(B, N, D)``."""
        return mask.visible_of(patches + positions)

    def decode(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Encoder tokens to decoder features of every patch, ``(B, L, D_dec)``."""
        x = self.decoder_input(tokens, mask, grid)
        prefix = self.encoder.num_prefix_tokens
        terms = self.relative_terms("decoder", grid, mask)
        return self.decoder.norm(run_blocks(self.decoder.blocks, x, terms, self.encoder.grad_checkpointing))[:, prefix:]

    def decoder_input(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Encoder tokens to what the decoder's blocks are given, ``(B, K + L, D_dec)``."""
        x = self.decoder.embed(tokens).to(self.decoder.embed.weight.dtype)
        return self.insert_mask_tokens(x, mask) + self.decoder_positions(grid, x)

    def decoder_positions(self, grid: tuple[int, int], x: Tensor) -> Tensor:
        """Positions ``(1, K + L, D_dec)`` of the decoder, in the dtype of `x`; those of K class tokens come first.

        Raises:
            ValueError: for another grid than that of a trained table.
        """
        prefix, table = self.encoder.num_prefix_tokens, self.decoder.pos_embed
        if table is None:
            return sincos_table(*grid, x.shape[-1], x.dtype, x.device, prefix)
        if table.shape[1] != prefix + grid[0] * grid[1]:
            raise ValueError(f"decoder_learned_pos_embed: trained for img_size={self.encoder.img_size}, given {grid}.")
        return table

    def insert_mask_tokens(self, x: Tensor, mask: Mask) -> Tensor:
        """Class and visible tokens ``(B, K + L - M, D_dec)`` to all places, ``(B, K + L, D_dec)``."""
        assert self.mask_token is not None
        prefix = self.encoder.num_prefix_tokens
        patches = self.mask_token.expand(*mask.hidden.shape, -1)
        visible = mask.visible_indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :prefix], patches.scatter(1, visible, x[:, prefix:])], dim=1)

    def relative_terms(self, stage: Stage, grid: tuple[int, int], mask: Mask) -> list[RelativeTerm | None]:
        """The relative term of every block of the encoder or the decoder; None for absolute positions."""
        return [self.encoder.relative_term(grid)] * len(getattr(self, stage).blocks)

    def target(self, images: Tensor) -> Tensor:
        """Pixels of every patch, ``(B, L, p * p * 3)``, normalised per patch if `norm_pix_loss`."""
        patches = patchify(images, self.encoder.patch_size)
        return normalize_patches(patches)[0] if self.norm_pix_loss else patches

    def random_mask(self, images: Tensor, noise: Tensor | None = None) -> Mask:
        """Hide all but the ``int(L * (1 - mask_ratio))`` patches that the ranking, or `noise`, puts first."""
        h, w = self.encoder.patch_embed.grid(images)
        if noise is None:
            noise = self.ranking(len(images), (h, w), images.device)
        if noise.shape != (len(images), h * w):
            raise ValueError(f"noise must be {(len(images), h * w)}, one number per patch; got {tuple(noise.shape)}.")
        blocks = self.ranking if isinstance(self.ranking, BlockRanking) else None
        return rank_mask(noise, self.mask_ratio, blocks.visible(h * w, self.mask_ratio) if blocks else None)

    def parameter_groups(
        self, lr: float, weight_decay: float, adversary_lr: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """See :func:`decay_groups`; `adversary_lr`, which the recipes of one family share, is AdPE's alone."""
        return super().parameter_groups(lr, weight_decay, **options)

    # What people look at -----------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "MAE"

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prediction ``(B, L, p * p * 3)`` of every patch in the target's units, and mask ``(B, L)``, 1 = hidden."""
        mask = self.random_mask(images, noise)
        features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        return self.decoder.pred(features), mask.hidden.float()

    @torch.no_grad()
    def reconstructed_pixels(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstructions ``(B, 3, H, W)`` in the units of `images`, and the hidden pixels, bool of that shape.

        Where pixels normalised per patch are regressed, they get the mean and deviation of the true patch back.
        """
        p, grid = self.encoder.patch_size, self.encoder.patch_embed.grid(images)
        prediction, mask = self.reconstruct(images, noise)
        patches = patchify(images, p)
        if self.norm_pix_loss:
            _, mean, deviation = normalize_patches(patches)
            prediction = prediction * deviation + mean
        hidden = unpatchify(mask.unsqueeze(-1).expand_as(patches), p, grid)
        return unpatchify(prediction.float(), p, grid), hidden > 0

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.reconstructions import draw_reconstructions

        images = views[0][:, 0]
        # Drawn on the CPU: the same mask on every device and at every time.
        h, w = self.encoder.patch_embed.grid(images)
        noise = self.ranking(len(images), (h, w), "cpu", torch.Generator().manual_seed(0)).to(images.device)
        return {"reconstructions": draw_reconstructions(self, images, noise, mean, std)}
