"""The configs of the repository as the tests read and build them."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

from adpe.config_names import known_configs
from adpe.engine.config import read_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = known_configs()
ADE20K = ["configs/ade20k_upernet_vitb.py", "configs/ade20k_upernet_vitl.py"]
COCO = [name for name in CONFIGS if name.startswith("configs/coco_") and "maskrcnn" in name]
CASCADE = [name for name in COCO if "cascade" in name]
EPOCH_LENGTH = 6


@cache
def _read(name: str) -> Config:
    return read_config(ROOT / name)


def config(name: str, options: dict[str, Any] | None = None) -> Config:
    return read_config(ROOT / name, options) if options else copy.deepcopy(_read(name))


@cache
def meta_model(name: str) -> nn.Module:
    """The model at full size without memory for its parameters."""
    return build(config(name), "meta")


def build(cfg: Config, device: str = "cpu") -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(cfg.model)


@cache
def schedule(schedulers: str, length: int) -> list[float]:
    """Learning rate of every iteration over the base one.

    Args:
        schedulers: the config's, as JSON; built and stepped as the Runner does.
        length: iterations; an epoch has `EPOCH_LENGTH`.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.step()
    built = [
        PARAM_SCHEDULERS.build(one, default_args={"optimizer": optimizer, "epoch_length": EPOCH_LENGTH})
        for one in json.loads(schedulers)
    ]
    rates = []
    for number in range(1, length + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in built:
            if not scheduler.by_epoch or number % EPOCH_LENGTH == 0:
                scheduler.step()
    return rates
