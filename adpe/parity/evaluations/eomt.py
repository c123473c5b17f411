"""EoMT against numbers recorded from its reference: predictions, losses, matches, gradients, schedules, windows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.errors import UserError
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.transfer.eomt.criterion import MaskCriterion, Points, Target
from adpe.transfer.eomt.inference import class_scores, scaled_size, stitch, window_starts
from adpe.transfer.eomt.network import EoMTHead, Prediction
from adpe.transfer.eomt.rates import annealed, rates, two_stage

_ENCODER = "encoder.backbone."


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that EoMT does not compute.
    """
    checks = {
        "forward": _forward, "training_step": _training_step, "criterion": _criterion, "annealing": _annealing,
        "schedule": _schedule, "parameter_groups": _parameter_groups, "inference": _inference,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


class _Model(nn.Module):
    """Encoder and head side by side."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__()
        registers = said.get("register_tokens", 0)
        self.encoder = VisionTransformer(
            tuple(said["image_size"]), said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
            num_heads=said["num_heads"], mlp_ratio=said["mlp_ratio"], learned_pos_embed=True,
            num_class_tokens=1 + registers, init_values=1.0 if said.get("layer_scale") else None,
        )  # fmt: skip
        self.head = EoMTHead(
            said["embed_dim"], said["patch_size"], said["classes"], said["queries"], said["joined_blocks"]
        )

    def predictions(self, case: GoldenCase, visible: list[Tensor] | None = None) -> list[Prediction]:
        """Of a case's images and draws."""
        probabilities = case.options["probabilities"]
        if probabilities is not None:
            self.head.probabilities.copy_(torch.tensor(probabilities))
        images = case.arrays["input.images"].float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        draws = [case.arrays.get(f"input.uniform.{block}") for block in range(self.head.joined_blocks)]
        masked = probabilities is not None
        return self.head(self.encoder, (images - mean) / std, masked, draws if masked else None, visible)


def _names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's parameters by our names: its register tokens are further class tokens."""
    ours = {}
    for name, tensor in state.items():
        own = f"encoder.{name.removeprefix(_ENCODER)}" if name.startswith(_ENCODER) else f"head.{name}"
        ours[own] = tensor
    registers = ours.pop("encoder.reg_token", None)
    if registers is not None:
        ours["encoder.cls_token"] = torch.cat([ours["encoder.cls_token"], registers], dim=1)
    return ours


def _model(case: GoldenCase) -> _Model:
    model = _Model(case.options)
    parameters = case.group("param.")
    if not parameters:
        named = re.fullmatch(r"of (\w+)", str(case.options.get("parameters", "")))
        parameters = case.sibling(named[1] if named else "forward_masked").group("param.")
    missing, unknown = model.load_state_dict(_names(parameters), strict=False)
    missing = [name for name in missing if name != "head.probabilities"]
    if missing or unknown:
        raise UserError(f"Case {case.name}: parameters that one side alone has: {', '.join(missing + unknown)}.")
    return model


def _forward(case: GoldenCase) -> CaseResult:
    visible: list[Tensor] = []
    with torch.no_grad():
        predictions = _model(case).predictions(case, visible)
    errors = [float(f"output.mask_logits.{len(predictions)}" in case.arrays)]
    for number, prediction in enumerate(predictions):
        errors.append(relative_error(prediction.masks, case.arrays[f"output.mask_logits.{number}"]))
        errors.append(relative_error(prediction.classes, case.arrays[f"output.class_logits.{number}"]))
    recorded = case.group("output.attention_mask.")
    masks = [relative_error(visible[int(block)], mask) for block, mask in recorded.items()]
    result = {"outputs": largest_error(errors)}
    return case.result({**result, "exact": largest_error(masks)} if masks or visible else result)


def _setting(case: GoldenCase) -> tuple[MaskCriterion, list[Target]]:
    said = case.options
    criterion = MaskCriterion(
        said["classes"], said["num_points"], said["oversample_ratio"], said["importance_sample_ratio"],
        said["no_object_coefficient"], said["mask_coefficient"], said["dice_coefficient"], said["class_coefficient"],
    )  # fmt: skip
    images = len(case.group("input.labels."))
    return criterion, [
        Target(case.arrays[f"input.masks.{i}"].bool(), case.arrays[f"input.labels.{i}"].long()) for i in range(images)
    ]


def _points(case: GoldenCase, end: str, images: int) -> Points:
    match = [case.arrays[f"input.match_points{end}.{i}"] for i in range(images)]
    return Points(match, case.arrays[f"input.candidate_points{end}"], case.arrays[f"input.random_points{end}"])


def _matches(case: GoldenCase, end: str, match: list[tuple[Tensor, Tensor]]) -> list[float]:
    return [
        relative_error(torch.stack(pair), case.arrays[f"output.match{end}.{image}"]) for image, pair in enumerate(match)
    ]


def _training_step(case: GoldenCase) -> CaseResult:
    model, (criterion, targets) = _model(case), _setting(case)
    predictions = model.predictions(case)
    points = [_points(case, f".{number}", len(targets)) for number in range(len(predictions))]
    matches = criterion.match(predictions, targets, points)
    losses = criterion(predictions, targets, points)
    total = criterion.total(losses)
    total.backward()
    exact = [e for number, match in enumerate(matches) for e in _matches(case, f".{number}", match)]
    said, outputs = case.options["losses"], [relative_error(total, case.arrays["output.loss"])]
    for number, part in enumerate(losses):
        back = number - len(losses) + 1
        end = f"_block_{back}" if back else ""
        for name, ours in zip(("mask", "dice", "cross_entropy"), part.values(), strict=True):
            outputs.append(abs(float(ours.detach()) / said[f"loss_{name}{end}"] - 1))
    theirs = case.group("grad.")
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = {}
    for name, recorded in theirs.items():
        if name.endswith("reg_token"):
            ours[name] = own["encoder.cls_token"][:, -recorded.shape[1] :]
            continue
        gradient = own[next(iter(_names({name: recorded})))]
        ours[name] = gradient[:, : recorded.shape[1]] if name.endswith("cls_token") else gradient
    for side in (ours, theirs):
        for name in [name for name in side if name.endswith("qkv.bias")]:
            query, _, value = side[name].chunk(3)  # the keys' has no gradient but rounding
            side[name] = torch.cat([query, value])
    gradients, remark = compare_gradients(ours, theirs)
    return case.result(
        {"outputs": largest_error(outputs), "gradients": gradients, "exact": largest_error(exact)}, remark
    )


def _criterion(case: GoldenCase) -> CaseResult:
    criterion, targets = _setting(case)
    masks = case.arrays["input.mask_logits"].clone().requires_grad_()
    classes = case.arrays["input.class_logits"].clone().requires_grad_()
    prediction, points = Prediction(masks, classes), _points(case, "", len(targets))
    exact = _matches(case, "", criterion.match([prediction], targets, [points])[0])
    losses = criterion([prediction], targets, [points])
    total = criterion.total(losses)
    total.backward()
    named = dict(zip(("loss_mask", "loss_dice", "loss_cross_entropy"), losses[0].values(), strict=True))
    errors = [relative_error(value, case.arrays[f"output.{name}"]) for name, value in {**named, "loss": total}.items()]
    assert masks.grad is not None
    assert classes.grad is not None
    gradients, remark = compare_gradients(
        {"mask_logits": masks.grad, "class_logits": classes.grad}, case.group("grad.")
    )
    return case.result(
        {"outputs": largest_error(errors), "gradients": gradients, "exact": largest_error(exact)}, remark
    )


def _annealing(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["curves"].items():
        ours = [
            [annealed(step, *ends, said["power"]) for ends in zip(said["start"], said["end"], strict=True)]
            for step in case.arrays[f"input.{name}.step"].tolist()
        ]
        theirs = case.arrays[f"output.{name}.probability"]  # float32
        errors.append(relative_error(torch.tensor(ours, dtype=torch.float64).to(theirs.dtype), theirs))
    return case.result({"outputs": largest_error(errors)})


def _schedule(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["curves"].items():
        ours = [
            [two_stage(step, said["total"], tuple(said["warmup"]), encoder, said["base_lr"], said["power"])
             for encoder in (True, False)]
            for step in case.arrays[f"input.{name}.step"].tolist()
        ]  # fmt: skip
        errors.append(relative_error(torch.tensor(ours, dtype=torch.float64), case.arrays[f"output.{name}.lr"]))
    return case.result({"schedule": largest_error(errors)})


def _parameter_groups(case: GoldenCase) -> CaseResult:
    model, errors = _Model(case.options), []
    for group, said in case.options["groups"].items():
        options = said["options"]
        found = rates(
            model, model.encoder, options["lr"], options["llrd"], options["llrd_l2_enabled"], model.head.joined_blocks
        )
        recorded = case.group(f"output.{group}.")
        if any(f"encoder.{n.removeprefix(_ENCODER)}" not in found and f"head.{n}" not in found
               and not n.endswith("reg_token") for n in recorded):  # fmt: skip
            errors.append(float("inf"))
            continue
        theirs = _names({name: value.reshape(1, 1) for name, value in recorded.items()})
        ours = [found[name] for name in theirs]
        unequal = {*found} ^ {*theirs}
        errors.append(float("inf") if unequal else 0.0)
        for name, rate in zip(theirs, ours, strict=True):
            errors.append(float((theirs[name] / rate - 1).abs().max()))
    return case.result({"schedule": largest_error(errors)})


def _inference(case: GoldenCase) -> CaseResult:
    said, window = case.options, (case.options["window"][0], case.options["window"][1])
    crops, sizes, exact, origins = [], [], [], []
    side = min(window)
    for number, (height, width) in enumerate(said["sizes"]):
        image = case.arrays[f"input.image.{number}"].permute(1, 2, 0).cpu().numpy()
        scaled = scaled_size((height, width), window)
        exact.append(float(list(scaled) != said["scaled"][number]))
        resized = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
        pixels = torch.tensor(bytearray(resized.tobytes()), dtype=torch.uint8).view(*scaled, 3).permute(2, 0, 1)
        starts = window_starts(scaled, window)
        sizes.append((scaled, starts))
        for top, left in starts:
            crops.append(pixels[:, top : top + window[0], left : left + window[1]])
            origins.append([number, max(top, left), max(top, left) + side])
    exact.append(float(origins != said["origins"]))
    exact.append(relative_error(torch.stack(crops), case.arrays["output.crops"]))
    prediction = Prediction(case.arrays["input.mask_logits"], case.arrays["input.class_logits"])
    scores = class_scores(prediction, window).split([len(starts) for _, starts in sizes])
    outputs = [
        relative_error(stitch(part, starts, scaled, (size[0], size[1])), case.arrays[f"output.scores.{number}"])
        for number, (part, (scaled, starts), size) in enumerate(zip(scores, sizes, said["sizes"], strict=True))
    ]
    return case.result({"outputs": largest_error(outputs), "exact": largest_error(exact)})
