"""Schedules given as closed formulas, as a parameter scheduler of mmengine."""

from __future__ import annotations

from typing import Any

from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from adpe.errors import UserError
from adpe.methods.schedules import SCHEDULES


@PARAM_SCHEDULERS.register_module()
class AdPEFormulaScheduler(_ParamScheduler):
    """Sets a value of every parameter group to a formula of :data:`adpe.methods.schedules.SCHEDULES`.

    Groups keep their ratio to the base value, as layer-wise decay sets it; a value of 0 stays 0.

    Args:
        optimizer: or its wrapper.
        formula: name of the schedule.
        total: steps (epochs with ``convert_to_iter_based``) of the training.
        warmup: of its warm-up.
        first: value of the first step, as a share of the base value.
        last: value that the schedule goes to, likewise; `end` is mmengine's, the step at which a scheduler ends.
        lag: see :func:`adpe.methods.schedules.seamed_cosine`; in steps, never in epochs.
        param_name: "lr" or "weight_decay".
        options: of mmengine's schedulers: ``by_epoch``, ``last_step``.

    Raises:
        UserError: for an unknown formula, or a warm-up that leaves nothing.
    """

    def __init__(
        self,
        optimizer: Any,
        formula: str,
        total: int,
        warmup: int = 0,
        first: float = 0.0,
        last: float = 0.0,
        lag: int = 0,
        param_name: str = "lr",
        **options: Any,
    ) -> None:
        if formula not in SCHEDULES:
            raise UserError(f"param_scheduler: formula={formula!r} is none of {', '.join(SCHEDULES)}.")
        if not 0 <= warmup < total:
            raise UserError(f"param_scheduler: warmup={warmup} of total={total}: expected 0 <= warmup < total.")
        self.formula = formula
        self.numbers = {"total": total, "warmup": warmup, "start": first, "end": last, "lag": lag}
        super().__init__(optimizer, param_name, **{"begin": 0, "end": INF, **options})

    @classmethod
    def build_iter_from_epoch(
        cls, optimizer: Any, *, total: int, warmup: int = 0, epoch_length: int, by_epoch: bool = True, **options: Any
    ) -> AdPEFormulaScheduler:
        """The scheduler by iteration of a config by epoch, as mmengine asks for it."""
        if not by_epoch:
            raise UserError("param_scheduler: convert_to_iter_based needs by_epoch=True.")
        # The Runner gives every scheduler an `end`, in epochs here.
        for key in ("begin", "end"):
            if options.get(key, INF) != INF:
                options[key] *= epoch_length
        return cls(optimizer, total=total * epoch_length, warmup=warmup * epoch_length, by_epoch=False, **options)

    def _get_value(self) -> list[float]:
        share = SCHEDULES[self.formula](self.last_step, peak=1.0, **self.numbers)
        return [base * share for base in self.base_values]
