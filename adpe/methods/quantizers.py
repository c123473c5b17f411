"""Codebooks: the nearest code of a vector, by a gradient (ViT-VQGAN, arXiv 2110.04627) or by moving averages."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

StraightThrough = Literal["normalised", "latent"]


class Quantised(NamedTuple):
    """What a lookup gives.

    Attributes:
        codes: ``(B, L, c)`` with the gradient of a straight-through estimator.
        indices: ``(B, L)``.
        loss: of the codebook.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """A codebook that learns by a gradient; codes and latents are compared on the sphere.

    Args:
        codes: K.
        code_dim: c.
        beta: weight of the term that moves the latents.
        normalise: compare unit vectors; without it the plain ones.
        straight_through: to which the decoder's gradient is copied: the "normalised" latent, so that it passes through
            the normalisation, or the "latent" itself (the public code), which then gets a component along itself that
            the forward pass does not see.
    """

    def __init__(
        self, codes: int, code_dim: int, beta: float = 0.25, normalise: bool = True,
        straight_through: StraightThrough = "normalised",
    ) -> None:  # fmt: skip
        super().__init__()
        if straight_through not in get_args(StraightThrough):
            raise ValueError(f"straight_through={straight_through!r} is none of normalised, latent.")
        self.embedding = nn.Embedding(codes, code_dim)
        self.beta, self.normalise, self.straight_through = beta, normalise, straight_through

    def table(self) -> Tensor:
        """Codes ``(K, c)`` as they are used."""
        return F.normalize(self.embedding.weight, dim=-1) if self.normalise else self.embedding.weight

    def forward(self, z: Tensor) -> Quantised:
        """Latents ``(B, L, c)``; distances are computed in float32."""
        unit = F.normalize(z.float(), dim=-1) if self.normalise else z.float()
        table = self.table()
        with torch.no_grad():
            distance = table.square().sum(dim=-1) - 2 * unit @ table.T
            indices = distance.argmin(dim=-1)
        codes = table[indices]
        loss = self.beta * (codes.detach() - unit).square().mean() + (codes - unit.detach()).square().mean()
        source = unit if self.straight_through == "normalised" else z
        return Quantised(source + (codes - source).detach(), indices, loss)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices."""
        return self.table()[indices]


class MovingQuantizer(nn.Module):
    """A codebook on the sphere that follows its latents by moving averages, between two projections.

    Args:
        dim: width of what comes in.
        codes: K.
        code_dim: c.
        decay: of the averages.
        commitment_weight: of the loss.
        smoothing: of the counts.
    """

    codebook: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(
        self, dim: int, codes: int, code_dim: int, decay: float = 0.8, commitment_weight: float = 1.0,
        smoothing: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.project_in = nn.Linear(dim, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.decay, self.commitment_weight, self.smoothing = decay, commitment_weight, smoothing
        start = F.normalize(torch.randn(codes, code_dim), dim=-1)
        self.register_buffer("codebook", start)
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed_avg", start.clone())

    def forward(self, x: Tensor) -> Quantised:
        """``(B, L, D)`` to the same; the codebook moves after the lookup, in training mode."""
        unit = F.normalize(self.project_in(x).float(), dim=-1, eps=1e-6)
        with torch.no_grad():
            indices = (unit @ self.codebook.T).argmax(dim=-1)
        codes = self.codebook[indices]
        loss = self.commitment_weight * (codes.detach() - unit).square().mean()
        if self.training:
            self._move(unit.detach().flatten(0, 1), indices.flatten())
        return Quantised(self.project_out(unit + (codes - unit).detach()), indices, loss)

    @torch.no_grad()
    def _move(self, unit: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=len(self.codebook)).to(unit.dtype)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, indices, unit)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.smoothing) / (total + len(self.codebook) * self.smoothing) * total
        self.codebook.copy_(F.normalize(self.embed_avg / smoothed[:, None], dim=-1))

    @torch.no_grad()
    def restart(self, unit: Tensor, threshold: float, generator: torch.Generator | None = None) -> int:
        """Give codes whose count fell under a threshold random latents ``(N, c)``; returns how many."""
        dead = (self.cluster_size < threshold).nonzero()[:, 0]
        if len(dead):
            chosen = unit[torch.randint(len(unit), (len(dead),), generator=generator).to(unit.device)]
            self.codebook[dead], self.embed_avg[dead] = chosen, chosen * threshold
            self.cluster_size[dead] = threshold
        return len(dead)


def adversarial_losses(kind: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of a discriminator's logits of real and reconstructed images, and of the generator.

    Args:
        kind: "hinge", "vanilla", or "least_square" with labels -1 and 1 and a generator's target of 0.
        real: logits.
        fake: logits.

    Raises:
        ValueError: for another kind.
    """
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2, -fake.mean()
    if kind == "vanilla":
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2, F.softplus(-fake).mean()
    if kind == "least_square":
        return ((1 - real).square().mean() + (1 + fake).square().mean()) / 2, fake.square().mean()
    raise ValueError(f"adversarial loss {kind!r} is none of hinge, vanilla, least_square.")
