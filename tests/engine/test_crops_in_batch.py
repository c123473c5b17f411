"""Trainings on decoded images that are cropped in batch: bit-equal to the ordinary ones, also resumed and divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_training
import torch
from same_training import assert_same_training
from small_pretraining import train_small

from adpe.engine.config import read_config
from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.engine.resolved_protocol import resolve
from adpe.engine.settings.device import crop_on_device
from adpe.errors import UserError

EACH_ITERATION = {
    "epochs": 2, "precision": "float32", "default_hooks.checkpoint.by_epoch": False,
    "default_hooks.checkpoint.max_keep_ckpts": 10,
}  # fmt: skip
CACHE, CROP_ON = "train_dataloader.dataset.cache", "train_dataloader.dataset.crop_on"


def train(folder: Path, options: dict, resume: Path | None = None) -> Path:
    """Work directory of four iterations in two epochs."""
    runner = train_small("cifar10_adpe", folder, {**EACH_ITERATION, **options}, resume)
    assert runner.iter == 4
    return Path(runner.work_dir)


@pytest.mark.slow(8)
def test_training_is_bit_equal_with_and_without_a_cache_and_after_a_resume(tmp_path):
    plain = train(tmp_path / "plain", {CACHE: False})
    variants = {"workers": {"train_dataloader.num_workers": 2}, "device": {CROP_ON: "device"}}
    records = [json.loads((plain / "record.jsonl").read_text())]
    for name, options in variants.items():
        found = train(tmp_path / name, options)
        assert_same_training(plain / "iter_4.pth", found / "iter_4.pth")
        records.append(json.loads((found / "record.jsonl").read_text()))
        # From the middle of the first epoch.
        resumed = train(tmp_path / name, options, resume=found / "iter_1.pth")
        assert_same_training(plain / "iter_4.pth", resumed / "iter_4.pth")
    assert len({record["fingerprint"] for record in records}) == 1
    before, after = (read_training_checkpoint(plain / f"iter_{i}.pth")["state_dict"] for i in (1, 4))
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow(20)
def test_two_processes_crop_on_their_devices_what_they_crop_without_a_cache(tmp_path):
    train_small("cifar10_adpe", tmp_path, {"epochs": 1})  # writes the images
    options = {**EACH_ITERATION, "data_root": tmp_path / "images", "effective_batch": 4, "warmup_epochs": 0,
               "model.embed_dim": 48, "model.depth": 1, "model.num_heads": 3}  # fmt: skip
    for name, chosen in {"plain": {CACHE: False}, "device": {CROP_ON: "device"}}.items():
        result = tiny_training.run(
            "dist_train.sh", tiny_training.ROOT / "configs/pretrain/cifar10_adpe.py", 2,
            "--work-dir", tmp_path / name, "--cfg-options", *(f"{k}={v}" for k, v in {**options, **chosen}.items()),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    assert_same_training(tmp_path / "plain" / "iter_4.pth", tmp_path / "device" / "iter_4.pth")


def test_the_launcher_tells_the_preprocessor_what_to_crop(monkeypatch):
    def settled(config: str, options: dict | None = None):
        cfg = read_config(f"configs/pretrain/{config}.py", options)
        crop_on_device(cfg)
        return cfg.train_dataloader.dataset.get("crop_on"), (cfg.model.get("data_preprocessor") or {}).get("crops")

    assert settled("cifar10_mae_plus") == (None, None)  # without a GPU
    crops = [{"size": 24, "interpolation": "bicubic"}]
    assert settled("cifar10_mae_plus", {CROP_ON: "device"}) == ("device", crops)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settled("cifar10_mae_plus") == ("device", crops)
    assert settled("cifar10_mae_plus", {CROP_ON: "cpu"}) == ("cpu", None)
    assert settled("cifar10_mae_plus", {CACHE: False}) == (None, None)
    assert settled("self_distillation/cifar10_sdssl_byol") == (None, None)  # in other colours
    other = {CROP_ON: "device", "model.data_preprocessor": {"type": "ImgDataPreprocessor"}}
    with pytest.raises(UserError, match=r"crop_on.*AdPECropsPreprocessor, got ImgDataPreprocessor"):
        settled("cifar10_mae_plus", other)


def test_the_protocol_tells_scaled_decoding_alone(tmp_path):
    def fingerprint(**options) -> str:
        return resolve("configs/pretrain/photos112_mae.py", {"data_root": str(tmp_path / "none"), **options})[
            "fingerprint"
        ]

    same = {fingerprint(), fingerprint(**{CACHE: True}), fingerprint(**{CROP_ON: "device"})}
    assert len(same) == 1
    scaled = {"train_dataloader.dataset.decode": "scaled"}
    assert fingerprint(**scaled) not in same
    protocol = resolve("configs/pretrain/photos112_mae.py", {"data_root": str(tmp_path), **scaled})["protocol"]
    assert protocol["config"]["train_dataloader"]["dataset"]["decode"] == "scaled"
