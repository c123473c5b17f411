"""AdPE and MAE+: pretraining, trajectories of both players, fine-tuning encoders, and the step from one to the other.

Cases are told apart by what they say they compute, or by their names:
``pretrain_{ape,rpe}_{none,embedding,coordinate}`` (loss, outputs, gradients),
``trajectory_{ape,rpe}_{embedding,coordinate}_{nonorm,l2,linf}`` (optimiser steps of both players),
``encoder_{ape,rpe,rpe_interpolated}_*`` (logits of the fine-tuning encoder) and ``transfer_*``
(:mod:`adpe.parity.transfer`). Models are built by the public API and loaded by the public checkpoint reader.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adpe.checkpoints.loading import load_checkpoint, save_checkpoint
from adpe.checkpoints.names import to_our_names
from adpe.errors import UserError
from adpe.methods.adpe import AdPE
from adpe.methods.factory import masked_autoencoder
from adpe.methods.mae import MAE
from adpe.models.vit import FORM, Position, VisionTransformer
from adpe.parity.cases import NOISE, CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.transfer import check_transfer


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case.

    Raises:
        UserError: for a case of an unknown name or kind, or other models than ours.
        KeyError: for an array or an option that the case lacks.
    """
    if case.meta.get("layer_norm_eps", 1e-6) != 1e-6:
        raise UserError(f"{case.file}: layer_norm_eps is {case.meta['layer_norm_eps']}, the models here have 1e-6.")
    kind, _, name = case.name.partition("_")
    if kind not in ("pretrain", "trajectory", "encoder", "transfer"):
        kind, name = "pretrain", case.name
    kind = case.options.get("computes", kind)
    if kind == "transfer":
        return check_transfer(case)
    if kind == "encoder":
        return _check_encoder(case, name.rpartition("_")[0])
    position, _, adversary = name.partition("_")
    model = _autoencoder(case, position, adversary.partition("_")[0])
    if kind == "trajectory":
        return _check_trajectory(case, model)
    if kind != "pretrain":
        raise UserError(f"Case {case.name} computes {kind!r}: expected pretrain, trajectory, encoder or transfer.")
    return _check_pretraining(case, model)


def _check_pretraining(case: GoldenCase, model: MAE) -> CaseResult:
    data = case.arrays
    images, noise = data["input.images"], data["input.noise"]
    loss = model(images, noise)
    loss.backward()
    prediction, mask = model.reconstruct(images, noise)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    error, remark = compare_gradients(ours, _parameters(case.group("grad."), case.name))
    outputs = [relative_error(prediction, data["output.pred"]), relative_error(mask, data["output.mask"])]
    errors = {
        "loss": relative_error(loss, data["output.loss"]),
        "outputs": largest_error(outputs),
        "gradients": error,
    }
    return case.result(errors, remark)


def _check_trajectory(case: GoldenCase, model: MAE) -> CaseResult:
    options, data = case.options, case.arrays
    if not isinstance(model, AdPE):
        raise UserError(f"Case {case.name} has no adversary, whose trajectory it could hold.")
    adversary = model.adversary
    adversary.norm, adversary.epsilon = options["norm"], options["epsilon"]
    groups = model.parameter_groups(options["lr"], options["weight_decay"], adversary_lr=options["adversarial_lr"])
    optimizer = torch.optim.AdamW(groups, betas=tuple(options["betas"]))
    # The reader knows a checkpoint by its encoder, which the states of the adversary alone lack.
    encoder = {name: tensor for name, tensor in case.group("param.").items() if name == "blocks.0.attn.qkv.weight"}
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
        after = _parameters({**encoder, **case.group(f"step{step}.after.")}, case.name)
        theirs = {name: tensor for name, tensor in after.items() if name.startswith("adversary.")}
        if _any(signal, "adversary."):
            errors += [largest_error(relative_error(parameters[n], theirs[n]) for n in theirs)]
    final = _parameters(case.group("final."), case.name)
    # Both players end where the reference's do, in every element whose gradient was never noise.
    for name, tensor in parameters.items():
        if name.startswith("adversary."):
            continue
        errors.append(relative_error(torch.where(signal[name], tensor, final[name]), final[name]))
    remark = "adversary's gradient is rounding noise: its trajectory is arbitrary, its effect on the loss none"
    errors_found = {"loss": largest_error(loss_errors), "trajectory": largest_error(errors)}
    return case.result(errors_found, "" if _any(signal, "adversary.") else remark)


def _any(signal: Mapping[str, Tensor], prefix: str) -> bool:
    return any(bool(tensor.any()) for name, tensor in signal.items() if name.startswith(prefix))


def _check_encoder(case: GoldenCase, position: str) -> CaseResult:
    images, state = case.arrays["input.images"], case.group("param.")
    height, width = images.shape[-2:]
    model = VisionTransformer(
        img_size=(height, width),
        position=_position(position),
        relative_query="unscaled",
        learned_pos_embed=True,
        num_classes=len(state["head.weight"]),
        **_encoder(case.meta["config"]),
    )
    _load(model, case)
    with torch.no_grad():
        return case.result({"outputs": relative_error(model.eval()(images), case.arrays["output.logits"])})


def _autoencoder(case: GoldenCase, position: str, adversary: str) -> MAE:
    if adversary not in ("none", "embedding", "coordinate"):
        raise UserError(f"Unknown adversary {adversary!r} in case {case.name}: expected none, embedding or coordinate.")
    meta = case.meta
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
    _load(model, case)
    return model


def _load(model: nn.Module, case: GoldenCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{case.name}.safetensors"
        save_checkpoint(case.group("param."), file)
        load_checkpoint(model, file, verbose=False)


def _parameters(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """By our names, without what is no parameter."""
    return {name: tensor for name, tensor in to_our_names(tensors, source).items() if not name.endswith(FORM)}


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
