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
        """Latents ``(B, L, c)``; distances are computed in float32, whatever autocast says."""
        z = z.float()
        unit = F.normalize(z, dim=-1) if self.normalise else z
        table = self.table()
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
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
    """A codebook on the sphere that follows its latents by moving averages, over all processes.

    Args:
        codes: K.
        code_dim: c.
        decay: of the averages.
        commitment_weight: of the loss.
        smoothing: of the counts.
        restart: share of the mean count under which a code is given a random latent of the batch; 0 for never.
    """

    codebook: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(
        self, codes: int, code_dim: int, decay: float = 0.8, commitment_weight: float = 1.0, smoothing: float = 1e-5,
        restart: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= decay < 1 or not 0 <= restart < 1:
            raise ValueError(f"decay={decay} and restart={restart} must be at least 0 and below 1.")
        self.decay, self.commitment_weight, self.smoothing, self.restart = decay, commitment_weight, smoothing, restart
        start = F.normalize(torch.randn(codes, code_dim), dim=-1)
        self.register_buffer("codebook", start)
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed_avg", start.clone())

    def table(self) -> Tensor:
        """Codes ``(K, c)``, unit vectors."""
        return self.codebook

    def forward(self, z: Tensor) -> Quantised:
        """Latents ``(B, L, c)``; the codebook moves after the lookup, in training mode."""
        unit = F.normalize(z.float(), dim=-1, eps=1e-6)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            indices = (unit @ self.codebook.T).argmax(dim=-1)
        codes = self.codebook[indices]
        loss = self.commitment_weight * (codes - unit).square().mean()
        if self.training:
            self._move(unit.detach().flatten(0, 1), indices.flatten())
        return Quantised(unit + (codes - unit).detach(), indices, loss)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices."""
        return self.codebook[indices]

    @torch.no_grad()
    def _move(self, unit: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=len(self.codebook)).to(unit.dtype)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, indices, unit)
        if _distributed():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.smoothing) / (total + len(self.codebook) * self.smoothing) * total
        self.codebook.copy_(F.normalize(self.embed_avg / smoothed[:, None], dim=-1))
        if self.restart:
            self._restart(unit)

    def _restart(self, unit: Tensor) -> None:
        """Rare codes become random latents ``(N, c)`` of the main process, with the mean count."""
        mean = self.cluster_size.mean()
        rare = (self.cluster_size < self.restart * mean)[:, None]
        # As many draws as codes, so that no process waits for a device to say how many are rare.
        chosen = unit[torch.randint(len(unit), (len(self.codebook),), device=unit.device)]
        if _distributed():
            torch.distributed.broadcast(chosen, 0)
        self.codebook.copy_(torch.where(rare, chosen, self.codebook))
        self.embed_avg.copy_(torch.where(rare, chosen * mean, self.embed_avg))
        self.cluster_size.copy_(torch.where(rare[:, 0], mean, self.cluster_size))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
