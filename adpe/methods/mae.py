"""Masked autoencoders: MAE, MAE+ and AdPE.

MAE (arXiv 2111.06377) encodes the visible patches alone and puts mask tokens before the decoder. MAE+ and AdPE (arXiv
2303.07598) put them before the *encoder*, which then sees every position; AdPE adds an adversary that moves the
positions of masked patches. The loss is the same: mean squared error over masked patches against pixels normalised
per patch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from adpe.methods.adversary import Mode, Norm, Variant, build_adversary
from adpe.models.layers import Block, LayerNorm, init_linear, run_blocks
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import Position, VisionTransformer

MaskTokens = Literal["encoder", "decoder"]


class Mask(NamedTuple):
    """Which patches of a batch are hidden; every image hides the same number.

    Attributes:
        hidden: ``(B, L)`` bool.
        hidden_indices: ``(B, M)``.
        visible_indices: ``(B, L - M)``.
    """

    hidden: Tensor
    hidden_indices: Tensor
    visible_indices: Tensor

    def hidden_of(self, x: Tensor) -> Tensor:
        """``(B, L, C)`` to the hidden patches, ``(B, M, C)``; no data-dependent shape, so no synchronisation."""
        return torch.take_along_dim(x, self.hidden_indices.unsqueeze(-1), dim=1)

    def visible_of(self, x: Tensor) -> Tensor:
        """``(B, L, C)`` to the visible patches, ``(B, L - M, C)``."""
        return torch.take_along_dim(x, self.visible_indices.unsqueeze(-1), dim=1)


class Decoder(nn.Module):
    """Linear, fixed sine-cosine positions, blocks, norm, linear to the pixels of a patch (row, column, channel)."""

    def __init__(
        self, encoder_dim: int, patch_dim: int, embed_dim: int, depth: int, num_heads: int, relative: bool
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, relative=relative) for _ in range(depth))
        self.norm = LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_dim)
        self.apply(init_linear)


class MaskedAutoencoder(nn.Module):
    """MAE, MAE+ or AdPE around one encoder.

    Args:
        encoder: a :class:`VisionTransformer` without classes; its `position` holds for the decoder too.
        mask_tokens: "encoder" (MAE+, AdPE) or "decoder" (MAE).
        adversary: "embedding", "coordinate", None (the baselines) or "random", the control that moves as far without
            an adversary.
        adversary_norm: projection of the adversary, "l2", "linf" or None.
        adversary_epsilon: bound of the projection.
        adversary_variant: of the relative embedding adversary, "masked_keys" or "reference" (acts on nothing).
        mask_ratio: share of the patches that is hidden.
        norm_pix_loss: regress pixels normalised per patch (unbiased variance, eps 1e-6).
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: heads of the decoder.

    Raises:
        ValueError: for options that do not go together; the message says which.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        mask_tokens: MaskTokens = "encoder",
        adversary: Mode | None = None,
        adversary_norm: Norm | None = None,
        adversary_epsilon: float | None = None,
        adversary_variant: Variant = "masked_keys",
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
    ) -> None:
        super().__init__()
        position: Position = encoder.position  # type: ignore[assignment]
        if mask_tokens not in get_args(MaskTokens):
            raise ValueError(f"mask_tokens must be encoder or decoder, got {mask_tokens!r}.")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}.")
        if mask_tokens == "decoder" and (adversary or encoder.relative):
            raise ValueError("An adversary and relative positions need mask_tokens='encoder' (MAE+); MAE has neither.")
        if not adversary and (adversary_norm or adversary_epsilon or adversary_variant != "masked_keys"):
            raise ValueError("adversary_norm, _epsilon and _variant need an adversary: set adversary=.")
        if encoder.cls_token is None or encoder.needs_grid:
            raise ValueError("Pretraining has a class token, and no windows, use_rel_pos or use_rel_pos_bias.")
        if encoder.num_classes:
            raise ValueError("Pretraining needs an encoder without classes: set num_classes=0.")
        if decoder_embed_dim % decoder_num_heads or decoder_embed_dim % 4:
            raise ValueError(
                f"decoder_embed_dim={decoder_embed_dim} must be divisible by 4 and by {decoder_num_heads} heads."
            )
        if adversary and encoder.pos_embed is not None:
            raise ValueError("An adversary needs the sine-cosine pos_embed: set learned_pos_embed=False.")
        self.encoder = encoder
        self.mask_tokens = mask_tokens
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        patch_dim = encoder.patch_embed.proj.in_channels * encoder.patch_size**2
        self.decoder = Decoder(
            encoder.embed_dim, patch_dim, decoder_embed_dim, decoder_depth, decoder_num_heads, encoder.relative
        )
        self.adversary = adversary and build_adversary(
            position,
            adversary,
            (encoder.embed_dim, len(encoder.blocks), encoder.num_heads),
            (decoder_embed_dim, decoder_depth, decoder_num_heads),
            adversary_variant,
            adversary_norm,
            adversary_epsilon,
        )
        token_dim = encoder.embed_dim if mask_tokens == "encoder" else decoder_embed_dim
        takes_token = self.adversary is None or self.adversary.mask_token(None) is None
        self.mask_token = nn.Parameter(torch.randn(1, 1, token_dim) * 0.02) if takes_token else None

    # The objective -----------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss that the model descends and the adversary ascends.

        Args:
            images: ``(B, 3, H, W)``, normalised; crops of one image are separate samples.
            noise: ``(B, L)``; the patches of smallest noise stay visible. Drawn uniformly if None.

        Returns:
            Scalar: mean squared error over the masked patches.
        """
        mask = self.random_mask(images, noise)
        features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        prediction = self.decoder.pred(mask.hidden_of(features))
        return (prediction - mask.hidden_of(self.target(images))).square().mean()

    def encode(self, images: Tensor, mask: Mask) -> Tensor:
        """Tokens ``(B, N, D)`` of partly masked images: all N for MAE+ and AdPE, the visible ones for MAE."""
        encoder = self.encoder
        grid = encoder.patch_embed.grid(images)
        patches = encoder.patch_embed(images)
        assert encoder.cls_token is not None
        table = encoder.position_table(grid, encoder.cls_token)  # not rounded by autocast
        positions, terms = table[:, 1:], [encoder.relative_term(grid)] * len(encoder.blocks)
        if self.mask_tokens == "encoder":
            token: Tensor | None = self.mask_token
            if self.adversary is not None:
                token = self.adversary.mask_token(token)
                positions = self.adversary.patch_positions(positions, mask.hidden, grid)
                terms = self.adversary.relative_terms("encoder", terms, mask.hidden)
            assert token is not None
            patches = torch.where(mask.hidden.unsqueeze(-1), token, patches) + positions
        else:
            patches = mask.visible_of(patches + positions)
        cls = (encoder.cls_token + table[:, :1]).expand(len(images), -1, -1)
        return encoder.norm(run_blocks(encoder.blocks, torch.cat([cls, patches], 1), terms, encoder.grad_checkpointing))

    def decode(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Encoder tokens to decoder features of every patch, ``(B, L, D_dec)``."""
        x = self.decoder.embed(tokens).to(self.decoder.embed.weight.dtype)
        if self.mask_tokens == "decoder":
            assert self.mask_token is not None
            patches = self.mask_token.expand(*mask.hidden.shape, -1)
            visible = mask.visible_indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :1], patches.scatter(1, visible, x[:, 1:])], dim=1)
        x = x + sincos_table(*grid, x.shape[-1], x.dtype, x.device)
        terms = [self.encoder.relative_term(grid)] * len(self.decoder.blocks)
        if self.adversary is not None:
            terms = self.adversary.relative_terms("decoder", terms, mask.hidden)
        return self.decoder.norm(run_blocks(self.decoder.blocks, x, terms, self.encoder.grad_checkpointing))[:, 1:]

    def target(self, images: Tensor) -> Tensor:
        """Pixels of every patch, ``(B, L, p * p * 3)``, normalised per patch if `norm_pix_loss`."""
        patches = self.patchify(images)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        return patches

    def random_mask(self, images: Tensor, noise: Tensor | None = None) -> Mask:
        """Hide all but the ``int(L * (1 - mask_ratio))`` patches of smallest noise."""
        h, w = self.encoder.patch_embed.grid(images)
        if noise is None:
            noise = torch.rand(len(images), h * w, device=images.device)
        if noise.shape != (len(images), h * w):
            raise ValueError(f"noise must be {(len(images), h * w)}, one number a patch; got {tuple(noise.shape)}.")
        visible, hidden = noise.argsort(dim=1).tensor_split([int(h * w * (1 - self.mask_ratio))], dim=1)
        return Mask(torch.ones_like(noise, dtype=torch.bool).scatter_(1, visible, False), hidden, visible)

    # What people look at -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prediction ``(B, L, p * p * 3)`` of every patch in the target's units, and mask ``(B, L)``, 1 = hidden."""
        mask = self.random_mask(images, noise)
        features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        return self.decoder.pred(features), mask.hidden.float()

    def patchify(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, L, p * p * C)``, pixels in the order row, column, channel."""
        p = self.encoder.patch_size
        h, w = self.encoder.patch_embed.grid(images)
        x = images.reshape(len(images), -1, h, p, w, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Inverse of :meth:`patchify`; `grid` is needed for images that are not square."""
        p = self.encoder.patch_size
        h, w = grid or (round(patches.shape[1] ** 0.5),) * 2
        x = patches.reshape(len(patches), h, w, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * p, w * p)

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of whole images, see :meth:`VisionTransformer.forward_features`."""
        return self.encoder.forward_features(images)

    def forward_intermediates(self, images: Tensor, *args, **kwargs):
        """Features after chosen blocks, see :meth:`VisionTransformer.forward_intermediates`."""
        return self.encoder.forward_intermediates(images, *args, **kwargs)
