"""PACMAC against numbers recorded from its reference: committee masks, encoders, whole steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.domain_adaptation.pacmac import Committee, DomainClassifier, View, committee_views, random_view
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that PACMAC does not compute.
    """
    checks = {"masks": _masks, "mask_random": _random, "encoder": _encoder, "step": _step}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _view_errors(case: GoldenCase, view: View, prefix: str) -> list[float]:
    tokens = case.arrays["input.tokens"]
    kept = torch.take_along_dim(tokens, view.kept.unsqueeze(-1), dim=1)
    ours = {"mask": view.mask, "kept_tokens": kept, "kept_indices": view.kept}
    return [relative_error(value, case.arrays[f"{prefix}{name}"]) for name, value in ours.items()]


def _masks(case: GoldenCase) -> CaseResult:
    said = case.options
    views = committee_views(case.arrays["input.attention"], said["committee"], said["mask_ratio"])
    errors = [error for i, view in enumerate(views) for error in _view_errors(case, view, f"output.view{i}.")]
    return case.result({"exact": largest_error(errors)})


def _random(case: GoldenCase) -> CaseResult:
    view = random_view(case.arrays["input.noise"], case.options["mask_ratio"])
    return case.result({"exact": largest_error(_view_errors(case, view, "output."))})


def _model(case: GoldenCase) -> DomainClassifier:
    said: Any = case.options
    average = said["pool"].startswith("mean")
    encoder = VisionTransformer(
        said["image"], said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        mlp_ratio=said["mlp_ratio"], learned_pos_embed=True, num_classes=said["classes"] if average else 0,
    )  # fmt: skip
    model = DomainClassifier(encoder, None if average else nn.Linear(said["dim"], said["classes"]))
    model.load_state_dict(_to_our_names(case.group("param."), average))
    return model.eval()


def _to_our_names(state: dict[str, Tensor], average: bool) -> dict[str, Tensor]:
    return {n if n.startswith("head.") and not average else f"encoder.{n}": tensor for n, tensor in state.items()}


def _encoder(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    images = data["input.images"]
    attention = model.patch_attention(images)
    view = committee_views(attention, said["stride"], said["mask_ratio"])[0]
    features = model.of_view(images, view)
    pairs = {
        "logits": model(images), "attention": model.last_attention(images), "patch_attention": attention,
        "masked_features": features, "masked_logits": model.classify(features),
    }  # fmt: skip
    return case.result({
        "exact": relative_error(view.mask, data["output.mask"]),
        "outputs": largest_error(relative_error(value, data[f"output.{name}"]) for name, value in pairs.items()),
    })  # fmt: skip


def _step(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    committee = Committee(
        said["committee"], said["mask_ratio"], said["conf_threshold"], said["lambda_unsup"], said["label_smoothing"],
        "reference",
    )  # fmt: skip
    given = [data[f"input.{name}"] for name in ("source_augmented", "source_labels", "target", "target_augmented")]
    step = committee.step(model, given[0], given[1].long(), given[2], given[3])
    step.loss.backward()
    selection = step.selection
    outputs = {
        "loss": step.loss, "loss_source": step.source, "confidence": selection.confidence,
        "chosen_logits": selection.chosen, "logits_source": step.source_logits, "logits_target": step.target_logits,
        "patch_attention": model.patch_attention(given[3]),
        **{f"view{i}.logits": logits for i, logits in enumerate(selection.logits)},
    }  # fmt: skip
    if step.target is not None:
        outputs["loss_target"] = step.target
    exact = {
        "pseudo_labels": selection.pseudo_labels, "consistent": selection.consistent,
        "confident": selection.confident, "selected": selection.selected,
        **{f"view{i}.mask": view.mask for i, view in enumerate(selection.views)},
        **{f"view{i}.predictions": logits.argmax(dim=-1) for i, logits in enumerate(selection.logits)},
    }  # fmt: skip
    errors = [relative_error(value, data[f"output.{name}"]) for name, value in exact.items()]
    errors.append(0.0 if ("output.loss_target" in data) == (step.target is not None) else float("inf"))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    theirs = _to_our_names(case.group("grad."), said["pool"].startswith("mean"))
    gradients, remark = compare_gradients(ours, theirs)
    return case.result({
        "exact": largest_error(errors), "gradients": gradients,
        "outputs": largest_error(relative_error(value, data[f"output.{name}"]) for name, value in outputs.items()),
    }, remark)  # fmt: skip
