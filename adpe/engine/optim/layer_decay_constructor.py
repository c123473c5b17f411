"""Layer-wise learning-rate decay as an mmengine constructor."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.models.layer_decay import layer_decay_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdPELayerDecayOptimWrapperConstructor:
    """Optimiser with :func:`adpe.models.layer_decay.layer_decay_groups`, for any backbone that describes itself.

    Args:
        optim_wrapper_cfg: ``optimizer`` holds torch's options; its ``lr`` is that of the heads.
        paramwise_cfg: ``layer_decay_rate`` and, optionally, ``compat`` ("clean", "mmseg", "detectron2" or "all").

    Raises:
        UserError: for options that are missing or unknown.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.paramwise_cfg = dict(paramwise_cfg or {})
        unknown = sorted(set(self.paramwise_cfg) - {"layer_decay_rate", "compat"})
        if unknown or "layer_decay_rate" not in self.paramwise_cfg:
            problem = f"does not know {', '.join(unknown)}" if unknown else "lacks layer_decay_rate"
            raise UserError(f"optim_wrapper.paramwise_cfg {problem}: expected dict(layer_decay_rate=..., compat=...).")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        weight_decay = self.optimizer_cfg.get("weight_decay", 0.0)
        groups = layer_decay_groups(unwrapped(model), self.optimizer_cfg["lr"], weight_decay, **self.paramwise_cfg)
        rates = sorted({group["lr"] for group in groups})
        print_log(
            f"layer decay {self.paramwise_cfg}: {len(groups)} groups, {len(rates)} learning rates from {rates[0]:.3g} "
            f"to {rates[-1]:.3g}",
            logger="current",
        )
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})
