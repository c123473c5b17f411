"""The number of images behind one optimizer step, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, NamedTuple

from mmengine.config import Config

from adpe.errors import UserError

# Arguments of mmengine's schedulers that count iterations when by_epoch=False.
_SCHEDULER_COUNTS = ("begin", "end", "T_max", "step_size", "total_steps")
# Those of our own schedulers besides.
_OWN_COUNTS = ("total", "warmup", "lag", "encoder_warmup")
_OWN_SCHEDULERS = ("AdPEFormulaScheduler", "AdPETwoStageScheduler")
_SCHEDULER_COUNT_LISTS = ("milestones", "periods")


class EffectiveBatch(NamedTuple):
    """How an effective batch is made: ``images = processes * batch_size * accumulation``."""

    images: int
    processes: int
    batch_size: int
    accumulation: int

    def __str__(self) -> str:
        return (
            f"effective batch {self.images} = {self.processes} {_plural('process', self.processes, 'es')} x "
            f"{self.batch_size} {_plural('image', self.batch_size)} x {self.accumulation} accumulation "
            f"{_plural('step', self.accumulation)}"
        )


def _plural(word: str, count: int, ending: str = "s") -> str:
    return word if count == 1 else word + ending


def divide(images: int, processes: int, largest: int) -> EffectiveBatch:
    """The division of `images` over processes and accumulation steps with the fewest steps.

    Args:
        images: images per optimizer step.
        processes: number of processes (one per GPU).
        largest: most images that a process may hold at once.

    Raises:
        UserError: if the numbers do not divide; it lists the numbers of processes that do.
    """
    for name, value in (("effective_batch", images), ("train_dataloader.batch_size", largest)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a positive whole number of images, got {value!r}.")
    if images % processes:
        below = [n for n in range(1, min(processes, images) + 1) if images % n == 0][-3:]
        above = [n for n in range(processes + 1, images + 1) if images % n == 0][:2]
        raise UserError(
            f"effective_batch = {images} images cannot be shared equally by {processes} processes: start "
            f"{', '.join(map(str, below + above))} processes, or set effective_batch to "
            f"{max(1, images // processes) * processes} or {(images // processes + 1) * processes}."
        )
    share = images // processes
    accumulation = next(n for n in range(-(-share // largest), share + 1) if share % n == 0)
    return EffectiveBatch(images, processes, share // accumulation, accumulation)


def apply_effective_batch(cfg: Config, processes: int) -> EffectiveBatch:
    """Make each optimizer step see exactly ``cfg.effective_batch`` images, by changing `cfg` in place.

    ``train_dataloader.batch_size`` is the most images a process may hold at once: it becomes the number a process does
    hold, and ``optim_wrapper.accumulative_counts`` the number of batches per step. Since mmengine counts batches as
    iterations, everything counted in iterations (``max_iters``, iteration-based schedulers, intervals of validation,
    checkpoints, logs and mmengine's average of the weights) is multiplied by the accumulation, so that a config states
    them in optimizer steps. Schedules counted in epochs, also those with ``convert_to_iter_based``, need nothing. The
    last incomplete batch of an epoch is dropped.

    Args:
        cfg: a config with ``train_dataloader``, ``optim_wrapper`` and ``train_cfg``. Without ``effective_batch`` it
            stays as it is.
        processes: number of training processes.

    Returns:
        the division in effect.

    Raises:
        UserError: if the numbers do not divide, or the config also sets ``accumulative_counts``.
    """
    loader, wrapper = cfg.train_dataloader, cfg.optim_wrapper
    already = wrapper.get("accumulative_counts", 1)
    if cfg.get("effective_batch") is None:
        return EffectiveBatch(processes * loader.batch_size * already, processes, loader.batch_size, already)
    if already != 1:
        raise UserError(
            f"the config sets effective_batch = {cfg.effective_batch} and optim_wrapper.accumulative_counts = "
            f"{already}: remove one; effective_batch computes the other."
        )
    result = divide(cfg.effective_batch, processes, loader.batch_size)
    loader.batch_size = result.batch_size
    loader.drop_last = True
    wrapper.accumulative_counts = result.accumulation
    if result.accumulation > 1:
        _multiply_iterations(cfg, result.accumulation)
    return result


def _multiply_iterations(cfg: Config, factor: int) -> None:
    train_cfg = cfg.train_cfg
    if "max_iters" in train_cfg:
        # val_begin = 1 and its default mean "from the start".
        counts = ["max_iters", "val_interval"] + (["val_begin"] if train_cfg.get("val_begin", 1) > 1 else [])
        train_cfg.setdefault("val_interval", 1000)
        _multiply(train_cfg, counts, factor)
        if train_cfg.get("dynamic_intervals"):
            train_cfg.dynamic_intervals = [(a * factor, b * factor) for a, b in train_cfg.dynamic_intervals]
    for scheduler in _schedulers(cfg.get("param_scheduler")):
        if scheduler.get("by_epoch", True):
            continue
        if "Plateau" in str(scheduler.get("type")):
            raise UserError(f"param_scheduler {scheduler['type']} by iterations cannot be combined with accumulation.")
        _multiply(scheduler, _SCHEDULER_COUNTS, factor)
        if scheduler.get("type") in _OWN_SCHEDULERS:
            _multiply(scheduler, _OWN_COUNTS, factor)
        for name in _SCHEDULER_COUNT_LISTS:
            if name in scheduler:
                scheduler[name] = [count * factor for count in scheduler[name]]
        if "Exponential" in str(scheduler.get("type")):
            scheduler["gamma"] **= 1 / factor
    for hook in cfg.get("custom_hooks") or ():
        if hook.get("type") == "EMAHook":  # averages after every so many batches
            hook["interval"] = hook.get("interval", 1) * factor
    hooks = cfg.get("default_hooks") or {}
    checkpoint, logger = hooks.get("checkpoint"), hooks.get("logger")
    if checkpoint and not checkpoint.get("by_epoch", True):
        _multiply(checkpoint, ("interval", "save_begin"), factor)
    if logger:
        logger.setdefault("interval", 10)
        _multiply(logger, ("interval",), factor)


def _schedulers(node: Any) -> Iterable[MutableMapping[str, Any]]:
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _schedulers(item)
    elif node:
        if "type" in node:
            yield node
        else:
            yield from _schedulers(list(node.values()))


def _multiply(node: MutableMapping[str, Any], names: Iterable[str], factor: int) -> None:
    for name in names:
        if node.get(name) is not None and node[name] > 0:
            node[name] *= factor
