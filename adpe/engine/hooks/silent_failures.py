"""Guards against runs that look healthy and train or measure nothing, on by default (configs/_base_/runtime.py).

========================  ============================================================================  ==============
default hook              fires when                                                                    it
========================  ============================================================================  ==============
``finite_loss``           the loss is NaN or infinite (`adpe.engine.hooks.guards`)                        stops
``learning_rate_guard``   every learning rate is zero with optimizer steps still to come                stops
``gradient_guard``        parameters get no gradient in the first step, or are in no optimizer group    stops [#]_
``adversary_guard``       the adversary descends, is not optimised, or does not move                    stops
``collapse_guard``        the method finds that it has collapsed: unused codes, a constant teacher      stops
``batch_guard``           a loss that compares images with each other would see a part of each batch    stops
``evaluation_guard``      a validation or test set is empty, or none of its metrics is a number         stops
``label_guard``           classes of data, heads and checkpoint differ; no or wrong labels               stops
                          (`adpe.engine.hooks.label_guard`); a class is never seen                      warns
========================  ============================================================================  ==============

Each is switched off by its name: ``--cfg-options default_hooks.label_guard=None``.

.. [#] With ``find_unused_parameters = True`` in the config it warns: DistributedDataParallel, too, refuses parameters
   without a gradient unless told so, and one process shall not accept what several refuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor, nn

from adpe.engine.mmengine_internals import accumulation
from adpe.engine.pretraining import training_progress
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.methods.base import PretrainingMethod

# Of the initial learning rate: less than any warm-up begins with, more than schedules leave by rounding.
_ZERO = 1e-12


def turn_off(name: str) -> str:
    """The sentence that ends the error of a guard, by its name in ``default_hooks``."""
    return f"To continue regardless: --cfg-options default_hooks.{name}=None."


def _first(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _optimizers(runner: Any) -> list[torch.optim.Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each.optimizer for each in wrappers]


def _groups(runner: Any) -> list[dict[str, Any]]:
    return [group for optimizer in _optimizers(runner) for group in optimizer.param_groups]


@HOOKS.register_module()
class AdPELearningRateGuard(Hook):
    """Stops a run whose learning rates are all zero before its last optimizer step: the rest would change nothing.

    The first and the last step may have none: warm-up from zero, decay to zero.
    """

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        step = accumulation(runner.optim_wrapper)
        groups = _groups(runner)
        if step <= runner.iter < runner.max_iters - step and all(
            group["lr"] <= _ZERO * group.get("initial_lr", 0) for group in groups
        ):
            raise UserError(
                f"the learning rate is zero at iteration {runner.iter + 1} of {runner.max_iters}: the rest would "
                "change nothing. Set optim_wrapper.optimizer.lr above zero, or let param_scheduler reach the end "
                f"(end, T_max, by_epoch against train_cfg). {turn_off('learning_rate_guard')}"
            )


@HOOKS.register_module()
class AdPEGradientGuard(Hook):
    """Stops at the first optimizer step, before it is taken, if trainable parameters have no gradient or no group.

    Parameters that a pretraining method lets rest in that step are exempt. With ``find_unused_parameters = True`` in
    the config, parameters without a gradient are only told of.
    """

    def before_train(self, runner: Any) -> None:
        names = {id(parameter): name for name, parameter in unwrapped(runner.model).named_parameters()}
        optimised = {id(parameter) for group in _groups(runner) for parameter in group["params"]}
        forgotten = [
            names[id(parameter)]
            for parameter in unwrapped(runner.model).parameters()
            if parameter.requires_grad and id(parameter) not in optimised
        ]
        if forgotten:
            raise UserError(
                f"{len(forgotten)} parameters are in no group of the optimizer: {_first(forgotten)}. Look at "
                f"optim_wrapper.constructor, or give them requires_grad=False. {turn_off('gradient_guard')}"
            )

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            handles.pop(id(optimizer)).remove()
            method = getattr(unwrapped(runner.model), "model", None)
            resting = method.resting(training_progress()) if isinstance(method, PretrainingMethod) else ()
            rest = {id(parameter) for parameter in resting}
            without = [
                names.get(id(parameter), "(not of the model)")
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.requires_grad and parameter.grad is None and id(parameter) not in rest
            ]
            if without:
                self._report(runner, without)

        handles = {id(each): each.register_step_pre_hook(look) for each in _optimizers(runner)}

    def _report(self, runner: Any, without: list[str]) -> None:
        text = (
            f"{len(without)} parameters have no gradient in the first optimizer step and would not be trained: "
            f"{_first(without)}. "
        )
        if runner.cfg.get("find_unused_parameters"):
            runner.logger.warning(text + "The config allows it (find_unused_parameters = True).")
            return
        raise UserError(
            f"{text}Look for a detach or an unused module, freeze them (requires_grad=False), or set "
            f"find_unused_parameters = True if they are meant to be unused. {turn_off('gradient_guard')}"
        )


@HOOKS.register_module()
class AdPEAdversaryGuard(Hook):
    """Stops a pretraining whose ascending parameters do not ascend (at the start) or do not move (after `steps`).

    Args:
        steps: optimizer steps, with a learning rate past warm-up, in which the adversary must have moved.
    """

    def __init__(self, steps: int = 100) -> None:
        self.steps = steps

    def before_train(self, runner: Any) -> None:
        self.start: dict[str, Tensor] = {}
        self.moves = 0
        parameters = self._parameters(runner)
        ascending = {
            id(parameter) for group in _groups(runner) if group.get("maximize") for parameter in group["params"]
        }
        wrong = [name for name, value in parameters.items() if not value.requires_grad or id(value) not in ascending]
        if wrong:
            raise UserError(
                f"the adversary would not ascend: {_first(wrong)} in no group with maximize=True, or frozen. Use "
                "optim_wrapper.constructor = 'AdPEPretrainingConstructor', or adversary=None in the model. "
                f"{turn_off('adversary_guard')}"
            )
        # In a resumed run, a projected adversary may rest on its bound.
        bounded = bool(parameters) and unwrapped(runner.model).model.ascent_is_bounded
        if not (bounded and runner.iter > 0):
            self.start = {name: value.detach().clone() for name, value in parameters.items()}
        ids = {id(value) for value in parameters.values()}
        self.groups = [group for group in _groups(runner) if any(id(value) in ids for value in group["params"])]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.start or (runner.iter + 1) % accumulation(runner.optim_wrapper):
            return
        # Steps of warm-up may be smaller than the parameters' precision. Initially zero is frozen, not warm-up.
        self.moves += any(group["lr"] >= 1e-3 * group.get("initial_lr", 0) for group in self.groups)
        if self.moves >= self.steps:
            self._check_adversary(runner)

    def after_train(self, runner: Any) -> None:
        if self.start and self.moves:
            self._check_adversary(runner)

    def _check_adversary(self, runner: Any) -> None:
        parameters = self._parameters(runner)
        still = [name for name, value in self.start.items() if torch.equal(value, parameters[name])]
        self.start = {}
        if still:
            rates = "/".join(f"{group['lr']:g}" for group in self.groups)
            raise UserError(
                f"the adversary is frozen: {_first(still)} did not move in {self.moves} optimizer steps (its learning "
                f"rate is {rates}). Set optim_wrapper.paramwise_cfg.adversary_lr above zero, or adversary=None in the "
                f"model. {turn_off('adversary_guard')}"
            )

    @staticmethod
    def _parameters(runner: Any) -> dict[str, nn.Parameter]:
        """What the pretraining method says must ascend, by name; nothing in other trainings."""
        method = getattr(unwrapped(runner.model), "model", None)
        ascending = method.ascending() if isinstance(method, PretrainingMethod) else {}
        return {f"model.{name}": parameter for name, parameter in ascending.items()}


@HOOKS.register_module()
class AdPECollapseGuard(Hook):
    """Stops a pretraining that has collapsed, as the method itself says.

    Args:
        interval: iterations between the questions.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        method = getattr(unwrapped(runner.model), "model", None)
        if isinstance(method, PretrainingMethod) and self.every_n_train_iters(runner, self.interval):
            reason = method.collapse(training_progress())
            if reason:
                raise UserError(
                    f"pretraining has collapsed at iteration {runner.iter + 1}: {reason} {turn_off('collapse_guard')}"
                )


@HOOKS.register_module()
class AdPEBatchGuard(Hook):
    """Stops, before training, a method whose loss needs the whole batch and whose gradients would be accumulated."""

    def before_train(self, runner: Any) -> None:
        method, passes = getattr(unwrapped(runner.model), "model", None), accumulation(runner.optim_wrapper)
        if isinstance(method, PretrainingMethod) and method.whole_batch and passes > 1:
            images = runner.cfg.train_dataloader.batch_size
            raise UserError(
                f"{method.title} compares the images of a pass with each other, and accumulation over {passes} passes "
                f"would leave {images} of {images * passes}: set train_dataloader.batch_size={images * passes}, start "
                f"{passes} times as many processes, or take effective_batch={images * runner.world_size}. "
                f"{turn_off('batch_guard')}"
            )


@HOOKS.register_module()
class AdPEEvaluationGuard(Hook):
    """Stops, before training where that is possible, if there is nothing to evaluate on or nothing came out of it."""

    def before_train(self, runner: Any) -> None:
        if runner.val_loop is not None:
            self._check_length(runner.val_dataloader, "val_dataloader")

    def before_val(self, runner: Any) -> None:
        self._check_length(runner.val_dataloader, "val_dataloader")

    def before_test(self, runner: Any) -> None:
        self._check_length(runner.test_dataloader, "test_dataloader")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._check_metrics(metrics, "val_dataloader")

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._check_metrics(metrics, "test_dataloader")

    def _check_length(self, loader: Any, name: str) -> None:
        if len(loader.dataset) == 0:
            raise UserError(
                f"{name}.dataset is empty: there is nothing to evaluate on. Look at its data_root, data_prefix and "
                f"ann_file, or set val_dataloader, val_evaluator and val_cfg to None. {turn_off('evaluation_guard')}"
            )

    def _check_metrics(self, metrics: dict[str, float] | None, name: str) -> None:
        if metrics and all(isinstance(value, float) and math.isnan(value) for value in metrics.values()):
            raise UserError(
                f"no metric on {name} is a number ({_first(list(metrics))}): it has no label that counts, or the "
                f"predictions are not finite. Look at its annotations and classes. {turn_off('evaluation_guard')}"
            )
