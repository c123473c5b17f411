"""I-JEPA (arXiv 2301.08243), with the stochastic positions of StoP (arXiv 2308.00566).

A predictor tells the features of target blocks, as a moving average of the encoder sees them in the whole image, from
the encoder's tokens of a context block.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.models.factory import create_encoder
from adpe.models.layers import Block, LayerNorm, run_blocks
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Deviation over patches of target features, which have unit variance over channels, below which they carry nothing.
_CONSTANT = 1e-2


class Predictor(nn.Module):
    """Linear, blocks over context and queries, norm, linear back to the encoder's width.

    Args:
        encoder_dim: D.
        embed_dim: D_p.
        depth: blocks.
        num_heads: heads.
    """

    def __init__(self, encoder_dim: int, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(embed_dim)
        self.proj = nn.Linear(embed_dim, encoder_dim)
        self.apply(_init)

    def tokens(
        self, context: Tensor, context_indices: Tensor, targets: Sequence[Tensor], noises: Sequence[Tensor] | None,
        grid: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """What enters the first block, ``(K * B, C + T, D_p)``, blocks of targets stacked along the batch.

        Args:
            context: ``(B, C, D)`` of the encoder.
            context_indices: ``(B, C)``.
            targets: K times ``(B, T)``.
            noises: K times ``(B, T, D)``, scaled; None without stochastic positions.
            grid: of the image.
        """
        table = sincos_table(*grid, self.embed.out_features, context.dtype, context.device, 0)
        first = self.embed(context) + table[0, context_indices]
        sequences = []
        for number, indices in enumerate(targets):
            query = table[0, indices]
            if noises is not None:
                query = query + self.embed(noises[number])
            sequences.append(torch.cat([first, query], dim=1))
        return torch.cat(sequences)

    def forward(self, tokens: Tensor, context: int, grad_checkpointing: bool = False) -> Tensor:
        """Tokens to predictions ``(K * B, T, D)`` behind the `context` first ones."""
        x = run_blocks(self.blocks, tokens, [None] * len(self.blocks), grad_checkpointing)
        return self.proj(self.norm(x)[:, context:])


class IJEPA(PretrainingMethod):
    """Prediction of the features of hidden blocks.

    Args:
        encoder: a :class:`VisionTransformer` with ``class_token=False`` and absolute positions.
        predictor_embed_dim: width of the predictor.
        predictor_depth: blocks of it.
        predictor_num_heads: heads; those of the encoder if None.
        position_noise_std: of the noise on the positions of queries (0.25: StoP); None has none, nor the bias that
            comes with it.
        targets: blocks that are predicted.
        momentum: of the moving average at the start; it rises to 1 linearly.

    Raises:
        ValueError: for options that do not go together.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor_embed_dim: int = 384,
        predictor_depth: int = 6,
        predictor_num_heads: int | None = None,
        position_noise_std: float | None = None,
        targets: int = 4,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        if encoder.num_prefix_tokens or encoder.relative or encoder.needs_grid or encoder.num_classes:
            raise ValueError("I-JEPA needs class_token=False, absolute positions, no windows and no classes.")
        if targets < 1 or not 0 <= momentum <= 1 or (position_noise_std is not None and position_noise_std < 0):
            raise ValueError(f"targets={targets}, momentum={momentum} or position_noise_std={position_noise_std}.")
        heads = encoder.num_heads if predictor_num_heads is None else predictor_num_heads
        if predictor_embed_dim % 4 or predictor_embed_dim % heads:
            raise ValueError(f"predictor_embed_dim={predictor_embed_dim} must be divisible by 4 and by {heads} heads.")
        self.encoder: VisionTransformer = encoder.apply(_init)
        self.position_noise_std, self.targets, self.momentum = position_noise_std, targets, momentum
        self.predictor = Predictor(encoder.embed_dim, predictor_embed_dim, predictor_depth, heads)
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self._spread: Tensor | None = None  # of the target features over the last batch's patches

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> IJEPA:
        return cls(create_encoder(model, **{"class_token": False, **encoder_options}), **options)

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        context, targets = draw_blocks(len(images), self.encoder.patch_embed.grid(images), self.targets, images.device)
        noises = None
        if self.position_noise_std is not None:
            shape = (*targets[0].shape, self.encoder.embed_dim)
            noises = [self.position_noise_std * torch.randn(shape, device=images.device) for _ in targets]
        return {"loss": self(images, context, targets, noises)}

    def forward(
        self, images: Tensor, context: Tensor, targets: Sequence[Tensor], noises: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss, smooth L1 (beta 1) of features normalised without parameters; arguments as of `Predictor`."""
        features = self.target_features(images, targets)
        self._spread = features.flatten(0, 1).std(dim=0).mean()
        return F.smooth_l1_loss(self.predict(images, context, targets, noises), features)

    def predict(
        self, images: Tensor, context: Tensor, targets: Sequence[Tensor], noises: Sequence[Tensor] | None
    ) -> Tensor:
        """Predicted features ``(K * B, T, D)``."""
        grid = self.encoder.patch_embed.grid(images)
        tokens = self.predictor.tokens(self.encode(images, context), context, targets, noises, grid)
        return self.predictor(tokens, context.shape[1], self.encoder.grad_checkpointing)

    def encode(self, images: Tensor, context: Tensor) -> Tensor:
        """Tokens ``(B, C, D)`` of the patches `context` ``(B, C)``, after the final norm."""
        encoder = self.encoder
        table = encoder.position_table(encoder.patch_embed.grid(images), encoder.patch_embed.proj.weight)
        x = torch.take_along_dim(encoder.patch_embed(images) + table[:, 1:], context.unsqueeze(-1), dim=1)
        return encoder.norm(run_blocks(encoder.blocks, x, [None] * len(encoder.blocks), encoder.grad_checkpointing))

    @torch.no_grad()
    def target_features(self, images: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Features ``(K * B, T, D)`` of the moving average."""
        features = self.target.forward_features(images)
        features = F.layer_norm(features.float(), features.shape[-1:])
        return torch.cat([torch.take_along_dim(features, indices.unsqueeze(-1), dim=1) for indices in targets])

    def after_step(self, progress: Progress) -> None:
        self.follow(self.momentum + (1 - self.momentum) * progress.fraction)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """``target = momentum * target + (1 - momentum) * encoder``."""
        for mine, theirs in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - momentum)

    def exported(self) -> nn.Module:
        """The moving average, which the reference's evaluations load (StoP's logistic_eval.py)."""
        return self.target

    def compiled(self) -> Iterable[nn.Module]:
        return [block for block in super().compiled() if not any(block is own for own in self.target.modules())]

    def collapse(self, progress: Progress) -> str | None:
        if self._spread is None or self._spread > _CONSTANT:
            return None
        return f"the target features of all patches are the same (deviation {float(self._spread):.1e} of 1)."

    def scalars(self) -> dict[str, float]:
        return {} if self._spread is None else {"ijepa/target_spread": float(self._spread)}

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        grid = self.encoder.patch_embed.grid(images)
        generator = torch.Generator().manual_seed(0)
        context, targets = draw_blocks(len(images), grid, self.targets, images.device, generator)
        noises = None
        if self.position_noise_std is not None:  # none, but with the bias that comes with it
            noises = [images.new_zeros(*indices.shape, self.encoder.embed_dim) for indices in targets]
        with torch.no_grad():
            features, prediction = self.target_features(images, targets), self.predict(images, context, targets, noises)
        errors = F.smooth_l1_loss(prediction, features, reduction="none").mean(dim=-1).unflatten(0, (self.targets, -1))
        blank = torch.zeros(len(images), grid[0] * grid[1], device=images.device)
        block, error = blank, blank
        for number, indices in enumerate(targets):
            block = block.scatter(1, indices, number + 1.0)
            error = error.scatter(1, indices, errors[number].float())
        maps = {"context": blank.scatter(1, context, 1.0), "target blocks": block, "error of their features": error}
        return {"blocks": draw_patch_maps(images, maps, grid, mean, std)}

    @property
    def title(self) -> str:
        return "I-JEPA" if self.position_noise_std is None else "I-JEPA StoP"


def draw_blocks(
    count: int, grid: tuple[int, int], targets: int, device: Any = None, generator: torch.Generator | None = None
) -> tuple[Tensor, list[Tensor]]:
    """I-JEPA's blocks: 15-20 % of the image each, and a context of 85-100 % without them.

    Sizes (aspect 0.75-1.5) are drawn once for the batch, places for every image; all lists of the context are cut to
    the shortest, at least one patch.

    Returns:
        ``(B, C)`` context and `targets` times ``(B, T)`` target indices, in raster order.
    """
    h, w = grid

    def size(low: float, high: float, aspects: tuple[float, float]) -> tuple[int, int]:
        area = h * w * (low + (high - low) * float(torch.rand((), generator=generator)))
        aspect = aspects[0] + (aspects[1] - aspects[0]) * float(torch.rand((), generator=generator))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return min(max(height, 1), max(h - 1, 1)), min(max(width, 1), max(w - 1, 1))

    def place(rows: int, columns: int) -> Tensor:
        block = torch.zeros(h, w, dtype=torch.bool)
        top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in (h - rows, w - columns))
        block[top : top + rows, left : left + columns] = True
        return block

    target_size, context_size = size(0.15, 0.2, (0.75, 1.5)), size(0.85, 1.0, (1.0, 1.0))
    chosen: list[list[Tensor]] = [[] for _ in range(targets)]
    contexts = []
    for _ in range(count):
        blocks = [place(*target_size) for _ in range(targets)]
        for number, block in enumerate(blocks):
            chosen[number].append(block.flatten().nonzero()[:, 0])
        context = place(*context_size) & ~torch.stack(blocks).any(dim=0)
        if not context.any():  # the targets cover everything on a tiny grid
            context = ~torch.stack(blocks).any(dim=0) if not torch.stack(blocks).any(dim=0).all() else ~blocks[0]
        contexts.append(context.flatten().nonzero()[:, 0])
    shortest = min(map(len, contexts))
    context_indices = torch.stack([indices[:shortest] for indices in contexts])
    return context_indices.to(device), [torch.stack(indices).to(device) for indices in chosen]


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
