"""Numerical parity with recorded runs of a reference implementation.

A directory of goldens holds ``meta.json`` (sizes, and each case's hyper-parameters) and one ``.npz`` a case:
``pretrain_{ape,rpe}_{none,embedding,coordinate}`` (loss, outputs, gradients),
``trajectory_{ape,rpe}_{embedding,coordinate}_{nonorm,l2,linf}`` (optimiser steps of both players) and
``encoder_{ape,rpe,rpe_interpolated}_*`` (logits of the fine-tuning encoder). Models are built by the public API and
loaded by the public checkpoint reader.
"""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from adpe.checkpoints.loading import load_checkpoint, save_checkpoint, to_our_names
from adpe.errors import UserError
from adpe.methods.adpe import AdPE
from adpe.methods.factory import masked_autoencoder
from adpe.methods.mae import MAE
from adpe.models.vit import Position, VisionTransformer

TOLERANCES = {"loss": 1e-5, "outputs": 1e-5, "gradients": 1e-4, "trajectory": 1e-4}

# A gradient this far below the largest of the model is float32 rounding: its digits and its sign are arbitrary, and so
# is the step that AdamW, which normalises it, makes of it.
NOISE = 1e-6


@dataclass
class CaseResult:
    """Largest relative errors of one case.

    Attributes:
        case: name of the case.
        errors: quantity ("loss", "outputs", "gradients", "trajectory") to its largest relative error.
        remark: what was not compared, and why; or what is missing.
    """

    case: str
    errors: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Every error is finite and within its tolerance, and there is one."""
        return bool(self.errors) and all(error <= TOLERANCES[name] for name, error in self.errors.items())


def check_directory(directory: str | Path) -> list[CaseResult]:
    """Run every case of a directory of goldens: those that ``meta.json`` names and those that have a file.

    Raises:
        UserError: if there is no case, ``meta.json`` or a case's file is missing, unreadable or incomplete, or a case
            has an unknown name.
    """
    directory = Path(directory)
    meta_file = directory / "meta.json"
    if not meta_file.is_file():
        raise UserError(
            f"{meta_file} does not exist: expected a directory of goldens with meta.json and one .npz a case."
        )
    try:
        meta = json.loads(meta_file.read_text())
        cases = dict.fromkeys(meta["cases"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{meta_file} cannot be read ({error!r}): expected JSON with config and cases.") from None
    if meta.get("layer_norm_eps", 1e-6) != 1e-6:
        raise UserError(f"{meta_file}: layer_norm_eps is {meta['layer_norm_eps']}, the models here have 1e-6.")
    cases |= dict.fromkeys(file.stem.removeprefix("pretrain_") for file in sorted(directory.glob("*.npz")))
    if not cases:
        raise UserError(f"{meta_file} names no case, and {directory} holds no .npz: there is nothing to check.")
    return [check_case(directory, meta, case) for case in cases]


def check_case(directory: Path, meta: Mapping[str, Any], case: str) -> CaseResult:
    """Run one case; see :func:`check_directory`."""
    kind, _, name = case.partition("_") if case.startswith(("trajectory_", "encoder_")) else ("pretrain", "_", case)
    file = directory / f"{kind}_{name}.npz"
    data = _read_arrays(file, case)
    try:
        if kind == "encoder":
            return _check_encoder(case, name.rpartition("_")[0], meta["config"], data)
        position, _, adversary = name.partition("_")
        model = _autoencoder(case, meta, position, adversary.partition("_")[0], _strip(data, "param."))
        if kind == "trajectory":
            return _check_trajectory(case, model, meta["cases"][case], data)
        return _check_pretraining(case, model, data)
    except KeyError as error:
        raise UserError(f"Case {case}: neither {file} nor meta.json holds {error}, which this case needs.") from None


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude of `theirs`; NaN if either has one, infinite for another shape."""
    if ours.shape != theirs.shape:
        return math.inf
    difference = (ours.detach().double() - theirs.double()).abs().max().item()
    return difference / (theirs.double().abs().max().item() or 1e-30)


def largest_error(errors: Iterable[float]) -> float:
    """The largest error; infinite if one is not finite, or if there is none: what was not compared does not agree."""
    errors = list(errors)
    return max(errors) if errors and all(map(math.isfinite, errors)) else math.inf


def _check_pretraining(case: str, model: MAE, data: dict[str, Tensor]) -> CaseResult:
    images, noise = data["input.images"], data["input.noise"]
    loss = model(images, noise)
    loss.backward()
    prediction, mask = model.reconstruct(images, noise)
    theirs = to_our_names(_strip(data, "grad."), case)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    noisy = sorted(name for name, gradient in theirs.items() if gradient.abs().max() < NOISE * largest)
    result = CaseResult(
        case,
        {
            "loss": relative_error(loss, data["output.loss"]),
            "outputs": largest_error(
                [relative_error(prediction, data["output.pred"]), relative_error(mask, data["output.mask"])]
            ),
            "gradients": largest_error(
                relative_error(ours[n], theirs[n]) for n in theirs.keys() & ours.keys() - {*noisy}
            ),
        },
    )
    unmatched = sorted(theirs.keys() ^ ours.keys())
    large = [name for name in noisy if name in ours and not ours[name].abs().max() < NOISE * largest]
    if unmatched or large:
        result.errors["gradients"] = math.inf
        result.remark = f"only one side has a gradient: {', '.join(unmatched + large)}"
    elif noisy:
        result.remark = f"gradient is rounding noise on both sides, digits not compared: {', '.join(noisy)}"
    return result


def _check_trajectory(case: str, model: MAE, options: Mapping[str, Any], data: dict[str, Tensor]) -> CaseResult:
    if not isinstance(model, AdPE):
        raise UserError(f"Case {case} has no adversary, whose trajectory it could hold.")
    adversary = model.adversary
    adversary.norm, adversary.epsilon = options["norm"], options["epsilon"]
    groups = model.parameter_groups(options["lr"], options["weight_decay"], adversary_lr=options["adversarial_lr"])
    optimizer = torch.optim.AdamW(groups, betas=tuple(options["betas"]))
    # The reader knows a checkpoint by its encoder, which the states of the adversary alone lack.
    encoder = {name: tensor for name, tensor in _strip(data, "param.").items() if name == "blocks.0.attn.qkv.weight"}
    parameters = dict(model.named_parameters())
    signal = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    loss_errors: list[float] = []
    errors: list[float] = []
    theirs: dict[str, Tensor] = {}
    for step, recorded in enumerate(options["losses"]):
        images, noise, expected = data[f"step{step}.images"], data[f"step{step}.noise"], torch.tensor(recorded)
        loss = model(images, noise)
        optimizer.zero_grad()
        loss.backward()
        loss_errors.append(relative_error(loss, expected))
        if theirs and not _any(signal, "adversary."):
            # Not compared, because it is arbitrary: then the reference's values must give the same loss as ours.
            loss_errors.append(relative_error(functional_call(model, theirs, (images, noise)), expected))
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        for name, gradient in gradients.items():
            signal[name] &= gradient.abs() >= NOISE * largest
        optimizer.step()
        adversary.project()
        after = to_our_names({**encoder, **_strip(data, f"step{step}.after.")}, case)
        theirs = {name: tensor for name, tensor in after.items() if name.startswith("adversary.")}
        if _any(signal, "adversary."):
            errors += [largest_error(relative_error(parameters[n], theirs[n]) for n in theirs)]
    final = to_our_names(_strip(data, "final."), case)
    # Both players end where the reference's do, in every element whose gradient was never noise.
    for name, tensor in parameters.items():
        if name.startswith("adversary."):
            continue
        errors.append(relative_error(torch.where(signal[name], tensor, final[name]), final[name]))
    result = CaseResult(case, {"loss": largest_error(loss_errors), "trajectory": largest_error(errors)})
    if not _any(signal, "adversary."):
        result.remark = (
            "adversary's gradient is rounding noise: its trajectory is arbitrary, its effect on the loss none"
        )
    return result


def _any(signal: Mapping[str, Tensor], prefix: str) -> bool:
    return any(bool(tensor.any()) for name, tensor in signal.items() if name.startswith(prefix))


def _check_encoder(case: str, position: str, config: Mapping[str, Any], data: dict[str, Tensor]) -> CaseResult:
    images, state = data["input.images"], _strip(data, "param.")
    height, width = images.shape[-2:]
    model = VisionTransformer(
        img_size=(height, width),
        position=_position(position),
        relative_query="unscaled",
        learned_pos_embed=True,
        num_classes=len(state["head.weight"]),
        **_encoder(config),
    )
    _load(model, state, case)
    with torch.no_grad():
        return CaseResult(case, {"outputs": relative_error(model.eval()(images), data["output.logits"])})


def _autoencoder(case: str, meta: Mapping[str, Any], position: str, adversary: str, state: dict[str, Tensor]) -> MAE:
    if adversary not in ("none", "embedding", "coordinate"):
        raise UserError(f"Unknown adversary {adversary!r} in case {case}: expected none, embedding or coordinate.")
    config = meta["config"]
    continuous = position == "rpe" and adversary == "coordinate"
    encoder = VisionTransformer(
        img_size=config["img_size"],
        position="relative_interpolated" if continuous else _position(position),
        **_encoder(config),
    )
    model = masked_autoencoder(
        encoder,
        adversary=None if adversary == "none" else adversary,  # type: ignore[arg-type]
        adversary_variant="reference" if (position, adversary) == ("rpe", "embedding") else "masked_keys",
        mask_ratio=meta["mask_ratio"],
        norm_pix_loss=meta["norm_pix_loss"],
        **{key: config[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")},
    )
    _load(model, state, case)
    return model


def _load(model: nn.Module, state: dict[str, Tensor], case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{case}.safetensors"
        save_checkpoint(state, file)
        load_checkpoint(model, file, verbose=False)


def _position(name: str) -> Position:
    positions: dict[str, Position] = {
        "ape": "absolute",
        "rpe": "relative",
        "rpe_interpolated": "relative_interpolated",
    }
    if name not in positions:
        raise UserError(f"Unknown kind of position {name!r} in a case: expected one of {', '.join(positions)}.")
    return positions[name]


def _encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}


def _strip(data: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def _read_arrays(file: Path, case: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file} does not exist, but meta.json names the case {case}.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a readable .npz of numbers, or it is truncated ({error}).") from None
