"""The suites on positions: every method differs from MAE+ in what it says and sees the same images."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.registry import MODELS

from adpe.engine.config import read_config
from adpe.files import ROOT
from adpe.methods.adversary import CoordinateAdversary, RandomShift
from adpe.methods.masks.rankings import ColorRanking
from adpe.suites.suite_file import read_suite

SMALL, FULL = read_suite("positions"), read_suite("positions_vitb")
TITLES = {
    "MAE": "MAE", "ColorMAE green": "MAE", "blocks of 2": "MAE", "CrossMAE": "CrossMAE",
    "HPM": "HPM", "DropPos": "DropPos", "MAE+": "MAE+ APE",
    "AdPE coordinate": "AdPE APE coordinate", "one random shift": "random shifts APE",
    "random shift per patch": "MAE+ StoP coordinate", "StoP tied": "MAE+ StoP tied", "StoP free": "MAE+ StoP free",
    "cropped positions": "MAE+ cropped positions",
}  # fmt: skip


def config(method: Any) -> Any:
    return copy.deepcopy(_read(method.pretraining, json.dumps(dict(method.options))))


@cache
def _read(path: str, options: str) -> Any:
    return read_config(ROOT / path, json.loads(options))


@pytest.mark.parametrize("method", [one for one in SMALL.methods if one.pretraining], ids=lambda one: one.name)
def test_a_small_method_is_what_its_row_says(method: Any):
    """Same images, batches, rates and encoder; one step gives every trained parameter a gradient."""
    cfg, base = config(method), config(next(one for one in SMALL.methods if one.name == "MAE+"))
    for key in ("epochs", "lr", "effective_batch", "warmup_epochs"):
        assert cfg.get(key, None) == base.get(key, None), key
    assert cfg.train_dataloader == base.train_dataloader
    assert cfg.optim_wrapper.optimizer == base.optim_wrapper.optimizer
    model = MODELS.build(cfg.model)
    assert model.model.title == TITLES[method.name]
    encoder = model.model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.position) == (64, 4, "absolute")
    losses = model(torch.rand(4, 3, 24, 24), mode="loss")
    torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_controls_differ_in_one_thing():
    models = {m.name: MODELS.build(config(m).model).model for m in SMALL.methods if m.pretraining}
    assert type(models["AdPE coordinate"].adversary) is CoordinateAdversary
    assert type(models["one random shift"].adversary) is RandomShift
    for name in ("AdPE coordinate", "one random shift"):
        assert (models[name].adversary.norm, models[name].adversary.epsilon) == ("linf", 0.5)
    # The standard deviation of a uniform draw from +-0.5.
    assert models["random shift per patch"].position_noise_std == pytest.approx((1 / 12) ** 0.5, abs=2e-3)
    assert type(models["ColorMAE green"].ranking) is ColorRanking
    sizes = {name: sum(p.numel() for p in model.encoder.parameters()) for name, model in models.items()}
    assert len(set(sizes.values())) == 1


@pytest.mark.parametrize("method", FULL.methods, ids=lambda one: one.name)
def test_a_full_method_sees_as_many_pixels_in_as_many_epochs(method: Any):
    cfg = config(method)
    crops = cfg.train_dataloader.dataset.crops
    assert (cfg.train_cfg.max_epochs, crops["num_crops"] * crops["size"] ** 2) == (400, 224**2)
    assert cfg.train_dataloader.dataset.source == "data/imagenet/train"
    with torch.device("meta"):
        encoder = MODELS.build(cfg.model).model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.patch_size) == (768, 12, 16)
