"""Every number of the published pretraining recipe, asserted against the objects that the configs build."""

from __future__ import annotations

import argparse
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
import built_configs
from built_configs import ROOT, meta_model
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS

from adpe.checkpoints.loading import describe_encoder
from adpe.config_names import NAMES
from adpe.data.views.multicrop import MultiCrop
from adpe.engine import launch
from adpe.engine.settings.effective_batch import apply_effective_batch
from adpe.errors import UserError
from adpe.methods.adversary import CoordinateAdversary, MaskTokenAdversary, OffsetAdversary, RelativeEmbeddingAdversary

PRETRAIN = ROOT / "configs" / "pretrain"
# Of the masked autoencoders; other methods have tests of their own.
PUBLISHED = sorted(
    Path(name).stem for name in NAMES if name.startswith("pretrain/") and re.fullmatch(r".*_vit._.*e\.py", name)
)
SMALL = sorted(
    Path(name).stem
    for name in built_configs.CONFIGS
    if re.fullmatch(r"configs/pretrain/(cifar10|photos112)_(mae|mae_plus|mae_plus_rpe|adpe_.*)\.py", name)
)
SIZES = {"vitb": (768, 12, 12, 16), "vitl": (1024, 24, 16, 16), "vith": (1280, 32, 16, 14)}
# Position and adversary of every variant.
VARIANTS = {
    "mae": ("absolute", None),
    "mae_plus": ("absolute", None),
    "mae_plus_rpe": ("relative", None),
    "adpe_ape_embedding": ("absolute", MaskTokenAdversary),
    "adpe_ape_coordinate": ("absolute", CoordinateAdversary),
    "adpe_rpe_embedding": ("relative", RelativeEmbeddingAdversary),
    "adpe_rpe_coordinate": ("relative_interpolated", OffsetAdversary),
}
# lr = 1.5e-4 x 4096 / 256
LR = 2.4e-3


def config(name: str, **options: Any) -> Config:
    return built_configs.config(f"configs/pretrain/{name}.py", options)


def parts(name: str) -> tuple[str, str, int]:
    """Variant, size and epochs that a file name promises."""
    match = re.fullmatch(r"(\w+)_(vit[blh])_(\d+)e", name)
    assert match is not None, name
    return match[1], match[2], int(match[3])


def shallow(name: str) -> tuple[Any, OptimWrapper]:
    """Model (all widths as published, two blocks a stack) and optimizer wrapper of a config."""
    cfg = config(name)
    cfg.model.update(depth=2, decoder_depth=2)
    model = MODELS.build(cfg.model)
    return model, build_optim_wrapper(model, cfg.optim_wrapper)


def test_published_configs_are_all_there() -> None:
    expected = {f"mae_{size}_{e}e" for size in ("vitb", "vitl") for e in (800, 1600)}
    expected |= {
        f"{variant}_{size}_{epochs}e"
        for variant in VARIANTS
        if variant != "mae"
        for size in ("vitb", "vitl")
        for epochs in (400, 1600)
    }
    assert set(PUBLISHED) == expected | {"mae_vith_1600e", "adpe_rpe_coordinate_vith_1600e"}
    assert set(SMALL) == {f"cifar10_{variant}" for variant in VARIANTS} | {
        f"photos112_{variant}" for variant in ("mae", "mae_plus", "adpe_ape_coordinate", "adpe_rpe_coordinate")
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_model(name: str) -> None:
    """Width, depth, heads and patch; masking, target and decoder; positions and adversary."""
    variant, size, _ = parts(name)
    model = meta_model(f"configs/pretrain/{name}.py").model
    encoder, decoder = model.encoder, model.decoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == SIZES[size]
    assert (decoder.norm.normalized_shape, len(decoder.blocks)) == ((512,), 8)
    assert {block.attn.num_heads for block in decoder.blocks} == {16}
    assert model.mask_ratio == 0.75
    assert model.norm_pix_loss is True
    assert model.mask_tokens == ("decoder" if variant == "mae" else "encoder")
    position, adversary = VARIANTS[variant]
    assert encoder.position == position
    assert type(getattr(model, "adversary", None)) is (type(None) if adversary is None else adversary)
    if adversary is not None:
        assert (model.adversary.norm, model.adversary.epsilon) == (None, None)
    assert encoder.pos_embed is None
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_crops(name: str) -> None:
    """4 crops of 112 pixels from 0.08 of the image, bicubic, flipped half of the time; MAE: one of 224 from 0.2."""
    dataset = config(name).train_dataloader.dataset
    assert (dataset.type, dataset.source) == ("AdPEImageDataset", "data/imagenet/train")
    crops = MultiCrop(**dataset.crops)
    assert crops.ratio == (3 / 4, 4 / 3)
    assert (crops.interpolation, crops.hflip, crops.normalize) == ("bicubic", 0.5, "device")
    published = (224, 1, (0.2, 1.0)) if parts(name)[0] == "mae" else (112, 4, (0.08, 1.0))
    assert (crops.size, crops.num_crops, crops.scale) == published
    batch = crops(Image.new("RGB", (160, 120)), np.random.default_rng(0))
    assert batch.shape == (published[1], 3, published[0], published[0])
    assert batch.dtype == torch.uint8


def test_crops_are_normalised_on_the_device_with_imagenet_statistics() -> None:
    preprocessor = MODELS.build({"type": "AdPECropsPreprocessor"})
    crops = torch.full((2, 4, 3, 8, 8), 255, dtype=torch.uint8)
    (inputs,) = preprocessor({"inputs": crops})["inputs"]
    assert inputs.shape == (2, 4, 3, 8, 8)
    expected = [(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(inputs[0, 0, :, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_optimizer_of_every_parameter(variant: str) -> None:
    """AdamW 0.9/0.95 at 2.4e-3; decay 0.05 but on 1-D tensors and biases; the adversary ascends without decay.

    What the groups say, and what a step does: with gradients of 1 everything goes down by the rate, the adversary up.
    """
    model, wrapper = shallow(f"{variant}_vitb_{800 if variant == 'mae' else 400}e")
    optimizer = wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen: dict[str, float] = {}
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["eps"] == 1e-8
        assert group["lr"] == pytest.approx(LR, rel=1e-12)
        for parameter in group["params"]:
            name = names[parameter]
            assert name not in seen
            seen[name] = group["weight_decay"]
            ascends = name.startswith("model.adversary.")
            assert group["maximize"] is ascends, name
            thin = parameter.ndim == 1 or name.endswith(".bias")
            assert group["weight_decay"] == (0.0 if ascends or thin else 0.05), name
    assert set(seen) == set(names.values())
    assert any(name.startswith("model.adversary.") for name in seen) is variant.startswith("adpe")
    assert seen["model.encoder.cls_token"] == seen["model.encoder.blocks.0.attn.qkv.weight"] == 0.05
    assert seen["model.encoder.norm.weight"] == seen["model.decoder.pred.bias"] == 0.0
    before = {name: parameter.detach().clone() for parameter, name in names.items()}
    for parameter in names:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, name in names.items():
        direction = 1.0 if name.startswith("model.adversary.") else -1.0
        expected = before[name] * (1 - LR * seen[name]) + direction * LR
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedule_of_both_players(name: str) -> None:
    """By iteration: linear from 0 to the peak at the warm-up's end, a cosine to 0; the same for the adversary."""
    _, _, epochs = parts(name)
    cfg = config(name)
    assert cfg.train_cfg.max_epochs == epochs
    warmup = 20 if epochs == 400 else 40
    rates = learning_rates(cfg, epoch_length=10)
    total, end = epochs * 10, warmup * 10
    assert len(rates) == total
    for model_lr, adversary_lr in rates:
        assert model_lr == adversary_lr
    model_rates = [rate for rate, _ in rates]
    assert model_rates[0] == pytest.approx(0.0, abs=1e-10)
    for step in (1, end // 4, end // 2, end - 1):  # LinearLR reaches the peak at the last step of the warm-up
        assert model_rates[step] == pytest.approx(LR * step / (end - 1), rel=1e-5)
    assert model_rates[end] == pytest.approx(LR, rel=1e-6)
    for step in (end + 1, total // 2, (total + end) // 2, total - total // 10, total - 1):
        expected = LR * 0.5 * (1 + math.cos(math.pi * (step - end) / (total - end)))
        assert model_rates[step] == pytest.approx(expected, rel=1e-5)
    assert model_rates[(total + end) // 2] == pytest.approx(LR / 2, rel=1e-5)
    assert 0 < model_rates[-1] < 1e-6 * LR
    assert max(model_rates) == pytest.approx(LR, rel=1e-6)


def learning_rates(cfg: Config, epoch_length: int) -> list[tuple[float, float]]:
    """(model's, adversary's) learning rate of every iteration, from schedulers built and stepped as the Runner does."""
    players = (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.adversary_lr)
    return _learning_rates(json.dumps(cfg.param_scheduler), players, epoch_length, cfg.train_cfg.max_epochs)


@cache
def _learning_rates(
    schedulers: str, players: tuple[float, float], epoch_length: int, epochs: int
) -> list[tuple[float, float]]:
    wrapper = OptimWrapper(
        torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in players])
    )
    built = [
        PARAM_SCHEDULERS.build(one, default_args={"optimizer": wrapper, "epoch_length": epoch_length})
        for one in json.loads(schedulers)
    ]
    assert not any(scheduler.by_epoch for scheduler in built)
    rates = []
    for _ in range(epochs * epoch_length):
        model, adversary = (group["lr"] for group in wrapper.optimizer.param_groups)
        rates.append((model, adversary))
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return rates


@pytest.mark.parametrize("name", PUBLISHED)
def test_effective_batch(name: str) -> None:
    """4096 images (not crops) a step on any number of GPUs that shares them equally."""
    for gpus in (1, 8, 32, 64):
        cfg = config(name)
        largest = cfg.train_dataloader.batch_size
        batch = apply_effective_batch(cfg, gpus)
        assert batch.images == gpus * batch.batch_size * batch.accumulation == 4096
        assert cfg.train_dataloader.batch_size == batch.batch_size <= largest
        assert cfg.optim_wrapper.accumulative_counts == batch.accumulation
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(LR, rel=1e-12)
    with pytest.raises(UserError, match="4096 images cannot be shared equally by 3 processes"):
        apply_effective_batch(config(name), 3)


def test_effective_batch_of_the_reference() -> None:
    """8 GPUs of 128 images and 4 accumulated steps: the command of the AdPE repository."""
    assert apply_effective_batch(config("mae_plus_vitb_400e"), 8) == (4096, 8, 128, 4)


def test_learning_rates_follow_the_batch() -> None:
    cfg = config("adpe_ape_coordinate_vitb_400e", effective_batch=2048)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.2e-3)
    assert cfg.optim_wrapper.paramwise_cfg.adversary_lr == pytest.approx(1.2e-3)
    cfg = config("adpe_ape_coordinate_vitb_400e", adversary_lr=0.5, data_root="elsewhere")
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.adversary_lr) == (LR, 0.5)
    assert cfg.train_dataloader.dataset.source == "elsewhere"


@pytest.mark.parametrize(
    ("name", "dtype"), [("adpe_rpe_coordinate_vitb_400e", torch.bfloat16), ("cifar10_mae_plus", torch.float32)]
)
def test_dtype_that_a_matmul_sees(name: str, dtype: torch.dtype) -> None:
    """bfloat16 in the matrix products of the published configs; weights, gradients and loss in float32."""
    cfg = config(name)
    size = cfg.train_dataloader.dataset.crops["size"]
    cfg.model.update(depth=1, embed_dim=48, num_heads=3, decoder_depth=1, decoder_embed_dim=48, decoder_num_heads=3)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    seen: list[torch.dtype] = []
    for linear in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    crops = torch.randint(0, 256, (2, 4, 3, size, size), dtype=torch.uint8)
    losses = model.train_step({"inputs": crops, "data_samples": None}, wrapper)
    assert set(seen) == {dtype}
    assert len(seen) == 4 + 4 + 2
    assert torch.isfinite(losses["loss"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", SMALL)
def test_small_configs(name: str) -> None:
    """ViT-Tiny; the adversaries of the published variants; float32; crops of whole patches."""
    data, _, variant = name.partition("_")
    cfg = config(name)
    model = meta_model(f"configs/pretrain/{name}.py").model
    encoder = model.encoder
    patch = 4 if data == "cifar10" else 16
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (192, 12, 3, patch)
    position, adversary = VARIANTS[variant]
    assert encoder.position == position
    assert type(getattr(model, "adversary", None)) is (type(None) if adversary is None else adversary)
    assert model.mask_tokens == ("decoder" if variant == "mae" else "encoder")
    crops = MultiCrop(**cfg.train_dataloader.dataset.crops)
    assert crops.size % patch == 0
    whole = 32 if data == "cifar10" else 112
    size = whole if variant == "mae" or data == "photos112" else 24
    assert (crops.size, crops.num_crops, crops.scale) == (size, 1 if variant == "mae" else 4, (0.2, 1.0))
    assert cfg.optim_wrapper.type == "OptimWrapper"
    rates = [rate for rate, _ in learning_rates(cfg, epoch_length=4)]
    assert max(rates) == pytest.approx(cfg.lr) == pytest.approx(1e-3)
    assert rates[len(rates) // 2] > 0.4e-3
    assert 0 < rates[-1] < 1e-6


def test_a_small_config_trains_from_a_folder(tmp_path: Path) -> None:
    """Through the launcher: Runner, loader, accumulation, both players' schedules and the epoch hook."""
    folder = tmp_path / "images" / "train" / "cat"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    options = {
        "data_root": str(tmp_path / "images"), "effective_batch": 4, "epochs": 3, "warmup_epochs": 1,
        "train_dataloader.batch_size": 2, "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False, "model.depth": 1, "model.decoder_depth": 1,
    }  # fmt: skip
    arguments = argparse.Namespace(
        config=str(PRETRAIN / "cifar10_adpe_ape_coordinate.py"), work_dir=str(tmp_path / "work"), cfg_options=options,
        launcher="none", resume=None, amp=None, seed=None, deterministic=False,
    )  # fmt: skip
    runner = launch.train(arguments)
    assert runner.optim_wrapper._accumulative_counts == 2
    assert (runner.iter, runner.epoch) == (12, 3)  # 8 images in batches of 2, three times
    assert runner.train_dataloader.dataset.epoch == 2
    assert runner.model.model.adversary.shift.abs().min() > 0
    losses = [value.item() for value in torch.as_tensor(runner.message_hub.get_scalar("train/loss").data[0])]
    assert len(losses) == 12
    assert all(math.isfinite(loss) for loss in losses)
    last = {group["name"]: group["lr"] for group in runner.optim_wrapper.optimizer.param_groups}
    assert set(last) == {"decay", "no_decay", "adversary"}
    expected = 1e-3 * 0.5 * (1 + math.cos(math.pi * 7 / 8))  # the last of 8 iterations after 4 of warm-up
    assert list(last.values()) == pytest.approx([expected] * 3, rel=1e-6)
    said = describe_encoder(tmp_path / "work" / "encoder.safetensors")
    assert said.carried
    specification = said.specification
    assert specification == describe_encoder(tmp_path / "work" / "epoch_3.pth").specification
    # The crops of 24 pixels that it saw, not the images of 32 of its config.
    assert (specification.pretrain_img_size, specification.position) == ((24, 24), "absolute")
    assert (specification.method, specification.recipe) == (
        "AdPE APE coordinate", "configs/pretrain/cifar10_adpe_ape_coordinate.py",
    )  # fmt: skip
    assert (specification.seed, specification.epochs, specification.iterations) == (0, 3, 6)
    assert specification.mean == (0.485, 0.456, 0.406)
    assert specification.config_sha256 == runner.cfg.record.config_sha256
