"""CrossMAE against numbers recorded from its reference: loss, predicted patches, gradients, steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.crossmae import CrossMAE
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase
from adpe.parity.training import MAE_NAMES, compare_step, compare_trajectory, renamed, without_key_bias

_FIRST = renamed([*MAE_NAMES, ("dec_norms.", "decoder.norms."), ("wfm.linear.", "decoder.mixture.")])


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that CrossMAE does not compute.
    """
    computes = case.options.get("computes")
    if computes not in ("pretrain", "trajectory"):
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected pretrain or trajectory.")
    model = _model(case)
    if computes == "trajectory":

        def step(number: int, images: Tensor) -> Tensor:
            return model(images, case.arrays[f"step.{number}.noise"])

        return compare_trajectory(case, model, step, to_our_names, _with_gradient)
    images, noise = case.arrays["input.images"], case.arrays["input.noise"]
    mask = model.random_mask(images, noise)
    chosen = model.predicted_indices(mask)
    prediction = model.predict(model.maps(images, mask), chosen, model.encoder.patch_embed.grid(images))
    predicted = torch.zeros_like(mask.hidden).scatter_(1, chosen, True)
    pairs = {"pred": (prediction, case.arrays["output.pred"])}
    exact = {"predicted": (predicted, case.arrays["output.predicted"])}
    return compare_step(case, model, model(images, noise), to_our_names, pairs, exact)


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's parameters by our names; its self-attention has queries, keys and values in one matrix."""
    found: dict[str, Tensor] = {}
    for name, tensor in _FIRST(state).items():
        match = re.fullmatch(r"(decoder\..*self_attn)\.qkv\.(\w+)", name)
        if match:
            size = tensor.shape[0] // 3
            found[f"{match[1]}.q.{match[2]}"], found[f"{match[1]}.kv.{match[2]}"] = tensor.split([size, 2 * size])
        else:
            found[name] = tensor
    return found


def _with_gradient(name: str, tensor: Tensor) -> Tensor | None:
    return tensor.chunk(2)[1] if name.endswith("kv.bias") and "qkv" not in name else without_key_bias(name, tensor)


def _model(case: GoldenCase) -> CrossMAE:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    model = CrossMAE(
        encoder, said["mask_ratio"], said["kept_mask_ratio"], said["norm_pix_loss"], **decoder,
        mixed_blocks=said.get("use_fm"), mix_input=said["use_input"], self_attn=said.get("self_attn", False),
        reference=True,
    )  # fmt: skip
    missing, unexpected = model.load_state_dict(to_our_names(case.group("param.")), strict=False)
    if unexpected or {*missing} != {"encoder.norm.weight", "encoder.norm.bias"}:
        raise UserError(f"Case {case.name}: parameters {unexpected} are unknown, {missing} missing.")
    return model.train()
