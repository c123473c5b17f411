"""Resuming with something changed: a longer schedule, another rate, another division of the batch over processes.

What a checkpoint holds of optimizer and schedulers is taken as it is where the config says the same, so that a resumed
run equals an uninterrupted one to the bit. Where the config says something else, the config counts: the rates are those
that its schedule has at the position of the checkpoint. What cannot be continued is refused before training.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any, NamedTuple

from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop

from adpe.engine.mmengine_internals import set_position
from adpe.errors import UserError

# What changes from step to step in a scheduler's state, and is not what the config says of it.
_MOVING = {"last_step", "_global_step", "_last_value", "verbose"}
# Of a parameter group: how torch computes, which depends on the device.
_COMPUTING = {"params", "foreach", "fused", "capturable", "differentiable"}


class Division(NamedTuple):
    """How many images an optimizer step takes, and how they are divided.

    Attributes:
        images: per optimizer step.
        processes: number of processes.
        batch_size: images per process and iteration.
        accumulation: iterations per optimizer step.
        epoch_length: iterations per epoch.
    """

    images: int
    processes: int
    batch_size: int
    accumulation: int
    epoch_length: int

    @classmethod
    def of(cls, runner: Any) -> Division:
        """The division of a runner whose training data is built."""
        loader = runner.train_dataloader
        batch = int(getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1)
        wrapper = runner.cfg.get("optim_wrapper") or {}
        accumulation = int(wrapper.get("accumulative_counts", 1))
        return cls(batch * runner.world_size * accumulation, runner.world_size, batch, accumulation, len(loader))

    def __str__(self) -> str:
        return (
            f"{self.images} images per step (processes {self.processes} x batch_size {self.batch_size} x accumulation "
            f"{self.accumulation})"
        )


class Resumption:
    """A training that is about to be resumed.

    Args:
        runner: with optimizer and schedulers as the config says, before the checkpoint is loaded.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.division = Division.of(runner)
        self.groups = [
            {name: copy.deepcopy(value) for name, value in group.items() if name not in _COMPUTING}
            for group in _groups(runner.optim_wrapper)
        ]
        self.states = [copy.deepcopy(scheduler.state_dict()) for scheduler in _schedulers(runner)]
        self.changes: list[str] = []
        self.divided = False
        self.iteration, self.epoch = 0, 0

    def check(self, checkpoint: dict[str, Any], filename: str) -> None:
        """Compare the config with a checkpoint.

        Raises:
            UserError: if it cannot be continued with this config.
        """
        meta = checkpoint["meta"]
        before = Division(*meta["division"]) if "division" in meta else self.division
        if before.images != self.division.images:
            raise UserError(
                f"{filename} was trained with an effective batch of {before}, the config has {self.division}: they "
                "cannot be one training. Set effective_batch (number of processes and train_dataloader.batch_size may "
                f"change with it), or start anew from its weights: --cfg-options load_from={filename}."
            )
        self._convert(before, meta, filename)
        loop = self.runner.train_loop
        if self.iteration > loop.max_iters:
            raise UserError(
                f"{filename} is at iteration {self.iteration}, after the last one of the config, {loop.max_iters} "
                f"(epoch {self.epoch} of {loop.max_epochs}): set a longer training, or evaluate it with tools/test.py."
            )
        self._compare_groups(checkpoint, filename)
        self._compare_schedulers(checkpoint.get("param_schedulers"))
        self.divided = before != self.division

    def _convert(self, before: Division, meta: dict[str, Any], filename: str) -> None:
        """The position in iterations of the present division."""
        self.epoch = meta["epoch"]
        by_epoch = isinstance(self.runner.train_loop, EpochBasedTrainLoop)
        begun = self.epoch * before.epoch_length if by_epoch else 0
        steps, rest = divmod(meta["iter"] - begun, before.accumulation)
        if rest:
            raise UserError(f"{filename} was saved inside of an optimizer step: it cannot be divided anew. {before}.")
        begun = self.epoch * self.division.epoch_length if by_epoch else 0
        self.iteration = begun + steps * self.division.accumulation

    def _compare_groups(self, checkpoint: dict[str, Any], filename: str) -> None:
        saved = (checkpoint.get("optimizer") or {}).get("param_groups")
        if saved is None:  # several optimizers, or none saved
            return
        sizes = [len(group["params"]) for group in _groups(self.runner.optim_wrapper)]
        count = sum(len(group["params"]) for group in saved)
        names = [set(group) - _COMPUTING for group in saved]
        if [len(group["params"]) for group in saved] != sizes or any(
            not {"lr", "weight_decay", "betas", "momentum"} & set(group) <= name
            for group, name in zip(self.groups, names, strict=True)
        ):
            raise UserError(
                f"the optimizer of {filename} does not fit the config's: it has {len(saved)} parameter groups of "
                f"{count} parameters, the config {len(sizes)} of {sum(sizes)}, or is of another type. "
                "Use the optim_wrapper that it was trained with, or start anew from its weights: --cfg-options "
                f"load_from={filename}."
            )
        scheduled = {scheduler.param_name for scheduler in _schedulers(self.runner)}
        for own, other in zip(self.groups, saved, strict=True):
            for name, value in own.items():
                if name in scheduled or (name == "betas" and "momentum" in scheduled) or name not in other:
                    continue
                if _differs(value, other[name]):
                    self._note(f"{name.removeprefix('initial_')} {_short(other[name])} -> {_short(value)}")

    def _compare_schedulers(self, saved: Any) -> None:
        states = list(itertools.chain(*saved.values())) if isinstance(saved, dict) else saved or []
        own = _schedulers(self.runner)
        if len(states) != len(own):
            self._note(f"{len(states)} schedulers -> {len(own)}")
            return
        for scheduler, state, other in zip(own, self.states, states, strict=True):
            for name in sorted({*state, *other} - _MOVING - {"base_values"}):
                if _differs(state.get(name), other.get(name)):
                    self._note(
                        f"{type(scheduler).__name__}.{name} {_short(other.get(name))} -> {_short(state.get(name))}"
                    )
            if _differs(state["base_values"], other.get("base_values")):
                self._note(
                    f"{scheduler.param_name} {_short(other.get('base_values'))} -> {_short(state['base_values'])}"
                )

    def _note(self, change: str) -> None:
        if change not in self.changes:
            self.changes.append(change)

    def finish(self) -> None:
        """Continue from the loaded checkpoint with the config's division, rates and schedule."""
        runner = self.runner
        if not (self.changes or self.divided):
            return
        if self.changes and any("Plateau" in type(scheduler).__name__ for scheduler in _schedulers(runner)):
            raise UserError(
                f"resuming with another schedule ({'; '.join(self.changes[:4])}): what ReduceOnPlateau does depends on "
                "the metrics so far and cannot be repeated. Keep the schedule of the checkpoint."
            )
        set_position(runner, self.epoch, self.iteration)
        for group, values in zip(_groups(runner.optim_wrapper), self.groups, strict=True):
            group.update(copy.deepcopy(values))
        for scheduler, state in zip(_schedulers(runner), self.states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        self._replay()
        rate = _groups(runner.optim_wrapper)[0]["lr"]
        if self.divided:
            runner.logger.warning(
                f"resuming with another division of the batch: {self.division}; it continues at iteration "
                f"{self.iteration} of {runner.max_iters}"
            )
        elif self.changes:
            more = "; ..." if len(self.changes) > 6 else ""
            runner.logger.warning(
                f"resuming with another lr, optimizer or schedule than the checkpoint's: {'; '.join(self.changes[:6])}"
                f"{more}. The config's counts: lr {rate:.4g} at iteration {self.iteration} of {runner.max_iters}"
            )

    def _replay(self) -> None:
        """Step the schedulers to the position, as mmengine's ParamSchedulerHook does in training."""
        schedulers = _schedulers(self.runner)
        by_epoch = isinstance(self.runner.train_loop, EpochBasedTrainLoop)
        per_epoch = self.division.epoch_length if by_epoch else self.iteration + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of schedulers stepped before the optimizer
            for done in range(1, self.iteration + 1):
                for scheduler in schedulers:
                    if not scheduler.by_epoch:
                        scheduler.step()
                if done % per_epoch == 0 and done <= self.epoch * per_epoch:
                    for scheduler in schedulers:
                        if scheduler.by_epoch:
                            scheduler.step()


def _groups(wrapper: Any) -> list[dict[str, Any]]:
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [group for each in wrappers for group in each.optimizer.param_groups]


def _schedulers(runner: Any) -> list[Any]:
    schedulers = runner.param_schedulers or []
    return list(itertools.chain(*schedulers.values()) if isinstance(schedulers, dict) else schedulers)


def _differs(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) != len(b) or any(_differs(x, y) for x, y in zip(a, b, strict=True))
    return bool(a != b)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, float) for item in value):
        return f"{max(value):g}" if len(value) > 2 else "/".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]
