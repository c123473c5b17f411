"""Recomputation of chosen modules in the backward pass: the config key `activation_checkpointing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adpe.errors import UserError


def checkpoint_activations(model: nn.Module, names: str | Sequence[str]) -> None:
    """Let modules of `model` keep their inputs alone and compute their activations again in the backward pass.

    mmengine's own function of this key takes torch's reentrant checkpointing, under which a module whose inputs have no
    gradient, as a backbone's images, is not trained. Here gradients and BatchNorm's running statistics are those
    without recomputation.

    Args:
        model: changed in place.
        names: of modules, e.g. ``"backbone"`` or ``["backbone", "neck"]``.

    Raises:
        UserError: for a name that is no module of the model.
    """
    for name in [names] if isinstance(names, str) else names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            known = ", ".join(child for child, _ in model.named_children())
            raise UserError(
                f"activation_checkpointing: {name!r} is no module of {type(model).__name__}, which has {known} and "
                "what these contain."
            ) from None
        module.forward = _recomputed(module)  # type: ignore[method-assign]


def _recomputed(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(module)

    @wraps(forward)
    def recomputed(*arguments: Any, **options: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    return recomputed


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorms normalise as they do, but do not count the batch a second time."""
    kept = [
        (norm, norm.momentum, count, count.clone())
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and (count := norm.num_batches_tracked) is not None
    ]
    for norm, *_ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, before in kept:
            norm.momentum = momentum
            count.copy_(before)
