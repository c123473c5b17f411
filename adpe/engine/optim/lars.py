"""LARS, the optimiser of linear probes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError, require


@OPTIMIZERS.register_module()
def AdPELars(params: Any, **options: Any) -> torch.optim.Optimizer:
    """LARS (arXiv 1708.03888) as timm has it; options are ``timm.optim.Lars``'s."""
    require("timm", "requirements/runtime.txt")
    from timm.optim import Lars

    return Lars(params, **options)


def lars_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for `AdPELars`: the layer's rate is scaled, and decays, for matrices alone, not for biases and norms.

    timm's LARS scales the rate only where there is weight decay, unless told ``always_adapt``: without decay, as in
    MAE's linear probe, it would be plain SGD. MAE's own LARS scales every tensor of two dimensions or more.
    """
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "always_adapt": True},
        {"params": [p for p in parameters if p.ndim <= 1], "always_adapt": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdPELarsOptimWrapperConstructor:
    """LARS over what is not frozen, in the groups of `lars_groups`.

    Args:
        optim_wrapper_cfg: ``optimizer`` holds the options of `AdPELars`; weight decay is for matrices alone.
        paramwise_cfg: takes none.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        if paramwise_cfg:
            raise UserError(f"optim_wrapper.paramwise_cfg {dict(paramwise_cfg)}: the LARS of linear probes takes none.")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        groups = lars_groups(parameter for parameter in unwrapped(model).parameters() if parameter.requires_grad)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})
