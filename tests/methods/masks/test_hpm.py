"""HPM: its recipe, which patches are hidden when, the teacher, what it refuses, and that it finds hard patches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.registry import MODELS
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.methods.base import Progress
from adpe.methods.masks.hpm import HPM, normalised_loss, ranking_loss

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_systems" / "hpm"
TINY = {
    "img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 1,
    "decoder_num_heads": 3,
}  # fmt: skip


def hpm(**options) -> HPM:
    torch.manual_seed(0)
    return adpe.create_method("hpm", "adpe_vit_tiny_patch4", **{**TINY, **options})


@pytest.mark.parametrize("epochs", [200, 800])
def test_recipe_of_vit_base(epochs: int):
    """PRETRAIN.md and scripts of Haochen-Wang409/HPM."""
    name = f"configs/pretrain/masks/hpm_vitb_{epochs}e.py"
    cfg = config(name)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (2048, 32, epochs)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 2048 / 256)
    assert (cfg.optim_wrapper.optimizer.weight_decay, cfg.optim_wrapper.get("clip_grad")) == (0.05, None)
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.9, 0.95)
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.T_max, cosine.eta_min) == (40, 40, epochs - 40, 0.0)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 1, (0.2, 1.0))
    model = meta_model(name).model
    assert (model.mask_ratio, model.norm_pix_loss, model.relative) == (0.75, False, True)
    assert (model.encoder.embed_dim, len(model.encoder.blocks), model.encoder.num_heads) == (768, 12, 12)
    for decoder in (model.decoder, model.predictor):
        assert (decoder.pred.in_features, decoder.pred.out_features, len(decoder.blocks)) == (512, 768, 8)
        assert decoder.blocks[0].attn.num_heads == 16
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_small_recipe():
    cfg = config("configs/pretrain/masks/cifar10_hpm.py")
    cfg.model.update(depth=1, decoder_depth=1)
    model = MODELS.build(cfg.model).model
    assert (model.relative, model.norm_pix_loss) == (True, False)
    crop = cfg.train_dataloader.dataset.crops["size"] // model.encoder.patch_size
    assert [model.hard_patches(crop**2, epoch, 100) for epoch in (0, 99)] == [0, 13]


def test_two_steps_through_the_launcher(tmp_path: Path):
    """The teacher moves with the optimiser, is in the checkpoint and not in the exported encoder."""
    runner = train_small("masks/cifar10_hpm", tmp_path, {"model.decoder_depth": 1})
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(state[f"model.teacher.{name}"], state[f"model.{name}"])
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(name), state[f"model.{name}"])
        assert all(key.startswith("encoder.") for key in [*file.keys()])
        assert json.loads(next(iter(file.metadata().values())))["method"] == "HPM"
    assert {"train/loss", "train/loss_predictor"} <= set(runner.message_hub.log_scalars)


@pytest.mark.parametrize(("epochs", "first"), [(800, 10), (200, 2)])
def test_hard_patches_grow_with_the_epochs(epochs: int, first: int):
    """Of 147 hidden ones at 196 patches: none at first, 73 at the end."""
    numbers = [hpm().hard_patches(196, epoch, epochs) for epoch in (0, first - 1, first, epochs - 1)]
    assert numbers == [0, 0, 1, 73]


def test_wrong_turns_differ_as_the_page_says():
    """12 entries of all recorded masks without the +1 of the epoch, 436 where the easiest patches are hidden."""
    meta, arrays = json.loads((GOLDENS / "meta.json").read_text()), np.load(GOLDENS / "masks.npz")
    early = easy = 0
    for name, said in meta["cases"]["masks"]["cases"].items():
        model = hpm(mask_ratio=said["mask_ratio"])
        predicted, noise = (torch.from_numpy(arrays[f"input.{name}.{kind}"]) for kind in ("predicted_loss", "noise"))
        for epoch, hidden in zip(said["epochs"], torch.from_numpy(arrays[f"output.{name}.hidden"]).bool(), strict=True):
            early += int((model.hard_mask(predicted, noise, epoch - 1, said["total_epochs"]).hidden ^ hidden).sum())
            easy += int((model.hard_mask(-predicted, noise, epoch, said["total_epochs"]).hidden ^ hidden).sum())
    assert (early, easy) == (12, 436)


def test_the_hardest_are_hidden_and_the_rest_is_random():
    model, predicted = hpm(), torch.arange(36.0).repeat(64, 1)
    masks = [model.hard_mask(predicted, torch.rand(64, 36), epoch, 100).hidden for epoch in (0, 99)]
    for mask in masks:
        assert mask.sum(1).tolist() == [27] * 64
    assert masks[1][:, -13:].all() and not masks[0][:, -13:].all()
    shares = masks[1][:, :-13].float().mean(0)  # 14 of the other 23
    assert shares.min() > 0.35 and shares.max() < 0.85


def test_the_ranking_loss_sees_order_alone():
    """Pairs by hand; a constant changes nothing; ties count nothing; the right order costs least."""
    true = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    predicted = torch.tensor([[0.3, -0.4, 1.1], [5.0, 1.0, 0.0]])
    pairs = [(1, 0), (2, 0)]  # harder, easier: each twice among ordered pairs
    by_hand = -sum(np.log(1 / (1 + np.exp(float(predicted[0, b] - predicted[0, a])))) for a, b in pairs) / 2
    assert ranking_loss(predicted, true).item() == pytest.approx(by_hand, rel=1e-5)
    assert ranking_loss(predicted + 7, true).item() == pytest.approx(by_hand, rel=1e-5)
    assert ranking_loss(10 * true, true) < 1e-4 < ranking_loss(-true, true)
    assert ranking_loss(predicted[1:], true[1:]) == 0


def test_the_normalised_loss_is_zero_at_the_normalised_target():
    true = torch.rand(3, 9)
    target = (true - true.mean(1, keepdim=True)) / (true.var(1, keepdim=True) + 1e-6).sqrt()
    assert normalised_loss(target, true).item() == pytest.approx(0, abs=1e-12)
    assert normalised_loss(target + 1, true).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("epoch", "decay"), [(0, 0.999), (50, 0.99945), (100, 0.9999), (700, 0.9999)])
def test_the_teacher_follows_slowly(epoch: int, decay: float):
    """The hundred epochs are absolute, whatever the length of the training."""
    model = hpm().double()
    with torch.no_grad():
        model.encoder.cls_token.add_(1.0)
    before = model.teacher.encoder.cls_token.clone()
    model.after_step(Progress(0, 1, epoch, 800))
    expected = decay * before + (1 - decay) * model.encoder.cls_token
    torch.testing.assert_close(model.teacher.encoder.cls_token, expected, rtol=0, atol=1e-9)


def test_the_teacher_is_not_trained_and_is_kept():
    model = hpm()
    teacher = {id(p) for p in model.teacher.parameters()}
    groups = model.parameter_groups(1e-3, 0.05)
    assert not teacher & {id(p) for group in groups for p in group["params"]}
    assert {f"teacher.encoder.{n}" for n in model.encoder.state_dict()} <= set(model.state_dict())
    assert not any(block in set(model.teacher.modules()) for block in model.compiled())


@pytest.mark.parametrize(
    ("options", "frozen"), [({}, True), ({"reference": True}, False), ({"relative": False}, False)]
)
def test_biases_that_the_ranking_does_not_see_rest(options: dict, frozen: bool):
    """A constant added to all predictions has rounding for its gradient, of which AdamW makes whole steps."""
    model = hpm(**options)
    biases = [model.predictor.pred.bias, model.predictor.norm.bias]
    before = [bias.clone() for bias in biases]
    steps(model, torch.rand(4, 3, 24, 24), 2)
    assert [torch.equal(*pair) for pair in zip(before, biases, strict=True)] == [frozen] * 2


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"position": "relative"}, "mae_plus"),
        ({"num_class_tokens": 2}, "one class token"),
        ({"num_classes": 3}, "num_classes=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        hpm(**options)


@pytest.mark.parametrize("options", [{}, {"relative": False, "norm_pix_loss": True}])
def test_a_resumed_step_is_equal_and_bfloat16_trains(options: dict):
    assert resumes_exactly(hpm(**options), torch.rand(2, 3, 24, 24))
    assert trains_in_bfloat16(hpm(**options), torch.randn(2, 3, 24, 24))


def test_a_constant_teacher_is_a_collapse():
    model, images = hpm(), torch.rand(2, 1, 3, 24, 24)
    assert model.collapse(Progress()) is None
    model.losses([images])
    assert model.collapse(Progress()) is None
    nn.init.zeros_(model.teacher.predictor.pred.weight)
    model.losses([images])
    assert model.collapse(Progress())


def test_hard_patches_have_a_larger_loss_than_random_ones():
    """Half of each image is noise, half is flat: after a short training the teacher tells them apart."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 24, 24)
    images[:, :, :, :12] = 0.3
    model = hpm()
    logged = steps(model, images, 60, lr=2e-3)
    assert logged[-1]["loss_predictor"] < 0.5 < logged[0]["loss_predictor"]
    model.teacher.follow(model.taught(), 0.0)
    noise = torch.rand(16, 36)
    hard, random = (model.hard_mask(model.teacher(images), noise, epoch, 100) for epoch in (99, 0))
    losses = [model.both_losses(images, mask)[0].item() for mask in (hard, random)]
    assert losses[0] > 1.1 * losses[1]
    figures = model.figures([images[:3].unsqueeze(1)], (0, 0, 0), (1, 1, 1))
    assert {"reconstructions", "hard_patches"} == set(figures)
