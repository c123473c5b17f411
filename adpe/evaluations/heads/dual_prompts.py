"""DualCoOp (arXiv 2206.09541): two learned prompts for each class, compared with the regions of an image.

Every list of 2 C prompts has the C negative ones first. Everything but the contexts of the prompts is frozen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError


class RegionProjection(nn.Module):
    """CLIP's attention pooling without its attention: regions of a feature map.

    Args:
        width: channels F of the map.
        joint: width D of what is compared.
        own_side: side of the grid of positions.
    """

    def __init__(self, width: int, joint: int, own_side: int) -> None:
        super().__init__()
        self.own_side = own_side
        self.positional_embedding = nn.Parameter(torch.randn(1 + own_side**2, width) * width**-0.5)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, joint)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F, h, w)`` to ``(B, D, 1 + h * w)``, the mean first, which counts as one more region."""
        grid = (features.shape[-2], features.shape[-1])
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return self.c_proj(self.v_proj(tokens + self._positions(grid))).transpose(1, 2)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        # As in the reference, another grid of as many cells is not resized.
        if grid[0] * grid[1] == self.own_side**2:
            return self.positional_embedding
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        image = rest.T.reshape(1, -1, self.own_side, self.own_side)
        resized = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([first, resized.flatten(2)[0].T])


class TextBlock(nn.Module):
    """Pre-norm block of CLIP's text side: causal attention, quick GELU."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)})
        self.ln_2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class TextEncoder(nn.Module):
    """CLIP's text transformer on embeddings, to the joint space.

    Args:
        dim: width T.
        layers: blocks.
        num_heads: heads.
        joint: width D.
        length: most tokens of a sentence.
    """

    def __init__(self, dim: int, layers: int, num_heads: int, joint: int, length: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(length, dim) * 0.01)
        self.resblocks = nn.ModuleList(TextBlock(dim, num_heads) for _ in range(layers))
        self.ln_final = nn.LayerNorm(dim)
        self.text_projection = nn.Parameter(torch.randn(dim, joint) * dim**-0.5)

    def forward(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """``(N, S, T)`` embeddings and the places ``(N,)`` of their end tokens to ``(N, D)``.

        Raises:
            UserError: for sentences longer than the table of positions.
        """
        length = embeddings.shape[1]
        if length > len(self.positional_embedding):
            raise UserError(f"prompts of {length} tokens, the text encoder takes {len(self.positional_embedding)}.")
        mask = torch.full((length, length), float("-inf"), device=embeddings.device).triu(1)
        x = embeddings + self.positional_embedding[:length]
        for block in self.resblocks:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(x), device=x.device), ends] @ self.text_projection


class DualPrompts(nn.Module):
    """Contexts of negative and positive prompts, between the embeddings of the start token and of the class name.

    Args:
        prefix: ``(C, 1, T)`` of the start token, of negative and of positive prompts.
        suffix: ``(C, S, T)`` of what follows the contexts.
        contexts: n learned vectors.
        class_specific: of their own for each class.
    """

    def __init__(
        self, prefix: tuple[Tensor, Tensor], suffix: tuple[Tensor, Tensor], contexts: int, class_specific: bool = False
    ) -> None:
        super().__init__()
        classes, _, width = prefix[0].shape
        shape = (classes, contexts, width) if class_specific else (contexts, width)
        self.ctx_neg = nn.Parameter(torch.randn(shape) * 0.02)
        self.ctx_pos = nn.Parameter(torch.randn(shape) * 0.02)
        for kind, number in (("neg", 0), ("pos", 1)):
            self.register_buffer(f"prefix_{kind}", prefix[number])
            self.register_buffer(f"suffix_{kind}", suffix[number])

    def forward(self) -> Tensor:
        """Embeddings ``(2 C, 1 + n + S, T)``, the negative prompts first."""
        parts = []
        for kind in ("neg", "pos"):
            prefix, suffix = getattr(self, f"prefix_{kind}"), getattr(self, f"suffix_{kind}")
            context = getattr(self, f"ctx_{kind}")
            if context.ndim == 2:
                context = context.expand(len(prefix), -1, -1)
            parts.append(torch.cat([prefix, context, suffix], dim=1))
        return torch.cat(parts)


def region_maps(regions: Tensor, text: Tensor, scale: float = 20.0) -> Tensor:
    """Scaled cosines ``(B, 2 C, R)`` of regions ``(B, D, R)`` and text features ``(2 C, D)``."""
    return scale * torch.einsum("kd,bdr->bkr", F.normalize(text, dim=-1), F.normalize(regions, dim=1))


def aggregate(maps: Tensor, scale: float = 5.0, uniform: bool = False) -> tuple[Tensor, Tensor]:
    """Logits ``(B, 2, C)``, negative and positive, and weights ``(B, C, R)`` over regions.

    The weights come from the positive prompt alone; `uniform` ones are the control.
    """
    negative, positive = maps.chunk(2, dim=1)
    weights = torch.full_like(positive, 1 / maps.shape[-1]) if uniform else positive.softmax(dim=-1)
    return torch.stack([scale * (weights * part).sum(dim=-1) for part in (negative, positive)], dim=1), weights


def probabilities(logits: Tensor) -> Tensor:
    """Of every label, ``(B, C)``, of logits ``(B, 2, C)``."""
    return logits.softmax(dim=1)[:, 1]


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_neg: float = 2.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    eps: float = 1e-6,
) -> Tensor:
    """The sum over known labels; no gradient passes through the focusing powers.

    Args:
        logits: ``(B, 2, C)``.
        targets: ``(B, C)`` of 1, 0 and -1 for unknown.
        gamma_neg: focusing of absent labels.
        gamma_pos: of present ones.
        clip: added to the probability of absence.
        eps: least probability under a logarithm.
    """
    both = logits.softmax(dim=1)
    present, absent = both[:, 1], (both[:, 0] + clip).clamp(max=1.0)
    loss = (targets == 1) * (1 - present).detach() ** gamma_pos * present.clamp(min=eps).log()
    loss = loss + (targets == 0) * (1 - absent).detach() ** gamma_neg * absent.clamp(min=eps).log()
    return -loss.sum()


def known_labels(targets: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Targets of which each is known with a probability, the others -1; drawn once for a run.

    Raises:
        UserError: for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"known = {share}: expected a share of the labels above 0, at most 1.")
    return torch.where(torch.rand(targets.shape, generator=generator) < share, targets, -1)
