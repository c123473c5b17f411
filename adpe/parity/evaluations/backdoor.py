"""Poisons, pairing and blocking against numbers recorded from the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.backdoor.attacks import (
    ClassTokenClassifier,
    PoisonMaker,
    block,
    blocking_window,
    box_sums,
    pair,
    paste,
    rollout_maps,
)
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that this evaluation does not compute.
    """
    checks = {"poison": _poison, "pairing": _pairing, "defence": _defence}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _model(case: GoldenCase) -> ClassTokenClassifier:
    said: Any = case.options
    state = case.group("param.")
    encoder = VisionTransformer(
        said["image"], said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        mlp_ratio=said["mlp_ratio"], learned_pos_embed=True,
    )  # fmt: skip
    model = ClassTokenClassifier(encoder, nn.Linear(said["dim"], len(state["head.bias"])))
    model.load_state_dict({n if n.startswith("head.") else f"encoder.{n}": tensor for n, tensor in state.items()})
    return model.eval()


def _normalisation(case: GoldenCase) -> tuple[Tensor, Tensor]:
    said = case.meta["normalisation"]
    mean, std = (torch.tensor(said[name]).view(3, 1, 1) for name in ("mean", "std"))
    return mean, std


def _poison(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    mean, std = _normalisation(case)
    maker = PoisonMaker(model, mean, std, said["eps"], "normalised", said["lr"], pairing="reference")
    patched = paste(data["input.source_clean"], data["input.trigger"], data["input.positions"])
    with torch.no_grad():
        features = model.features(patched)
    found = {"source_patched": patched, "source_features": features}
    targets = data["input.targets"]
    perturbation = torch.zeros_like(targets)
    for iteration in range(said["iterations"]):
        step = maker.step(features, targets, perturbation, iteration)
        found |= {
            f"step{iteration}.target_features": step.target_features,
            f"step{iteration}.distances": torch.cdist(features, step.target_features),
            f"step{iteration}.assigned_features": step.assigned, f"step{iteration}.losses": step.losses,
            f"step{iteration}.gradient": step.gradient, f"step{iteration}.poison": step.images,
            f"step{iteration}.lr": torch.tensor(maker.rate(iteration)),
        }  # fmt: skip
        features, perturbation = step.assigned, step.perturbation
    errors = [relative_error(v, data[f"output.{n}"]) for n, v in found.items() if f"output.{n}" in data]
    # Truncation is discontinuous: next to an integer another order of operations may store one level more or less.
    exact = 255 * step.images
    ours, theirs = exact.to(torch.uint8).float(), data["output.saved"].float()
    near = (exact - exact.round()).abs() < 1e-3
    wrong = (ours != theirs) & ~(near & ((ours - theirs).abs() <= 1))
    order = step.losses.argsort(stable=True)
    return case.result({
        "outputs": largest_error(errors),
        "exact": largest_error([float(wrong.sum()), relative_error(order, data["output.file_order"])]),
    })  # fmt: skip


def _pairing(case: GoldenCase) -> CaseResult:
    data = case.arrays
    first = pair(data["input.source"], data["input.targets"], "reference")
    assigned = data["input.source"][first]
    second = assigned[pair(assigned, data["input.targets_second"], "reference")]
    ours = {"assigned": assigned, "assigned_second": second, "source_of_target": first}
    return case.result({"exact": largest_error(relative_error(v, data[f"output.{n}"]) for n, v in ours.items())})


def _defence(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    mean, std = _normalisation(case)
    images, edge = data["input.images"], said["edge"]
    maps, logits = rollout_maps(model, images, "reference", said["discard_ratio"])
    large, sums = box_sums(maps, (images.shape[-2], images.shape[-1]), edge)
    windows = [blocking_window(one, edge) for one in sums]
    blocked = block((images * std + mean).clamp(0, 1), windows)
    ours = {
        "logits": logits, "mask": maps, "mask_upsampled": large, "box_sum": sums, "blocked_images": blocked,
        "blocked_logits": model((blocked - mean) / std),
    }  # fmt: skip
    opened, before, after = model.opened(images)
    top = opened.gather(1, opened.argmax(dim=-1, keepdim=True)).sum()
    gradients = torch.autograd.grad(top, before)[::-1]
    for number, (weights, gradient) in enumerate(zip(after, gradients, strict=True)):
        ours |= {f"attention.layer{number}": weights, f"hooked_gradient.order{number}": gradient}
    errors = [relative_error(value, data[f"output.{n}"]) for n, value in ours.items() if f"output.{n}" in data]
    return case.result({
        "outputs": largest_error(errors), "exact": relative_error(torch.tensor(windows), data["output.window"]),
    })  # fmt: skip
