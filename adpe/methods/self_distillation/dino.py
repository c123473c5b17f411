"""Parts of DINO (arXiv 2104.14294) that methods of self-distillation share: head, centre, schedules, moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.models.vit import VisionTransformer


class DINOHead(nn.Module):
    """Linear layers with GELU, division by the L2 norm, and prototypes of unit length.

    Args:
        dim: width of what comes in.
        prototypes: outputs K.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        norm_last_layer: keep the prototypes' lengths at 1.
    """

    def __init__(
        self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, norm_last_layer: bool = True
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.apply(init_normal)
        self.last_layer = Prototypes(bottleneck, prototypes)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., K)``."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are ``v / |v| * g``."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(nn.Linear(dim, prototypes, bias=False).weight.detach().clone())
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v / self.weight_v.norm(dim=1, keepdim=True) * self.weight_g)


def init_normal(module: nn.Module) -> None:
    """Linear weights normal with std 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def init_encoder(encoder: VisionTransformer) -> None:
    """DINO's initialisation in place of MAE's: linear weights, positions and tokens normal with std 0.02, biases 0.

    The patch convolution has torch's default. Without a class token its row of the table, which nothing reads, is 0.
    """
    encoder.apply(init_normal)
    encoder.patch_embed.proj.reset_parameters()
    if encoder.cls_token is not None:
        nn.init.trunc_normal_(encoder.cls_token, std=0.02)
    if encoder.pos_embed is not None:
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
        if encoder.cls_token is None:
            encoder.pos_embed[:, 0] = 0


def flatten_crops(views: Sequence[Tensor]) -> list[Tensor]:
    """Groups ``(B, V, C, h, w)`` to ``(V * B, C, h, w)``, all images of the first crop, then of the second."""
    return [group.transpose(0, 1).flatten(0, 1) for group in views]


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student`` for every parameter; frozen ones stay, unrounded."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        if theirs.requires_grad:
            mine.mul_(momentum).add_(theirs.detach(), alpha=1 - momentum)


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean over the first dimension, ``(1, ...)``, and over processes of equal batches."""
    mean = x.mean(dim=0, keepdim=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean


def cosine_to_one(momentum: float, step: int, steps: int) -> float:
    """Momentum of the moving average: half a cosine from `momentum` to 1, which it never quite reaches."""
    return 1 + 0.5 * (momentum - 1) * (1 + math.cos(math.pi * step / max(steps, 1)))


def teacher_temperature(epoch: int, first: float, last: float, warmup_epochs: int) -> float:
    """A line from `first` to `last` over the warm-up's epochs, both included, then `last`."""
    if epoch >= warmup_epochs:
        return last
    return first if warmup_epochs == 1 else first + (last - first) * epoch / (warmup_epochs - 1)


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean of ``-sum q log p`` over all but the last dimension, for probabilities q and log-probabilities log p."""
    return -(teacher * student).sum(dim=-1).mean()
