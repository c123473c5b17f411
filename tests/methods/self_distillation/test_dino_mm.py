"""DINO-MM: its recipe number by number, training through the launcher, and an export that keeps its channels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import EPOCH_LENGTH, config, meta_model, schedule
from small_pretraining import train_small

import adpe
from adpe.checkpoints.loading import describe_encoder
from adpe.data.views.multiband import MultiBandViews, SensorDrop
from adpe.errors import UserError

NAME = "configs/pretrain/bands/dino_mm_vits8_100e.py"
SMALL_RUN = {"model.hidden": 32, "model.bottleneck": 16, "model.prototypes": 32}


def test_published_recipe():
    """The shipped training script of zhu-xlab/DINO-MM."""
    cfg = config(NAME)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (256, 64, 100)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)) == (pytest.approx(5e-4), 0.04, (0.9, 0.999))
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.clip_grad) == ("OptimWrapper", {"type": "each", "max_norm": 3.0})
    rates = schedule(json.dumps(cfg.param_scheduler[:1]), 100 * EPOCH_LENGTH)
    warmup = 10 * EPOCH_LENGTH
    assert (rates[0], rates[warmup - 1], rates[warmup]) == (0.0, pytest.approx(1.0), pytest.approx(1.0))
    assert cfg.param_scheduler[0].last * optimizer.lr == pytest.approx(1e-6)
    decay = cfg.param_scheduler[1]
    assert (decay.param_name, decay.last * optimizer.weight_decay) == ("weight_decay", pytest.approx(0.4))
    data = cfg.train_dataloader.dataset
    views = MultiBandViews(SensorDrop(data.groups, **data.drop), **data.views)
    assert views.sizes == [112] * 2 + [48] * 8
    assert views.scales == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 8
    assert views.blurred == [1.0, 0.1] + [0.5] * 8 and views.solarized == [0.0, 0.2] + [0.0] * 8
    assert views.drop.groups == {"radar": (12, 13), "optical": tuple(range(12))}
    assert (views.drop.p, views.drop.shares) == (0.5, [0.5, 0.5])
    assert (views.overflow, views.solarize, views.grey) == ("clip", "above", "sensor")
    model = meta_model(NAME).model
    encoder, head = model.encoder, model.student.head
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (384, 12, 6, 8)
    assert (encoder.patch_embed.proj.in_channels, tuple(encoder.pos_embed.shape)) == (14, (1, 197, 384))
    assert (encoder.pos_embed_resize, encoder.num_prefix_tokens) == ("dino", 1)
    assert (tuple(head.last_layer.weight_v.shape), head.mlp[0].out_features) == ((65536, 256), 2048)
    assert not head.last_layer.weight_g.requires_grad
    rates = [[block.drop_path.rate for block in net.encoder.blocks] for net in (model.student, model.teacher)]
    assert rates == [pytest.approx([0.1 * i / 11 for i in range(12)]), [0.0] * 12]
    assert (model.student_temp, model.temperatures, model.center_momentum) == (0.1, (0.04, 0.04, 0), 0.9)
    assert (model.momentum, model.freeze_last_layer, model.title) == (0.996, 1, "DINO-MM")


def test_defects_of_the_reference_are_options():
    data = config(NAME, {"overflow": "wrap", "solarize": "below", "grey": "all"}).train_dataloader.dataset
    assert (data.views.overflow, data.views.solarize, data.views.grey) == ("wrap", "below", "all")


def test_two_steps_through_the_launcher_and_the_export(tmp_path: Path):
    """Fourteen channels from end to end; weights of another number of channels are refused."""
    runner = train_small("bands/cifar10_dino_mm", tmp_path, SMALL_RUN)
    assert runner.iter == 2
    path = tmp_path / "work" / "encoder.safetensors"
    said = describe_encoder(path).specification
    assert (said.in_chans, said.method, said.mean, said.std) == (14, "DINO-MM", (0.0,) * 14, (1.0,) * 14)
    shape = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3, "learned_pos_embed": True}
    encoder = adpe.create_encoder("adpe_vit_tiny_patch4", in_chans=14, **shape)
    assert not adpe.load_checkpoint(encoder, path).missing
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert torch.equal(encoder.cls_token, state["model.teacher.encoder.cls_token"])
    with pytest.raises(UserError, match=r"14, 4, 4.*3, 4, 4"):
        adpe.load_checkpoint(adpe.create_encoder("adpe_vit_tiny_patch4", in_chans=3, **shape), path)
