"""SDSSL on MoCo v3, BYOL and SimCLR against numbers recorded from its reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.knn import knn_votes
from adpe.methods.base import Progress
from adpe.methods.schedules import warmup_cosine
from adpe.methods.self_distillation.sdssl import SDSSL, moco_losses, row_first_table, simclr_losses
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.self_distillation.selfpatch import without_key_bias

# As the directory states them: small batches through BatchNorm.
_TOLERANCES = {"losses": 1e-5, "outputs": 5e-5, "gradients": 5e-4, "buffers": 1e-5, "values": 1e-4, "trajectory": 1e-4,
               "buffers at the end": 1e-4}  # fmt: skip


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that SDSSL does not compute.
    """
    checks = {
        "schedules": _schedules, "step": _step, "trajectory": _trajectory, "two_ranks": _two_ranks, "knn": _knn,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    result = checks[computes](case)
    result.tolerances.update(_TOLERANCES)
    return result


def unstack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with a star stack the tensors of layers 0, 1, 2, ... along the first axis."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "*" in name:
            found |= {name.replace("*", str(i), 1): part for i, part in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``net`` is the encoder, ``projector.3.net.0`` the first layer of the fourth head; a baseline has one of each."""
    found = {}
    for name, tensor in unstack(state).items():
        new = re.sub(r"^net\.", "encoder.", name)
        new = re.sub(r"^(projector|predictor)\.net\.", r"\1.0.net.", new)
        found[re.sub(r"^(projector|predictor)\.(\d+)\.net\.", r"\1.\2.", new)] = tensor
    return found


def teacher_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the teacher, which has one projector."""
    return {name.replace("projector.0.", "projector.", 1): tensor for name, tensor in to_our_names(state).items()}


def _model(case: GoldenCase) -> SDSSL:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img"], said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        learned_pos_embed=True,
    )  # fmt: skip
    model = SDSSL(
        encoder, said["kind"], said["st_inter"], said["ratio"], said["out_dim"], said["mlp_hidden"],
        said["temperature"], said["momentum_teacher"], True, True, False,
    )  # fmt: skip
    state = to_our_names(case.group("param."))
    _load(model, state)
    if said["kind"] != "simclr":
        given = teacher_names(case.group("teacher."))
        if not given:  # as it starts: a copy
            last = len(model.projector) - 1
            given = {name: t for name, t in state.items() if name.startswith("encoder.")}
            given |= {
                name.replace(f"projector.{last}.", "projector."): t
                for name, t in state.items()
                if name.startswith(f"projector.{last}.")
            }
        _load(model.teacher, given)
    return model.train()


def _load(module: Any, state: Mapping[str, Tensor]) -> None:
    missing, unexpected = module.load_state_dict(dict(state), strict=False)
    lost = [n for n in missing if not n.endswith(("num_batches_tracked", "spread")) and not n.startswith("teacher.")]
    if unexpected or lost:
        raise UserError(f"parameters {unexpected[:3]} are unknown, {lost[:3]} missing.")


def _schedules(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options.items():
        if not isinstance(said, Mapping):
            continue
        theirs = case.arrays[f"output.{name}"]
        if "img" in said:
            side = said["img"] // said["patch"]
            errors.append(relative_error(row_first_table(side, side, said["dim"]), theirs))
            continue
        total = said["epochs"] * said["iters_per_epoch"]
        warmup = said["warmup_epochs"] * said["iters_per_epoch"]
        ours = [warmup_cosine(i, total, warmup, said["start"], 0.0, said["end"]) for i in range(total)]
        errors.append(relative_error(torch.tensor(ours, dtype=torch.float64), theirs))
    return case.result({"losses": largest_error(errors)})


def _optimizer(model: SDSSL, said: Any) -> tuple[torch.optim.Optimizer, int, int, float]:
    total = said["epochs"] * said["iters_per_epoch"]
    warmup = said["warmup_epochs"] * said["iters_per_epoch"]
    peak = said["lr"] * said["total_batch"] / 256
    groups = model.parameter_groups(peak, said["weight_decay"])
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.999), eps=1e-8), total, warmup, peak


def _step(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    progress = Progress(said["step"], said["epochs"] * said["iters_per_epoch"])
    first, second = data["input.view1"], data["input.view2"]
    extra = _model(case)  # outputs are compared on a copy, so that they do not move statistics
    outputs = [(torch.stack(extra.class_tokens(first)), data["output.class_tokens_view1"])]
    if said["kind"] == "simclr":
        outputs.append((extra.project(torch.cat([first, second])).flatten(0, 1), data["output.projections"]))
    else:
        outputs.append((extra.of_teacher(first), data["output.teacher_view1"]))
        outputs.append((extra.of_teacher(second), data["output.teacher_view2"]))
        projections = extra.project(first)
        outputs.append((projections.flatten(0, 1), data["output.projections_view1"]))
        outputs.append((extra.predict(projections).flatten(0, 1), data["output.predictions_view1"]))
    weight = model.weight(progress)
    parts = model.parts(first, second, weight)
    layers = len(model.projector)
    loss = parts.last + weight * parts.mid + layers * parts.detached
    loss.backward()
    named = {"loss": loss, "loss_last": parts.last, "loss_mid": parts.mid, "loss_detached": parts.detached}
    losses = [relative_error(v, data[f"output.{name}"]) for name, v in named.items() if f"output.{name}" in data]
    losses.append(abs(weight - float(data["output.r"])))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    theirs = to_our_names(case.group("grad."))
    for side in (ours, theirs):
        side.pop("encoder.norm.bias", None)
    gradients, remark = compare_gradients(without_key_bias(ours), without_key_bias(theirs))
    buffers = dict(model.named_buffers())
    moved = [(buffers[name], t) for name, t in to_our_names(case.group("output.buffer.")).items()]
    moved += [
        (buffers[f"teacher.{name}"], t) for name, t in teacher_names(case.group("output.teacher_buffer.")).items()
    ]
    optimizer, total, warmup, peak = _optimizer(model, said)
    for group in optimizer.param_groups:
        group["lr"] = warmup_cosine(said["step"], total, warmup, peak, 0.0, said["min_lr"])
    optimizer.step()
    model.after_step(progress)
    teacher = dict(model.teacher.named_parameters())
    values = [
        relative_error(teacher[name], t) for name, t in teacher_names(case.group("output.teacher.")).items()
        if name in teacher
    ]  # fmt: skip
    errors = {
        "losses": largest_error(losses),
        "outputs": largest_error(relative_error(*pair) for pair in outputs),
        "gradients": gradients,
        "buffers": largest_error(float((a.double() - b.double()).abs().max()) for a, b in moved),
    }
    if values:
        errors["values"] = largest_error(values)
    return case.result(errors, remark)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    optimizer, total, warmup, peak = _optimizer(model, said)
    layers = len(model.projector)
    recorded: dict[str, list[Tensor]] = {"losses": [], "losses_last": [], "losses_mid": [], "losses_detached": []}
    values = []
    for step in range(said["steps"]):
        progress = Progress(step, total)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, total, warmup, peak, 0.0, said["min_lr"])
        weight = model.weight(progress)
        parts = model.parts(data[f"step{step}.view1"], data[f"step{step}.view2"], weight)
        loss = parts.last + weight * parts.mid + layers * parts.detached
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(progress)
        for name, value in zip(recorded, (loss, *parts), strict=True):
            recorded[name].append(value.detach())
        for kind, source in (("student", model), ("teacher", model.teacher)):
            state = source.state_dict()
            after = to_our_names(case.group(f"step{step}.after.{kind}."))
            values += [relative_error(state[name], t) for name, t in after.items()]
    buffers = []
    for source, names in ((model, to_our_names(case.group("final."))),
                          (model.teacher, teacher_names(case.group("final_teacher.")))):  # fmt: skip
        state = source.state_dict()
        for name, theirs in without_key_bias(names).items():
            mine = without_key_bias({name: state[name]})[name]
            if "running_" in name:
                # The first BatchNorm of a projector holds the bias of the final norm.
                if not re.search(r"projector\.(\d+\.)?1\.running_mean", name):
                    buffers.append(float((mine - theirs).abs().max()))
            elif name != "encoder.norm.bias" and not name.endswith("num_batches_tracked"):
                values.append(relative_error(mine, theirs))
    losses = [relative_error(torch.stack(v), data[n]) for n, v in recorded.items() if n in data]
    return case.result({
        "trajectory": largest_error(losses), "values": largest_error(values),
        "buffers at the end": largest_error(buffers),
    })  # fmt: skip


def _two_ranks(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    losses, gradients = [], []
    layers, batch = said["layers"], said["batch_per_rank"]
    for rank in range(said["world"]):
        predictions = data["input.moco_predictions"][rank].view(layers, batch, -1).clone().requires_grad_()
        each = moco_losses(predictions, data["input.moco_teacher"].flatten(0, 1), rank * batch, said["temperature"])
        parts = {"moco_last": each[-1], "moco_mid": each[:-1].mean(), "moco_all_layers": each.mean()}
        (gradient,) = torch.autograd.grad(parts["moco_last"] + said["r"] * parts["moco_mid"], predictions)
        gradients.append(relative_error(gradient.flatten(0, 1), data[f"grad.moco_predictions_rank{rank}"]))
        everything = data["input.simclr_projections_normalised"].view(said["world"], layers, 2 * batch, -1)
        vectors = everything[rank].clone().requires_grad_()
        others = torch.cat([everything[other][-1] for other in range(said["world"]) if other != rank])
        parts["simclr_last"] = simclr_losses(vectors[-1:], vectors[-1], others, said["temperature"]).mean()
        parts["simclr_mid"] = simclr_losses(vectors[:-1], vectors[-1].detach(), others, said["temperature"]).mean()
        (gradient,) = torch.autograd.grad(parts["simclr_last"] + said["r"] * parts["simclr_mid"], vectors)
        gradients.append(relative_error(gradient.flatten(0, 1), data[f"grad.simclr_projections_rank{rank}"]))
        losses += [relative_error(value, data[f"output.{name}_rank{rank}"]) for name, value in parts.items()]
    return case.result({"losses": largest_error(losses), "gradients": largest_error(gradients)})


def _knn(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    encoder = VisionTransformer(
        said["img"], said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        learned_pos_embed=True,
    ).eval()  # fmt: skip
    encoder.load_state_dict(unstack(case.group("param.")))
    with torch.no_grad():
        train, test = (encoder.forward_features(data[f"input.{name}_images"])[:, 0] for name in ("train", "test"))
    labels, wanted = (data[f"input.{name}_labels"].long() for name in ("train", "test"))
    bank, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = knn_votes(bank, labels, queries, said["classes"], said["k"], said["temperature"])
    ranks = (votes > votes.gather(1, wanted[:, None])).sum(dim=1)
    tops = {f"top{k}": 100.0 * (ranks < k).double().mean() for k in (1, 5)}
    errors = [relative_error(value, data[f"output.{name}"]) for name, value in tops.items()]
    errors.append(relative_error(votes, data["output.votes"]))
    return case.result({
        "losses": largest_error(errors), "outputs": relative_error(train, data["output.train_features"]),
    })  # fmt: skip
