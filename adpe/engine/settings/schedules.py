"""Learning rate schedules of any length: ranges without a step, warm-ups of one, and training that ends inside one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adpe.errors import UserError


def fit_schedule(
    schedulers: list[dict[str, Any]], max_iters: int, max_epochs: int, epoch_length: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Leave out the schedulers that have no step, or would hold the rate down for good, of a training of this length.

    mmengine refuses a scheduler whose range is empty (``warmup_epochs = 0``). Its LinearLR and ConstantLR over one step
    multiply the rate once and never give it back: training would stay at ``start_factor``.

    Args:
        schedulers: configs, as in ``param_scheduler``.
        max_iters: iterations of the training.
        max_epochs: its epochs.
        epoch_length: iterations per epoch.

    Returns:
        the schedulers that remain, and sentences on the others.

    Raises:
        UserError: if one ends before it begins.
    """
    kept, notes = [], []
    for scheduler in schedulers:
        begin, end = _range(scheduler, max_iters, max_epochs, epoch_length)
        name = str(scheduler.get("type", "param_scheduler"))
        if end < begin:
            raise UserError(
                f"param_scheduler: {name} begins at {begin} and ends before, at {end}: the warm-up is longer than the "
                f"training. Shorten it (warmup_epochs or warmup_iters, the end of the scheduler before it), or train "
                "for longer."
            )
        warm_up = "Linear" in name or "Constant" in name
        if end == begin:
            notes.append(f"{name} is left out: it has no step")
        elif warm_up and end - begin == 1 and scheduler.get("end_factor", 1.0) == 1.0:
            notes.append(f"{name} is left out: a warm-up of one step would hold the rate at its first value for good")
        else:
            kept.append(scheduler)
            if "Linear" in name and begin < max_iters < end and _counts_iterations(scheduler):
                first = scheduler.get("start_factor", 1 / 3)
                reached = first + (scheduler.get("end_factor", 1.0) - first) * (max_iters - 1 - begin) / (
                    end - 1 - begin
                )
                notes.append(
                    f"training ends at iteration {max_iters}, inside of the warm-up, which ends at {end}: the rate "
                    f"reaches {reached:.3g} of the one that is set. Shorten the warm-up"
                )
    return kept, notes


def _counts_iterations(scheduler: Mapping[str, Any]) -> bool:
    return not scheduler.get("by_epoch", True) or bool(scheduler.get("convert_to_iter_based"))


def _range(scheduler: Mapping[str, Any], max_iters: int, max_epochs: int, epoch_length: int) -> tuple[int, int]:
    """First step and the one after the last, in iterations or epochs."""
    begin, end = scheduler.get("begin", 0), scheduler.get("end")
    if not scheduler.get("by_epoch", True):
        return begin, max_iters if end is None else end
    end = max_epochs if end is None else end
    if scheduler.get("convert_to_iter_based"):
        return int(begin * epoch_length), int(end * epoch_length)
    return begin, end
