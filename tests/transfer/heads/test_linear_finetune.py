"""The encoder fine-tuned under one linear layer: the published recipe, and a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")
from built_configs import ROOT, config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import adpe
from adpe.data.scenes import write_scenes
from adpe.engine.launch import train_main


def test_the_published_recipe():
    """configs/ade20k_linear_semantic.yaml of tue-mps/benchmark-vfm-ss and the defaults of its classes."""
    narrow = {f"model.backbone.{key}": value for key, value in {"depth": 2, "num_heads": 2, "embed_dim": 32}.items()}
    cfg = config("configs/dense/ade20k_linear_finetune_vitb.py", {**narrow, "embed_dim": 32, "crop_size": (64, 64)})
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    heads = [name for name, _ in model.decode_head.named_parameters()]
    assert heads == ["conv_seg.weight", "conv_seg.bias"] and model.decode_head.conv_seg.kernel_size == (1, 1)
    assert isinstance(model.backbone.norm, nn.LayerNorm) and model.decode_head.dropout is None
    assert model.decode_head.loss_decode.avg_non_ignore
    rates = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert [*{rates[id(p)] for p in model.backbone.parameters()}] == [pytest.approx(1e-5)]
    assert {rates[id(p)] for p in model.decode_head.parameters()} == {1e-4}
    assert {group["weight_decay"] for group in wrapper.optimizer.param_groups} == {0.05}
    (poly,) = cfg.param_scheduler
    assert (poly.type, poly.power, poly.begin, poly.end, poly.eta_min) == ("PolyLR", 0.9, 0, 40000, 0.0)
    full = config("configs/dense/ade20k_linear_finetune_vitb.py")
    assert (full.train_cfg.max_iters, full.effective_batch, tuple(full.crop_size)) == (40000, 16, (512, 512))
    steps = [step["type"] for step in full.train_pipeline]
    assert steps[2:5] == ["AdPEEoMTJitter", "RandomFlip", "AdPEEoMTCrop"]


def test_two_iterations_train_encoder_and_layer(tmp_path: Path):
    write_scenes(tmp_path / "data", num_train=16, num_val=4, num_unlabelled=2, size=48)
    torch.manual_seed(0)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    adpe.save_checkpoint(tensors, tmp_path / "encoder.safetensors")
    options = [
        f"data_root={tmp_path / 'data'}", f"pretrained={tmp_path / 'encoder.safetensors'}", "record.method=none",
        "max_iters=2", "effective_batch=8", "train_dataloader.batch_size=8",
    ]  # fmt: skip
    run = tmp_path / "run"
    config_file = str(ROOT / "configs" / "demo" / "linear_finetune.py")
    assert train_main([config_file, "--work-dir", str(run), "--cfg-options", *options]) == 0
    state = torch.load(run / "iter_2.pth", weights_only=True)["state_dict"]
    same = [name for name, tensor in encoder.state_dict().items() if torch.equal(state[f"backbone.{name}"], tensor)]
    assert same == []
    assert json.loads((run / "record.jsonl").read_text().splitlines()[-1])["metrics"]["mIoU"] >= 0
