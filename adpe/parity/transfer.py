"""The step from pretraining to fine-tuning: a pretraining file, through the shipped config, at another grid."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from adpe.checkpoints.names import to_our_names
from adpe.errors import UserError
from adpe.files import ROOT
from adpe.models.vit import FORM
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, relative_error

CONFIG = ROOT / "configs" / "imagenet/finetune_vitb.py"
POSITIONS = {"ape": "absolute", "rpe": "relative", "rpe_interpolated": "relative_interpolated"}


def check_transfer(case: GoldenCase) -> CaseResult:
    """Tokens, pooled features, the table that is added, and the gradients of all parameters, positions too.

    The encoder is that of `CONFIG` with the case's sizes and image; all else is the config's, or the file's own.

    Raises:
        UserError: for an unknown kind of positions in ``fine_tuned_as``.
    """
    kind = case.options["fine_tuned_as"]
    if kind not in POSITIONS:
        raise UserError(f"Case {case.name}: fine_tuned_as is {kind!r}, expected one of {', '.join(POSITIONS)}.")
    images, cotangent = case.arrays["input.images"], case.arrays["input.cotangent"]
    encoder = fine_tuning_encoder(case)
    tokens = encoder.forward_features(images)
    (tokens * cotangent).sum().backward()
    table = encoder.position_table(encoder.patch_embed.grid(images), images)
    expected = {"output.tokens": tokens, "output.pos_embed": table}
    expected["output.features"] = encoder.forward_head(tokens, pre_logits=True)
    theirs = {n: g for n, g in to_our_names(case.group("grad."), case.name).items() if not n.endswith(FORM)}
    ours = {f"encoder.{name}": p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    error, remark = compare_gradients(ours, theirs)
    errors = [relative_error(value, case.arrays[name]) for name, value in expected.items()]
    if encoder.position != POSITIONS[kind]:
        remark, errors = f"the file is read as {encoder.position}, not as {POSITIONS[kind]}", [math.inf]
    return case.result({"outputs": max(errors), "gradients": error}, remark)


def fine_tuning_encoder(case: GoldenCase) -> Any:
    """The encoder of the shipped config for fine-tuning, at the sizes of a case, loaded from its parameters."""
    from mmengine.logging import MMLogger
    from mmengine.registry import MODELS, DefaultScope

    from adpe.engine.config import read_config

    height, width = case.arrays["input.images"].shape[-2:]
    sizes = {f"model.{key}": value for key, value in case.meta["config"].items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{case.name}.pth"
        torch.save({"model": case.group("param.")}, file)  # as the reference writes it
        options = {"pretrained": str(file), "image_size": height if height == width else [height, width], **sizes}
        cfg = read_config(CONFIG, options)
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("ERROR")
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        model.init_weights()
        logger.setLevel(level)
    return model.eval().backbone
