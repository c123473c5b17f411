"""DualCoOp against numbers recorded from its reference: regions, prompts, loss, steps, metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.heads.dual_prompts import (
    DualPrompts,
    RegionProjection,
    TextEncoder,
    aggregate,
    asymmetric_loss,
    probabilities,
    region_maps,
)
from adpe.evaluations.multi_label.metrics import ranked_precision, top_k_scores
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that DualCoOp does not compute.
    """
    checks = {
        "regions": _regions, "prompts": _prompts, "trajectory": _trajectory, "loss": _loss, "metrics": _metrics,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _regions(case: GoldenCase) -> CaseResult:
    said = case.options
    projection = RegionProjection(said["width"], said["joint"], said["own_side"])
    projection.load_state_dict(case.group("param."))
    ours = projection(case.arrays["input.features"])
    return case.result({"outputs": relative_error(ours, case.arrays["output.regions"])})


class _Parts(NamedTuple):
    prompts: DualPrompts
    text: TextEncoder
    ends: Tensor


def _parts(case: GoldenCase) -> _Parts:
    said: Any = case.options
    data, state = case.arrays, case.group("param.")
    length = len(state["positional_embedding"])
    text = TextEncoder(said["text_width"], said["text_layers"], said["text_heads"], said["joint"], length)
    text.load_state_dict({
        name.removeprefix("transformer."): tensor
        for name, tensor in state.items()
        if not name.startswith("prompt_learner.")
    })  # fmt: skip
    prefix, suffix = (
        (data[f"input.token_{part}_neg"], data[f"input.token_{part}_pos"]) for part in ("prefix", "suffix")
    )
    prompts = DualPrompts(prefix, suffix, said["contexts"], said["class_specific"])
    prompts.load_state_dict(case.group("param.prompt_learner."), strict=False)
    return _Parts(prompts, text.requires_grad_(False), data["input.end_positions"].long())


def _objective(case: GoldenCase, logits: Tensor, targets: Tensor) -> Tensor:
    said = case.options
    loss = asymmetric_loss(logits, targets, said["gamma_neg"], said["gamma_pos"], said["clip"], said["eps"])
    return loss * said.get("loss_weight", 1.0)


def _prompts(case: GoldenCase) -> CaseResult:
    data, parts = case.arrays, _parts(case)
    features = parts.text(parts.prompts(), parts.ends)
    maps = region_maps(data["input.regions"], features)
    logits, weights = aggregate(maps)
    logits.retain_grad()
    loss = _objective(case, logits, data["input.targets"])
    loss.backward()
    pairs = {
        "text_features": features, "maps": maps, "weights": weights, "logits": logits,
        "probabilities": probabilities(logits), "loss": loss,
    }  # fmt: skip
    theirs = {name.removeprefix("prompt_learner."): tensor for name, tensor in case.group("grad.").items()}
    known = {"logits": logits.grad, **{name: p.grad for name, p in parts.prompts.named_parameters()}}
    ours = {name: gradient for name, gradient in known.items() if gradient is not None and name in theirs}
    gradients, remark = compare_gradients(ours, theirs)
    outputs = largest_error(relative_error(value, data[f"output.{name}"]) for name, value in pairs.items())
    return case.result({"outputs": outputs, "gradients": gradients}, remark)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, data, parts = case.options, case.arrays, _parts(case)
    options = {"lr": said["lr"], "momentum": said["momentum"], "weight_decay": said["weight_decay"]}
    optimizer = torch.optim.SGD(parts.prompts.parameters(), **options)
    losses = []
    for targets in data["input.targets"]:
        maps = region_maps(data["input.regions"], parts.text(parts.prompts(), parts.ends))
        loss = _objective(case, aggregate(maps)[0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    final = [relative_error(getattr(parts.prompts, name), data[f"output.{name}"]) for name in ("ctx_pos", "ctx_neg")]
    return case.result({
        "trajectory losses": relative_error(torch.stack(losses), data["output.losses"]),
        "trajectory parameters": largest_error(final),
    })  # fmt: skip


def _loss(case: GoldenCase) -> CaseResult:
    data = case.arrays
    logits = data["input.logits"].clone().requires_grad_()
    loss = _objective(case, logits, data["input.targets"])
    errors = {"outputs": relative_error(loss, data["output.loss"])}
    theirs = case.group("grad.")
    if theirs:
        loss.backward()
        assert logits.grad is not None
        errors["gradients"] = largest_error(relative_error(logits.grad, gradient) for gradient in theirs.values())
    return case.result(errors)


def _metrics(case: GoldenCase) -> CaseResult:
    scores, targets = (case.arrays[f"input.{name}"].cpu().numpy() for name in ("scores", "targets"))
    each, mean = ranked_precision(scores, targets, "zero")
    ours = {
        "average_precision": torch.from_numpy(each), "mAP": torch.tensor(mean),
        "top3": torch.tensor(top_k_scores(scores, targets)),
    }  # fmt: skip
    return case.result({
        "outputs": largest_error(relative_error(value, case.arrays[f"output.{n}"]) for n, value in ours.items())
    })  # fmt: skip
