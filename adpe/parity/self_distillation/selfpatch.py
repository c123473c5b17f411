"""SelfPatch and its DINO against numbers recorded from the reference: neighbours, losses, whole training steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.self_distillation.dino import teacher_temperature
from adpe.methods.self_distillation.selfpatch import AggregationHead, Outputs, SelfPatch, neighbour_table
from adpe.models.layers import DropPath
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.self_distillation.training_steps import (
    compare_runs,
)


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that SelfPatch does not compute.
    """
    checks = {"neighbours": _neighbours, "loss": _loss, "trajectory": _trajectory}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a network; our table of positions has a row for a class token, which there is none of."""
    found = {}
    for name, tensor in state.items():
        new = name.replace("backbone.", "encoder.", 1)
        found[new] = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1) if new == "encoder.pos_embed" else tensor
    return found


def without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases of keys, which a softmax does not see."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("attn.k.bias"):
            continue
        if name.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        found[name] = tensor
    return found


def _model(case: GoldenCase) -> SelfPatch:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img"], said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        class_token=False, learned_pos_embed=True, pos_embed_resize="dino", drop_path_rate=said["drop_path"],
    )  # fmt: skip
    model = SelfPatch(
        encoder, said["out_cls"], said["out_patch"], said["hidden"], said["bottleneck"], said["k"], "torus",
        said["patch_loss_weight"], said["student_temp"], said["teacher_temp"], said["warmup_teacher_temp"],
        said["warmup_teacher_temp_epochs"], said["center_momentum"], said.get("momentum_teacher", 0.996),
        said.get("freeze_last_layer", 0), said["norm_last_layer"],
    )  # fmt: skip
    _load(model.student, case.group("param."))
    _load(model.teacher, case.group("teacher.") or case.group("param."))
    return model.train()


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    missing, unexpected = network.load_state_dict(_to_our_names(state), strict=False)
    if unexpected or {*missing} - {"encoder.norm.weight", "encoder.norm.bias"}:
        raise UserError(f"parameters {unexpected} are unknown, {missing} missing.")


def _groups(case: GoldenCase, prefix: str) -> list[list[Tensor]]:
    """Global crops and local ones."""
    crops = [case.arrays[f"{prefix}crop{i}"] for i in range(2 + case.options["local_crops"])]
    return [crops[:2], crops[2:]] if len(crops) > 2 else [crops]


def _neighbours(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    exact, outputs = [], []
    for side in said["grids"]:
        table, _ = neighbour_table(side, side, True)
        exact.append(relative_error(table, data[f"output.grid{side}"]))
    head = AggregationHead(said["dim"], said["heads"])
    head.load_state_dict(case.group("param."))
    tiny = VisionTransformer(12, 4, embed_dim=8, depth=1, num_heads=2, class_token=False)
    chooser = SelfPatch(tiny, 4, 4, 4, 4, said["k"], "torus")
    gradients: dict[str, Tensor] = {}
    for side in said["head_grids"]:
        tokens = data[f"input.tokens{side}"].clone().requires_grad_()
        similarity, columns, chosen, mask = chooser.choose(tokens, (side, side))
        outputs.append(relative_error(similarity, data[f"output.similarity{side}"]))
        exact.append(relative_error(columns.sort(-1).values, data[f"output.topk{side}"].long().sort(-1).values))
        outputs.append(relative_error(head.of_neighbours(tokens, chosen, mask), data[f"output.teacher{side}"]))
        student = head(tokens)
        outputs.append(relative_error(student, data[f"output.student{side}"]))
        if f"grad.tokens{side}" in data:
            head.zero_grad()
            tokens.grad = None
            (student * data[f"input.cotangent{side}"]).sum().backward()
            gradients = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
            assert tokens.grad is not None
            gradients[f"tokens{side}"] = tokens.grad
    error, remark = compare_gradients(without_key_bias(gradients), without_key_bias(case.group("grad.")))
    return case.result({"exact": largest_error(exact), "outputs": largest_error(outputs), "gradients": error}, remark)


def _loss(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    model.center.copy_(data["input.center"])
    model.patch_center.copy_(data["input.patch_center"])
    if "input.drop_path0" in data:
        _replay_drop_path(model, [data[f"input.drop_path{i}"] for i in range(len(case.group("input.drop_path")))])
    groups = _groups(case, "input.")
    images = [torch.cat(crops) for crops in groups]
    students = [model.of_student(batch) for batch in images]
    told = [model.of_teacher(batch) for batch in images]
    teachers = [outputs for outputs, _, _ in told]
    first, last, warmup = model.temperatures
    temperature = teacher_temperature(said["epoch"], first, last, warmup)
    cls, patch = model.distill(students, teachers, [len(crops) for crops in groups], temperature)
    loss = cls + model.patch_loss_weight * patch
    loss.backward()
    model.update_centers(teachers)
    pairs = {"loss": loss, "loss_cls": cls, "loss_patch": patch, "center": model.center}
    pairs["patch_center"] = model.patch_center
    exact = []
    for kind, student, (teacher, similarity, columns) in zip(("global", "local"), students, told, strict=False):
        pairs |= _outputs(kind, student, teacher)
        pairs[f"similarity_{kind}"] = similarity
        exact.append(relative_error(columns.sort(-1).values, data[f"output.topk_{kind}"].long().sort(-1).values))
    errors = [relative_error(v, data[f"output.{name}"]) for name, v in pairs.items() if f"output.{name}" in data]
    ours = {n: p.grad for n, p in model.student.named_parameters() if p.grad is not None}
    ours["encoder.pos_embed"] = torch.cat(
        [torch.zeros_like(ours["encoder.pos_embed"][:, :1]), ours["encoder.pos_embed"][:, 1:]], dim=1
    )
    theirs = _to_our_names(case.group("grad."))
    gradients, remark = compare_gradients(without_key_bias(ours), without_key_bias(theirs))
    return case.result(
        {"exact": largest_error(exact), "outputs": largest_error(errors), "gradients": gradients}, remark
    )


def _outputs(kind: str, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    return {
        f"teacher_cls_{kind}": teacher.cls, f"student_cls_{kind}": student.cls,
        f"teacher_patch_{kind}": teacher.patch, f"student_patch_{kind}": student.patch,
    }  # fmt: skip


def _replay_drop_path(model: SelfPatch, draws: list[Tensor]) -> None:
    """Stochastic depth by recorded draws: a path is kept where ``floor(keep + u)`` is 1."""

    class Replayed(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.keep = 1 - rate

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.keep + draws.pop(0)).floor() / self.keep

    for block in model.student.encoder.blocks:
        path = block.drop_path
        if isinstance(path, DropPath) and path.rate:
            block.drop_path = Replayed(path.rate)


def _trajectory(case: GoldenCase) -> CaseResult:
    model = _model(case)

    def scale(name: str, value: Tensor) -> Tensor:
        return value / model.patch_loss_weight if name == "loss_patch" else value

    def compared(name: str, tensor: Tensor) -> Tensor | None:
        if name == "encoder.pos_embed":
            return tensor[:, 1:]
        return without_key_bias({name: tensor}).get(name)

    names = {"losses": "loss", "losses_cls": "loss_cls", "losses_patch": "loss_patch"}
    return compare_runs(case, model, _to_our_names, names, scale, compared)
