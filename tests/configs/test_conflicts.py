"""Settings that exclude each other are refused before anything is built; loaders without workers train."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training

from adpe.engine.launch import train_main


@pytest.mark.parametrize(("arguments", "words"), [
    (["runner_type=FlexibleRunner"], ["runner_type", "FlexibleRunner"]),
    (["strategy.type=DeepSpeedStrategy"], ["strategy", "DeepSpeedStrategy"]),
    (["train_cfg.max_epochs=3"], ["train_cfg", "max_epochs", "max_iters"]),
    (["train_cfg.by_epoch=False"], ["train_cfg", "type", "by_epoch"]),
    (["iterations=0"], ["train_cfg.max_iters", "0"]),
    (["launcher=pytorch"], ["--launcher"]),
    (["randomness.seed=4"], ["--seed 3", "randomness.seed=4"]),
    (["work_dir=elsewhere"], ["--work-dir", "work_dir=elsewhere"]),
])  # fmt: skip
def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    config = tiny_training.config(tmp_path)
    command = [str(config), "--work-dir", str(tmp_path / "w"), "--seed", "3", "--cfg-options", *arguments]
    assert train_main(command) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words) and "Traceback" not in text


def test_no_workers(tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path, iterations=1, workers=1)
    options = ["train_dataloader.num_workers=0", "val_dataloader.persistent_workers=True",
               "val_dataloader.prefetch_factor=2"]  # fmt: skip
    assert train_main([str(config), "--work-dir", str(tmp_path / "w"), "--cfg-options", *options]) == 0
    assert (tmp_path / "w" / "iter_1.pth").is_file()
