"""Optimisers for two players, as mmengine constructors."""

from __future__ import annotations

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from adpe.engine.unwrapped import unwrapped
from adpe.methods.mae import MaskedAutoencoder
from adpe.methods.parameter_groups import parameter_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdversarialOptimWrapperConstructor:
    """Optimiser of :class:`AdPEPretraining`: one AdamW, the adversary's group ascending, projected after every step.

    Args:
        optim_wrapper_cfg: ``optimizer`` holds torch's options (``lr``, ``betas``, ``weight_decay``).
        paramwise_cfg: ``adversary_lr``, the adversary's learning rate; that of the model if absent.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        autoencoder: MaskedAutoencoder = unwrapped(model).model
        lr = self.optimizer_cfg["lr"]
        adversary_lr = self.paramwise_cfg.get("adversary_lr", lr)
        weight_decay = self.optimizer_cfg.get("weight_decay", 0.0)
        groups = parameter_groups(autoencoder, lr, adversary_lr, weight_decay)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        adversary = autoencoder.adversary
        if adversary is not None:
            # After real steps alone: accumulation and skipped fp16 steps come by themselves.
            optimizer.register_step_post_hook(lambda *_: adversary.project())
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})
