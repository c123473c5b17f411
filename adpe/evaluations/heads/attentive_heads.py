"""Attentive probes: heads that read a frozen encoder by attention over its patch tokens.

EP is that of Efficient Probing (arXiv 2506.10178): queries attend to the tokens themselves, each pools its own share of
the channels. CAPI's (arXiv 2502.08769) is one query with many heads; many of them, with rates and decays of their own,
are trained at once on the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError

CAPI_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
CAPI_DECAYS = (5e-4, 1e-3, 5e-2)


class EfficientPooling(nn.Module):
    """Queries ``(Q, D)`` attend to tokens over the whole width; query j pools the j-th share of ``D / d_out`` channels.

    Args:
        dim: D, divisible by ``d_out * num_queries``.
        num_queries: Q.
        d_out: by which the channels are reduced.

    Raises:
        UserError: if they do not divide.
    """

    def __init__(self, dim: int, num_queries: int = 32, d_out: int = 1) -> None:
        super().__init__()
        if dim % (d_out * num_queries):
            raise UserError(f"EP: a width of {dim} is not divisible by d_out={d_out} times num_queries={num_queries}.")
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.v = nn.Linear(dim, dim // d_out, bias=False)

    def attention(self, tokens: Tensor) -> Tensor:
        """``(B, Q, N)`` of tokens ``(B, N, D)``."""
        return (self.queries @ tokens.transpose(1, 2) * tokens.shape[-1] ** -0.5).softmax(dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, N, D)`` to ``(B, D / d_out)``."""
        shares = self.v(tokens).unflatten(-1, (self.queries.shape[1], -1))  # (B, N, Q, e)
        return torch.einsum("bqn,bnqe->bqe", self.attention(tokens), shares).flatten(1)


class EfficientProbe(nn.Sequential):
    """EP's head: pooling, batch norm without affine parameters (eps 1e-6), linear.

    ViT-B, 32 queries, 1,000 classes: 1,383,400 parameters.

    Args:
        dim: width of the tokens.
        num_classes: outputs.
        num_queries: see :class:`EfficientPooling`.
        d_out: likewise.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int = 32, d_out: int = 1) -> None:
        width = dim // d_out
        norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        super().__init__(EfficientPooling(dim, num_queries, d_out), norm, nn.Linear(width, num_classes))


class AttentiveHead(nn.Module):
    """CAPI's head: one query, heads of 64 channels, keys and values projected, linear.

    Args:
        dim: width of the tokens, a multiple of 64.
        num_classes: outputs.

    Raises:
        UserError: for another width.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        if dim % 64:
            raise UserError(f"CAPI's attentive head has heads of 64 channels: a width of {dim} is no multiple of 64.")
        self.heads = dim // 64
        self.query_token = nn.Parameter(torch.empty(dim))
        self.kv = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, num_classes)
        for weight in (self.query_token, self.kv.weight, self.linear.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.kv.bias)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, N, D)`` to ``(B, classes)``."""
        key, value = self.kv(tokens).unflatten(-1, (2, self.heads, 64)).permute(2, 0, 3, 1, 4)
        query = self.query_token.view(1, self.heads, 1, 64).expand(len(tokens), -1, -1, -1)
        return self.linear(F.scaled_dot_product_attention(query, key, value).flatten(1))


class LinearHead(nn.Module):
    """CAPI's linear head on pooled features, with the same initialisation."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ManyHeads(nn.Module):
    """Heads over ``sources x rates x decays``, trained at once on the same batches.

    Args:
        dim: width of the tokens.
        num_classes: outputs.
        sources: ``cls``, ``avg_patch``, ``cls_avg_patch`` (linear) and ``patch`` (attentive).
        rates: learning rates, times batch / 256.
        decays: weight decays, of what is not a bias.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        sources: Sequence[str] = ("cls", "avg_patch", "cls_avg_patch", "patch"),
        rates: Sequence[float] = CAPI_RATES,
        decays: Sequence[float] = CAPI_DECAYS,
    ) -> None:
        super().__init__()
        unknown = set(sources) - {"cls", "avg_patch", "cls_avg_patch", "patch"}
        if unknown:
            raise UserError(f"sources {sorted(unknown)}: expected some of cls, avg_patch, cls_avg_patch, patch.")
        self.points = [(source, rate, decay) for source in sources for rate in rates for decay in decays]
        self.heads = nn.ModuleList(
            AttentiveHead(dim, num_classes) if source == "patch"
            else LinearHead(2 * dim if source == "cls_avg_patch" else dim, num_classes)
            for source, _, _ in self.points
        )  # fmt: skip

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """Class token ``(B, D)`` and patch tokens ``(B, N, D)`` to logits ``(B, classes, heads)``."""
        mean = patches.mean(dim=1)
        inputs = {"cls": class_token, "avg_patch": mean, "patch": patches}
        inputs["cls_avg_patch"] = torch.cat([class_token, mean], dim=1)
        logits = [head(inputs[source]) for head, (source, _, _) in zip(self.heads, self.points, strict=True)]
        return torch.stack(logits, dim=-1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over images and heads: the gradient of a head is its own divided by their number."""
        return F.cross_entropy(logits, labels[:, None].expand(-1, logits.shape[-1]))

    def parameter_groups(self, batch_size: int) -> list[dict[str, Any]]:
        """A group for each rate and decay, with its peak ``lr`` as ``base_lr``."""
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for head, (_, rate, decay) in zip(self.heads, self.points, strict=True):
            for name, parameter in head.named_parameters():
                own = 0.0 if "bias" in name else decay
                base = rate * batch_size / 256
                group = groups.setdefault((rate, own), {"params": [], "lr": base, "base_lr": base, "weight_decay": own})
                group["params"].append(parameter)
        return list(groups.values())


def capi_factors(iterations: int, warmup: int) -> np.ndarray:
    """Factors of the rate: a line from 0 to 1 over `warmup` steps, both included, then half a cosine from 1 to 0."""
    cosine = (1 + np.cos(np.linspace(0, math.pi, iterations - warmup))) / 2
    return np.concatenate([np.linspace(0, 1, warmup), cosine])


def capi_split(count: int, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images that train and that choose among the heads: the last tenth of a permutation."""
    order = np.random.default_rng(seed).permutation(count)
    train = round(0.9 * count)
    return order[:train], order[train:]


class MAELars(torch.optim.Optimizer):
    """LARS as MAE's linear probe and EP have it: tensors of two or more dimensions alone are decayed and scaled.

    ``g += wd p; g *= trust |p| / |g|`` (1 if either norm is 0); ``m = momentum m + g; p -= lr m``. timm's adds the
    decay after the scaling.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: of tensors of two or more dimensions.
        momentum: of the steps.
        trust_coefficient: of the scaling.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; see the class."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if parameter.ndim > 1:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    own, other = parameter.norm(), gradient.norm()
                    scale = torch.where((own > 0) & (other > 0), group["trust_coefficient"] * own / other, 1.0)
                    gradient = gradient * scale
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(gradient)
                parameter.sub_(state["momentum"], alpha=group["lr"])
        return loss


def mae_probe_rate(epoch: float, lr: float, epochs: float, warmup_epochs: float, min_lr: float = 0.0) -> float:
    """MAE's schedule by fractions of epochs: a line from 0, then half a cosine to `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def best_of_each_source(points: Sequence[tuple[str, float, float]], accuracy: Sequence[float]) -> Mapping[str, int]:
    """The head of each source with the best validation accuracy, of equal ones the first."""
    best: dict[str, int] = {}
    for number, (source, _, _) in enumerate(points):
        if source not in best or accuracy[number] > accuracy[best[source]]:
            best[source] = number
    return best
