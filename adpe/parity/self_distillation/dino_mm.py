"""DINO-MM against numbers recorded from its reference: sensor drop, views, losses, training steps, probe."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.data.views import multiband
from adpe.data.views.multiband import Crop, MultiBandViews, SensorDrop, ViewDraw
from adpe.errors import UserError
from adpe.evaluations.multi_label.metrics import micro_and_macro
from adpe.methods.self_distillation.dino import teacher_temperature
from adpe.methods.self_distillation.dino_method import DINO
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.self_distillation.selfpatch import without_key_bias
from adpe.parity.self_distillation.training_steps import (
    compare_runs,
)

_FREQUENCY = 0.02


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that DINO-MM does not compute.
    """
    checks = {
        "sensor_drop": _sensor_drop, "augment_ops": _operations, "augment_views": _views,
        "radar_to_bytes": _radar, "loss": _loss, "trajectory": _trajectory, "linear_probe": _probe,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _array(case: GoldenCase, name: str) -> np.ndarray:
    return case.arrays[name].cpu().numpy()


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return relative_error(torch.from_numpy(np.asarray(ours, dtype=np.float64)), torch.from_numpy(np.asarray(theirs)))


def _sensor_drop(case: GoldenCase) -> CaseResult:
    drop = SensorDrop({"1": multiband.SENTINEL["radar"], "2": multiband.SENTINEL["optical"]})
    depth = SensorDrop({"1": (3,), "2": (0, 1, 2)}, (0.8, 0.2))
    errors = []
    for name, one in (("s1s2", drop), ("rgbd", depth)):
        image = _array(case, f"input.{name}")
        for i, choice in enumerate(_array(case, f"input.{name}_choice")):
            errors.append(_error(one(image, str(int(choice))), _array(case, f"output.{name}")[i]))
    for name, choice in (("fixed_S1", "1"), ("fixed_S2", "2")):
        errors.append(_error(drop(_array(case, "input.s1s2"), choice), _array(case, f"output.{name}")))
    generator = random.Random(0)
    draws = [drop.draw(generator) for _ in range(case.options["draws"])]
    shares = np.array([draws.count(choice) / len(draws) for choice in (None, "1", "2")])
    result = case.result({
        "exact": largest_error(errors), "frequency": float(np.abs(shares - _array(case, "output.frequency")).max()),
    })  # fmt: skip
    result.tolerances["frequency"] = _FREQUENCY
    return result


def _operations(case: GoldenCase) -> CaseResult:
    image = _array(case, "input.image").astype(np.uint8)
    channels = range(image.shape[-1])
    ours = {
        "gray": multiband.grey(image, [channels]), "solarize": multiband.solarize(image, "below"),
        "tensor": multiband.to_float(image),
    }  # fmt: skip
    for name in case.group("output."):
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        if kind in ("brightness", "contrast"):
            factor = float(case.arrays[f"input.{kind}{number}"])
            ours[name] = getattr(multiband, kind)(image, factor, "wrap")
        elif kind == "blur":
            ours[name] = multiband.blur(image, float(case.arrays[f"input.sigma{number}"]))
        elif kind == "crop":
            crop = Crop(*map(int, _array(case, f"input.crop{number}")))
            side = case.options["crop_output"]
            ours[name] = multiband.crop_and_resize(image, crop, (side, side))
    return case.result({"outputs": largest_error(_error(v, _array(case, f"output.{n}")) for n, v in ours.items())})


def _views(case: GoldenCase) -> CaseResult:
    said, errors = case.options, []
    image = _array(case, "input.image").astype(np.uint8)
    drop = SensorDrop({"1": (12, 13), "2": tuple(range(12))})
    views = MultiBandViews(
        drop, said["global_size"], said["local_size"], said["views"] - 2, overflow="wrap", solarize="below", grey="all"
    )
    for number, size in enumerate(views.sizes):
        given = case.group(f"input.view{number}.")
        value = {name: float(tensor) for name, tensor in given.items() if tensor.numel() == 1}
        draw = ViewDraw(
            Crop(*map(int, given["crop"].tolist())), bool(value["flip"]),
            value["brightness"] if value["jitter"] else None, value["contrast"] if value["jitter"] else None,
            bool(value["gray"]), value["sigma"] if value["blur"] else None, bool(value["solarize"]),
            str(int(value["sensor"])) if value["sensor"] else None,
        )  # fmt: skip
        errors.append(_error(views.view(image, size, draw), _array(case, f"output.view{number}")))
    return case.result({"outputs": largest_error(errors)})


def _radar(case: GoldenCase) -> CaseResult:
    said, bands = case.options, _array(case, "input.s1")
    errors = []
    for i, (mean, deviation) in enumerate(zip(said["mean"], said["std"], strict=True)):
        band = bands[..., i].astype(np.float64)
        clamped = multiband.clamp_to_quantiles(band, *said["quantiles"])
        errors.append(_error(multiband.band_to_bytes(clamped, mean, deviation), _array(case, "output.s1")[..., i]))
        for name, value in (("low", clamped.min()), ("high", clamped.max())):
            errors.append(_error(value, _array(case, f"output.quantile_{name}")[i]))
    return case.result({"outputs": largest_error(errors)})


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a network: ``backbone`` is the encoder."""
    return {name.replace("backbone.", "encoder.", 1): tensor for name, tensor in state.items()}


def _encoder(said: Any) -> VisionTransformer:
    return VisionTransformer(
        said["img"], said["patch"], said["channels"], said["dim"], said["depth"], said["heads"],
        learned_pos_embed=True, pos_embed_resize="dino",
    )  # fmt: skip


def _model(case: GoldenCase) -> DINO:
    said: Any = case.options
    model = DINO(
        _encoder(said), said["out"], said["hidden"], said["bottleneck"], said["student_temp"], said["teacher_temp"],
        said["warmup_teacher_temp"], said["warmup_teacher_temp_epochs"], said["center_momentum"],
        said.get("momentum_teacher", 0.996), said.get("freeze_last_layer", 0), said["norm_last_layer"],
    )  # fmt: skip
    model.student.load_state_dict(to_our_names(case.group("param.")))
    model.teacher.load_state_dict(to_our_names(case.group("teacher.") or case.group("param.")))
    return model.train()


def _loss(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    model.center.copy_(data["input.center"])
    crops = [data[f"input.crop{i}"] for i in range(2 + said["local_crops"])]
    groups = [torch.cat(crops[:2]), *([torch.cat(crops[2:])] if crops[2:] else [])]
    with torch.no_grad():
        teacher = model.teacher(groups[:1])
    student = model.student(groups)
    loss = model.distill(student, teacher, len(crops), teacher_temperature(said["epoch"], *model.temperatures))
    loss.backward()
    model.update_center(teacher)
    batch = said["batch"]
    local = crops[2] if crops[2:] else crops[1]
    intermediate = model.student.encoder.forward_intermediates(
        crops[0], 2, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    pairs = {
        "loss": loss, "center": model.center, "teacher": teacher, "student": student,
        "features_global0": model.student.features([crops[0]]), "features_local": model.student.features([local]),
        "intermediate_last2": torch.stack([torch.cat([token, patches], dim=1) for patches, token in intermediate]),
    }  # fmt: skip
    assert len(pairs["features_global0"]) == batch
    ours = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
    theirs = to_our_names(case.group("grad."))
    gradients, remark = compare_gradients(without_key_bias(ours), without_key_bias(theirs))
    outputs = largest_error(relative_error(value, data[f"output.{name}"]) for name, value in pairs.items())
    return case.result({"outputs": outputs, "gradients": gradients}, remark)


def _trajectory(case: GoldenCase) -> CaseResult:
    return compare_runs(
        case, _model(case), to_our_names, {"losses": "loss"},
        compared=lambda name, tensor: without_key_bias({name: tensor}).get(name),
    )  # fmt: skip


def _probe(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    encoder = _encoder(said)
    encoder.load_state_dict(case.group("param.backbone."))
    with torch.no_grad():
        maps = encoder.eval().forward_intermediates(
            data["input.images"], said["n_last_blocks"], return_prefix_tokens=True, norm=True, output_fmt="NLC",
            intermediates_only=True,
        )  # fmt: skip
        features = torch.cat([token[:, 0] for _, token in maps], dim=-1)
    linear = nn.Linear(features.shape[1], said["labels"])
    linear.load_state_dict(case.group("param.linear."))
    targets = data["input.targets"].float()
    batches = list(zip(features.split(said["batch"]), targets.split(said["batch"]), strict=True))
    with torch.no_grad():
        logits = linear(features)
        losses = [F.multilabel_soft_margin_loss(linear(x), y) for x, y in batches]
        precision = [micro_and_macro(linear(x).cpu().numpy(), y.cpu().numpy())[0] for x, y in batches]
    micro, macro = micro_and_macro(logits.cpu().numpy(), targets.cpu().numpy())
    weights = [len(x) for x, _ in batches]
    pairs = {
        "features": features, "logits": logits, "loss": F.multilabel_soft_margin_loss(logits, targets),
        "mean_batch_loss": torch.stack(losses).mean(), "micro_ap_all": torch.tensor(micro),
        "macro_ap_all": torch.tensor(macro),
        "mean_of_batch_micro_ap": torch.tensor(np.average(precision, weights=weights)),
    }  # fmt: skip
    optimizer = torch.optim.SGD(linear.parameters(), lr=said["sgd_lr"], momentum=said["sgd_momentum"])
    for x, y in batches:
        optimizer.zero_grad()
        F.multilabel_soft_margin_loss(linear(x), y).backward()
        optimizer.step()
    pairs |= {f"after_epoch.linear.{name}": tensor for name, tensor in linear.state_dict().items()}
    return case.result({"outputs": largest_error(relative_error(v, data[f"output.{n}"]) for n, v in pairs.items())})
