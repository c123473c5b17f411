"""Clipping of gradients tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_each_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradient of every tensor by itself to a norm of at most `max_norm`, in place.

    DINO (arXiv 2104.14294) and DropPos (arXiv 2309.03576) train so. ``torch.nn.utils.clip_grad_norm_`` scales all
    gradients by one factor.

    Args:
        parameters: those without a gradient are left out.
        max_norm: positive.

    Returns:
        the largest norm before clipping, a scalar; 0 if there is no gradient.

    Raises:
        ValueError: for a `max_norm` that is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad: max_norm={max_norm} must be positive.")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms.max()
