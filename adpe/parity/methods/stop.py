"""StoP against numbers recorded from its reference (I-JEPA), and against our own definition for MAE and MAE+."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adpe.errors import UserError
from adpe.methods.positions.ijepa import IJEPA
from adpe.methods.positions.stop import StochasticPositions, StoPMAE, StoPMAEPlus
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.training import compare_step, compare_trajectory, renamed, without_key_bias

_PREDICTOR = [
    ("predictor_embed.", "embed."), ("predictor_blocks.", "blocks."), ("predictor_norm.", "norm."),
    ("predictor_proj.", "proj."),
]  # fmt: skip
_ALONE = renamed(_PREDICTOR, "")
_WHOLE = renamed([(f"predictor.{theirs}", f"predictor.{ours}") for theirs, ours in _PREDICTOR], "")


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that StoP does not compute.
    """
    checks = {"positions": _positions, "pretrain": _pretrain, "trajectory": _trajectory, "ours": _ours}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _without_mask_token(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's predictor has a mask token that it never uses."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("mask_token")}


def _to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _WHOLE(_without_mask_token(state))


def _model(case: GoldenCase) -> IJEPA:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], class_token=False,
    )  # fmt: skip
    return IJEPA(
        encoder, said["predictor_embed_dim"], said["predictor_depth"], targets=said["targets"],
        position_noise_std=said["noise_std"],
    )  # fmt: skip


def _indices(data: Mapping[str, Tensor], prefix: str, count: int) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
    context = data[f"{prefix}context_indices"].long()
    targets = [data[f"{prefix}target_indices.{i}"].long() for i in range(count)]
    noises = [data[f"{prefix}noise.{i}"] for i in range(count)] if f"{prefix}noise.0" in data else None
    return context, targets, noises


def _positions(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    predictor = _model(case).predictor
    predictor.load_state_dict(_ALONE(_without_mask_token(case.group("param."))))
    side = said["img_size"] // said["patch_size"]
    tokens = predictor.tokens(data["input.context"], *_indices(data, "input.", said["targets"]), (side, side))
    prediction = predictor(tokens, data["input.context"].shape[1])
    (prediction * data["input.cotangent"]).sum().backward()
    ours = {name: p.grad for name, p in predictor.named_parameters() if p.grad is not None}
    gradients, remark = compare_gradients(ours, _ALONE(_without_mask_token(case.group("grad."))))
    pairs = {"tokens": tokens, "pred": prediction}
    outputs = largest_error(relative_error(value, data[f"output.{name}"]) for name, value in pairs.items())
    return case.result({"outputs": outputs, "gradients": gradients}, remark)


def _pretrain(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    model.load_state_dict(_to_our_names(case.group("param.")))
    context, targets, noises = _indices(data, "input.", said["targets"])
    images = data["input.images"]
    outputs = {
        "pred": (model.predict(images, context, targets, noises), data["output.pred"]),
        "target": (model.target_features(images, targets), data["output.target"]),
    }
    return compare_step(case, model, model(images, context, targets, noises), _to_our_names, outputs)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _model(case)
    model.load_state_dict(_to_our_names(case.group("param.")))

    def step(number: int, images: Tensor) -> Tensor:
        if number:
            model.follow(said["momenta"][number - 1])
        return model(images, *_indices(case.arrays, f"step.{number}.", said["targets"]))

    return compare_trajectory(
        case, model, step, _to_our_names, without_key_bias, lambda: model.follow(said["momenta"][-1])
    )


def _ours(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    options = {"mask_ratio": said["mask_ratio"], "norm_pix_loss": said["norm_pix_loss"], **decoder}
    model: StochasticPositions
    if said["mask_tokens"] == "decoder":
        model = StoPMAE(encoder, said["noise_std"], **options)
    else:
        model = StoPMAEPlus(encoder, said["form"], said["noise_std"], **options)
    state = case.group("param.")
    model.load_state_dict(state)
    images, noise, position_noise = (data[f"input.{name}"] for name in ("images", "noise", "position_noise"))
    with model.given(position_noise):
        prediction, hidden = model.reconstruct(images, noise)
    loss = model(images, noise, position_noise)
    outputs = {"pred": (prediction, data["output.pred"])}
    return compare_step(case, model, loss, dict, outputs, {"hidden": (hidden, data["output.hidden"])})
