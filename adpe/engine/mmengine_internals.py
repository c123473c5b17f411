"""The private parts of mmengine that we rely on; tests/engine/test_mmengine_internals.py says what of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config


def is_lazy_config(path: str | Path) -> bool:
    """Whether mmengine reads a config by imports (``with read_base():``) instead of executing it after its bases."""
    return bool(Config._is_lazy_import(str(path)))


def set_position(runner: Any, epoch: int, iteration: int) -> None:
    """Let a training loop go on after this many epochs and iterations."""
    runner.train_loop._epoch, runner.train_loop._iter = epoch, iteration
    runner.message_hub.update_info("epoch", epoch)
    runner.message_hub.update_info("iter", iteration)
