"""Saliency-guided attention against numbers of EG-ViT, and a float64 transcription of our own form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.backbones.saliency import keep_best, spectral_residual, spectral_scores, working_image
from adpe.models.backbones.saliency_vit import SaliencyViT
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error

_SALIENCY = 1e-6


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that this encoder does not compute.
    """
    checks = {"egvit": _egvit, "ours_float64": _ours}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


class _Classifier(nn.Module):
    """The encoder and a linear head on its class token."""

    def __init__(self, encoder: SaliencyViT, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.embed_dim, classes)


def _model(case: GoldenCase, **saliency: Any) -> _Classifier:
    said: Any = case.options
    size = said["image"] if isinstance(said["image"], int) else tuple(said["image"])
    encoder = SaliencyViT(
        size, said["patch"], embed_dim=said["dim"], depth=said["depth"], num_heads=said["heads"],
        mlp_ratio=said["mlp_ratio"], learned_pos_embed=True, saliency=saliency,
    )  # fmt: skip
    model = _Classifier(encoder, said["classes"])
    state = case.group("param.")
    model.load_state_dict({n if n.startswith("head.") else f"encoder.{n}": t.float() for n, t in state.items()})
    return model


def _egvit(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    model = _model(case, residual_before=said["residual_before_block"], class_position=False, mask_at_test=False)
    kept = keep_best(data["input.mask"], said["kept"] / data["input.mask"].shape[1])
    encoder = model.encoder
    images = data["input.images"].clone().requires_grad_("grad.input.images" in data)
    logits = model.head(encoder.norm(encoder.block_tokens(images, kept)[-1])[:, 0])
    (logits * data["input.cotangent"]).sum().backward()
    theirs = {n if n.startswith(("head.", "input.")) else f"encoder.{n}": t for n, t in case.group("grad.").items()}
    ours: dict[str, Tensor] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and n in theirs}
    if images.grad is not None:
        ours["input.images"] = images.grad
    gradients, remark = compare_gradients(ours, theirs)
    whole = model.head(encoder.eval().forward_features(images)[:, 0])
    pairs = [(logits, data["output.logits"]), (whole, data["output.logits_unmasked"])]
    outputs = largest_error(relative_error(*pair) for pair in pairs)
    return case.result({"outputs": outputs, "gradients": gradients}, remark)


def _ours(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    pixels, patch = data["input.images"], said["patch"]
    scores = spectral_scores(pixels, patch)
    saliency = [
        relative_error(spectral_residual(pixels, patch), data["output.saliency"]),
        relative_error(scores, data["output.scores"]),
    ]
    kept = keep_best(scores, said["keep_ratio"])
    model = _model(case, ratio=said["keep_ratio"], mean=said["mean"], std=said["std"]).eval()
    mean, std = (torch.tensor(said[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images = (pixels.float() - mean) / std
    encoder = model.encoder
    with torch.no_grad():
        tokens = encoder.forward_features(images)
        maps = encoder.forward_intermediates(images, intermediates_only=True)
        logits = model.head(tokens[:, 0])
    pairs = [(tokens, data["output.tokens"]), (logits, data["output.logits"])]
    pairs.append((working_image(pixels, patch), data["output.working_image"]))
    pairs += [(x, data[f"output.map{i}"]) for i, x in enumerate(maps)]
    result = case.result({
        "saliency": largest_error(saliency), "exact": relative_error(kept, data["output.kept_indices"]),
        "outputs": largest_error(relative_error(*pair) for pair in pairs),
    })  # fmt: skip
    result.tolerances["saliency"] = _SALIENCY
    return result
