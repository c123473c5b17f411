"""Where an encoder starts: the ``init_cfg`` of backbones and classifiers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from adpe.checkpoints.agreement import settle_options
from adpe.checkpoints.describing import Description
from adpe.checkpoints.loading import describe_encoder, load_checkpoint
from adpe.errors import UserError
from adpe.models.factory import encoder_options


def described_start(init_cfg: Any) -> tuple[str, Description] | None:
    """The checkpoint that an ``init_cfg`` names and what it says of its encoder; None without one, or without the file.

    Raises:
        UserError: if the file cannot be read.
    """
    path = init_cfg.get("checkpoint") if isinstance(init_cfg, Mapping) else None
    if not isinstance(path, (str, Path)) or not os.path.isfile(path):
        return None
    stat = os.stat(path)
    return str(path), _described(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _described(path: str, mtime_ns: int, size: int) -> Description:
    return describe_encoder(path)


def options_of_start(model: str | None, options: Mapping[str, Any], init_cfg: Any, owner: str) -> dict[str, Any]:
    """Options of :class:`adpe.VisionTransformer` for an encoder that starts as `init_cfg` says.

    Args:
        model: name of a size; None takes the sizes of the checkpoint.
        options: what the config sets besides; None stands for what the checkpoint says.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` or None.
        owner: what holds the options, for messages.

    Raises:
        UserError: if an option contradicts the checkpoint, naming both values; without a model and a checkpoint.
        ValueError: for an unknown model.
    """
    sizes = encoder_options(model) if model else {}
    start = described_start(init_cfg)
    if start is None:
        if model is None:
            raise UserError(f"{owner}: without model=, a name of a size, an encoder needs a checkpoint that is there.")
        return {**sizes, **{key: value for key, value in options.items() if value is not None}}
    path, described = start
    return {**sizes, **settle_options(options, described, path, owner, sizes)}


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
