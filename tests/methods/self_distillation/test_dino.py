"""DINO: its small recipe, what rests and resumes, its export, collapse, any number of channels; and it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.methods.base import Progress
from adpe.methods.self_distillation.dino import cosine_to_one, teacher_temperature
from adpe.methods.self_distillation.dino_method import DINO

TINY = {
    "img_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "prototypes": 64, "hidden": 32, "bottleneck": 16,
}  # fmt: skip
LATER = Progress(10, 100, 1, 10)


def dino(**options) -> DINO:
    torch.manual_seed(0)
    return adpe.create_method("dino", "adpe_vit_tiny_patch4", **{**TINY, **options})


def views(batch: int = 4, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 2, channels, side, side, generator=generator) for side in (16, 8)]


@pytest.mark.parametrize("name", ["self_distillation/cifar10_dino", "self_distillation/cifar10_selfpatch"])
def test_small_recipes(name: str):
    cfg = config(f"configs/pretrain/{name}.py")
    crops = [(group["size"], group["num_crops"], tuple(group["scale"])) for group in cfg.train_dataloader.dataset.crops]
    assert crops == [(32, 2, (0.25, 1.0)), (16, 4, (0.05, 0.25))]
    assert (cfg.optim_wrapper.optimizer.lr, cfg.effective_batch, cfg.train_cfg.max_epochs) == (1e-3, 512, 100)
    model = meta_model(f"configs/pretrain/{name}.py").model
    assert (model.encoder.embed_dim, len(model.encoder.blocks), model.encoder.patch_size) == (192, 12, 4)
    assert model.center.shape[-1] == 1024


def test_initialisation():
    encoder = dino(embed_dim=192).encoder
    for tensor in (encoder.pos_embed, encoder.cls_token, encoder.blocks[1].mlp.fc1.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.2)
    assert encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx(48**-0.5, rel=0.01)


def test_two_steps_through_the_launcher(tmp_path: Path):
    options = {"model.hidden": 32, "model.bottleneck": 16, "model.prototypes": 32}
    runner = train_small("self_distillation/cifar10_dino", tmp_path, options)
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert state["model.center"].abs().max() > 0
    frozen = "head.last_layer.weight_v"  # for the first epoch: teacher and student have it alike
    torch.testing.assert_close(state[f"model.teacher.{frozen}"], state[f"model.student.{frozen}"])
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("encoder.cls_token"), state["model.teacher.encoder.cls_token"])
        assert all(key.startswith("encoder.") for key in [*file.keys()])


@pytest.mark.parametrize("batch", [4, 2])
def test_schedules_run_to_the_end_of_the_training(tmp_path: Path, batch: int):
    """Three epochs under the Runner, with and without accumulation: rate and decay of the last iteration."""
    options = {
        "model.hidden": 32, "model.bottleneck": 16, "model.prototypes": 32, "epochs": 3, "warmup_epochs": 1,
        "train_dataloader.batch_size": batch,
    }  # fmt: skip
    runner = train_small("self_distillation/cifar10_dino", tmp_path, options)
    length = 8 // batch
    assert runner.iter == 3 * length
    decay, plain = runner.optim_wrapper.optimizer.param_groups
    last, cosine = 3 * length - 1, lambda share: 0.5 * (1 + math.cos(math.pi * share))
    rate = 1e-6 + (1e-3 - 1e-6) * cosine((last - length) / (2 * length))
    assert [decay["lr"], plain["lr"]] == pytest.approx([rate] * 2)
    assert decay["weight_decay"] == pytest.approx(0.4 + (0.04 - 0.4) * cosine(last / (3 * length)))
    assert plain["weight_decay"] == 0


def test_loss_by_hand():
    """Two prototypes, two global crops: the cross-entropies of the two pairs."""
    model = dino(prototypes=2, student_temp=0.5)
    student, teacher = torch.tensor([[0.2, 0.1], [0.0, 0.3]]), torch.tensor([[0.1, 0.0], [0.2, 0.5]])
    model.center.copy_(torch.tensor([[0.05, 0.1]]))

    def entropy(q: list[float], p: list[float]) -> float:
        weights, scores = [math.exp(x / 0.04) for x in q], [math.exp(x / 0.5) for x in p]
        return -sum(w / sum(weights) * math.log(s / sum(scores)) for w, s in zip(weights, scores, strict=True))

    expected = (entropy([0.05, -0.1], [0.0, 0.3]) + entropy([0.15, 0.4], [0.2, 0.1])) / 2
    assert model.distill(student, teacher, 2, 0.04).item() == pytest.approx(expected, rel=1e-5)


def test_prototypes_rest_in_the_first_epoch():
    model = dino()
    before = model.student.head.last_layer.weight_v.clone()
    steps(model, views(), 2)
    assert torch.equal(before, model.student.head.last_layer.weight_v)
    steps(model, views(), 1, progress=LATER)
    assert not torch.equal(before, model.student.head.last_layer.weight_v)


def test_schedules_of_the_teacher():
    assert [teacher_temperature(epoch, 0.04, 0.07, 4) for epoch in range(5)] == pytest.approx(
        [0.04, 0.05, 0.06, 0.07, 0.07]
    )
    assert [cosine_to_one(0.996, step, 100) for step in (0, 50)] == pytest.approx([0.996, 0.998])
    assert cosine_to_one(0.996, 99, 100) < 1


@pytest.mark.parametrize("channels", [3, 14])
def test_a_resumed_step_is_equal_and_bfloat16_trains(channels: int):
    model = dino(in_chans=channels, drop_path_rate=0.1)
    assert model.title == ("DINO" if channels == 3 else "DINO-MM")
    assert resumes_exactly(model, views(channels=channels))
    assert trains_in_bfloat16(dino(in_chans=channels), views(channels=channels))


@pytest.mark.parametrize(
    ("options", "key"), [({"class_token": False}, "class token"), ({"student_temp": 0.0}, "temperatures")]
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        dino(**options)


def test_one_global_crop_is_refused():
    with pytest.raises(ValueError, match="got 1"):
        dino().losses([torch.rand(2, 1, 3, 16, 16)])


def test_a_constant_teacher_is_a_collapse():
    model = dino()
    model.losses(views())
    assert model.collapse(Progress()) is None
    nn.init.zeros_(model.teacher.head.mlp[0].weight)
    model.losses(views())
    assert model.collapse(Progress())


def test_it_learns_which_crops_are_of_one_image():
    torch.manual_seed(0)
    colors = torch.randn(8, 1, 3, 1, 1) * 2
    groups = [colors + 0.1 * torch.randn(8, 2, 3, side, side) for side in (16, 8)]
    model = dino(momentum=0.95)
    logged = steps(model, groups, 60, lr=2e-3, progress=LATER)
    assert logged[-1]["loss"] < 0.6 * logged[0]["loss"]
    assert model.collapse(Progress()) is None
    assert set(model.figures(groups, (0, 0, 0), (1, 1, 1))) == {"likeness"}
