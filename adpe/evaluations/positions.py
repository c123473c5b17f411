"""Where a patch is, read from its features block by block, and how far patches attend: what pretraining does to both.

A linear map from the tokens of a block to (column, row) is fitted by ridge regression on training images and scored on
others by R²: 1 where the position stands in the features, 0 where it does not. The mean attention distance is that of
ViT (arXiv 2010.11929, appendix D.7), in patches. Beside a random encoder (no checkpoint) both say what a pretraining
that moves, hides or predicts positions has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.files import atomic_write
from adpe.models.attention import Attention, attention_weights
from adpe.models.pos_embed import grid_coordinates
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 1000


class Readout(NamedTuple):
    """Of every block, the embedding with its positions first where `r2` is meant.

    Attributes:
        r2: ``(1 + blocks,)`` of the positions.
        low: end of the 95 % interval over test images.
        high: likewise.
        distance: ``(blocks, heads)`` mean attention distance in patches.
        uniform: that of attention to all patches alike.
    """

    r2: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distance: np.ndarray
    uniform: float


class Positions(Evaluation):
    """How linearly readable positions are, and how far attention reaches.

    Args:
        ridge: of the regression, as a share of the mean variance of the features.
        attention_images: test images, the first ones, whose attention is averaged.
    """

    head = "position readout"

    def __init__(self, ridge: float = 1e-4, attention_images: int = 64) -> None:
        if not ridge > 0 or isinstance(attention_images, bool) or attention_images < 1:
            raise ValueError(f"ridge = {ridge!r} and attention_images = {attention_images!r} must be positive.")
        self.ridge, self.attention_images = ridge, attention_images

    def facts(self) -> dict[str, Any]:
        return {"ridge": self.ridge, "attention_images": self.attention_images}

    def run(self, subject: Subject) -> Result:
        encoder: VisionTransformer = subject.model.backbone
        if encoder.needs_grid:
            raise UserError(
                "evaluation (positions): needs an encoder without windows, use_rel_pos or use_rel_pos_bias."
            )
        maps = self.fit(encoder, (images for images, _ in subject.batches("train")))
        r2, low, high = self.score(encoder, maps, (images for images, _ in subject.batches("val")), subject.seed)
        distance, uniform = self.attention(encoder, (images for images, _ in subject.batches("val")))
        found = Readout(r2, low, high, distance, uniform)
        with atomic_write(subject.work_dir / "positions.json") as temporary:
            content = {name: np.asarray(value).tolist() for name, value in found._asdict().items()}
            temporary.write_text(json.dumps(content))
        subject.log(f"R² of the position by block: {', '.join(f'{value:.3f}' for value in r2)}")
        metrics = {
            "position_R2": float(r2[-1]),
            "position_R2_max": float(r2[1:].max()),
            "attention_distance": float(distance.mean()),
        }
        return Result(metrics, figures={"positions": draw_readout(found)})

    @torch.no_grad()
    def fit(self, encoder: VisionTransformer, batches: Iterator[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For every block the mean ``(D,)``, the matrix ``(D, 2)`` and the offset ``(2,)`` of the regression, float64.

        Raises:
            UserError: for features that are not finite.
        """
        sums: list[list[Tensor]] = []
        count = 0
        wanted = torch.empty(0)
        for images in batches:
            tokens = block_tokens(encoder, images)
            wanted = targets(encoder.patch_embed.grid(images), images.device)
            count += tokens[0].shape[0] * tokens[0].shape[1]
            for number, features in enumerate(tokens):
                x = features.double().flatten(0, 1)
                y = wanted.expand(len(features), -1, -1).flatten(0, 1)
                if number == len(sums):
                    sums.append(
                        [torch.zeros_like(x[0]), x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], 2)]
                    )
                for total, new in zip(sums[number], (x.sum(0), x.T @ x, x.T @ y), strict=True):
                    total += new
        offset = wanted.mean(0)
        maps = []
        for first, second, cross in sums:
            mean = first / count
            covariance = second / count - torch.outer(mean, mean)
            if not bool(torch.isfinite(covariance).all()):
                raise UserError("evaluation (positions): the encoder's features are not finite.")
            size = len(mean)
            eye = torch.eye(size, dtype=mean.dtype, device=mean.device)
            penalty = self.ridge * covariance.trace() / size + torch.finfo(torch.float64).tiny
            matrix = torch.linalg.solve(covariance + penalty * eye, cross / count - torch.outer(mean, offset))
            maps.append((mean, matrix, offset))
        return maps

    @torch.no_grad()
    def score(
        self,
        encoder: VisionTransformer,
        maps: list[tuple[Tensor, Tensor, Tensor]],
        batches: Iterator[Tensor],
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """R² of every block on test images, and its 95 % bootstrap interval over them."""
        missed: list[np.ndarray] = []
        spread = 1.0
        for images in batches:
            wanted = targets(encoder.patch_embed.grid(images), images.device)
            spread = float((wanted - wanted.mean(0)).square().sum())
            errors = [
                ((features.double() - mean) @ matrix + offset - wanted).square().sum((1, 2))
                for features, (mean, matrix, offset) in zip(block_tokens(encoder, images), maps, strict=True)
            ]
            missed.append(torch.stack(errors, dim=1).cpu().numpy())
        share = np.concatenate(missed) / spread
        generator = np.random.default_rng(seed)
        drawn = [share[generator.integers(len(share), size=len(share))].mean(0) for _ in range(RESAMPLES)]
        low, high = np.quantile(1 - np.stack(drawn), (0.025, 0.975), axis=0)
        return 1 - share.mean(0), low, high

    @torch.no_grad()
    def attention(self, encoder: VisionTransformer, batches: Iterator[Tensor]) -> tuple[np.ndarray, float]:
        """Mean attention distance ``(blocks, heads)`` of patches to patches, and that of uniform attention."""
        sums: list[Tensor] = []
        left, uniform = self.attention_images, 0.0

        def record(attention: Attention, inputs: tuple[Any, ...]) -> None:
            weights = attention_weights(attention.terms(*inputs[:3]), slice(prefix, None), prefix)[..., prefix:]
            mean = (weights * distances).sum(-1) / weights.sum(-1)
            sums.append(mean.mean(-1).sum(0))  # (heads,)

        totals: list[Tensor] = []
        prefix = encoder.num_prefix_tokens
        handles = [layer.register_forward_pre_hook(record) for layer in encoder.attentions()]
        try:
            for images in batches:
                images = images[:left]
                places = grid_coordinates(*encoder.patch_embed.grid(images), torch.float32, images.device)
                distances = torch.cdist(places, places)
                uniform = float(distances.mean())
                sums.clear()
                encoder.forward_features(images)
                totals = [total + new for total, new in zip(totals, sums, strict=True)] if totals else list(sums)
                left -= len(images)
                if not left:
                    break
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(totals).cpu().numpy() / (self.attention_images - left), uniform


def targets(grid: tuple[int, int], device: torch.device) -> Tensor:
    """``(L, 2)`` (column, row) of the patches, float64."""
    return grid_coordinates(*grid, torch.float64, device)


def block_tokens(encoder: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Tokens ``(B, L, D)`` of the patches: as they enter the first block, and after every block."""
    embedded = encoder.embed(images)[0][:, encoder.num_prefix_tokens :]
    return [embedded, *encoder.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)]


def draw_readout(found: Readout) -> Figure:
    """R² with its interval, and attention distances of the heads and their mean, over the blocks."""
    from adpe.viz.figures import panels

    figure, ((left, right),) = panels(1, 2, 4.2, 3.0, "Positions in the features, and reach of attention")
    blocks = np.arange(len(found.r2))
    left.fill_between(blocks, found.low, found.high, alpha=0.3)
    left.plot(blocks, found.r2, marker="o")
    left.set_ylim(min(0.0, float(found.low.min())), 1.02)
    left.set_xlabel("block (0: embedding with positions)")
    left.set_ylabel("R² of (column, row), 95 % over images")
    for head in found.distance.T:
        right.plot(blocks[1:], head, ".", color="grey", alpha=0.5)
    right.plot(blocks[1:], found.distance.mean(1), marker="o")
    right.axhline(found.uniform, color="grey", linestyle=":")
    right.set_xlabel("block")
    right.set_ylabel("attention distance in patches")
    right.set_title("heads, their mean, uniform attention (dotted)", fontsize=9)
    for axis, first in ((left, 0), (right, 1)):
        axis.set_xticks(blocks[first:])
    return figure
