"""Where an encoder starts: the ``init_cfg`` of backbones and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log

from adpe.checkpoints.loading import load_checkpoint
from adpe.errors import UserError


def starting_checkpoint(model: Any, otherwise: str = "the encoder starts at random") -> str | None:
    """The checkpoint that ``model.init_cfg`` names; None, and a line in the log that says so, if there is no init_cfg.

    Raises:
        UserError: if init_cfg is anything but ``dict(type="Pretrained", checkpoint=PATH)``.
    """
    name, init_cfg = type(model).__name__, model.init_cfg
    if init_cfg is None:
        print_log(f"{name}: no init_cfg, {otherwise}", logger="current")
        return None
    if init_cfg.get("type") != "Pretrained" or not init_cfg.get("checkpoint"):
        raise UserError(f"{name}: init_cfg must be dict(type='Pretrained', checkpoint=PATH), got {init_cfg}.")
    return init_cfg["checkpoint"]


def start_encoder(model: Any, encoder: Any, allow_unexpected: Sequence[str] = ()) -> None:
    """Load the checkpoint of ``model.init_cfg`` into the encoder, with its load report in the log.

    Args:
        model: whose `init_cfg` may have ``allow_missing`` and ``allow_unexpected``, lists of names.
        encoder: a :class:`adpe.VisionTransformer`.
        allow_unexpected: names that may be in the checkpoint besides.

    Raises:
        UserError: as `starting_checkpoint` and :func:`adpe.load_checkpoint`.
    """
    path = starting_checkpoint(model)
    if path is None:
        return
    allowed = {key: list(model.init_cfg.get(key, ())) for key in ("allow_missing", "allow_unexpected")}
    allowed["allow_unexpected"] += allow_unexpected
    print_log(str(load_checkpoint(encoder, path, verbose=False, **allowed)), logger="current")
