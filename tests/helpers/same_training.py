"""Whether two trainings came to the same end, bit by bit: what every test of resuming compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adpe.engine.hooks.checkpointing import read_training_checkpoint

# Parameters (the adversary's among them), both optimizers' states, schedules, and the generators' states.
COMPARED = ("state_dict", "optimizer", "param_schedulers", "random_state")


def assert_equal(first: Any, second: Any, name: str = "checkpoint") -> None:
    assert type(first) is type(second), name
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), name
    elif isinstance(first, dict):
        assert list(first) == list(second), name
        for key in first:
            assert_equal(first[key], second[key], f"{name}[{key!r}]")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for index, (one, two) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, two, f"{name}[{index}]")
    else:
        assert first == second, name


def assert_same_training(first: Path, second: Path) -> None:
    """Raise AssertionError naming the first part in which two training checkpoints differ."""
    one, two = read_training_checkpoint(first), read_training_checkpoint(second)
    for part in COMPARED:
        assert_equal(one[part], two[part], part)
    assert (one["meta"]["iter"], one["meta"]["epoch"]) == (two["meta"]["iter"], two["meta"]["epoch"])
