"""Masked frequency modelling: its recipe, what it refuses, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.registry import MODELS
from safetensors import safe_open

import adpe
import adpe.engine
from adpe.data.scenes import write_scenes
from adpe.data.sources.images import ImageSource
from adpe.data.views.multicrop import IMAGENET_MEAN, MultiCrop, crop_generator
from adpe.engine.config import read_config
from adpe.engine.launch import train_main
from adpe.methods.mfm import MFM
from adpe.models.specification import KEY

ROOT = Path(__file__).resolve().parents[2]
TINY = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 4}


def mfm(**options) -> MFM:
    torch.manual_seed(0)
    return adpe.create_method("mfm", "adpe_vit_tiny_patch4", **TINY, **options)


def test_recipe_of_vit_base():
    """README and configs of the reference: Jiahao000/MFM."""
    cfg = read_config(ROOT / "configs/pretrain/targets/mfm_vitb_300e.py")
    assert (cfg.effective_batch, cfg.train_cfg.max_epochs) == (2048, 300)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(3e-4 * 2048 / 512)
    assert (cfg.optim_wrapper.optimizer.weight_decay, cfg.optim_wrapper.clip_grad.max_norm) == (0.05, 3.0)
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.9, 0.95)
    (schedule,) = cfg.param_scheduler
    assert (schedule.warmup, schedule.total, schedule.lag) == (20, 300, 1)
    assert schedule.first * 3e-4 == pytest.approx(2.5e-7) and schedule.last * 3e-4 == pytest.approx(2.5e-6)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 1, (0.2, 1.0))
    cfg.model.depth = 1
    model = MODELS.build(cfg.model).model
    assert (model.task, model.radius, model.outer_radius, model.low_pass_probability) == ("mfm", 16, None, 0.5)
    assert (model.gamma, model.reduction, model.all_frequencies) == (1.0, "batch", False)
    decayed = {id(p) for p in model.parameter_groups(1.0, 0.05)[0]["params"]}
    spared = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert {"encoder.pos_embed", "encoder.cls_token", "head.pred.bias"} <= spared
    assert "encoder.blocks.0.attn.qkv.weight" not in spared
    assert read_config(ROOT / "configs/pretrain/targets/mfm_r50_300e.py").model.low_pass_probability == 0.3


def test_damage_is_in_pixels_and_is_what_each_draw_says():
    model, images = mfm(), torch.rand(64, 3, 32, 32)
    low, kept = model.damage(images, torch.ones(64))
    high, other = model.damage(images, torch.zeros(64))
    assert torch.equal(kept, ~other)
    # The mean of an image is its zero frequency: kept by a low pass, removed (before the clamp) by a high pass.
    pixels = low * model.std + model.mean
    torch.testing.assert_close(pixels.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=0, atol=5e-3)
    assert (high * model.std + model.mean).mean() < 0.25
    torch.manual_seed(1)
    drawn = mfm(low_pass_probability=0.3).filters(torch.rand(2000, 3, 32, 32))
    assert drawn[:, 16, 16].float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"radius": 16}, "radius=16"),
        ({"task": "blur"}, "task"),
        ({"reduction": "pixel"}, "reduction"),
        ({"low_pass_probability": 2}, "low_pass_probability"),
        ({"num_classes": 3}, "num_classes=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        mfm(**options)(torch.rand(2, 3, 32, 32))


def test_predictions_are_drawn():
    views = [torch.rand(4, 1, 3, 32, 32)]
    figures = mfm().figures(views, (0, 0, 0), (1, 1, 1))
    assert list(figures) == ["predictions"]


@pytest.mark.slow
def test_training_beats_the_damaged_image_and_hands_over_its_encoder(tmp_path: Path):
    """Through the launcher on scenes: after it, predictions are nearer than the damaged image itself."""
    write_scenes(tmp_path / "data", num_train=4, num_val=2, num_unlabelled=256, size=48)
    options = [
        f"data_root={tmp_path / 'data' / 'unlabelled'}", "epochs=16", "warmup_epochs=1", "effective_batch=32",
        "lr=3e-3", "train_dataloader.batch_size=32", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False", "train_dataloader.dataset.split=None",
        "model.embed_dim=64", "model.depth=2", "model.num_heads=4", "custom_hooks.1.interval=100",
        "default_hooks.checkpoint.interval=16",
    ]  # fmt: skip
    config = ROOT / "configs/pretrain/targets/cifar10_mfm.py"
    assert train_main([str(config), "--work-dir", str(tmp_path / "run"), "--cfg-options", *options]) == 0
    with safe_open(tmp_path / "run" / "encoder.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()[KEY])
    assert (said["method"], tuple(said["mean"]), tuple(said["pretrain_img_size"])) == ("MFM", IMAGENET_MEAN, (32, 32))
    model = mfm()
    adpe.load_checkpoint(model.encoder, tmp_path / "run" / "encoder.safetensors", verbose=False)
    state = torch.load(tmp_path / "run" / "epoch_16.pth", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items() if "model." in name})
    model.eval()
    source = ImageSource(str(tmp_path / "data" / "unlabelled"))
    crop = MultiCrop(size=32, num_crops=1, scale=(0.9, 1.0), hflip=0.0, normalize="device")
    images = torch.cat([crop(source.load(i)[0], crop_generator(5, 0, i)) for i in range(32)]).float() / 255
    low_pass = torch.arange(32) % 2
    with torch.no_grad():
        damaged, kept = model.damage(images, low_pass)
        target = model.normalize(images)
        own = model.compare(damaged, target, kept)
        learned = model.compare(model.predict(damaged), target, kept)
    assert learned < 0.99 * own
