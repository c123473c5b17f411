"""Optimisers of linear probes (LARS) and of what has nothing to optimise (k-NN), as mmengine constructors."""

from __future__ import annotations

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


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdPELarsOptimWrapperConstructor:
    """LARS over what is not frozen, with the layer's rate scaled for matrices and not for biases and norms.

    timm's LARS scales the rate only where there is weight decay, unless told ``always_adapt``: without decay, as in
    MAE's linear probe, it would be plain SGD. MAE's own LARS scales every tensor of two dimensions or more.

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
        parameters = [parameter for parameter in unwrapped(model).parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "always_adapt": True},
            {"params": [p for p in parameters if p.ndim <= 1], "always_adapt": False, "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": [group for group in groups if group["params"]]})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdPENothingToOptimizeConstructor:
    """An optimizer of an empty tensor, since mmengine's Runner asks for one: for models without training, as k-NN.

    Raises:
        UserError: if the model has something to train.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if trained:
            raise UserError(f"optim_wrapper.constructor optimises nothing, and {trained[0]} is to be trained.")
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": [nn.Parameter(torch.zeros(0))]})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})
