"""StoP: recipes of I-JEPA, MAE and MAE+ with it, where noise acts, blocks, what is refused, and that they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.methods.base import Progress
from adpe.methods.positions.ijepa import IJEPA, draw_blocks
from adpe.models.pos_embed import sincos_table
from adpe.parity.cases import GoldenCase, read_directory
from adpe.parity.methods.stop import _indices, _model, _to_our_names

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_systems" / "stop"
TINY = {"img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3}
DECODER = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 3}
PREDICTOR = {"predictor_embed_dim": 24, "predictor_depth": 1, "position_noise_std": 0.25}
FORMS = ["tied", "free", "coordinate"]


def autoencoder(method: str = "stop_mae_plus", **options):
    torch.manual_seed(0)
    return adpe.create_method(method, "adpe_vit_tiny_patch4", **{**TINY, **DECODER, **options})


def ijepa(**options) -> IJEPA:
    torch.manual_seed(0)
    return adpe.create_method("ijepa", "adpe_vit_tiny_patch4", **{**TINY, **PREDICTOR, **options})


def golden() -> tuple[IJEPA, dict[str, torch.Tensor]]:
    case = GoldenCase("pretrain", GOLDENS / "pretrain.npz", read_directory(GOLDENS)[0])
    model = _model(case)
    model.load_state_dict(_to_our_names(case.group("param.")))
    return model, dict(case.arrays)


def test_recipe_of_ijepa():
    """configs/pretrain/vit-b16.yaml and README of amirbar/StoP."""
    cfg = config("configs/pretrain/positions/ijepa_stop_vitb_600e.py")
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (2048, 64, 600)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.get("clip_grad")) == ("OptimWrapper", None)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"]), crops["hflip"]) == (224, 1, (0.3, 1.0), 0.5)
    model = meta_model("configs/pretrain/positions/ijepa_stop_vitb_600e.py").model
    assert (model.position_noise_std, model.targets, model.momentum) == (0.25, 4, 0.996)
    encoder, predictor = model.encoder, model.predictor
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.cls_token) == (768, 12, 12, None)
    assert (predictor.embed.out_features, len(predictor.blocks), predictor.blocks[0].attn.num_heads) == (384, 6, 12)
    assert (
        config("configs/pretrain/positions/ijepa_stop_vitb_600e.py", {"position_noise_std": None}).record.method
        == "I-JEPA"
    )


def test_rate_and_decay_of_ijepa():
    """2e-4 to 8e-4 over 15 epochs and to 1e-4 at the end; decay from 0.04 to 0.4, where there is one."""
    cfg = config("configs/pretrain/positions/ijepa_stop_vitb_600e.py")
    options = cfg.optim_wrapper.optimizer
    assert tuple(options.betas) == (0.9, 0.999)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": d} for d in (options.weight_decay, 0.0)]
    wrapper = OptimWrapper(torch.optim.AdamW(groups, lr=options.lr))
    built = [
        PARAM_SCHEDULERS.build(one, default_args={"optimizer": wrapper, "epoch_length": 10})
        for one in json.loads(json.dumps(cfg.param_scheduler))
    ]
    rates, decays = [], []
    for _ in range(6000):
        decay, spared = wrapper.optimizer.param_groups
        assert spared["weight_decay"] == 0 and spared["lr"] == decay["lr"]
        rates.append(decay["lr"])
        decays.append(decay["weight_decay"])
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    assert [rates[0], rates[149], rates[-1]] == pytest.approx([2e-4, 8e-4, 1e-4], rel=1e-3)
    assert rates[75] == pytest.approx(2e-4 + 6e-4 * 75 / 149)
    assert rates[150 + 5850 // 2] == pytest.approx(4.5e-4)
    assert [decays[0], decays[3000], decays[-1]] == pytest.approx([0.04, 0.22, 0.4], rel=1e-3)
    assert decays[1500] == pytest.approx(0.4 - 0.36 / 2 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("form", FORMS)
def test_recipe_on_mae_plus(form: str):
    """Crops, masks, optimiser and schedule of MAE+, so that its variants are rows of one table."""
    options = {"form": form}
    cfg = config("configs/pretrain/positions/mae_plus_stop_vitb_400e.py", options)
    other = config("configs/pretrain/mae_plus.py", {"epochs": 400})
    for key in ("train_dataloader", "param_scheduler", "train_cfg", "effective_batch", "custom_hooks"):
        assert cfg[key] == other[key], key
    wrappers = [{**one.optim_wrapper, "paramwise_cfg": None} for one in (cfg, other)]
    assert wrappers[0] == wrappers[1]
    assert cfg.record.method == f"MAE+ StoP {form}"
    assert (cfg.model.form, cfg.model.position_noise_std) == (form, 0.25)
    kept = ("model", "mask_ratio", "norm_pix_loss", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    assert [cfg.model[key] for key in kept] == [other.model[key] for key in kept]


@pytest.mark.parametrize("name", ["positions/cifar10_mae_plus_stop", "positions/cifar10_ijepa_stop"])
def test_two_steps_through_the_launcher(name: str, tmp_path: Path):
    depth = "predictor_depth" if "ijepa" in name else "decoder_depth"
    runner = train_small(name, tmp_path, {f"model.{depth}": 1})
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    key = "blocks.0.attn.qkv.weight"
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        written = file.get_tensor(f"encoder.{key}")
    # What is evaluated of I-JEPA is the moving average.
    source = "target" if "ijepa" in name else "encoder"
    assert torch.equal(written, state[f"model.{source}.{key}"])
    assert ("ijepa" in name) is not torch.equal(written, state[f"model.encoder.{key}"])


def test_small_configs_scale_the_recipes_down():
    cfg = config("configs/pretrain/positions/cifar10_ijepa_stop.py")
    cfg.model.depth = cfg.model.predictor_depth = 1
    model = MODELS.build(cfg.model).model
    assert (model.position_noise_std, tuple(cfg.optim_wrapper.optimizer.betas)) == (0.25, (0.9, 0.999))
    one, other = (config(f"configs/pretrain/cifar10_{name}.py") for name in ("mae_plus_stop", "mae_plus"))
    assert one.train_dataloader == other.train_dataloader


# Where the noise acts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "loss"),
    [("none", 0.53790), ("without the bias", 0.53566), ("with the mask token", 0.50881)],
)
def test_losses_of_wrong_turns(turn: str, loss: float):
    """On the golden `pretrain`; the values are the page's."""
    model, data = golden()
    context, targets, noises = _indices(data, "input.", 2)
    grid = model.encoder.patch_embed.grid(data["input.images"])
    encoded = model.encode(data["input.images"], context)
    tokens = model.predictor.tokens(encoded, context, targets, noises, grid)
    number = context.shape[1]
    if turn == "without the bias":
        tokens[:, number:] -= model.predictor.embed.bias
    elif turn == "with the mask token":
        tokens[:, number:] += data["param.predictor.mask_token"]
    prediction = model.predictor(tokens, number)
    target = model.target_features(data["input.images"], targets)
    assert F.smooth_l1_loss(prediction, target).item() == pytest.approx(loss, abs=6e-6)


def test_noise_has_the_deviation_and_reaches_queries_alone():
    """Tokens of the predictor less what is there without noise: exactly 0 for the context, and A n + b for queries."""
    model, images = ijepa(), torch.rand(8, 3, 24, 24)
    seen: list[torch.Tensor] = []
    model.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for std in (0.25, None):
        model.position_noise_std = std
        torch.manual_seed(3)
        model.losses([images.unsqueeze(1)])
    torch.manual_seed(3)
    context, targets = draw_blocks(8, (6, 6), 4)
    difference = seen[0] - seen[1]
    assert not difference[:, : context.shape[1]].any()
    torch.manual_seed(3)
    draw_blocks(8, (6, 6), 4)
    noises = torch.cat([0.25 * torch.randn(*targets[0].shape, 48) for _ in targets])
    torch.testing.assert_close(difference[:, context.shape[1] :], model.predictor.embed(noises), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_hidden_patches_alone_are_moved(form: str):
    """What enters the encoder's first block with and without noise."""
    model, images, noise = autoencoder(form=form), torch.rand(2, 3, 24, 24), torch.rand(2, 36)
    seen: list[torch.Tensor] = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(images, noise, 0.25 * torch.randn(model.noise_shape(2, (6, 6))))
    model.eval()(images, noise)
    hidden = model.random_mask(images, noise).hidden
    moved = (seen[0] - seen[1]).abs().amax(-1)[:, 1:] > 0
    assert torch.equal(moved, hidden)
    assert torch.equal(seen[0][:, 0], seen[1][:, 0])


@pytest.mark.parametrize("method", ["stop_mae", "stop_mae_plus"])
def test_without_deviation_or_training_it_is_the_plain_method(method: str):
    """Evaluation and s = 0 give MAE's and MAE+'s loss to the bit, training with s = 0.25 another one."""
    images, noise = torch.rand(4, 3, 24, 24), torch.rand(4, 36)
    model = autoencoder(method)
    plain = adpe.create_method(method.removeprefix("stop_"), "adpe_vit_tiny_patch4", **TINY, **DECODER)
    plain.load_state_dict(model.state_dict())
    expected = plain(images, noise)
    assert torch.equal(model.eval()(images, noise), plain.eval()(images, noise))
    model.train().position_noise_std = 0.0
    assert torch.equal(model(images, noise), expected)
    model.position_noise_std = 0.25
    one, other = model(images, noise), model(images, noise)
    assert one != other != expected


def test_a_whole_patch_of_coordinate_noise_is_the_next_place():
    """A hidden patch at (column, row) + (1, 0) has the position of the patch to its right."""
    model, grid = autoencoder(form="coordinate"), (6, 6)
    mask = model.random_mask(torch.rand(1, 3, 24, 24), torch.arange(36.0).flip(0).view(1, 36))  # the first are hidden
    assert mask.hidden[0, 0]
    positions = model.encoder.position_table(grid, model.encoder.cls_token)[:, 1:]
    noise = torch.zeros(1, 36, 2)
    noise[0, 0, 0] = 1.0
    with model.given(noise):
        tokens = model.hide(torch.zeros(1, 36, 48), positions, mask, grid)
    expected = sincos_table(6, 6, 48, torch.float32, torch.device("cpu"))[0, 2] + model.mask_token[0, 0]
    torch.testing.assert_close(tokens[0, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_noise_is_drawn_with_its_deviation(form: str):
    model = autoencoder(form=form, position_noise_std=0.29)
    noise = model.position_noise(64, (6, 6), torch.device("cpu"))
    assert noise.shape == model.noise_shape(64, (6, 6)) and noise.dtype == torch.float32
    assert noise.std().item() == pytest.approx(0.29, rel=0.03) and abs(noise.mean().item()) < 0.02


# I-JEPA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (6, 10), (2, 2), (1, 5)])
def test_blocks(grid: tuple[int, int]):
    """Rectangles of 15-20 %, a context without them of one length, in raster order, and every patch can be a target."""
    torch.manual_seed(0)
    h, w = grid
    seen = torch.zeros(h * w)
    for _ in range(60):
        context, targets = draw_blocks(4, grid, 4)
        for indices in targets:
            rows, columns = indices // w, indices % w
            height, width = (axis.amax(1) - axis.amin(1) + 1 for axis in (rows, columns))
            assert (height * width == indices.shape[1]).all()
            if h * w >= 60:
                assert 0.1 < indices.shape[1] / (h * w) < 0.26
            assert not (context.unsqueeze(2) == indices.unsqueeze(1)).any() or h * w < 9
            seen[indices.flatten()] += 1
        assert context.shape[1] >= 1 and (context.diff(dim=1) > 0).all()
    assert (seen > 0).all()


def test_the_target_follows_the_encoder():
    """From 0.996 to 1, linearly; it is in the checkpoint and not trained."""
    model = ijepa().double()
    with torch.no_grad():
        model.encoder.norm.weight.add_(1.0)
    for fraction, momentum in ((0, 0.996), (50, 0.998)):
        before = model.target.norm.weight.clone()
        model.after_step(Progress(fraction, 100))
        expected = momentum * before + (1 - momentum) * model.encoder.norm.weight
        torch.testing.assert_close(model.target.norm.weight, expected, rtol=0, atol=1e-12)
    own = {id(p) for p in model.target.parameters()}
    assert not own & {id(p) for group in model.parameter_groups(1e-3, 0.04) for p in group["params"]}
    assert {f"target.{name}" for name in model.encoder.state_dict()} <= set(model.state_dict())
    assert model.exported() is model.target
    assert not any(block in set(model.target.modules()) for block in model.compiled())


def test_constant_targets_are_a_collapse():
    model, images = ijepa(), torch.rand(4, 1, 3, 24, 24)
    assert model.collapse(Progress()) is None
    model.losses([images])
    assert model.collapse(Progress()) is None
    assert model.scalars()["ijepa/target_spread"] > 0.05
    nn.init.zeros_(model.target.norm.weight)
    nn.init.normal_(model.target.norm.bias)
    model.losses([images])
    assert model.collapse(Progress())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"class_token": True}, "class_token=False"),
        ({"position": "relative"}, "positions"),
        ({"num_classes": 3}, "classes"),
        ({"targets": 0}, "targets=0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"position_noise_std": -1.0}, "position_noise_std=-1.0"),
        ({"predictor_embed_dim": 25}, "predictor_embed_dim=25"),
    ],
)
def test_options_of_ijepa_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        ijepa(**options)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"form": "learned"}, "learned"),
        ({"position_noise_std": -0.1}, "position_noise_std=-0.1"),
        ({"position": "relative"}, "position='absolute'"),
        ({"form": "coordinate", "learned_pos_embed": True}, "coordinate"),
    ],
)
def test_options_of_noise_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        autoencoder(**options)


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_step_is_equal_and_bfloat16_trains(form: str):
    assert resumes_exactly(autoencoder(form=form), torch.rand(2, 3, 24, 24))
    assert trains_in_bfloat16(autoencoder(form=form), torch.randn(2, 3, 24, 24))


def test_a_resumed_step_of_the_others_is_equal_and_bfloat16_trains():
    for build in (lambda: autoencoder("stop_mae"), ijepa):
        assert resumes_exactly(build(), torch.rand(2, 3, 24, 24))
        assert trains_in_bfloat16(build(), torch.randn(2, 3, 24, 24))


def test_they_learn_and_are_drawn():
    """Flat images of one colour each: what is hidden follows from what is seen."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 1, 1).expand(16, 3, 24, 24).clone()
    for model in (autoencoder(norm_pix_loss=False), autoencoder("stop_mae", norm_pix_loss=False)):
        logged = steps(model, images, 40, lr=3e-3)
        assert logged[-1]["loss"] < 0.3 * logged[0]["loss"]
        figures = model.eval().figures([images[:2].unsqueeze(1)], (0.5,) * 3, (0.5,) * 3)
        assert set(figures) == {"reconstructions", "noisy_positions", "noise_and_loss"}
    model = ijepa()
    logged = steps(model, images, 40, lr=3e-3)
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert list(model.figures([images[:2].unsqueeze(1)], (0, 0, 0), (1, 1, 1))) == ["blocks"]
