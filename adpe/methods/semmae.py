"""SemMAE (arXiv 2206.10207): which patches hide depends on the parts of the image that they belong to.

Hiding drifts from three quarters of every part to whole parts. The paper's part labels come from a first stage that was
not released; here they are those of k-means on a frozen encoder's features, of its attention heads, or of given maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.base import Progress
from adpe.methods.kmeans import nearest_centroid
from adpe.methods.mae import MAE
from adpe.methods.masking import Mask
from adpe.methods.tokenizers import load_centroids
from adpe.models.pos_embed import sincos
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parts = Literal["kmeans", "heads"]


def part_share(epoch: int, epochs: int) -> float:
    """How much every part gives its share, 1 at the start and 0 at the end: ``1 - ((epoch + 1) / epochs) ** 2``."""
    return min(max(1 - ((epoch + 1) / max(epochs, 1)) ** 2, 0.0), 1.0)


def part_mask(parts: Tensor, noise: Tensor, part_noise: Tensor, mask_ratio: float, share: float) -> Mask:
    """Hide `mask_ratio` of the patches by their parts.

    Args:
        parts: ``(B, L)`` part of every patch, -1 for none; those show unless the number needs them.
        noise: ``(B, L)`` order of the patches within their parts.
        part_noise: ``(B, K)`` order in which parts are hidden as a whole.
        mask_ratio: share of the patches that is hidden.
        share: of :func:`part_share`.
    """
    patches, kinds = parts.shape[1], part_noise.shape[1]
    order = noise.argsort(dim=1, stable=True)
    shuffled = parts.long().gather(1, order)
    member = torch.nn.functional.one_hot(shuffled + 1, kinds + 1)[..., 1:]  # (B, L, K)
    sizes = member.sum(dim=1).float()
    within = (sizes * mask_ratio).round()  # half to even
    part_order = part_noise.argsort(dim=1, stable=True)
    ordered = sizes.gather(1, part_order)
    remainder = patches * mask_ratio - (ordered.cumsum(dim=1) - ordered)
    whole = torch.empty_like(sizes).scatter_(1, part_order, remainder.trunc().clamp(min=0).minimum(ordered))
    quota = (share * within + (1 - share) * whole).round()
    rank = ((member.cumsum(dim=1) - 1) * member).sum(dim=2)
    flagged = (shuffled >= 0) & (rank < quota.gather(1, shuffled.clamp(min=0)))
    visible = int(patches * (1 - mask_ratio))
    repaired = order.gather(1, flagged.to(torch.uint8).argsort(dim=1, stable=True))
    shown, hidden = repaired.tensor_split([visible], dim=1)
    return Mask(torch.ones_like(parts, dtype=torch.bool).scatter_(1, shown, False), hidden, shown)


class PartLabeller(torch.nn.Module):
    """Parts of images by a frozen encoder.

    Args:
        file: of ``tools/make_centroids.py``: the encoder's path, the kind of parts, and the centroids of k-means.

    Raises:
        UserError: for a file that is none.
    """

    centroids: Tensor

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        from adpe.checkpoints.loading import load_encoder

        centroids, said = load_centroids(file)
        if "encoder" not in said or said.get("parts") not in get_args(Parts):
            raise UserError(f"parts: {file} does not say its encoder and kind of parts: tools/make_centroids.py does.")
        self.kind: Parts = said["parts"]  # type: ignore[assignment]
        self.encoder: VisionTransformer = load_encoder(said["encoder"], verbose=False).requires_grad_(False)
        self.register_buffer("centroids", centroids, persistent=True)
        self.count = len(centroids) if self.kind == "kmeans" else self.encoder.num_heads

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """``(B, L)`` parts of the patches of normalised images."""
        self.eval()
        if self.kind == "heads":
            return head_parts(self.encoder, images)
        tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :].float()
        return nearest_centroid(tokens.flatten(0, 1), self.centroids).view(tokens.shape[:2])


@torch.no_grad()
def head_parts(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """``(B, L)``: the head of the last block whose attention from the class token, by its sum, is the largest there."""
    from adpe.viz.attention_maps import attention_maps

    own = attention_maps(encoder, images)[-1].flatten(2).to(images.device)  # (B, H, L)
    return (own / own.sum(dim=-1, keepdim=True)).argmax(dim=1)


class SemMAE(MAE):
    """Masked autoencoder whose mask follows parts.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        parts: file of ``tools/make_centroids.py``. Its encoder's pretraining is part of the method's cost.
        options: of :class:`adpe.methods.mae.MAE`.
    """

    def __init__(self, encoder: VisionTransformer, parts: str | None = None, **options: Any) -> None:
        super().__init__(encoder, **options)
        self.labeller = None if parts is None else PartLabeller(parts).requires_grad_(False)
        if self.labeller is not None and self.labeller.encoder.patch_size != encoder.patch_size:
            raise ValueError(
                f"parts: patches of {self.labeller.encoder.patch_size} pixels, the encoder's have {encoder.patch_size}."
            )
        self._places: Tensor | None = None

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        if self.labeller is None:
            raise UserError("SemMAE: model.parts is not set: make the file by tools/make_centroids.py.")
        parts = self.labeller(images)
        noise = torch.rand(parts.shape, device=images.device)
        part_noise = torch.rand(len(images), self.labeller.count, device=images.device)
        mask = part_mask(parts, noise, part_noise, self.mask_ratio, part_share(progress.epoch, progress.epochs))
        return {"loss": self.loss_under(images, mask)}

    def loss_under(self, images: Tensor, mask: Mask, places: Tensor | None = None) -> Tensor:
        """The loss under a mask.

        Args:
            images: ``(B, 3, H, W)``.
            mask: of their patches.
            places: ``(B, L, 2)`` (column, row) of patches that are not those of a whole image.
        """
        self._places = places
        try:
            features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        finally:
            self._places = None
        return (self.decoder.pred(mask.hidden_of(features)) - mask.hidden_of(self.target(images))).square().mean()

    def predict_under(self, images: Tensor, mask: Mask, places: Tensor | None = None) -> Tensor:
        """Prediction ``(B, L, p * p * 3)`` of every patch; arguments as of :meth:`loss_under`."""
        self._places = places
        try:
            features = self.decode(self.encode(images, mask), mask, self.encoder.patch_embed.grid(images))
        finally:
            self._places = None
        return self.decoder.pred(features)

    def hide(self, patches: Tensor, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        if self._places is not None:
            positions = sincos(self._places, patches.shape[-1])
        return super().hide(patches, positions, mask, grid)

    def decoder_positions(self, grid: tuple[int, int], x: Tensor) -> Tensor:
        if self._places is None:
            return super().decoder_positions(grid, x)
        code = sincos(self._places, x.shape[-1])
        return torch.cat([torch.zeros_like(code[:, :1]), code], dim=1)

    @property
    def title(self) -> str:
        return "SemMAE"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        found = super().figures(views, mean, std)
        if self.labeller is None:
            return found
        images = views[0][:, 0]
        parts = self.labeller(images)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(parts.shape, generator=generator).to(images.device)
        part_noise = torch.rand(len(images), self.labeller.count, generator=generator).to(images.device)
        masks = {
            f"hidden, {name}": part_mask(parts, noise, part_noise, self.mask_ratio, share).hidden.float()
            for name, share in (("start", 1.0), ("half", 0.75), ("end", 0.0))
        }
        grid = self.encoder.patch_embed.grid(images)
        return {**found, "parts": draw_patch_maps(images, {"parts": parts.float(), **masks}, grid, mean, std)}


def flip_patches(pixels: Tensor, positions: Tensor, patch_size: int, side: int) -> tuple[Tensor, Tensor]:
    """The released augmentation of stored patches: columns reversed within each, and its column in the grid mirrored.

    Args:
        pixels: ``(N, p * p * 3)`` in the order row, column, channel.
        positions: ``(N,)`` index ``side * row + column``, a float that is off by little.
        patch_size: p.
        side: columns of the grid.
    """
    p = patch_size
    flipped = pixels.view(-1, p, p, pixels.shape[1] // p**2).flip(2).reshape(pixels.shape)
    index = positions.round().long()
    return flipped, index // side * side + (side - 1 - index % side)
