"""EoMT's schedules: learning rates in two stages, layer decay, and how masked attention is annealed away."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from adpe.errors import UserError
from adpe.models.vit import VisionTransformer


def two_stage(
    step: int, total: int, warmup: tuple[int, int], encoder: bool, peak: float = 1.0, power: float = 0.9
) -> float:
    """Rate of an optimiser step from 0 on.

    What is new warms up over the first ``warmup[0]`` steps, in which the encoder rests; the encoder warms up over the
    next ``warmup[1]``. Each then falls as ``(1 - progress)^power``, to 0 at `total`.
    """
    begin, length = (warmup[0], warmup[1]) if encoder else (0, warmup[0])
    if step < begin:
        return 0.0
    if step < begin + length:
        return peak * (step - begin) / length
    return peak * max(1 - (step - begin - length) / (total - begin - length), 0.0) ** power


def annealed(step: int, start: int, end: int, power: float = 0.9) -> float:
    """Probability of masked attention in a block after optimiser step `step`: 1 before `start`, 0 from `end` on."""
    if step < start:
        return 1.0
    if step >= end:
        return 0.0
    return (1 - (step - start) / (end - start)) ** power


def check_annealing(starts: Sequence[int], ends: Sequence[int], joined_blocks: int) -> None:
    """Raise UserError unless there is a start and a later end for every joined block."""
    if (
        len(starts) != joined_blocks
        or len(ends) != joined_blocks
        or any(a > b for a, b in zip(starts, ends, strict=True))
    ):
        raise UserError(
            f"EoMT: annealing from {list(starts)} to {list(ends)}: expected a step each, the end not before the start, "
            f"for all {joined_blocks} joined blocks."
        )


def rate_of(encoder: VisionTransformer, name: str, layer_decay: float, joined_blocks: int = 0) -> float:
    """Share of the peak rate of an encoder's parameter: ``layer_decay^(L - 1 - i)`` in block i of L.

    Patch embedding, positions and class tokens count as block 0; the final norm has the whole rate, and so have the
    last `joined_blocks` blocks.

    Raises:
        KeyError: if the encoder has no such parameter.
    """
    depth, _ = encoder.layer_depth(name)
    blocks = len(encoder.blocks)
    block = max(depth, 1) - 1
    return 1.0 if block >= blocks - joined_blocks else layer_decay ** (blocks - 1 - block)


def rates(
    model: nn.Module, encoder: VisionTransformer, lr: float, layer_decay: float, decay_joined: bool = True,
    joined_blocks: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Peak rate of every parameter of `model` by name; those outside of `encoder` have the whole rate.

    Args:
        model: holds the encoder.
        encoder: see :func:`rate_of`.
        lr: peak.
        layer_decay: of the encoder's blocks.
        decay_joined: False gives the joined blocks the whole rate.
        joined_blocks: how many there are.
    """
    own = {id(parameter): name for name, parameter in encoder.named_parameters()}
    whole = 0 if decay_joined else joined_blocks
    return {
        name: lr * (rate_of(encoder, own[id(parameter)], layer_decay, whole) if id(parameter) in own else 1.0)
        for name, parameter in model.named_parameters()
    }
