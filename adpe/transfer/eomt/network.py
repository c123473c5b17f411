"""EoMT's queries, which join an encoder's tokens in its last blocks, and its predictions (arXiv 2503.19108).

There is no decoder: a query is one more token, and predicts a class and a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.layers import LayerNorm, run_blocks
from adpe.models.vit import VisionTransformer


class Prediction(NamedTuple):
    """Of all queries: mask logits ``(B, Q, H, W)`` and class logits ``(B, Q, classes + 1)``, "no object" last."""

    masks: Tensor
    classes: Tensor


class Upscale(nn.Module):
    """Twice the resolution: a transposed convolution, GELU, a depthwise 3 x 3 convolution, LayerNorm over channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, h, w)`` to ``(B, D, 2 h, 2 w)``."""
        x = self.conv2(F.gelu(self.conv1(x)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EoMTHead(nn.Module):
    """Queries, class head, mask head and upscaling; the encoder is handed over.

    Parameter names are the reference's: ``q``, ``class_head``, ``mask_head``, ``upscale``.

    Args:
        dim: the encoder's width D.
        patch_size: pixels; ``max(1, log2(patch_size) - 2)`` upscale blocks, so that masks have stride 4 from 8 on.
        num_classes: C.
        num_queries: Q.
        joined_blocks: J, the last blocks, in which the queries take part.

    Raises:
        UserError: for fewer than one class, query or joined block.
    """

    probabilities: Tensor

    def __init__(
        self, dim: int, patch_size: int, num_classes: int, num_queries: int = 100, joined_blocks: int = 4
    ) -> None:
        super().__init__()
        if min(num_classes, num_queries, joined_blocks) < 1:
            raise UserError(
                f"EoMT: num_classes = {num_classes}, num_queries = {num_queries} and joined_blocks = {joined_blocks} "
                "must be at least 1."
            )
        self.joined_blocks = joined_blocks
        self.q = nn.Embedding(num_queries, dim)
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        upscales = max(1, int(math.log2(patch_size)) - 2)
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(upscales)))
        # Of a query being restricted to its mask, in each joined block; annealed to 0 in training, and saved with it.
        self.register_buffer("probabilities", torch.ones(joined_blocks))

    def check(self, encoder: VisionTransformer) -> None:
        """Raise UserError for an encoder in which queries have no place."""
        if encoder.relative or encoder.needs_grid:
            raise UserError(
                f"EoMT: queries have no row in the encoder's relative positions or windows (position = "
                f"{encoder.position!r}): take an encoder with absolute positions, without use_rel_pos, "
                "use_rel_pos_bias and window_size."
            )
        if self.joined_blocks > len(encoder.blocks):
            raise UserError(
                f"EoMT: joined_blocks = {self.joined_blocks} in an encoder of {len(encoder.blocks)} blocks."
            )

    def predict(self, tokens: Tensor, prefix: int, grid: tuple[int, int]) -> Prediction:
        """From tokens ``(B, Q + prefix + h * w, D)`` after the encoder's final norm."""
        queries, patches = tokens[:, : len(self.q.weight)], tokens[:, len(self.q.weight) + prefix :]
        maps = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        return Prediction(torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), maps), self.class_head(queries))

    @torch.no_grad()
    def visible(self, masks: Tensor, grid: tuple[int, int], probability: float, uniform: Tensor | None) -> Tensor:
        """Which patches a query may attend to, ``(B, Q, h * w)`` bool: those inside its mask of logits above 0.

        Args:
            masks: logits ``(B, Q, H, W)``.
            grid: ``(h, w)``.
            probability: of the restriction.
            uniform: ``(B, Q)`` draws in [0, 1); those above `probability` lift it. None draws.
        """
        inside = (F.interpolate(masks.float(), grid, mode="bilinear", align_corners=False) > 0).flatten(2)
        if probability >= 1:
            return inside
        drawn = torch.rand(inside.shape[:2], device=inside.device) if uniform is None else uniform
        return inside | (drawn > probability).unsqueeze(-1)

    def forward(
        self,
        encoder: VisionTransformer,
        images: Tensor,
        masked: bool = True,
        uniform: Sequence[Tensor | None] | None = None,
        visible: list[Tensor] | None = None,
    ) -> list[Prediction]:
        """Predictions before each joined block and after the last; without `masked` the last one alone.

        Args:
            encoder: its blocks are run one by one, its final norm before every prediction.
            images: ``(B, 3, H, W)`` normalised.
            masked: restrict queries to the masks that they have just predicted, with `probabilities`.
            uniform: draws of each joined block, see :meth:`visible`.
            visible: takes what :meth:`visible` returned, block by block.
        """
        x, grid = encoder.embed(images)
        prefix, first = encoder.num_prefix_tokens, len(encoder.blocks) - self.joined_blocks
        x = run_blocks(encoder.blocks[:first], x, [None] * first, encoder.grad_checkpointing)
        x = torch.cat([self.q.weight.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        predictions, count = [], len(self.q.weight)
        probabilities = self.probabilities.tolist() if masked else []
        for joined, block in enumerate(encoder.blocks[first:]):
            allowed = None
            if masked:
                predictions.append(self.predict(encoder.norm(x), prefix, grid))
                draws = uniform[joined] if uniform is not None else None
                if probabilities[joined] > 0 or draws is not None:
                    seen = self.visible(predictions[-1].masks, grid, probabilities[joined], draws)
                    allowed = torch.ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
                    allowed[:, 0, :count, count + prefix :] = seen
                    if visible is not None:
                        visible.append(seen)
            x = run_blocks([block], x, [None], encoder.grad_checkpointing, allowed=allowed)
        predictions.append(self.predict(encoder.norm(x), prefix, grid))
        return predictions
