"""The loss of early epochs beside a published curve."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training

from adpe.engine.config import read_config
from adpe.engine.hooks.expected_loss import AdPEExpectedLossHook
from adpe.engine.launch import train_main
from adpe.errors import UserError


def log_of(folder: Path, loss: float) -> str:
    """What a training with this curve logs."""
    hook = dict(type="AdPEExpectedLossHook", curve=[[1, loss], [20, loss]], tolerance=0.2)
    path = tiny_training.config(folder, by_epoch=True, iterations=20, interval=20, extra=f"custom_hooks = [{hook!r}]")
    assert train_main([str(path), "--work-dir", str(folder / "run")]) == 0
    (log,) = (folder / "run").glob("*/*.log")
    return log.read_text()


def test_a_published_curve_is_read_between_its_points():
    hook = AdPEExpectedLossHook([[1, 10.0], [11, 5.0], [31, 4.0]])
    assert [hook.expected(epoch) for epoch in (1, 6, 11, 21, 31, 32)] == [10.0, 7.5, 5.0, 4.5, 4.0, None]


@pytest.mark.parametrize("wrong", [{"curve": [[1, 2.0]]}, {"curve": [[1, 2.0], [3, 1.0]], "tolerance": 1.5}])
def test_what_is_no_curve_is_refused(wrong: dict):
    with pytest.raises(UserError, match="two epochs"):
        AdPEExpectedLossHook(**wrong)


def test_a_run_far_from_the_curve_is_warned_of(tmp_path: Path):
    text = log_of(tmp_path, 1e6)
    assert "mean loss of epoch 1:" in text and "mean loss of epoch 5:" in text
    assert text.count("more than 20% apart") == 2


def test_the_recipe_has_the_curve_and_small_ones_have_not():
    hooks = read_config("configs/pretrain/bands/dino_mm_vits8_100e.py").custom_hooks
    (own,) = [dict(hook) for hook in hooks if hook["type"] == "AdPEExpectedLossHook"]
    own.pop("type")
    hook = AdPEExpectedLossHook(**own)
    # 5 and 25 epochs of 100: between 10.11 and 6.45, and between 6.45 and 4.88.
    assert hook.expected(5) == pytest.approx(8.646) and hook.expected(25) == pytest.approx(5.351)
    for name in ("cifar10_dino_mm", "scenes14_dino_mm"):
        hooks = read_config(f"configs/pretrain/bands/{name}.py").custom_hooks
        assert "AdPEExpectedLossHook" not in [hook["type"] for hook in hooks]
