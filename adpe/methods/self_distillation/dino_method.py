"""DINO (arXiv 2104.14294): self-distillation of a class token between crops, with a teacher that follows the student.

With images of more channels and one sensor dropped from half of the views (:mod:`adpe.data.views.multiband`) it is
DINO-MM (arXiv 2204.05381).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.self_distillation.dino import (
    DINOHead,
    cosine_to_one,
    distillation,
    flatten_crops,
    follow,
    init_encoder,
    mean_over_processes,
    teacher_temperature,
)
from adpe.models.factory import create_encoder
from adpe.models.layers import DropPath
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ClassTokenNetwork(nn.Module):
    """An encoder, and a head on its normed class token: a student or a teacher."""

    def __init__(self, encoder: VisionTransformer, head: DINOHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, groups: Sequence[Tensor]) -> Tensor:
        """Class tokens ``(N, D)`` of groups of crops ``(V * B, C, h, w)``, one after the other."""
        return torch.cat([self.encoder.forward_features(images)[:, 0] for images in groups])

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """``(N, K)`` of groups of crops."""
        return self.head(self.features(groups))


class DINO(PretrainingMethod):
    """Self-distillation of the class token.

    Args:
        encoder: a :class:`VisionTransformer` with a class token, of any number of channels.
        prototypes: K.
        hidden: width of the projection head.
        bottleneck: width before the prototypes.
        student_temp: temperature of the student.
        teacher_temp: of the teacher after its warm-up.
        warmup_teacher_temp: at the start.
        warmup_teacher_temp_epochs: of the line between them.
        center_momentum: of the centre.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        freeze_last_layer: epochs in which the prototypes do not move.
        norm_last_layer: keep their lengths at 1.

    Raises:
        ValueError: for options that do not go together.
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: int = 1,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        if not encoder.num_prefix_tokens or encoder.needs_grid or encoder.num_classes:
            raise ValueError("DINO needs a class token, no windows and no classes.")
        if min(student_temp, teacher_temp, warmup_teacher_temp) <= 0:
            raise ValueError("temperatures must be positive.")
        init_encoder(encoder)
        head = DINOHead(encoder.embed_dim, prototypes, hidden, bottleneck, norm_last_layer)
        self.student = ClassTokenNetwork(encoder, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        self.student_temp = student_temp
        self.temperatures = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.center_momentum, self.momentum, self.freeze_last_layer = center_momentum, momentum, freeze_last_layer
        self.register_buffer("center", torch.zeros(1, prototypes))
        self.register_buffer("spread", torch.ones(()))

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> DINO:
        own = {"learned_pos_embed": True, "pos_embed_resize": "dino"}
        return cls(create_encoder(model, **{**own, **encoder_options}), **options)

    @property
    def encoder(self) -> VisionTransformer:  # type: ignore[override]
        """The student's."""
        return self.student.encoder

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        if views[0].shape[1] != 2:
            raise ValueError(f"DINO takes two global crops in the first group of views, got {views[0].shape[1]}.")
        groups = flatten_crops(views)
        with torch.no_grad():
            teacher = self.teacher(groups[:1])
        student = self.student(groups)
        temperature = teacher_temperature(progress.epoch, *self.temperatures)
        loss = self.distill(student, teacher, sum(group.shape[1] for group in views), temperature)
        q = ((teacher.float() - self.center) / temperature).softmax(dim=-1)
        self.update_center(teacher)
        entropy = -(q * (q + 1e-12).log()).sum(-1).mean()
        return {"loss": loss, "entropy": entropy, "spread": self.spread.clone()}

    def distill(self, student: Tensor, teacher: Tensor, crops: int, temperature: float) -> Tensor:
        """The loss over pairs of different crops: `teacher` of the two global ones, `student` of all, in order."""
        log_p = (student.float() / self.student_temp).log_softmax(dim=-1).chunk(crops)
        q = ((teacher.float() - self.center) / temperature).softmax(dim=-1).chunk(2)
        pairs = [(a, b) for a in range(2) for b in range(crops) if a != b]
        return torch.stack([distillation(q[a], log_p[b]) for a, b in pairs]).mean()

    @torch.no_grad()
    def update_center(self, teacher: Tensor) -> None:
        """``center = 0.9 center + 0.1 mean`` over the teacher's outputs of all processes."""
        m = self.center_momentum
        self.center.mul_(m).add_(mean_over_processes(teacher.float()), alpha=1 - m)
        self.spread.copy_(teacher.float().std(dim=0).mean() if len(teacher) > 1 else torch.ones(()))

    def resting(self, progress: Progress) -> list[nn.Parameter]:
        last_layer = self.student.head.last_layer
        return list(last_layer.parameters()) if progress.epoch < self.freeze_last_layer else []

    def after_step(self, progress: Progress) -> None:
        follow(self.teacher, self.student, cosine_to_one(self.momentum, progress.iteration, progress.iterations))

    def compiled(self) -> Iterable[nn.Module]:
        return list(self.student.encoder.blocks)

    def collapse(self, progress: Progress) -> str | None:
        if float(self.spread) < 1e-5:
            return "the teacher says the same of every image: raise the teacher's temperature or lower the rate."
        return None

    def exported(self) -> nn.Module:
        """The teacher's encoder."""
        return self.teacher.encoder

    @property
    def title(self) -> str:
        return "DINO" if self.encoder.patch_embed.proj.in_channels == 3 else "DINO-MM"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        if images.shape[1] != 3:
            return {}
        grid = self.teacher.encoder.patch_embed.grid(images)
        with torch.no_grad():
            tokens = torch.nn.functional.normalize(self.teacher.encoder.forward_features(images).float(), dim=-1)
        maps = {"likeness to the class token": (tokens[:, 1:] @ tokens[:, :1].transpose(1, 2)).squeeze(-1)}
        return {"likeness": draw_patch_maps(images, maps, grid, mean, std)}
