"""SDSSL (arXiv 2111.12958): MoCo v3, BYOL or SimCLR whose earlier layers learn from the last one.

The class token of every layer, through a projector and predictor of its own, is pulled to the last layer's output for
the other view. With ``self_distillation=False`` it is the method itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.schedules import warmup_cosine
from adpe.methods.self_distillation.dino import cosine_to_one, follow
from adpe.models.factory import create_encoder
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Base = Literal["moco", "byol", "simclr"]
# Spread of targets under which they count as constant.
COLLAPSED = 0.02


def mlp_head(dim: int, hidden: int, out: int, layers: int, last_norm: bool) -> nn.Sequential:
    """Linear layers without bias, each but the last under BatchNorm and ReLU; at the end a BatchNorm without affine."""
    parts: list[nn.Module] = []
    widths = [dim, *[hidden] * (layers - 1), out]
    for number, (one, other) in enumerate(pairwise(widths)):
        parts.append(nn.Linear(one, other, bias=False))
        if number < layers - 1:
            parts += [nn.BatchNorm1d(other), nn.ReLU(inplace=True)]
    if last_norm:
        parts.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*parts)


class Losses(NamedTuple):
    """Parts of the objective; those that a base has not are 0."""

    last: Tensor
    mid: Tensor
    detached: Tensor


class SDSSL(PretrainingMethod):
    """Self-distillation from the last layer to the others.

    BatchNorms and contrastive losses compare the images of one pass: a batch may be divided over processes, whose
    targets are gathered, but not over passes. Several GPUs need ``sync_bn="torch"`` in the config; on CPUs every
    process has BatchNorms of its own.

    Args:
        encoder: a :class:`VisionTransformer` with a class token; its positions become the row-first sine-cosine table,
            and its patch projection stays random, as in MoCo v3.
        base: moco, byol or simclr.
        self_distillation: teach the earlier layers.
        ratio: weight of their loss at the end of training; it rises from 0 by a cosine.
        out_dim: width of the projections.
        hidden: of the last layer's projector and of predictors; the other projectors have half of it.
        temperature: of the contrastive losses.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        train_norm_bias: train the bias of the final norm, whose gradient is rounding (reference).
        byol_first_step: while the weight is exactly 0, train BYOL's last-layer loss over all layers (reference).
        gather_gradients: let the keys of other processes carry gradients to them (SimCLR); the reference drops them.

    Attributes:
        spread: of the last step's targets as unit vectors: the root of their variance over images, summed over
            channels; 0 for constant ones, near 1 for random directions.

    Raises:
        ValueError: for options that do not go together.
    """

    whole_batch: ClassVar[bool] = True
    spread: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        base: Base = "moco",
        self_distillation: bool = True,
        ratio: float = 1.0,
        out_dim: int = 256,
        hidden: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.996,
        train_norm_bias: bool = False,
        byol_first_step: bool = False,
        gather_gradients: bool = True,
    ) -> None:
        super().__init__()
        if base not in get_args(Base):
            raise ValueError(f"base={base!r} is none of {', '.join(get_args(Base))}.")
        if encoder.num_prefix_tokens != 1 or encoder.pos_embed is None or encoder.num_classes or encoder.needs_grid:
            raise ValueError("SDSSL needs one class token, learned_pos_embed=True, no windows and no classes.")
        if not temperature > 0 or ratio < 0 or hidden % 2:
            raise ValueError(f"temperature={temperature}, ratio={ratio} or hidden={hidden}: positive, and hidden even.")
        self.base, self.self_distillation, self.ratio = base, self_distillation, ratio
        self.temperature, self.momentum = temperature, momentum
        self.byol_first_step, self.gather_gradients = byol_first_step, gather_gradients
        self.encoder: VisionTransformer = encoder
        _initialise(encoder)
        encoder.pos_embed.requires_grad_(False)
        encoder.patch_embed.requires_grad_(False)
        encoder.norm.bias.requires_grad_(train_norm_bias)
        count = len(encoder.blocks) if self_distillation else 1
        width, last_norm = encoder.embed_dim, base != "byol"
        self.projector = nn.ModuleList(
            mlp_head(width, hidden if i == count - 1 else hidden // 2, out_dim, 3, last_norm) for i in range(count)
        )
        self.predictor = nn.ModuleList()
        self.teacher = nn.ModuleDict()
        if base != "simclr":
            self.predictor.extend(mlp_head(out_dim, hidden, out_dim, 2, last_norm) for _ in range(count))
            self.teacher["encoder"] = copy.deepcopy(encoder)
            self.teacher["projector"] = copy.deepcopy(self.projector[-1])
            self.teacher.requires_grad_(False)
        self.register_buffer("spread", torch.ones(()))

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> SDSSL:
        return cls(create_encoder(model, **{"learned_pos_embed": True, **encoder_options}), **options)

    # The objective -----------------------------------------------------------------------------------------------

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        crops = [crop for group in views for crop in group.unbind(dim=1)]
        if len(crops) != 2 or crops[0].shape != crops[1].shape:
            raise UserError(
                f"SDSSL takes two views of one size, got {[tuple(crop.shape[1:]) for crop in crops]}: set "
                "train_dataloader.dataset.crops to one group with num_crops=2."
            )
        if len(crops[0]) < 2:
            raise UserError("SDSSL compares images with each other: train_dataloader.batch_size must be at least 2.")
        weight = self.weight(progress)
        parts = self.parts(crops[0], crops[1], weight)
        found = {"loss_last": parts.last}
        if self.self_distillation:
            found["loss_mid"] = weight * parts.mid
            if self.base != "simclr":
                found["loss_detached"] = len(self.projector) * parts.detached
        return {**found, "mid_weight": crops[0].new_tensor(weight)}

    def weight(self, progress: Progress) -> float:
        """Weight of the earlier layers' loss."""
        if not self.self_distillation:
            return 0.0
        return warmup_cosine(progress.iteration, max(progress.iterations, 1), 0, 0.0, 0.0, self.ratio)

    def parts(self, first: Tensor, second: Tensor, weight: float) -> Losses:
        """The losses of two views ``(B, 3, H, W)``; the order of passes is the reference's, as BatchNorms see it."""
        if self.base == "simclr":
            return self.contrast(F.normalize(self.project(torch.cat([first, second])).float(), dim=-1))
        target_first = self.of_teacher(first)
        projected_second = self.project(second)
        target_second = self.of_teacher(second)
        projected_first = self.project(first)
        self._note(target_first)
        pairs = ((projected_second, target_first), (projected_first, target_second))
        zero = first.new_zeros(())
        detached = zero
        if self.self_distillation:
            found = [(self.predict(z.detach()), target) for z, target in pairs]
            detached = torch.stack([self.compare(p, target).mean() for p, target in found]).sum()
        each = torch.stack([self.compare(self.predict(z), target) for z, target in pairs]).sum(dim=0)
        if self.base == "byol" and self.byol_first_step and self.self_distillation and weight == 0:
            return Losses(each.mean(), zero, detached)
        return Losses(each[-1], each[:-1].mean() if self.self_distillation else zero, detached)

    def class_tokens(self, images: Tensor) -> list[Tensor]:
        """Normed class tokens ``(B, D)`` of every block, or of the last alone."""
        count = len(self.projector)
        maps = self.encoder.forward_intermediates(
            images, count, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        return [token[:, 0] for _, token in maps]

    def project(self, images: Tensor) -> Tensor:
        """Projections ``(layers, B, E)``."""
        tokens = self.class_tokens(images)
        return torch.stack([head(token) for head, token in zip(self.projector, tokens, strict=True)])

    def predict(self, projections: Tensor) -> Tensor:
        """Predictions ``(layers, B, E)``."""
        return torch.stack([head(z) for head, z in zip(self.predictor, projections, strict=True)])

    @torch.no_grad()
    def of_teacher(self, images: Tensor) -> Tensor:
        """The teacher's projection ``(B, E)``; its BatchNorms work on this batch."""
        encoder: Any = self.teacher["encoder"]
        return self.teacher["projector"](encoder.forward_features(images)[:, 0])

    @torch.no_grad()
    def _note(self, targets: Tensor) -> None:
        if self.training:
            unit = F.normalize(targets.float(), dim=-1)
            self.spread.copy_(unit.std(dim=0).square().sum().sqrt())

    def compare(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The loss of every layer, ``(layers,)``, of ``(layers, B, E)`` against the teacher's ``(B, E)``."""
        if self.base == "byol":
            return byol_losses(predictions, target)
        keys, offset = _gathered(target)
        return moco_losses(predictions, keys, offset, self.temperature)

    def contrast(self, vectors: Tensor) -> Losses:
        """SimCLR's losses of unit vectors ``(layers, 2 B, E)``, the first view's before the second's."""
        self._note(vectors[-1])
        others = _others(vectors[-1], self.gather_gradients)
        last = simclr_losses(vectors[-1:], vectors[-1], others, self.temperature).mean()
        zero = last.new_zeros(())
        if not self.self_distillation:
            return Losses(last, zero, zero)
        stopped = simclr_losses(vectors[:-1], vectors[-1].detach(), others.detach(), self.temperature)
        return Losses(last, stopped.mean(), zero)

    # The engine --------------------------------------------------------------------------------------------------

    def after_step(self, progress: Progress) -> None:
        if self.base != "simclr":
            momentum = cosine_to_one(self.momentum, progress.iteration, progress.iterations)
            follow(self.teacher["encoder"], self.encoder, momentum)
            follow(self.teacher["projector"], self.projector[-1], momentum)

    def compiled(self) -> Iterable[nn.Module]:
        return list(self.encoder.blocks)

    def exported(self) -> nn.Module:
        """The teacher's encoder; SimCLR's own."""
        return self.encoder if self.base == "simclr" else self.teacher["encoder"]

    def collapse(self, progress: Progress) -> str | None:
        if not self.spread > COLLAPSED:
            return (
                f"the targets of all images are alike (their spread is {float(self.spread):.3f}; 1 is that of random "
                "directions): take a lower rate, a longer warm-up, or a larger batch."
            )
        return None

    def scalars(self) -> dict[str, float]:
        return {"targets/spread": float(self.spread)}

    @torch.no_grad()
    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        """Cosines between the two views of the held images, by layer: the diagonal is to stand out."""
        from adpe.viz.figures import panels, show_heat

        crops = [crop for group in views for crop in group.unbind(dim=1)]
        exported: Any = self.exported()
        tokens = [
            [F.normalize(token[:, 0].float(), dim=-1) for _, token in exported.forward_intermediates(
                crop, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
            )]
            for crop in crops
        ]  # fmt: skip
        figure, (axes,) = panels(1, len(tokens[0]), 2.4, 2.2, "cosines of class tokens between two views")
        for number, (axis, one, other) in enumerate(zip(axes, *tokens, strict=True), start=1):
            cosines = (one - one.mean(dim=0)) @ (other - other.mean(dim=0)).T
            show_heat(figure, axis, cosines.cpu(), "second view", "first view")
            found = float((cosines.argmax(dim=1) == torch.arange(len(one), device=one.device)).float().mean())
            axis.set_title(f"block {number}: {found:.0%} found", fontsize=9)
        return {"views": figure}

    @property
    def title(self) -> str:
        name = {"moco": "MoCo v3", "byol": "BYOL", "simclr": "SimCLR"}[self.base]
        return f"SD-{name}" if self.self_distillation else name


def moco_losses(predictions: Tensor, keys: Tensor, offset: int = 0, temperature: float = 0.2) -> Tensor:
    """``(layers,)`` contrastive losses, times ``2 temperature``, of ``(layers, B, E)`` against all keys ``(M, E)``.

    The own image's key is that of index ``offset + b``.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        logits = F.normalize(predictions.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T / temperature
    labels = offset + torch.arange(predictions.shape[1], device=predictions.device)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(predictions)), reduction="none")
    return losses.view(len(predictions), -1).mean(dim=1) * 2 * temperature


def byol_losses(predictions: Tensor, target: Tensor) -> Tensor:
    """``(layers,)`` means of ``2 - 2 cos`` of ``(layers, B, E)`` against ``(B, E)``."""
    return (2 - 2 * F.cosine_similarity(predictions.float(), target.float().unsqueeze(0), dim=-1)).mean(dim=1)


def simclr_losses(anchors: Tensor, keys: Tensor, others: Tensor, temperature: float = 0.2) -> Tensor:
    """``(layers, 2 B)`` losses of unit vectors ``(layers, 2 B, E)`` against the last layer's.

    Args:
        anchors: both views, the first before the second.
        keys: ``(2 B, E)`` of the same images and views: the own one is left out, the other view's is the positive.
        others: ``(M, E)`` of other processes.
        temperature: of the logits.
    """
    count = len(keys)
    with torch.autocast(anchors.device.type, enabled=False):
        logits = anchors @ torch.cat([keys, others]).T / temperature
    own = torch.eye(count, logits.shape[-1], dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(own, -math.inf)
    labels = (torch.arange(count, device=logits.device) + count // 2) % count
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(anchors)), reduction="none").view(-1, count)


def row_first_table(h: int, w: int, dim: int) -> Tensor:
    """``(1, 1 + h * w, dim)``: the sine-cosine table with the row in the first half of the channels, MoCo v3's."""
    table = sincos_table(h, w, dim, torch.float32, torch.device("cpu"))
    column, row = table.chunk(2, dim=-1)
    return torch.cat([row, column], dim=-1)


def _gathered(target: Tensor) -> tuple[Tensor, int]:
    """The teacher's outputs of all processes, and where this one's begin."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return target, 0
    parts = [torch.empty_like(target) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, target.contiguous())
    return torch.cat(parts), torch.distributed.get_rank() * len(target)


def _others(keys: Tensor, gradients: bool) -> Tensor:
    """The keys of other processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return keys[:0]
    if gradients:
        from torch.distributed.nn.functional import all_gather

        parts = list(all_gather(keys))
    else:
        parts = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, keys.detach().contiguous())
    del parts[torch.distributed.get_rank()]
    return torch.cat([keys[:0], *parts])


@torch.no_grad()
def _initialise(encoder: VisionTransformer) -> None:
    """MoCo v3's (arXiv 2104.02057): queries, keys and values as three matrices, a small class token."""
    dim, p = encoder.embed_dim, encoder.patch_size
    bound = math.sqrt(6 / (encoder.patch_embed.proj.in_channels * p * p + dim))
    nn.init.uniform_(encoder.patch_embed.proj.weight, -bound, bound)
    assert encoder.patch_embed.proj.bias is not None and encoder.cls_token is not None and encoder.pos_embed is not None
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    for attention in encoder.attentions():
        nn.init.uniform_(attention.qkv.weight, -math.sqrt(6 / (2 * dim)), math.sqrt(6 / (2 * dim)))
    nn.init.normal_(encoder.cls_token, std=1e-6)
    encoder.pos_embed.copy_(row_first_table(*encoder.grid_of(encoder.table_size), dim))
