"""SelfPatch (arXiv 2206.07990): DINO on a class token made outside the encoder, and a DINO loss for every patch.

The target of a patch is the teacher's summary of its most similar neighbours. With ``patch_loss_weight=0`` it is DINO
with that class token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.self_distillation.dino import (
    DINOHead,
    cosine_to_one,
    distillation,
    flatten_crops,
    follow,
    init_encoder,
    init_normal,
    mean_over_processes,
    teacher_temperature,
)
from adpe.models.factory import create_encoder
from adpe.models.layers import DropPath, LayerNorm, Mlp, run_blocks
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Neighbourhood = Literal["inside", "torus"]


class ClassAttention(nn.Module):
    """The token alone asks; keys and values come from the token and the patches."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, 1 + N, D)`` to ``(B, 1, D)``; `mask` ``(B, 1 + N)`` bool, True where a key is there."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        query = self.q(x[:, :1]).unflatten(-1, heads).transpose(1, 2)
        key, value = (layer(x).unflatten(-1, heads).transpose(1, 2) for layer in (self.k, self.v))
        allowed = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ClassBlock(nn.Module):
    """``c += attn(norm1([c; x])); c += mlp(norm2(c))``; the patches stay as they are."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, token: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        token = token + self.attn(self.norm1(torch.cat([token, x], dim=1)), mask)
        return token + self.mlp(self.norm2(token))


class AggregationHead(nn.Module):
    """A learned token that two blocks fill from patches, and a norm.

    Args:
        dim: width.
        num_heads: heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.cls_blocks = nn.ModuleList(ClassBlock(dim, num_heads) for _ in range(2))
        self.norm = LayerNorm(dim)
        self.apply(init_normal)

    def aggregate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patches ``(B, N, D)`` to one vector ``(B, 1, D)``; `mask` ``(B, N)`` bool, False where there is none."""
        token = self.cls_token.expand(len(x), -1, -1)
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        for block in self.cls_blocks:
            token = block(token, x, mask)
        return token

    def forward(self, x: Tensor) -> Tensor:
        """The student's: ``(B, 1 + L, D)``, the class vector and the plain patches under one norm."""
        return self.norm(torch.cat([self.aggregate(x), x], dim=1))

    def of_neighbours(self, x: Tensor, chosen: Tensor, mask: Tensor) -> Tensor:
        """The teacher's: ``(B, 1 + L, D)``, the class vector and for each patch what its neighbours add up to.

        Args:
            x: ``(B, L, D)``.
            chosen: ``(B, L, k)`` indices of neighbours.
            mask: ``(B, L, k)`` bool, whether there is one.
        """
        batch, patches = chosen.shape[:2]
        keys = x[torch.arange(batch, device=x.device)[:, None, None], chosen]
        summary = self.aggregate(keys.flatten(0, 1), mask.flatten(0, 1)).view(batch, patches, -1)
        return self.norm(torch.cat([self.aggregate(x), summary], dim=1))


class Network(nn.Module):
    """Encoder, aggregation head and the two projection heads: a student or a teacher."""

    def __init__(
        self, encoder: VisionTransformer, prototypes: int, patch_prototypes: int, hidden: int, bottleneck: int,
        norm_last_layer: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        width = encoder.embed_dim
        self.ca_head = AggregationHead(width, encoder.num_heads)
        self.c_head = DINOHead(width, prototypes, hidden, bottleneck, norm_last_layer)
        self.p_head = DINOHead(width, patch_prototypes, hidden, bottleneck, norm_last_layer)

    def patches(self, images: Tensor) -> Tensor:
        """Patch tokens ``(B, L, D)`` of the last block, without a norm."""
        x = self.encoder.embed(images)[0]
        return run_blocks(self.encoder.blocks, x, [None] * len(self.encoder.blocks), self.encoder.grad_checkpointing)


class Outputs(NamedTuple):
    """What a network says of the crops of one size.

    Attributes:
        cls: ``(V * B, 1, K)``.
        patch: ``(V * B, L, Kp)``.
    """

    cls: Tensor
    patch: Tensor


class SelfPatch(PretrainingMethod):
    """Self-distillation of a class vector and of every patch.

    Args:
        encoder: a :class:`VisionTransformer` with ``class_token=False``.
        prototypes: of the class vector, K.
        patch_prototypes: of the patches, Kp.
        hidden: width of the projection heads.
        bottleneck: width before the prototypes.
        neighbours: k most similar neighbours that make a patch's target.
        neighbourhood: "inside", the neighbours that are in the image; "torus", rows and columns wrap round (reference).
        patch_loss_weight: of the patches' loss.
        student_temp: temperature of the student.
        teacher_temp: of the teacher after its warm-up.
        warmup_teacher_temp: at the start.
        warmup_teacher_temp_epochs: of the line between them.
        center_momentum: of the centres.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        freeze_last_layer: epochs in which the prototypes do not move.
        norm_last_layer: keep their lengths at 1.

    Raises:
        ValueError: for options that do not go together.
    """

    center: Tensor
    patch_center: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        prototypes: int = 65536,
        patch_prototypes: int = 4096,
        hidden: int = 2048,
        bottleneck: int = 256,
        neighbours: int = 4,
        neighbourhood: Neighbourhood = "inside",
        patch_loss_weight: float = 0.1,
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
        if encoder.num_prefix_tokens or encoder.relative or encoder.needs_grid or encoder.num_classes:
            raise ValueError("SelfPatch needs class_token=False, absolute positions, no windows and no classes.")
        if neighbourhood not in get_args(Neighbourhood) or not 1 <= neighbours <= 8:
            raise ValueError(
                f"neighbourhood={neighbourhood!r} or neighbours={neighbours}: inside or torus, and 1 to 8."
            )
        if min(student_temp, teacher_temp, warmup_teacher_temp) <= 0 or patch_loss_weight < 0:
            raise ValueError("temperatures must be positive, and patch_loss_weight not negative.")
        init_encoder(encoder)
        encoder.norm.requires_grad_(False)  # the head's norm takes its place
        self.student = Network(encoder, prototypes, patch_prototypes, hidden, bottleneck, norm_last_layer)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        self.neighbours, self.neighbourhood, self.patch_loss_weight = neighbours, neighbourhood, patch_loss_weight
        self.student_temp = student_temp
        self.temperatures = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.center_momentum, self.momentum, self.freeze_last_layer = center_momentum, momentum, freeze_last_layer
        self.register_buffer("center", torch.zeros(1, 1, prototypes))
        self.register_buffer("patch_center", torch.zeros(1, patch_prototypes))
        self.register_buffer("spread", torch.ones(()))

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> SelfPatch:
        own = {"class_token": False, "learned_pos_embed": True, "pos_embed_resize": "dino"}
        return cls(create_encoder(model, **{**own, **encoder_options}), **options)

    @property
    def encoder(self) -> VisionTransformer:  # type: ignore[override]
        """The student's."""
        return self.student.encoder

    # The objective -----------------------------------------------------------------------------------------------

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        if views[0].shape[1] != 2:
            raise ValueError(f"SelfPatch takes two global crops in the first group of views, got {views[0].shape[1]}.")
        groups = flatten_crops(views)
        students = [self.of_student(images) for images in groups]
        teachers = [self.of_teacher(images)[0] for images in groups]
        temperature = teacher_temperature(progress.epoch, *self.temperatures)
        cls, patch = self.distill(students, teachers, [group.shape[1] for group in views], temperature)
        self.update_centers(teachers)
        return {"loss_cls": cls, "loss_patch": self.patch_loss_weight * patch, **self._entropies(teachers, temperature)}

    def of_student(self, images: Tensor) -> Outputs:
        """Outputs for crops of one size."""
        x = self.student.ca_head(self.student.patches(images))
        return Outputs(self.student.c_head(x[:, :1]), self.student.p_head(x[:, 1:]))

    @torch.no_grad()
    def of_teacher(self, images: Tensor) -> tuple[Outputs, Tensor, Tensor]:
        """Outputs, and the similarities ``(V * B, L, 8)`` and chosen columns ``(V * B, L, k)`` of the neighbours."""
        x = self.teacher.patches(images)
        grid = self.teacher.encoder.patch_embed.grid(images)
        similarity, columns, chosen, mask = self.choose(x, grid)
        y = self.teacher.ca_head.of_neighbours(x, chosen, mask)
        return Outputs(self.teacher.c_head(y[:, :1]), self.teacher.p_head(y[:, 1:])), similarity, columns

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The most similar neighbours of every patch ``(B, L, D)``.

        Returns:
            similarities ``(B, L, 8)`` by columns of the table, chosen columns, patches and whether there is one, each
            ``(B, L, k)``.
        """
        table, there = neighbour_table(*grid, self.neighbourhood == "torus")
        table, there = table.to(x.device), there.to(x.device)
        # Rounding to half precision would decide close ranks.
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1, eps=1e-12)
            similarity = torch.einsum("bld,blnd->bln", unit, unit[:, table])
        columns = similarity.masked_fill(~there, -math.inf).topk(self.neighbours, dim=-1).indices
        chosen = table.expand(len(x), -1, -1).gather(2, columns)
        return similarity, columns, chosen, there.expand(len(x), -1, -1).gather(2, columns)

    def distill(
        self, students: Sequence[Outputs], teachers: Sequence[Outputs], crops: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Losses of the class vector and of the patches.

        Args:
            students: outputs of each group of crops.
            teachers: likewise.
            crops: of each group; the first is the global ones.
            temperature: of the teacher.
        """
        log_p = [part for out, n in zip(students, crops, strict=True)
                 for part in (out.cls.float() / self.student_temp).log_softmax(dim=-1).chunk(n)]  # fmt: skip
        q = ((teachers[0].cls.float() - self.center) / temperature).softmax(dim=-1).chunk(crops[0])
        pairs = [(a, b) for a in range(crops[0]) for b in range(len(log_p)) if a != b]
        cls = torch.stack([distillation(q[a], log_p[b]) for a, b in pairs]).mean()
        terms = []
        for student, teacher, n in zip(students, teachers, crops, strict=True):
            target = ((teacher.patch.float() - self.patch_center) / temperature).softmax(dim=-1)
            own = (student.patch.float() / self.student_temp).log_softmax(dim=-1)
            # The mean of a group is the mean of its crops, which have as many patches each.
            terms.append(n * distillation(target, own))
        return cls, torch.stack(terms).sum() / sum(crops)

    @torch.no_grad()
    def update_centers(self, teachers: Sequence[Outputs]) -> None:
        """``center = 0.9 center + 0.1 mean`` over all crops and processes; patches count one by one."""
        cls = torch.cat([out.cls for out in teachers])
        patch = torch.cat([out.patch.flatten(0, 1) for out in teachers])
        m = self.center_momentum
        self.center.mul_(m).add_(mean_over_processes(cls.float()), alpha=1 - m)
        self.patch_center.mul_(m).add_(mean_over_processes(patch.float()), alpha=1 - m)
        self.spread.copy_(cls.float().flatten(0, 1).std(dim=0).mean() if len(cls) > 1 else torch.ones(()))

    def _entropies(self, teachers: Sequence[Outputs], temperature: float) -> dict[str, Tensor]:
        q = ((teachers[0].cls.detach().float() - self.center) / temperature).softmax(dim=-1).flatten(0, 1)
        return {"entropy": -(q * (q + 1e-12).log()).sum(-1).mean(), "spread": self.spread.clone()}

    # The engine --------------------------------------------------------------------------------------------------

    def resting(self, progress: Progress) -> list[nn.Parameter]:
        if progress.epoch >= self.freeze_last_layer:
            return []
        return [*self.student.c_head.last_layer.parameters(), *self.student.p_head.last_layer.parameters()]

    def after_step(self, progress: Progress) -> None:
        follow(self.teacher, self.student, cosine_to_one(self.momentum, progress.iteration, progress.iterations))

    def compiled(self) -> Iterable[nn.Module]:
        return list(self.student.encoder.blocks)

    def collapse(self, progress: Progress) -> str | None:
        if float(self.spread) < 1e-5:
            return "the teacher says the same of every image: raise the teacher's temperature or lower the rate."
        return None

    def exported(self) -> nn.Module:
        """The teacher's encoder; the head's norm is its final one."""
        encoder = copy.deepcopy(self.teacher.encoder)
        encoder.norm.load_state_dict(self.teacher.ca_head.norm.state_dict())
        return encoder

    @property
    def title(self) -> str:
        return "SelfPatch" if self.patch_loss_weight else "DINO"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        grid = self.teacher.encoder.patch_embed.grid(images)
        with torch.no_grad():
            outputs, similarity, _ = self.of_teacher(images)
        maps = {
            "similarity to neighbours": similarity.amax(dim=-1),
            "prototype of the patch": outputs.patch.argmax(dim=-1).float(),
        }
        return {"neighbours": draw_patch_maps(images, maps, grid, mean, std)}


@lru_cache(maxsize=16)
def neighbour_table(h: int, w: int, torus: bool) -> tuple[Tensor, Tensor]:
    """The eight patches around each, ``(L, 8)`` in ascending order, and whether each is there.

    Without a torus what lies outside is not there, and stands as the patch itself.

    Raises:
        ValueError: for a grid below 3 x 3.
    """
    if h < 3 or w < 3:
        raise ValueError(f"a grid of {h} x {w} patches: neighbours need at least 3 x 3.")
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    own = (rows * w + columns).flatten()
    entries = []
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            if dr or dc:
                r, c = (rows + dr).flatten(), (columns + dc).flatten()
                inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
                index = r % h * w + c % w
                entries.append((index if torus else torch.where(inside, index, own), inside | torch.tensor(torus)))
    table = torch.stack([index for index, _ in entries], dim=1)
    there = torch.stack([inside for _, inside in entries], dim=1)
    order = table.argsort(dim=1, stable=True)
    return table.gather(1, order), there.gather(1, order)
