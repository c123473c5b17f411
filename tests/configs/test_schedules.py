"""Schedules of any length reach the rate that is asked for."""

from __future__ import annotations

import json

import pytest
from built_configs import EPOCH_LENGTH, schedule

from adpe.engine.settings.schedules import fit_schedule
from adpe.errors import UserError


def rates(schedulers: list[dict], length: int) -> list[float]:
    kept, _ = fit_schedule(schedulers, length, -(-length // EPOCH_LENGTH), EPOCH_LENGTH)
    return schedule(json.dumps(kept), length)


def by_iterations(length: int, warmup: int) -> list[dict]:
    return [
        {"type": "LinearLR", "start_factor": 1e-3, "begin": 0, "end": warmup, "by_epoch": False},
        {"type": "PolyLR", "begin": warmup, "end": length, "by_epoch": False},
    ]


def by_epochs(length: float, warmup: float) -> list[dict]:
    return [
        {"type": "LinearLR", "start_factor": 1e-8, "begin": 0, "end": warmup, "convert_to_iter_based": True},
        {"type": "CosineAnnealingLR", "begin": warmup, "end": length, "T_max": length - warmup,
         "convert_to_iter_based": True},
    ]  # fmt: skip


@pytest.mark.parametrize("length", range(1, 51))
def test_every_short_training_reaches_the_rate(length: int) -> None:
    for warmup in {0, 1, max(1, length // 20), length // 2}:
        reached = rates(by_iterations(length, warmup), length)
        assert max(reached) == pytest.approx(1.0), (length, warmup)
        assert reached[warmup if warmup > 1 else 0] == pytest.approx(1.0)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 0.5), (1, 0.1), (2, 1), (5, 1)])
def test_epochs(epochs: int, warmup: float) -> None:
    reached = rates(by_epochs(epochs, warmup), epochs * EPOCH_LENGTH)
    assert max(reached) == pytest.approx(1.0)
    assert reached[-1] == min(reached[len(reached) // 2 :])


def test_what_fits_is_left_as_it_is() -> None:
    schedulers = [*by_iterations(100, 2), {"type": "MultiStepLR", "milestones": [3], "by_epoch": False}]
    assert fit_schedule(schedulers, 100, 1, 100) == (schedulers, [])


def test_a_warm_up_longer_than_the_training() -> None:
    with pytest.raises(UserError, match="begins at 40 and ends before, at 10"):
        fit_schedule(by_iterations(10, 40), 10, 1, 10)
    kept, notes = fit_schedule(by_iterations(100, 40), 10, 1, 10)
    assert len(kept) == 2 and "reaches 0.232" in notes[0]
    assert schedule(json.dumps(kept), 10)[-1] == pytest.approx(0.232, abs=5e-4)
