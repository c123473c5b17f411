"""The optimiser of a pretraining method, as mmengine's constructor."""

from __future__ import annotations

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from adpe.engine.pretraining import training_progress
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.methods.base import PretrainingMethod
from adpe.methods.self_distillation.clipping import clip_each_grad_norm_


# The first name stands in configs of the first version.
@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name=["AdversarialOptimWrapperConstructor", "AdPEPretrainingConstructor"])
class AdPEPretrainingConstructor:
    """Optimiser of :class:`AdPEPretraining` with the method's groups, and its `after_step` after every step.

    Args:
        optim_wrapper_cfg: ``optimizer`` holds torch's options (``lr``, ``betas``, ``weight_decay``). ``clip_grad`` has
            mmengine's types and ``type="each"``, which clips the gradient of every tensor by itself to ``max_norm``.
        paramwise_cfg: options of the method's `parameter_groups`, e.g. ``adversary_lr`` of AdPE.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        method: PretrainingMethod = unwrapped(model).model
        weight_decay = self.optimizer_cfg.get("weight_decay", 0.0)
        try:
            groups = method.parameter_groups(self.optimizer_cfg["lr"], weight_decay, **self.paramwise_cfg)
        except TypeError as error:
            raise UserError(f"optim_wrapper.paramwise_cfg: {error}") from None
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        optimizer.register_step_pre_hook(lambda *_: method.before_step(training_progress()))
        # After real steps alone: accumulation and skipped fp16 steps come by themselves.
        optimizer.register_step_post_hook(lambda *_: method.after_step(training_progress()))
        config = {"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer}
        clip = dict(config.get("clip_grad") or {})
        if clip.get("type") != "each":
            return OPTIM_WRAPPERS.build(config)
        if clip.keys() != {"type", "max_norm"} or not clip["max_norm"] > 0:
            raise UserError(f"optim_wrapper.clip_grad={clip}: type='each' takes a positive max_norm and nothing else.")
        wrapper = OPTIM_WRAPPERS.build({**config, "clip_grad": {"max_norm": clip["max_norm"]}})
        wrapper.clip_func = clip_each_grad_norm_
        return wrapper
