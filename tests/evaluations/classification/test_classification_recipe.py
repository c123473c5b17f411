"""The published recipes of classification number by number, against what the configs build."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torchvision import transforms

from adpe.engine.settings.effective_batch import apply_effective_batch
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.knn import KNN

# lr = blr x 1024 / 256 with blr 5e-4 (B), 1e-3 (L, H); layer decay; drop path; epochs (MAE's FINETUNE.md)
FINETUNE = {
    "configs/imagenet/finetune_vitb.py": (768, 12, 2e-3, 0.65, 0.1, 100),
    "configs/imagenet/finetune_vitl.py": (1024, 24, 4e-3, 0.75, 0.2, 50),
    "configs/imagenet/finetune_vith.py": (1280, 32, 4e-3, 0.75, 0.3, 50),
}
LINEAR = {"configs/imagenet/linear_vitb.py": 768, "configs/imagenet/linear_vitl.py": 1024}
SMALL = {"model.embed_dim": 32, "model.depth": 2, "model.num_heads": 2}


def rates(cfg: Any, epoch_length: int) -> list[float]:
    """Learning rate of every iteration, of a group that has the full rate."""
    lr = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    optimizer.step()
    built = [
        PARAM_SCHEDULERS.build(one, default_args={"optimizer": optimizer, "epoch_length": epoch_length})
        for one in json.loads(json.dumps(cfg.param_scheduler))
    ]
    values = []
    for _ in range(cfg.train_cfg.max_epochs * epoch_length):
        values.append(optimizer.param_groups[0]["lr"])
        for scheduler in built:
            scheduler.step()
    return values


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_optimizer(name: str) -> None:
    """AdamW; every parameter's rate by its depth; decay 0.05 but on tokens, 1-D tensors and biases."""
    width, depth, lr, layer_decay, drop_path, _ = FINETUNE[name]
    cfg, model = config(name), meta_model(name)
    assert (model.backbone.embed_dim, len(model.backbone.blocks)) == (width, depth)
    assert model.backbone.blocks[-1].drop_path.rate == pytest.approx(drop_path)
    assert model.backbone.blocks[0].drop_path.rate == 0
    cfg.optim_wrapper.optimizer.pop("fused")
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        for parameter in group["params"]:
            own = names[parameter].removeprefix("backbone.")
            seen.add(own)
            at = int(own.split(".")[1]) + 1 if own.startswith("blocks.") else 0
            if own.startswith(("fc_norm", "head")):
                at = depth + 1
            assert group["lr"] == pytest.approx(lr * layer_decay ** (depth + 1 - at), rel=1e-9), own
            spared = parameter.ndim == 1 or own in ("cls_token", "pos_embed")
            assert group["weight_decay"] == (0.0 if spared else 0.05), own
    assert len(seen) == len(names)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "fc_norm.weight", "head.weight"} <= seen
    assert "norm.weight" not in seen


@pytest.mark.parametrize("name", [*FINETUNE, *LINEAR])
def test_schedule(name: str) -> None:
    """Linear from 0 in 5 (10) epochs, then half a cosine to 1e-6 (0): MAE's lr_sched.py."""
    warmup, epochs, minimum = (5, FINETUNE[name][5], 1e-6) if name in FINETUNE else (10, 90, 0.0)
    cfg = config(name)
    lr = FINETUNE[name][2] if name in FINETUNE else 6.4
    assert cfg.train_cfg.max_epochs == epochs
    values = rates(cfg, 20)
    assert values[0] == pytest.approx(0, abs=1e-7 * lr)
    assert values[warmup * 10] == pytest.approx(lr / 2, rel=2e-2)
    assert max(values) == pytest.approx(lr, rel=1e-9)
    assert values.index(max(values)) in (warmup * 20 - 1, warmup * 20)
    middle = (warmup + epochs) // 2
    expected = minimum + (lr - minimum) * 0.5 * (1 + math.cos(math.pi * (middle - warmup) / (epochs - warmup)))
    assert values[middle * 20] == pytest.approx(expected, rel=1e-2)
    assert minimum <= values[-1] < minimum + 2e-5 * lr


def test_the_minimum_is_a_share_of_every_layers_rate() -> None:
    """MAE multiplies the scheduled rate, minimum included, by the layer's factor."""
    cfg = config("configs/imagenet/finetune_vitb.py")
    assert cfg.param_scheduler[1].eta_min_ratio == pytest.approx(1e-6 / 2e-3)
    assert "eta_min" not in cfg.param_scheduler[1]


@pytest.mark.parametrize("name", [*FINETUNE, *LINEAR])
def test_effective_batch(name: str) -> None:
    cfg = config(name)
    batch = apply_effective_batch(cfg, 8)
    assert batch.images == (1024 if name in FINETUNE else 16384)
    assert batch.images == 8 * batch.batch_size * batch.accumulation
    assert cfg.train_dataloader.batch_size == batch.batch_size and batch.batch_size % 2 == 0


def test_the_rate_follows_the_batch() -> None:
    """The AdPE repository's batch of 4096 for relative positions, and its sweep of base rates."""
    cfg = config("configs/imagenet/finetune_vitb.py", {"effective_batch": 4096, "blr": 1e-4, "position": "relative"})
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 16)
    assert cfg.param_scheduler[1].eta_min_ratio == pytest.approx(1e-6 / 1.6e-3)
    assert cfg.model.position == "relative"
    large = config("configs/imagenet/finetune_vitl.py", {"effective_batch": 4096})
    assert large.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 16)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_augmentation_and_loss(name: str) -> None:
    """RandAugment rand-m9-mstd0.5-inc1, erasing 0.25 with noise, bicubic crops from 0.08; mixup, cutmix, smoothing."""
    transform = create_transform(**config(name).train_dataloader.dataset.transform)
    steps = {type(step): step for step in transform.transforms}
    crop = steps[RandomResizedCropAndInterpolation]
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop.interpolation == transforms.InterpolationMode.BICUBIC
    assert steps[transforms.RandomHorizontalFlip].p == 0.5
    randaugment = steps[RandAugment]
    assert randaugment.num_layers == 2
    assert {op.magnitude for op in randaugment.ops} == {9}
    assert {op.magnitude_std for op in randaugment.ops} == {0.5}
    assert transforms.ColorJitter not in steps
    erasing = steps[RandomErasing]
    assert (erasing.probability, erasing.per_pixel, erasing.min_count, erasing.max_count) == (0.25, True, 1, 1)
    mean, std = steps[transforms.Normalize].mean, steps[transforms.Normalize].std
    np.testing.assert_allclose([*mean, *std], [0.485, 0.456, 0.406, 0.229, 0.224, 0.225])
    model = meta_model(name)
    mixup = model.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mixup.mode, mixup.label_smoothing, mixup.num_classes) == ("batch", 0.1, 1000)
    # --batch_size of the commands in MAE's FINETUNE.md: the images of a GPU, for which mixup is drawn.
    share = 16 if "vith" in name else 32
    assert model.mixup_batch == share
    for processes in (1, 8, 32):
        cfg = config(name)
        assert apply_effective_batch(cfg, processes).batch_size % share == 0
    assert config(name, {"mixup_batch": 128}).model.mixup_batch == 128  # the AdPE repository's
    assert type(model.loss) is SoftTargetCrossEntropy
    assert (model.global_pool, model.frozen) == ("avg", False)


@pytest.mark.parametrize("name", [*FINETUNE, *LINEAR, "configs/imagenet/knn_vitb.py"])
def test_test_transform(name: str) -> None:
    """Short side to 256 (bicubic), central 224, ImageNet's statistics: MAE's, built here of torchvision alone."""
    cfg = config(name)
    theirs = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (300, 410, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = create_transform(**cfg.val_dataloader.dataset.transform)
    torch.testing.assert_close(ours(image), theirs(image))
    assert cfg.val_dataloader.dataset.split == "val"
    assert cfg.train_dataloader.dataset.split == "train"


def test_finetuning_head_starts_near_zero() -> None:
    cfg = config("configs/imagenet/finetune_vitb.py", SMALL)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert float(model.backbone.head.weight.std()) == pytest.approx(2e-5, rel=0.02)
    assert not model.backbone.head.bias.any()
    assert model.head is None


@pytest.mark.parametrize("name", LINEAR)
def test_linear_probe(name: str) -> None:
    """LARS 6.4, momentum 0.9, no decay, matrices scaled, biases not; BatchNorm without affine under the head."""
    cfg, model = config(name), meta_model(name)
    assert model.backbone.embed_dim == LINEAR[name]
    assert (model.frozen, model.global_pool, model.mixup) == (True, "token", None)
    norm = model.norm
    assert (type(norm), norm.eps, norm.affine, norm.momentum) == (nn.BatchNorm1d, 1e-6, False, 0.1)
    assert type(model.loss) is LabelSmoothingCrossEntropy and model.loss.smoothing == 0.0
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    # MAE's FINETUNE.md: --batch_size 512 a GPU, which its BatchNorm sees, for ViT-L too.
    assert [apply_effective_batch(config(name), processes).batch_size for processes in (1, 8, 32)] == [512] * 3
    assert [hook.type for hook in cfg.custom_hooks] == ["SyncBuffersHook"]
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == "Lars"
    groups = [(len(g["params"]), g["lr"], g["momentum"], g["weight_decay"], g["trust_coeff"], g["always_adapt"])
              for g in optimizer.param_groups]  # fmt: skip
    assert groups == [(1, 6.4, 0.9, 0.0, 0.001, True), (1, 6.4, 0.9, 0.0, 0.001, False)]
    steps = [type(s).__name__ for s in create_transform(**cfg.train_dataloader.dataset.transform).transforms]
    assert steps == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "MaybeToTensor", "Normalize"]


def test_linear_head_starts_with_std_of_one_percent() -> None:
    model = MODELS.build(config("configs/imagenet/linear_vitb.py", SMALL).model)
    assert float(model.head.weight.std()) == pytest.approx(0.01, rel=0.03)
    assert not model.head.bias.any()


def test_lars_is_that_of_mae() -> None:
    """Three steps against MAE's util/lars.py as published, in float64: scaled for matrices, plain for the bias."""
    cfg = config("configs/imagenet/linear_vitb.py", SMALL)
    torch.manual_seed(1)  # of the start; timm's eps shows at a weight that the steps bring near zero
    model = MODELS.build(cfg.model).double()
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, "type": "OptimWrapper"})
    generator = torch.Generator().manual_seed(0)
    weight, bias = model.head.weight.detach().clone(), model.head.bias.detach().clone()
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(3):
        for index, (mine, parameter) in enumerate(((weight, model.head.weight), (bias, model.head.bias))):
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            step = gradient * (0.001 * mine.norm() / gradient.norm()) if mine.ndim > 1 else gradient
            momentum[index] = 0.9 * momentum[index] + step
            mine -= 6.4 * momentum[index]
        wrapper.optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), weight, rtol=1e-7, atol=0)
    torch.testing.assert_close(model.head.bias.detach(), bias, rtol=1e-12, atol=0)


def test_knn_protocol() -> None:
    """k = 20, temperature 0.07; both sets under the test transform; nothing trained."""
    for name in ("configs/imagenet/knn_vitb.py", "configs/cifar10/knn.py"):
        cfg, model = config(name), meta_model(name)
        evaluation = build_evaluation(cfg.evaluation)
        assert (type(evaluation), evaluation.k, evaluation.temperature) == (KNN, 20, 0.07)
        assert model.global_pool == "avg"
        assert cfg.train_dataloader.dataset.transform == cfg.val_dataloader.dataset.transform
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["finetune", "linear", "knn"])
def test_cifar10_takes_the_options_of_pretraining(name: str) -> None:
    options = {"data_root": "my.tar", "pretrained": "encoder.pth", "position": "relative", "train_limit": 100}
    options |= {"test_limit": 50, "model.embed_dim": 96, "model.depth": 4, "model.num_heads": 3}
    cfg = config(f"configs/cifar10_{name}.py", options)
    train, test = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert (train.source, train.split, train.limit, test.source, test.split, test.limit) == (
        "my.tar", "train", 100, "my.tar", "test", 50,
    )  # fmt: skip
    assert cfg.model.init_cfg == {"type": "Pretrained", "checkpoint": "encoder.pth"}
    assert (cfg.record.start, cfg.record.task, cfg.record.dataset) == ("pretrained", "classification", "CIFAR-10")
    named = {} if cfg.model.model else {"model": "adpe_vit_tiny_patch4"}
    encoder = MODELS.build({**cfg.model, **named, "init_cfg": None}).backbone
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (96, 4, 3, 4)
    assert (encoder.img_size, encoder.position) == ((32, 32), "relative")
    assert config(f"configs/cifar10_{name}.py").record.start == "random"


def test_cifar10_probe() -> None:
    """On the class token, of images as they are; batch, rates and lengths as recorded."""
    cfg = config("configs/cifar10/linear.py")
    assert cfg.model.global_pool == "token"
    assert cfg.train_dataloader.dataset.transform == cfg.val_dataloader.dataset.transform
    assert vars(build_evaluation(cfg.evaluation)) == {
        "epochs": 90, "warmup_epochs": 10, "lr": 25.6, "batch_size": 512, "momentum": 0.9, "weight_decay": 0.0,
        "trust_coeff": 0.001, "head_init_std": 0.01,
    }  # fmt: skip
