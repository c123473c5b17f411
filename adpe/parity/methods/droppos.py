"""DropPos against numbers recorded from its reference: targets, losses in all forms, steps clipped by tensor."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.positions.droppos import DropPos, smoothed_places
from adpe.methods.self_distillation.clipping import clip_each_grad_norm_
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error
from adpe.parity.training import MAE_NAMES, compare_step, compare_trajectory, renamed, without_key_bias

_to_our_names = renamed([
    ("aux_decoder_embed.", "pixels.embed."), ("aux_decoder_blocks.", "pixels.blocks."),
    ("aux_decoder_norm.", "pixels.norm."), ("aux_decoder_pred.", "pixels.pred."),
    ("mask_pos_token", "mask_pos_token"), *MAE_NAMES,
])  # fmt: skip


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that DropPos does not compute.
    """
    checks = {"smoothing": _smoothing, "pretrain": _pretrain, "trajectory": _trajectory}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _smoothing(case: GoldenCase) -> CaseResult:
    errors = []
    for name, theirs in case.group("output.").items():
        match = re.fullmatch(r"grid(\d+)\.sigma([\d.]+)", name)
        if match is None:
            raise UserError(f"Case {case.name}: output.{name} names no grid and sigma.")
        side = int(match[1])
        errors.append(relative_error(smoothed_places((side, side), float(match[2]), "reference"), theirs))
    return case.result({"outputs": largest_error(errors)})


def _model(case: GoldenCase) -> DropPos:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    model = DropPos(
        encoder, said["mask_ratio"], said["pos_mask_ratio"], smoothing="reference", attn_guide=said["attn_guide"],
        dropped_token=said.get("mask_token_type", "param"), **decoder,
        multi_task=said.get("pos_weight", 1.0) if said.get("multi_task") else 0.0,
    )  # fmt: skip
    model.load_state_dict(_to_our_names(case.group("param.")))
    return model.train()


def _pretrain(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    images = data["input.images"]
    draw = model.draw(images, data["input.noise"], data["input.position_noise"])
    shuffle = data["input.shuffle_noise"].argsort(dim=1) if said.get("shuffle") else None
    permutation = data["input.permutation"].long() if "input.permutation" in data else None
    tokens = model.encode(images, draw, permutation, shuffle)
    prediction = model.decoder(tokens)
    loss, accuracy = model.place_loss(prediction, draw, images, said["sigma"])
    pairs = {"pred": (prediction, data["output.pred"]), "accuracy": (accuracy, data["output.accuracy"])}
    if "output.affinity" in data:
        affinity, attention = model.attention(images, draw.mask)
        pairs["affinity"] = (affinity, data["output.affinity"])
        pairs["attention"] = (attention, data["output.attention"])
    if model.multi_task:
        pairs["loss_position"] = (loss, data["output.loss_position"])
        pixel_loss, pixels = _pixels_of_the_reference(model, tokens, draw, images, shuffle)
        pairs["loss_pixels"], pairs["pixels"] = (
            (pixel_loss, data["output.loss_pixels"]),
            (pixels, data["output.pixels"]),
        )
        loss = model.multi_task * loss + pixel_loss
    exact = {
        "hidden": (draw.mask.hidden, data["output.hidden"]),
        "dropped": (draw.dropped, data["output.dropped"]),
        "visible": (draw.mask.visible_indices, data["output.visible_indices"]),
    }
    return compare_step(case, model, loss, _to_our_names, pairs, exact)


def _pixels_of_the_reference(
    model: DropPos, tokens: Tensor, draw: Any, images: Tensor, shuffle: Tensor | None
) -> tuple[Tensor, Tensor]:
    """With a shuffle the reference's second decoder is given the shuffled tokens as if they were not."""
    if shuffle is not None:
        shuffled = torch.take_along_dim(tokens[:, 1:], shuffle.unsqueeze(-1), dim=1)
        tokens = torch.cat([tokens[:, :1], shuffled], dim=1)
    return model.pixel_loss(tokens, draw, images)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _model(case)

    def clip(tensor: Tensor) -> None:
        clip_each_grad_norm_([tensor], said["clip_grad"])

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(clip)

    def step(number: int, images: Tensor) -> Tensor:
        noise, positions = (case.arrays[f"step.{number}.{name}"] for name in ("noise", "position_noise"))
        draw = model.draw(images, noise, positions)
        return model.place_loss(model.decoder(model.encode(images, draw)), draw, images, said["sigmas"][number])[0]

    return compare_trajectory(case, model, step, _to_our_names, without_key_bias)
