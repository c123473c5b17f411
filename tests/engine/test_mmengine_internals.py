"""What adpe/engine/mmengine_internals.py relies on in mmengine."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training
from mmengine.config import Config
from mmengine.runner import Runner

from adpe.engine.mmengine_internals import is_lazy_config, set_position


def test_lazy_configs_are_told_apart(tmp_path: Path) -> None:
    texts = {"a = 1": False, "_base_ = './b.py'": False, "import os\na = os.sep": False}
    texts |= {"from mmengine.config import read_base\nwith read_base():\n    from .b import *": True}
    for number, (text, lazy) in enumerate(texts.items()):
        path = tmp_path / f"config_{number}.py"
        path.write_text(text)
        assert is_lazy_config(path) is lazy, text


@pytest.mark.parametrize("by_epoch", [False, True])
def test_a_training_loop_goes_on_from_a_set_position(tmp_path: Path, by_epoch: bool) -> None:
    cfg = Config.fromfile(tiny_training.config(tmp_path, by_epoch=by_epoch, iterations=4))
    cfg.work_dir, cfg.default_hooks, cfg.val_dataloader, cfg.val_cfg, cfg.val_evaluator = (
        str(tmp_path),
        {},
        None,
        None,
        None,
    )
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    set_position(runner, 3, 18) if by_epoch else set_position(runner, 0, 3)
    assert (runner.epoch, runner.iter) == ((3, 18) if by_epoch else (0, 3))
    assert (runner.message_hub.get_info("epoch"), runner.message_hub.get_info("iter")) == (runner.epoch, runner.iter)
    runner.train_loop.run_iter = lambda *_: None  # type: ignore[method-assign]
    assert runner.train_loop.max_iters == (24 if by_epoch else 4)
