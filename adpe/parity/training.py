"""What the cases of pretraining methods share: one forward and backward pass, and a few optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error

Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def compare_step(
    case: GoldenCase,
    model: nn.Module,
    loss: Tensor,
    rename: Rename,
    outputs: Mapping[str, tuple[Tensor, Tensor]],
    exact: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    recorded_only: bool = False,
) -> CaseResult:
    """Loss, outputs, masks and gradients of one pass against ``output.*`` and ``grad.*``.

    Args:
        case: with ``output.loss`` and, unless it has no gradients, ``grad.*``.
        model: whose gradients are compared.
        loss: scalar, not yet propagated.
        rename: the reference's names to ours.
        outputs: pairs of ours and theirs to the case's tolerance.
        exact: pairs that have to be equal, such as masks and indices.
        recorded_only: compare the gradients that are recorded, of a case that records a part of them.
    """
    pairs = {"loss": (loss, case.arrays["output.loss"]), **outputs}
    errors = {"outputs": largest_error(relative_error(*pair) for pair in pairs.values())}
    theirs, remark = case.group("grad."), ""
    if theirs:
        loss.backward()
        ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        wanted = rename(theirs)
        if recorded_only:
            ours = {name: gradient for name, gradient in ours.items() if name in wanted}
        errors["gradients"], remark = compare_gradients(ours, wanted)
    if exact:
        errors["exact"] = largest_error(relative_error(*pair) for pair in exact.values())
    return case.result(errors, remark)


def compare_trajectory(
    case: GoldenCase,
    model: Any,
    step: Callable[[int, Tensor], Tensor],
    rename: Rename,
    without_gradient: Callable[[str, Tensor], Tensor | None] = lambda name, tensor: None,
    at_the_end: Callable[[], None] = lambda: None,
) -> CaseResult:
    """AdamW steps of the case's rate, decay and betas on the method's own groups, against ``losses`` and ``final.*``.

    Args:
        case: with ``step.<i>.images`` in bytes, ``lr``, ``weight_decay`` and ``betas``.
        model: a pretraining method.
        step: number and images in [0, 1] to the loss.
        rename: the reference's names to ours.
        without_gradient: name and tensor to the part of it that has a gradient, where not all has; the rest, of which
            AdamW makes steps of rounding, is not compared.
        at_the_end: what follows the last step.
    """
    said = case.options
    groups = model.parameter_groups(said["lr"], said["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=said["lr"], betas=tuple(said["betas"]))
    losses = []
    for number in range(len(said["losses"])):
        loss = step(number, case.arrays[f"step.{number}.images"].float() / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    at_the_end()
    state = model.state_dict()
    pairs = []
    for name, theirs in rename(case.group("final.")).items():
        both = [without_gradient(name, part) for part in (state[name], theirs)]
        ours, other = (part if kept is None else kept for part, kept in zip((state[name], theirs), both, strict=True))
        pairs.append(relative_error(ours, other))
    errors = {
        "trajectory losses": relative_error(torch.stack(losses), case.arrays["output.losses"]),
        "trajectory parameters": largest_error(pairs),
    }
    return case.result(errors)


def without_key_bias(name: str, tensor: Tensor) -> Tensor | None:
    """The query and value thirds of ``qkv.bias``: a softmax does not change with a bias of the keys."""
    if name.endswith("qkv.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return None


def renamed(pairs: Iterable[tuple[str, str]], prefix: str = "encoder.") -> Rename:
    """Names by their beginnings, ``(theirs, ours)``; all others are of the encoder, under `prefix`."""
    table = list(pairs)

    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in state.items():
            match = next(((old, new) for old, new in table if name.startswith(old)), None)
            found[match[1] + name.removeprefix(match[0]) if match else prefix + name] = tensor
        return found

    return rename


# MAE's decoder by its names and by ours.
MAE_NAMES = [
    ("mask_token", "mask_token"), ("decoder_embed.", "decoder.embed."), ("decoder_blocks.", "decoder.blocks."),
    ("decoder_norm.", "decoder.norm."), ("decoder_pred.", "decoder.pred."), ("decoder_pos_embed", "decoder.pos_embed"),
]  # fmt: skip
