"""HPM (arXiv 2304.05919): hide the patches whose loss a teacher predicts to be the largest.

A second decoder predicts the pixel loss of every hidden patch; a moving average of the model predicts it on the whole
image, and the hardest patches are hidden, none at first, half of the hidden ones at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import Progress
from adpe.methods.mae import MAE
from adpe.methods.masks.masking import Mask, rank_mask
from adpe.models.layers import Block, LayerNorm, init_linear, run_blocks
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest deviation over an image's patches of predictions that are constant but for rounding.
_CONSTANT = 1e-6


class LossPredictor(nn.Module):
    """Blocks, norm, linear and a mean: the predicted loss of every patch, ``(B, L)``.

    Args:
        embed_dim: width of its tokens.
        patch_dim: outputs that are averaged.
        depth: blocks.
        num_heads: heads.
    """

    def __init__(self, embed_dim: int, patch_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_dim)
        self.apply(init_linear)

    def forward(self, x: Tensor, grad_checkpointing: bool = False) -> Tensor:
        """Tokens with positions ``(B, 1 + L, D_dec)``, class token first, to ``(B, L)``."""
        x = run_blocks(self.blocks, x, [None] * len(self.blocks), grad_checkpointing)
        return self.pred(self.norm(x))[:, 1:].mean(dim=-1)


class Teacher(nn.Module):
    """The moving average of what predicts losses: encoder, the decoder's first layer, loss predictor."""

    def __init__(self, encoder: VisionTransformer, embed: nn.Linear, predictor: LossPredictor) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.embed = copy.deepcopy(embed)
        self.predictor = copy.deepcopy(predictor)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Predicted losses ``(B, L)`` of whole images."""
        self.eval()
        tokens = self.embed(self.encoder.forward_features(images))
        table = sincos_table(*self.encoder.patch_embed.grid(images), tokens.shape[-1], tokens.dtype, tokens.device)
        return self.predictor(tokens + table).float()

    @torch.no_grad()
    def follow(self, parts: Iterable[nn.Module], decay: float) -> None:
        """``teacher = decay * teacher + (1 - decay) * student``."""
        for own, other in zip((self.encoder, self.embed, self.predictor), parts, strict=True):
            for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
                mine.lerp_(theirs.detach(), 1 - decay)


class HPM(MAE):
    """Masked autoencoder with hard patches mined by its own moving average.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        mask_ratio: share of the patches that is hidden.
        norm_pix_loss: regress pixels normalised per patch; the published runs do not.
        relative: train the predictor to rank pairs of patches (published); else on the loss normalised per image.
        reference: leave the biases of the predictor's norm and last layer free under `relative`. A constant added to
            all predictions does not change the loss, so that AdamW makes steps of rounding there.
        options: of :class:`adpe.methods.mae.MAE`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        relative: bool = True,
        reference: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(encoder, mask_ratio, norm_pix_loss, **options)
        if encoder.num_prefix_tokens != 1:
            raise ValueError("HPM takes one class token.")
        decoder = self.decoder
        self.relative = relative
        self.predictor = LossPredictor(
            decoder.embed.out_features, decoder.pred.out_features, len(decoder.blocks), decoder.num_heads
        )
        self.teacher = Teacher(encoder, decoder.embed, self.predictor)
        if relative and not reference:
            self.predictor.norm.bias.requires_grad_(False)
            self.predictor.pred.bias.requires_grad_(False)
        self._spread: Tensor | None = None  # of the teacher's predictions over the patches of the last images

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        harder = self.teacher(images)
        self._spread = harder.std(dim=1).max()
        mask = self.hard_mask(harder, self.ranking_noise(images), progress.epoch, progress.epochs)
        pixels, predictor, _, _ = self.both_losses(images, mask)
        return {"loss": pixels, "loss_predictor": predictor}

    def ranking_noise(self, images: Tensor) -> Tensor:
        """``(B, L)`` numbers that decide among the patches that are not hard."""
        return self.ranking(len(images), self.encoder.patch_embed.grid(images), images.device)

    def hard_mask(self, predicted: Tensor, noise: Tensor, epoch: int, epochs: int) -> Mask:
        """Hide the `k` patches of largest predicted loss ``(B, L)``, and of the others those of largest noise.

        ``k = int(hidden * (epoch + 1) / epochs / 2)``, epochs counted from 0.
        """
        hard = self.hard_patches(predicted.shape[1], epoch, epochs)
        chosen = predicted.argsort(dim=1, descending=True, stable=True)[:, :hard]
        return rank_mask(noise.scatter(1, chosen, float("inf")), self.mask_ratio)

    def hard_patches(self, patches: int, epoch: int, epochs: int) -> int:
        """How many hidden patches are the hardest ones in an epoch."""
        hidden = patches - int(patches * (1 - self.mask_ratio))
        return int(hidden * ((epoch + 1) / max(epochs, 1) * 0.5))

    def both_losses(self, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixel loss, predictor's loss, and ``(B, M)`` true and predicted losses of the hidden patches."""
        grid = self.encoder.patch_embed.grid(images)
        x = self.decoder_input(self.encode(images, mask), mask, grid)
        checkpointing = self.encoder.grad_checkpointing
        blocks = self.decoder.blocks
        features = self.decoder.norm(run_blocks(blocks, x, [None] * len(blocks), checkpointing))[:, 1:]
        prediction = self.decoder.pred(mask.hidden_of(features))
        true = (prediction - mask.hidden_of(self.target(images))).float().square().mean(dim=-1)
        predicted = torch.take_along_dim(self.predictor(x, checkpointing).float(), mask.hidden_indices, dim=1)
        compare = ranking_loss if self.relative else normalised_loss
        return true.mean(), compare(predicted, true.detach()), true, predicted

    @torch.no_grad()
    def reconstruct_hidden(self, images: Tensor, mask: Mask) -> Tensor:
        """Predicted pixels ``(B, M, p * p * 3)`` of the hidden patches."""
        features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        return self.decoder.pred(mask.hidden_of(features))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The sum of both losses under a random mask; :meth:`losses` is what trains."""
        pixels, predictor, _, _ = self.both_losses(images, self.random_mask(images, noise))
        return pixels + predictor

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.taught(), 0.999 + 0.0009 * min(progress.epoch, 100) / 100)

    def taught(self) -> tuple[nn.Module, ...]:
        """What the teacher averages."""
        return self.encoder, self.decoder.embed, self.predictor

    def compiled(self) -> Iterable[nn.Module]:
        return [block for block in super().compiled() if not any(block is own for own in self.teacher.modules())]

    def collapse(self, progress: Progress) -> str | None:
        if self._spread is None or self._spread > _CONSTANT:  # a NaN is none
            return None
        return "the teacher predicts the same loss for every patch of an image, so that no patch is hard."

    @property
    def title(self) -> str:
        return "HPM"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        grid = self.encoder.patch_embed.grid(images)
        noise = self.ranking(len(images), grid, "cpu", torch.Generator().manual_seed(0)).to(images.device)
        predicted = self.teacher(images)
        masks = {f"hidden, {name}": self.hard_mask(predicted, noise, epoch, 100).hidden.float() for name, epoch in
                 (("start", 0), ("half", 49), ("end", 99))}  # fmt: skip
        maps = {"predicted loss": predicted, **masks}
        return {**super().figures(views, mean, std), "hard_patches": draw_patch_maps(images, maps, grid, mean, std)}


def ranking_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Of ordered pairs of patches ``(B, M)`` of an image, which is harder; ties count nothing.

    ``-log(sigmoid(d) + 1e-6)`` where the first is harder, ``-log(1 - sigmoid(d) + 1e-6)`` where it is easier, with
    ``d`` the difference of their predictions; the sum over the batch by the number of pairs.
    """
    probability = (predicted.unsqueeze(2) - predicted.unsqueeze(1)).sigmoid()
    harder = true.unsqueeze(2) > true.unsqueeze(1)
    easier = true.unsqueeze(2) < true.unsqueeze(1)
    loss = -(harder * (probability + 1e-6).log() + easier * (1 - probability + 1e-6).log())
    return loss.sum() / (harder | easier).sum().clamp(min=1)


def normalised_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean squared error to the losses ``(B, M)`` normalised per image (unbiased variance, eps 1e-6)."""
    variance, mean = torch.var_mean(true, dim=1, keepdim=True)
    return F.mse_loss(predicted, (true - mean) / (variance + 1e-6).sqrt())
