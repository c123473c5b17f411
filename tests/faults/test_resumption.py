"""Resuming with a longer schedule, another rate, batch or number of processes: right, or refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch

from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.engine.launch import train_main

PLAIN = "model.update(random_target=0.0, dropout=0.0); train_dataloader['dataset']['jitter'] = 0"


def train(config: Path, name: str, *options: str, resume: Path | None = None) -> Path:
    """Train in this process; returns the work directory."""
    work_dir = config.parent / name
    arguments = [str(config), "--work-dir", str(work_dir), *(["--resume", str(resume)] if resume else [])]
    assert train_main([*arguments, *(["--cfg-options", *options] if options else [])]) == 0
    return work_dir


def refused(config: Path, resume: Path, *options: str) -> bool:
    arguments = [str(config), "--work-dir", str(config.parent / "refused"), "--resume", str(resume)]
    return train_main([*arguments, "--cfg-options", *options]) == 2


def rate(path: Path) -> float:
    return read_training_checkpoint(path)["optimizer"]["param_groups"][0]["lr"]


@pytest.mark.parametrize("by_epoch", [False, True])
def test_another_length_and_another_rate_count_from_the_checkpoint_on(tmp_path: Path, by_epoch: bool) -> None:
    values: dict[str, Any] = {"by_epoch": by_epoch, "iterations": 2, "interval": 1, "length": 8}
    name = "epoch_{}.pth" if by_epoch else "iter_{}.pth"
    config = tiny_training.config(tmp_path, **values, extra="default_hooks['checkpoint']['max_keep_ckpts'] = 9")
    done = train(config, "done")
    for number, options in enumerate((["iterations=6"], ["iterations=6", "optim_wrapper.optimizer.lr=0.01"])):
        fresh = train(config, f"fresh{number}", *options)
        longer = train(config, f"longer{number}", *options, resume=done / name.format(2))
        for step in (3, 4, 5):
            assert 0 < rate(longer / name.format(step)) == rate(fresh / name.format(step))
    # The state of the optimizer is the checkpoint's.
    states = read_training_checkpoint(longer / name.format(6))["optimizer"]["state"]
    assert states[0]["step"] == (12 if by_epoch else 6)


def test_another_weight_decay_and_scheduler_count(tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path, iterations=6, interval=3)
    done = train(config, "done")
    changed = train(config, "changed", "optim_wrapper.optimizer.weight_decay=0.3", "param_scheduler=None",
                    resume=done / "iter_3.pth")  # fmt: skip
    group = read_training_checkpoint(changed / "iter_6.pth")["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["lr"]) == (0.3, 0.05)


def test_the_same_effective_batch_in_other_pieces(tmp_path: Path) -> None:
    """12 images a step: in one piece, then in three, then in one: the parameters of the uninterrupted run."""
    values: dict[str, Any] = {"effective_batch": 12, "batch_size": 12, "iterations": 6, "interval": 2}
    config = tiny_training.config(tmp_path, **values, extra=f"{PLAIN}\nparam_scheduler = None\n"
                                  "default_hooks['checkpoint']['max_keep_ckpts'] = 9")  # fmt: skip
    whole = train(config, "whole")
    pieces = train(config, "pieces", "iterations=4", "batch_size=4", resume=whole / "iter_2.pth")
    assert read_training_checkpoint(pieces / "iter_12.pth")["meta"]["iter"] == 12
    again = train(config, "again", resume=pieces / "iter_12.pth")
    ends = [read_training_checkpoint(folder / "iter_6.pth") for folder in (whole, again)]
    assert ends[1]["optimizer"]["state"][0]["step"] == 6
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], value, rtol=1e-5, atol=1e-6)


def test_other_pieces_inside_an_epoch(tmp_path: Path) -> None:
    # 26 images: 3 steps of 8 an epoch. Stopped at step 5, which is the second step of the second epoch.
    values: dict[str, Any] = {"by_epoch": True, "iterations": 3, "length": 26, "batch_size": 8, "effective_batch": 8}
    config = tiny_training.config(tmp_path, **values, interval=1, extra=f"{PLAIN}\nparam_scheduler = None\n"
                                  "custom_hooks = [dict(type='KillHook', at=kill_at, number=15)]")  # fmt: skip
    whole = train(config, "whole")
    arguments = [str(config), "--work-dir", str(tmp_path / "stopped"), "--cfg-options", "kill_at=5"]
    assert train_main(arguments) == 85
    resumed = train(config, "resumed", "batch_size=2", resume=tmp_path / "stopped" / "iter_5.pth")
    assert len((resumed / "seen.txt.0").read_text().splitlines()) == 4 * 4
    ends = [read_training_checkpoint(folder / "epoch_3.pth") for folder in (whole, resumed)]
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], value, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_continued_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_training.config(tmp_path, effective_batch=4, iterations=6, interval=3)
    done = train(config, "done")
    capsys.readouterr()
    for options, words in {
        ("effective_batch=8",): ["4 images per step", "8 images per step", "load_from="],
        ("iterations=5",): ["iteration 6", "5"],
        ("optim_wrapper.optimizer._delete_=True", "optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.lr=0.1",
         "optim_wrapper.optimizer.momentum=0.9"): ["optimizer", "load_from="],
        ("optim_wrapper.paramwise_cfg.bias_lr_mult=2.0",): ["1 parameter groups", "2 of 2"],
    }.items():  # fmt: skip
        assert refused(config, done / "iter_6.pth", *options)
        text = capsys.readouterr().err
        assert all(word in text for word in words), text


@pytest.mark.slow
def test_two_processes_go_on_as_one(tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path, effective_batch=8, batch_size=8, iterations=6, interval=3,
                                  extra=f"{PLAIN}\nparam_scheduler = None")  # fmt: skip
    whole = train(config, "whole")
    two = tiny_training.run("dist_train.sh", config, 2, "--work-dir", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    saved = tmp_path / "two" / "iter_3.pth"
    assert read_training_checkpoint(saved)["meta"]["division"][:4] == (8, 2, 4, 1)
    one = train(config, "one", resume=saved)
    for name, value in read_training_checkpoint(whole / "iter_6.pth")["state_dict"].items():
        torch.testing.assert_close(
            read_training_checkpoint(one / "iter_6.pth")["state_dict"][name], value, rtol=1e-5, atol=1e-6
        )
