"""SemMAE (arXiv 2206.10207): which patches hide depends on the parts of the image that they belong to.

Hiding drifts from three quarters of every part to whole parts. The paper's part labels come from a first stage that was
not released; here they are found by a frozen encoder (:mod:`adpe.methods.targets.tokenizers`) or given as maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.adpe import AdPE
from adpe.methods.base import Progress
from adpe.methods.mae import MAE
from adpe.methods.mae_plus import MAEPlus
from adpe.methods.masks.masking import Mask
from adpe.methods.targets.tokenizers import load_tokenizer
from adpe.models.pos_embed import sincos
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A part with fewer of the patches is no part; one with more leaves nothing to the others.
_LEAST_PART, _ONE_PART = 0.005, 0.95


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


class PartMasks(MAE):
    """Masks by parts for any masked autoencoder; :class:`SemMAE` is the published one.

    Args:
        encoder: a :class:`VisionTransformer` without classes.
        parts: file of ``tools/make_centroids.py``, whose encoder finds the parts of every crop; the encoder's own
            pretraining is part of the method's cost.
        num_parts: instead of `parts`, the number of parts of maps that the data set gives (its ``maps``).
        options: of the autoencoder.

    Raises:
        ValueError: for parts of other patches than the encoder's.
        UserError: for a file that holds no parts; or, when trained, without one.
    """

    part_counts: Tensor

    def __init__(
        self, encoder: VisionTransformer, parts: str | None = None, num_parts: int | None = None, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        if parts is not None and num_parts is not None:
            raise ValueError(f"parts={parts} and num_parts={num_parts}: parts are found, or given by the data set.")
        self.labeller = None if parts is None else load_tokenizer(parts)
        if self.labeller is not None and self.labeller.patch_size != encoder.patch_size:
            raise ValueError(
                f"parts={parts}: patches of {self.labeller.patch_size} pixels, the encoder's have {encoder.patch_size}."
            )
        self.kinds = (num_parts or 0) if self.labeller is None else self.labeller.vocabulary
        self.register_buffer("part_counts", torch.zeros(self.kinds, dtype=torch.long), persistent=self.kinds > 0)
        self.share = 1.0
        self._given: Tensor | None = None  # parts of the images at hand

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        self.share = part_share(progress.epoch, progress.epochs)
        self._given = self.given_parts(views)
        try:
            return super().losses(views[:1], progress)
        finally:
            self._given = None

    def given_parts(self, views: Sequence[Tensor]) -> Tensor | None:
        """``(B * V, L)`` parts at the patches' centres of maps ``(B, V, 1, h, w)``, the second group; None without."""
        if self.labeller is not None or not self.kinds:
            return None
        if len(views) < 2 or views[1].shape[2] != 1:
            raise UserError("num_parts: no maps in the batch: set train_dataloader.dataset.maps, or model.parts.")
        if views[1].shape[-2:] != views[0].shape[-2:]:
            raise UserError(f"maps of {tuple(views[1].shape[-2:])} pixels for crops of {tuple(views[0].shape[-2:])}.")
        p = self.encoder.patch_size
        return views[1].flatten(0, 2)[:, p // 2 :: p, p // 2 :: p].flatten(1).long()

    def random_mask(self, images: Tensor, noise: Tensor | None = None) -> Mask:
        """By the parts of `images` at the epoch's share; one order of parts where `noise` is given, drawn otherwise."""
        if self._given is not None:
            parts = self._given
        elif self.labeller is not None:
            parts = self.labeller.tokens(images)
        else:
            raise UserError(f"{self.title}: model.parts is not set: make the file by tools/make_centroids.py.")
        kinds = self.kinds
        if noise is None:
            if self.training:
                self.part_counts.scatter_add_(0, parts.clamp(min=0).flatten(), (parts >= 0).long().flatten())
            noise = torch.rand(parts.shape, device=images.device)
            part_noise = torch.rand(len(images), kinds, device=images.device)
        else:
            part_noise = torch.rand(len(images), kinds, generator=torch.Generator().manual_seed(0)).to(images.device)
        return part_mask(parts, noise, part_noise, self.mask_ratio, self.share)

    def collapse(self, progress: Progress) -> str | None:
        total = int(self.part_counts.sum())
        if total < 1000:
            return None
        shares = self.part_counts.double() / total
        if float(shares.max()) > _ONE_PART:
            return f"model.parts: one part has {float(shares.max()):.1%} of the patches, so that masks are random ones."
        used = int((shares >= _LEAST_PART).sum())
        if used < 0.5 * len(shares):
            return f"model.parts: {used} of {len(shares)} parts have {_LEAST_PART:.1%} of the patches: take fewer."
        return None

    def made_with(self) -> dict[str, Any]:
        return {} if self.labeller is None else {"parts": self.labeller.origin}

    def scalars(self) -> dict[str, float]:
        total = max(int(self.part_counts.sum()), 1)
        largest = float(self.part_counts.max()) / total if len(self.part_counts) else 0.0
        return {**super().scalars(), "parts/largest": largest, "parts/share": self.share}

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        if not self.kinds:
            return {}
        images, labeller = views[0][:, 0], self.labeller
        given = self.given_parts([view[:, :1] for view in views])
        self._given = given if labeller is None else labeller.tokens(images)
        assert self._given is not None
        parts = self._given
        noise = torch.rand(parts.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
        maps, now = {"parts": parts.float()}, self.share
        for name, share in (("start", 1.0), ("half", 0.75), ("end", 0.0)):
            self.share = share
            maps[f"hidden, {name}"] = self.random_mask(images, noise).hidden.float()
        self.share = now
        grid = self.encoder.patch_embed.grid(images)
        found = {"parts": draw_patch_maps(images, maps, grid, mean, std)}
        found |= super().figures([images.unsqueeze(1)], mean, std)
        self._given = None
        return found


class SemMAE(PartMasks):
    """MAE whose mask follows parts; arguments of :class:`PartMasks` and :class:`adpe.methods.mae.MAE`."""

    def __init__(self, encoder: VisionTransformer, **options: Any) -> None:
        super().__init__(encoder, **options)
        self._places: Tensor | None = None

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


class SemMAEPlus(PartMasks, MAEPlus):
    """MAE+ (mask tokens before the encoder) whose mask follows parts: ours, not published."""

    @property
    def title(self) -> str:
        return "MAE+ by parts"


class SemAdPE(PartMasks, AdPE):
    """AdPE whose mask follows parts: ours, not published."""

    @property
    def title(self) -> str:
        return f"{super().title} by parts"


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
