"""Settings that exclude each other, or that this launcher would not act on: refused before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from adpe.errors import UserError

_RUNNERS = (None, "Runner", "AdPERunner")
# What each kind of training loop is measured in.
_LENGTHS = {"IterBasedTrainLoop": ("max_iters", "max_epochs"), "EpochBasedTrainLoop": ("max_epochs", "max_iters")}


def check_runner(cfg: Config) -> None:
    """Refuse other runners than mmengine's Runner.

    Raises:
        UserError: if the config asks for FlexibleRunner or a strategy (DeepSpeed, FSDP, ColossalAI).
    """
    if cfg.get("runner_type") not in _RUNNERS:
        raise UserError(
            f"config {cfg.filename}: runner_type = {cfg.runner_type!r} is not used here: training runs through "
            "AdPERunner, a Runner. Remove runner_type."
        )
    if cfg.get("strategy") is not None:
        name = cfg.strategy.get("type") if isinstance(cfg.strategy, dict) else cfg.strategy
        raise UserError(
            f"config {cfg.filename}: strategy = {name} belongs to mmengine's FlexibleRunner and would be ignored. "
            "Remove it: several GPUs train with DistributedDataParallel (tools/dist_train.sh); for memory see "
            "effective_batch with a smaller train_dataloader.batch_size."
        )


def check_length(cfg: Config) -> None:
    """Refuse a training loop whose length is missing, not positive, or given in two units.

    Raises:
        UserError: naming the key of ``train_cfg``.
    """
    train_cfg = cfg.train_cfg
    if "type" in train_cfg and "by_epoch" in train_cfg:
        raise UserError("train_cfg sets both type and by_epoch, which choose the same thing: remove by_epoch.")
    by_epoch = train_cfg.get("by_epoch")
    kind = train_cfg.get("type") or ("IterBasedTrainLoop" if by_epoch is False else "EpochBasedTrainLoop")
    if kind not in _LENGTHS or ("type" not in train_cfg and by_epoch is None):
        return
    needed, other = _LENGTHS[kind]
    if train_cfg.get(other) is not None:
        raise UserError(
            f"train_cfg sets {other}, but its loop ({kind}) is measured in {needed}: remove {other}, or choose the "
            f"other loop with {'type' if 'type' in train_cfg else 'by_epoch'}."
        )
    length = train_cfg.get(needed)
    if isinstance(length, bool) or not isinstance(length, (int, float)) or length != int(length) or length < 1:
        raise UserError(f"train_cfg.{needed} must be a positive whole number, got {length!r}.")


def check_command_line(options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse options that an argument of the command line would silently overrule.

    Args:
        options: of ``--cfg-options``.
        arguments: the keys of the config that arguments set, with their values; None for those that are not given.

    Raises:
        UserError: naming both.
    """
    for key, value in arguments.items():
        argument = "--" + key.rpartition(".")[2].replace("_", "-")
        if key in options and value is not None and options[key] != value:
            raise UserError(
                f"{argument} {value} and --cfg-options {key}={options[key]} exclude each other: give one of them."
            )
    if "launcher" in options:
        raise UserError("--cfg-options launcher is set by --launcher.")
