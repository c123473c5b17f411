"""Whole training steps of DINO's kind against recorded ones: schedules, clipping, frozen prototypes, the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from adpe.methods.base import Progress
from adpe.methods.schedules import warmup_cosine
from adpe.methods.self_distillation.clipping import clip_each_grad_norm_
from adpe.methods.self_distillation.dino import cosine_to_one, teacher_temperature
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error

_VALUES = 1e-4


def compare_runs(
    case: GoldenCase,
    model: Any,
    to_our_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    recorded: Mapping[str, str],
    scale: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    compared: Callable[[str, Tensor], Tensor | None] = lambda name, tensor: tensor,
) -> CaseResult:
    """Train as the reference's loop does, and compare losses, schedules, centres and both networks.

    Args:
        case: with ``step<i>.crop<j>``, ``step<i>.after.*``, ``final.*``, ``final_teacher.*`` and ``schedule.*``.
        model: with `student`, `teacher`, `temperatures` and the hooks of a method.
        to_our_names: names of a network.
        recorded: array of losses to the name of ours, "loss" for the sum of all.
        scale: name and value to the value as it is recorded.
        compared: name and tensor of a network to what is compared of it; None for nothing.
    """
    said, data = case.options, case.arrays
    length = said["iters_per_epoch"]
    total, warmup = said["epochs"] * length, said["warmup_epochs"] * length
    peak = said["lr"] * said["batch"] / 256
    schedules = {
        "lr": [warmup_cosine(i, total, warmup, peak, 0.0, said["min_lr"]) for i in range(total)],
        "weight_decay": [
            warmup_cosine(i, total, 0, said["weight_decay"], 0.0, said["weight_decay_end"]) for i in range(total)
        ],
        "momentum": [cosine_to_one(said["momentum_teacher"], i, total) for i in range(total)],
        "teacher_temp": [teacher_temperature(epoch, *model.temperatures) for epoch in range(said["epochs"])],
    }
    outputs = []
    for name, planned in schedules.items():
        theirs = data[f"schedule.{name}"].double()
        outputs.append(relative_error(torch.tensor(planned[: len(theirs)], dtype=torch.float64), theirs))
    groups = model.parameter_groups(peak, said["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.999), eps=1e-8)
    losses: dict[str, list[Tensor]] = {name: [] for name in recorded}
    values = []
    for step in range(said["run_epochs"] * length):
        progress = Progress(step, total, step // length, said["epochs"])
        for group in optimizer.param_groups:
            group["lr"] = schedules["lr"][step]
            if group["name"] == "decay":
                group["weight_decay"] = schedules["weight_decay"][step]
        crops = [data[f"step{step}.crop{i}"] for i in range(2 + said["local_crops"])]
        views = [torch.stack(crops[:2], dim=1), *([torch.stack(crops[2:], dim=1)] if crops[2:] else [])]
        found = model.losses(views, progress)
        loss = torch.stack([value for name, value in found.items() if "loss" in name]).sum()
        optimizer.zero_grad()
        loss.backward()
        clip_each_grad_norm_(model.parameters(), said["clip_grad"])
        model.before_step(progress)
        optimizer.step()
        model.after_step(progress)
        for name, own in recorded.items():
            losses[name].append(scale(own, loss if own == "loss" else found[own]).detach())
        state = model.state_dict()
        for name, theirs in case.group(f"step{step}.after.").items():
            kind, _, rest = name.partition(".")
            own = name if kind.endswith("center") else f"{kind}.{next(iter(to_our_names({rest: theirs})))}"
            ours = state[own]
            values.append(relative_error(ours, theirs))
    for network, prefix in ((model.student, "final."), (model.teacher, "final_teacher.")):
        state = network.state_dict()
        for name, theirs in to_our_names(case.group(prefix)).items():
            both = [compared(name, tensor) for tensor in (state[name], theirs)]
            if both[0] is not None and both[1] is not None:
                values.append(relative_error(both[0], both[1]))
    outputs += [relative_error(torch.stack(found), data[name]) for name, found in losses.items()]
    result = case.result({"outputs": largest_error(outputs), "values": largest_error(values)})
    result.tolerances["values"] = _VALUES
    return result
