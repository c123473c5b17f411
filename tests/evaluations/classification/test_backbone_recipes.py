"""The recipes of classification by other backbones number by number, against what the configs build."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from test_classification_recipe import rates
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torchvision import transforms

import adpe.engine  # noqa: F401
from adpe.engine.settings.effective_batch import apply_effective_batch

GC_VIT, SP_VIT, SALIENCY = (
    f"configs/backbones/imagenet_{name}.py" for name in ("gcvit_tiny", "spvit_s", "saliency_vits")
)
# Learning rate, weight decay, images of a step and of one of 8 GPUs, epochs, warm-up, last learning rate.
RECIPES = {
    GC_VIT: (5e-3, 0.05, 1024, 128, 310, 20, 5e-6),
    SP_VIT: (1.6e-3, 0.05, 1024, 128, 300, 5, 1e-5),
    SALIENCY: (1e-4, 1e-6, 64, 8, 60, 8, 0.0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_optimizer_schedule_and_batch(name: str) -> None:
    """AdamW at one rate; no decay of 1-D tensors, biases and what the network spares; warm-up, then a cosine."""
    lr, weight_decay, images, share, epochs, warmup, last = RECIPES[name]
    cfg, model = config(name), meta_model(name)
    batch = apply_effective_batch(cfg, 8)
    assert (batch.images, batch.batch_size, batch.accumulation) == (images, share, 1)
    cfg.optim_wrapper.optimizer.pop("fused")
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    names = {parameter: name.removeprefix("backbone.") for name, parameter in model.named_parameters()}
    spared = model.backbone.no_weight_decay()
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (lr, (0.9, 0.999))
        for parameter in group["params"]:
            plain = parameter.ndim == 1 or names[parameter] in spared
            assert group["weight_decay"] == (0.0 if plain else weight_decay), names[parameter]
    assert cfg.train_cfg.max_epochs == epochs
    values = rates(cfg, 10)
    assert values[0] == pytest.approx(0, abs=1e-6 * lr)
    assert max(values) == pytest.approx(lr, rel=1e-9)
    assert values.index(max(values)) in (10 * warmup - 1, 10 * warmup)
    assert values[5 * (epochs + warmup)] == pytest.approx((lr + last) / 2, rel=1e-2)
    assert last <= values[-1] < last + 1e-4 * lr


@pytest.mark.parametrize(("name", "momentum", "buffers"), [(GC_VIT, 2e-4, False), (SP_VIT, 8e-5, True)])
def test_average_of_the_weights(name: str, momentum: float, buffers: bool) -> None:
    """Decay 0.9998 and 0.99992 a step: mmengine's momentum is the rest to 1."""
    (hook,) = config(name).custom_hooks
    assert hook.momentum == pytest.approx(momentum)
    assert HOOKS.build(dict(hook)).ema_cfg["type"] == "ExponentialMovingAverage"
    assert hook.get("update_buffers", False) == buffers
    assert not config(SALIENCY).get("custom_hooks")


def test_networks() -> None:
    """Sizes and drop path as published, counted with 1,000 classes; SP-ViT-S without the dense head of 385 x 1,000."""
    gc_vit, sp_vit, vit = (meta_model(name) for name in RECIPES)
    assert [sum(p.numel() for p in m.parameters()) for m in (gc_vit, sp_vit)] == [28_221_974, 26_234_468 - 385_000]
    assert gc_vit.backbone.windows == (7, 7, 14, 7)
    assert gc_vit.backbone.levels[-1].blocks[-1].drop_path.rate == pytest.approx(0.2)
    assert (sp_vit.backbone.prior_blocks, len(sp_vit.backbone.blocks), sp_vit.backbone.aux_head) == (14, 16, None)
    assert sp_vit.backbone.blocks[-1].drop_path.rate == pytest.approx(0.1)
    encoder = vit.backbone
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (384, 12, 6, 16)
    assert (vit.global_pool, encoder.chooser_name, int(encoder.keep_ratio * 196)) == ("token", "spectral_residual", 49)
    assert (encoder.residual_before, encoder.mask_probability, encoder.mask_at_test) == (11, 0.4, False)
    assert config(SALIENCY, {"mask_at_test": True, "chooser": "centre"}).model.saliency.to_dict() == {
        "type": "centre", "ratio": 0.25, "residual_before": -1, "mask_probability": 0.4, "mask_at_test": True,
    }  # fmt: skip


def steps(name: str) -> dict[type, Any]:
    built = create_transform(**config(name).train_dataloader.dataset.transform)
    found = {type(step): step for step in built.transforms}
    assert found[RandomResizedCropAndInterpolation].size == (224, 224)
    return found


def test_augmentation_and_loss() -> None:
    """GC ViT: cutmix and colour; SP-ViT: RandAugment and erasing, nothing mixed; the encoder: smoothed labels."""
    gc_vit, sp_vit, vit = (meta_model(name) for name in RECIPES)
    found = steps(GC_VIT)
    assert found[transforms.ColorJitter].brightness == pytest.approx((0.6, 1.4))
    assert not {RandAugment, RandomErasing} & {*found}
    assert (gc_vit.mixup.mixup_alpha, gc_vit.mixup.cutmix_alpha, gc_vit.mixup.label_smoothing) == (0.0, 1.0, 0.0)
    assert (gc_vit.mixup_batch, type(gc_vit.loss)) == (128, SoftTargetCrossEntropy)
    assert config(GC_VIT).optim_wrapper.clip_grad == {"max_norm": 5}
    found = steps(SP_VIT)
    assert {op.magnitude for op in found[RandAugment].ops} == {9} and found[RandAugment].num_layers == 2
    assert (found[RandomErasing].probability, found[RandomErasing].per_pixel) == (0.25, True)
    assert transforms.ColorJitter not in found
    assert (sp_vit.mixup, type(sp_vit.loss), sp_vit.loss.smoothing) == (None, LabelSmoothingCrossEntropy, 0.0)
    assert not {RandAugment, RandomErasing, transforms.ColorJitter} & {*steps(SALIENCY)}
    assert (vit.mixup, vit.loss.smoothing) == (None, 0.1)
