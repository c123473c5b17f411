"""Every optimizer step sees exactly the stated number of images, and schedules keep their meaning."""

from __future__ import annotations

import pytest
import tiny_training
import torch
from mmengine.config import Config

from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.engine.launch import train_main
from adpe.engine.settings.effective_batch import apply_effective_batch, divide
from adpe.errors import UserError


@pytest.mark.parametrize(
    ("images", "processes", "largest", "batch_size", "accumulation"),
    [
        (4096, 8, 128, 128, 4),
        (4096, 64, 64, 64, 1),
        (4096, 64, 128, 64, 1),
        (4096, 1, 100, 64, 64),
        (4096, 8, 100, 64, 8),
        (16, 8, 2, 2, 1),
        (12, 2, 4, 3, 2),
        (7, 1, 3, 1, 7),
        (1, 1, 1, 1, 1),
    ],
)
def test_division(images, processes, largest, batch_size, accumulation):
    result = divide(images, processes, largest)
    assert result == (images, processes, batch_size, accumulation)
    assert result.processes * result.batch_size * result.accumulation == images


def test_line():
    assert str(divide(4096, 8, 128)) == "effective batch 4096 = 8 processes x 128 images x 4 accumulation steps"
    assert str(divide(1, 1, 1)) == "effective batch 1 = 1 process x 1 image x 1 accumulation step"


def test_numbers_that_do_not_divide_name_those_that_do():
    with pytest.raises(
        UserError, match=r"4096 images cannot be shared equally by 3 processes.* 1, 2, 4, 8 .*4095 or 4098"
    ):
        divide(4096, 3, 128)
    with pytest.raises(UserError, match=r"4 images cannot be shared equally by 8 processes: start 1, 2, 4 "):
        divide(4, 8, 128)
    with pytest.raises(UserError, match="effective_batch must be a positive whole number of images, got 0"):
        divide(0, 1, 1)
    with pytest.raises(UserError, match=r"train_dataloader.batch_size must be .* got 2.5"):
        divide(8, 1, 2.5)


def config(**changes):
    return Config(
        {
            "effective_batch": 64,
            "train_dataloader": {"batch_size": 8},
            "optim_wrapper": {"type": "OptimWrapper"},
            "train_cfg": {
                "type": "IterBasedTrainLoop",
                "max_iters": 100,
                "val_interval": 10,
                "dynamic_intervals": [(50, 5)],
            },
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 20},
                {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 20, "end": 100, "T_max": 80},
                {"type": "MultiStepLR", "by_epoch": False, "milestones": [60, 90]},
                {"type": "ExponentialLR", "by_epoch": False, "gamma": 0.81},
                {"type": "PolyLR", "by_epoch": True, "end": 7},
            ],
            "default_hooks": {
                "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 25},
                "logger": {"type": "LoggerHook", "interval": 5},
            },
            **changes,
        }
    )


def test_everything_counted_in_iterations_is_multiplied():
    cfg = config(custom_hooks=[{"type": "EMAHook"}, {"type": "EMAHook", "interval": 3}, {"type": "SyncBuffersHook"}])
    assert str(apply_effective_batch(cfg, 4)) == "effective batch 64 = 4 processes x 8 images x 2 accumulation steps"
    assert (cfg.train_dataloader.batch_size, cfg.train_dataloader.drop_last) == (8, True)
    assert cfg.optim_wrapper.accumulative_counts == 2
    assert cfg.train_cfg.to_dict() == {
        "type": "IterBasedTrainLoop", "max_iters": 200, "val_interval": 20, "dynamic_intervals": [(100, 10)],
    }  # fmt: skip
    linear, cosine, steps, exponential, poly = cfg.param_scheduler
    assert (linear.begin, linear.end) == (0, 40)
    assert (cosine.begin, cosine.end, cosine.T_max) == (40, 200, 160)
    assert steps.milestones == [120, 180]
    assert exponential.gamma == pytest.approx(0.9)
    assert poly.end == 7
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.logger.interval) == (50, 10)
    assert [hook.get("interval") for hook in cfg.custom_hooks] == [2, 6, None]


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ({"type": "AdPEFormulaScheduler", "formula": "probe_cosine", "warmup": 10, "lag": 1}, {"warmup": 80, "lag": 8}),
        ({"type": "AdPETwoStageScheduler", "warmup": 5, "encoder_warmup": 7}, {"warmup": 40, "encoder_warmup": 56}),
    ],
)
def test_formulas_of_the_step_are_stretched(scheduler, wanted):
    """They were not: on one GPU of eight the rate fell to 0 after an eighth of the training, and rose again."""
    cfg = config(param_scheduler=[{**scheduler, "total": 100, "by_epoch": False}])
    apply_effective_batch(cfg, 1)
    assert cfg.param_scheduler[0].to_dict() == {**scheduler, **wanted, "total": 800, "by_epoch": False}


def test_epochs_stay_epochs():
    cfg = config(
        train_cfg={"by_epoch": True, "max_epochs": 400, "val_interval": 20},
        param_scheduler=[
            {"type": "LinearLR", "by_epoch": True, "end": 40, "convert_to_iter_based": True},
            {"type": "LinearLR", "by_epoch": False, "end": 500},
        ],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 20}},
    )
    apply_effective_batch(cfg, 1)
    assert cfg.optim_wrapper.accumulative_counts == 8
    assert cfg.train_cfg.to_dict() == {"by_epoch": True, "max_epochs": 400, "val_interval": 20}
    assert [scheduler.end for scheduler in cfg.param_scheduler] == [40, 4000]
    assert cfg.default_hooks.checkpoint.interval == 20


def test_one_step_per_batch_and_no_effective_batch_leave_the_schedule_alone():
    cfg = config()
    assert apply_effective_batch(cfg, 8).accumulation == 1
    assert (cfg.train_cfg.max_iters, cfg.default_hooks.logger.interval) == (100, 5)
    cfg = config(effective_batch=None)
    before = cfg.to_dict()
    assert apply_effective_batch(cfg, 3) == (24, 3, 8, 1)
    assert cfg.to_dict() == before


def test_conflicts_are_refused():
    with pytest.raises(UserError, match="accumulative_counts = 4: remove one"):
        apply_effective_batch(config(optim_wrapper={"accumulative_counts": 4}), 1)
    with pytest.raises(UserError, match="ReduceOnPlateauLR"):
        apply_effective_batch(config(param_scheduler={"type": "ReduceOnPlateauLR", "by_epoch": False}), 1)


def test_accumulated_steps_equal_whole_batches(tmp_path, capsys):
    # Without randomness in the model, 3 x 4 images per step are 12 images per step, whichever way they come.
    results = []
    for name, batch_size in (("whole", 12), ("parts", 4)):
        path = tiny_training.config(
            tmp_path, name=f"{name}.py", batch_size=batch_size, effective_batch=12, iterations=6, interval=2,
            extra="model.update(random_target=0.0, dropout=0.0)",
        )  # fmt: skip
        assert train_main([str(path), "--work-dir", str(tmp_path / name)]) == 0
        factor = 12 // batch_size
        assert f"1 process x {batch_size} images x {factor} accumulation step" in capsys.readouterr().out
        checkpoint = read_training_checkpoint(tmp_path / name / f"iter_{6 * factor}.pth")
        assert checkpoint["optimizer"]["state"][0]["step"] == 6
        assert (tmp_path / name / f"iter_{4 * factor}.pth").exists()
        results.append(checkpoint["state_dict"])
    # mmengine steps the learning rate per batch, so an accumulated step uses the rate of its last batch: the
    # two runs agree to the order of lr/steps, not to the bit. With a constant rate they agree to rounding.
    for name, batch_size in (("whole_constant", 12), ("parts_constant", 4)):
        path = tiny_training.config(
            tmp_path, name=f"{name}.py", batch_size=batch_size, effective_batch=12, iterations=6, interval=2,
            extra="model.update(random_target=0.0, dropout=0.0)\nparam_scheduler = None",
        )  # fmt: skip
        assert train_main([str(path), "--work-dir", str(tmp_path / name)]) == 0
        results.append(read_training_checkpoint(tmp_path / name / f"iter_{6 * 12 // batch_size}.pth")["state_dict"])
    for name in results[0]:
        torch.testing.assert_close(results[2][name], results[3][name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(results[0][name], results[2][name])
