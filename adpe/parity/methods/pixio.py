"""Pixio's switches on MAE against numbers recorded from its reference: block masks, class tokens, learned positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adpe.errors import UserError
from adpe.methods.mae import MAE
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase
from adpe.parity.training import MAE_NAMES, compare_step, compare_trajectory, renamed, without_key_bias

_RENAME = renamed(MAE_NAMES)


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that Pixio does not compute.
    """
    computes = case.options.get("computes")
    if computes not in ("pretrain", "trajectory"):
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected pretrain or trajectory.")
    model = _model(case)
    if computes == "trajectory":

        def step(number: int, images: Tensor) -> Tensor:
            return model(images, _ranks(model, images, case.arrays[f"step.{number}.noise"]))

        return compare_trajectory(case, model, step, _RENAME, without_key_bias)
    images = case.arrays["input.images"]
    ranks = _ranks(model, images, case.arrays["input.noise"])
    loss = model(images, ranks)
    prediction, hidden = model.reconstruct(images, ranks)
    pairs = {"pred": (prediction, case.arrays["output.pred"])}
    return compare_step(case, model, loss, _RENAME, pairs, {"hidden": (hidden, case.arrays["output.hidden"])})


def _model(case: GoldenCase) -> MAE:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], learned_pos_embed=True, num_class_tokens=said["n_cls_tokens"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    model = MAE(
        encoder, said["mask_ratio"], said["norm_pix_loss"], **decoder, decoder_learned_pos_embed=True,
        mask={"type": "block", "side": said["mask_grid"]},
    )  # fmt: skip
    model.load_state_dict(_RENAME(case.group("param.")))
    return model.train()


def _ranks(model: Any, images: Tensor, noise: Tensor) -> Tensor:
    """A number for every patch of a number for every block."""
    return model.ranking.spread(noise, model.encoder.patch_embed.grid(images))
