"""SelfPatch: its recipe, neighbours at the edge, what rests and resumes, its export, collapse, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from built_configs import EPOCH_LENGTH, config, meta_model, schedule
from safetensors import safe_open
from same_training import assert_same_training
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.data.views.multicrop import MultiCrop
from adpe.methods.base import Progress
from adpe.methods.self_distillation.selfpatch import SelfPatch, neighbour_table

TINY = {
    "img_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "prototypes": 64, "patch_prototypes": 32,
    "hidden": 32, "bottleneck": 16,
}  # fmt: skip
LATER = Progress(10, 100, 1, 10)
SMALL_RUN = {"model.hidden": 32, "model.bottleneck": 16, "model.prototypes": 32}


def selfpatch(**options) -> SelfPatch:
    torch.manual_seed(0)
    return adpe.create_method("selfpatch", "adpe_vit_tiny_patch4", **{**TINY, **options})


def views(batch: int = 4, local: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(2, 16), (local, 12)] if local else [(2, 16)]
    return [torch.randn(batch, count, 3, side, side, generator=generator) for count, side in sizes]


@pytest.mark.parametrize(("name", "weight"), [("selfpatch", 0.1), ("dino", 0.0)])
def test_published_recipe(name: str, weight: float):
    """The table of defaults of main_selfpatch.py (alinlab/SelfPatch)."""
    name = f"configs/pretrain/{name}_vits_300e.py"
    cfg = config(name)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (1024, 128, 300)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)) == (pytest.approx(2e-3), 0.04, (0.9, 0.999))
    assert cfg.optim_wrapper.clip_grad == {"type": "each", "max_norm": 3.0}
    rates = schedule(json.dumps(cfg.param_scheduler[:1]), 300 * EPOCH_LENGTH)
    warmup, after = 10 * EPOCH_LENGTH, 290 * EPOCH_LENGTH
    assert (rates[0], rates[warmup - 1], rates[warmup]) == (0.0, pytest.approx(1.0), pytest.approx(1.0))
    assert rates[1] == pytest.approx(1 / (warmup - 1))
    middle = 5e-4 + 0.5 * (1 - 5e-4)  # 1e-6 is 5e-4 of the peak
    assert rates[warmup + after // 2] == pytest.approx(middle) and rates[-1] == pytest.approx(5e-4, rel=0.01)
    decay = cfg.param_scheduler[1]
    assert (decay.param_name, decay.get("warmup", 0), decay.total) == ("weight_decay", 0, 300)
    assert decay.last * optimizer.weight_decay == pytest.approx(0.4)
    large, small = (MultiCrop(**group) for group in cfg.train_dataloader.dataset.crops)
    assert (large.size, large.num_crops, large.scale) == (224, 2, (0.25, 1.0))
    assert (small.size, small.num_crops, small.scale) == (96, 8, (0.05, 0.25))
    for crops, blurs, solarized in ((large, [1.0, 0.1], [0.0, 0.2]), (small, [0.5] * 8, [0.0] * 8)):
        assert [(c.blur_p, c.solarize_p) for c in crops.colors] == list(zip(blurs, solarized, strict=True))
        assert {(c.jitter, c.jitter_p, c.grey_p, c.radius, c.threshold) for c in crops.colors} == {
            ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.1, 2.0), 128)
        }
        assert (crops.interpolation, crops.hflip, crops.ratio) == ("bicubic", 0.5, (3 / 4, 4 / 3))
    model = meta_model(name).model
    encoder = model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (384, 12, 6, 16)
    assert (encoder.num_prefix_tokens, tuple(encoder.pos_embed.shape), encoder.pos_embed_resize) == (
        0, (1, 197, 384), "dino",
    )  # fmt: skip
    heads = (model.student.c_head, model.student.p_head)
    assert [head.last_layer.weight_v.shape for head in heads] == [(65536, 256), (4096, 256)]
    assert [head.mlp[0].out_features for head in heads] == [2048, 2048]
    assert not any(head.last_layer.weight_g.requires_grad for head in heads)
    rates = [[block.drop_path.rate for block in net.encoder.blocks] for net in (model.student, model.teacher)]
    assert rates == [pytest.approx([0.1 * i / 11 for i in range(12)]), [0.0] * 12]
    assert (model.neighbours, model.neighbourhood, model.patch_loss_weight) == (4, "inside", weight)
    assert (model.student_temp, model.temperatures, model.center_momentum) == (0.1, (0.04, 0.04, 0), 0.9)
    assert (model.momentum, model.freeze_last_layer) == (0.996, 1)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert len(model.student.ca_head.cls_blocks) == 2 and model.student.ca_head.cls_blocks[0].attn.num_heads == 6


def test_initialisation():
    """Of the page: normal with std 0.02, biases 0, torch's own patch convolution and prototypes, a copy for teacher."""
    model = selfpatch(embed_dim=192, prototypes=512, bottleneck=64)
    encoder = model.encoder
    matrices = [m.weight for m in model.student.modules() if isinstance(m, nn.Linear)]
    assert [m.std().item() for m in matrices] == pytest.approx([0.02] * len(matrices), rel=0.1)
    assert max(m.bias.abs().max() for m in model.student.modules() if isinstance(m, nn.Linear)) == 0
    assert encoder.pos_embed[:, 1:].std().item() == pytest.approx(0.02, rel=0.1)
    assert encoder.pos_embed[:, 0].abs().max() == 0
    assert model.student.ca_head.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    bound = 1 / (3 * 4 * 4) ** 0.5
    assert encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.student.c_head.last_layer.weight_v.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    teacher = model.teacher.state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in model.student.state_dict().items())


def test_two_steps_through_the_launcher(tmp_path: Path):
    """Crops of two sizes; frozen prototypes pass the gradient guard; teacher and centres are in the checkpoint."""
    runner = train_small("self_distillation/cifar10_selfpatch", tmp_path, SMALL_RUN)
    assert runner.iter == 2
    assert {"train/loss_cls", "train/loss_patch", "train/entropy"} <= set(runner.message_hub.log_scalars)
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert state["model.center"].abs().max() > 0 and state["model.patch_center"].abs().max() > 0
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(state[f"model.teacher.{name}"], state[f"model.student.{name}"])
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(name), state[f"model.teacher.{name}"])
        assert torch.equal(file.get_tensor("encoder.norm.weight"), state["model.teacher.ca_head.norm.weight"])
        assert all(key.startswith("encoder.") for key in [*file.keys()])
        said = json.loads(next(iter(file.metadata().values())))
        assert (said["method"], said["pretrain_img_size"], said["class_token"]) == ("SelfPatch", [32, 32], False)


def test_the_export_is_read_and_is_the_teacher_with_the_heads_norm(tmp_path: Path):
    train_small("self_distillation/cifar10_selfpatch", tmp_path, SMALL_RUN)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch4", img_size=32, embed_dim=48, depth=1, num_heads=3,
                                  class_token=False, learned_pos_embed=True)  # fmt: skip
    report = adpe.load_checkpoint(encoder, tmp_path / "work" / "encoder.safetensors")
    assert not report.missing
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    prefix = "model.teacher.encoder."
    encoder_of_run = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, encoder_of_run["blocks.0.mlp.fc1.weight"])
    assert encoder.forward_features(torch.rand(2, 3, 32, 32)).shape == (2, 64, 48)


@pytest.mark.parametrize("name", ["self_distillation/cifar10_selfpatch", "self_distillation/cifar10_dino"])
def test_a_resumed_run_ends_as_the_one_it_is_resumed_from(name: str, tmp_path: Path):
    """Teacher, centres, moments, schedules, crops and colours, bit by bit, over the end of the frozen epoch."""
    options = {**SMALL_RUN, "epochs": 2, "default_hooks.checkpoint.interval": 1}
    train_small(name, tmp_path, options)
    train_small(name, tmp_path, options, resume=tmp_path / "work" / "epoch_1.pth")
    assert_same_training(tmp_path / "work" / "epoch_2.pth", tmp_path / "again" / "epoch_2.pth")


def test_prototypes_rest_in_the_first_epoch():
    """Neither moved by gradients nor by decay; they move after it."""
    model = selfpatch()
    before = [p.clone() for p in model.resting(Progress())]
    assert len(before) == 4
    steps(model, views(), 2)
    assert all(torch.equal(*pair) for pair in zip(before, model.resting(Progress()), strict=True))
    assert model.resting(LATER) == []
    steps(model, views(), 1, progress=LATER)
    assert not torch.equal(before[0], model.student.c_head.last_layer.weight_v)
    assert torch.equal(before[1], model.student.c_head.last_layer.weight_g)


@pytest.mark.parametrize("torus", [True, False])
def test_neighbours(torus: bool):
    """The page's corner of a 4 x 4 grid; inside an image 3, 5 or 8 of them."""
    table, there = neighbour_table(4, 4, torus)
    if torus:
        assert table[0].tolist() == [1, 3, 4, 5, 7, 12, 13, 15] and bool(there.all())
        return
    assert there.sum(1).tolist() == [3, 5, 5, 3, 5, 8, 8, 5, 5, 8, 8, 5, 3, 5, 5, 3]
    assert table[0][there[0]].tolist() == [1, 4, 5]
    assert neighbour_table(3, 5, torus)[1].sum(1).tolist() == [3, 5, 5, 5, 3, 5, 8, 8, 8, 5, 3, 5, 5, 5, 3]


def test_a_corner_sees_its_three_neighbours_alone():
    """Neither its opposite edge, nor itself, which stands in the table where there is none."""
    model = selfpatch()
    x = torch.randn(1, 16, 48)
    _, _, chosen, mask = model.choose(x, (4, 4))
    assert sorted(chosen[0, 0][mask[0, 0]].tolist()) == [1, 4, 5]
    head = model.teacher.ca_head
    before = head.of_neighbours(x, chosen, mask)[0, 1]
    for patch, changes in ((0, False), (3, False), (15, False), (5, True)):
        y = x.clone()
        y[0, patch] += torch.randn(48)  # not a constant, which LayerNorm removes
        assert bool((head.of_neighbours(y, chosen, mask)[0, 1] - before).abs().max() > 1e-4) is changes


def test_similarities_are_float32_under_autocast():
    model, x = selfpatch(), torch.randn(2, 16, 48)
    exact = model.choose(x, (4, 4))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.choose(x, (4, 4))[0], exact)


def test_the_weight_of_the_patches():
    """0.1 of it against 1: the patches' loss is ten times as large, that of the class vector is the same."""
    one, other = (selfpatch(patch_loss_weight=weight).losses(views()) for weight in (0.1, 1.0))
    torch.testing.assert_close(one["loss_cls"], other["loss_cls"])
    torch.testing.assert_close(10 * one["loss_patch"], other["loss_patch"])


def test_no_local_crops():
    found = selfpatch().losses(views(local=0))
    assert found["loss_cls"].isfinite() and found["loss_patch"].isfinite()


def test_a_resumed_step_is_equal_and_bfloat16_trains():
    assert resumes_exactly(selfpatch(drop_path_rate=0.1), views())
    assert trains_in_bfloat16(selfpatch(), views())


def test_the_teacher_is_not_trained():
    model = selfpatch()
    trained = {id(p) for group in model.parameter_groups(1e-3, 0.04) for p in group["params"]}
    assert not trained & {id(p) for p in model.teacher.parameters()}
    decayed, plain = ({id(p) for p in group["params"]} for group in model.parameter_groups(1e-3, 0.04))
    assert {id(model.encoder.pos_embed), id(model.student.ca_head.cls_token)} <= decayed
    assert id(model.encoder.blocks[0].norm1.weight) in plain


def test_the_teacher_moves_as_the_momentum_says():
    model = selfpatch(momentum=0.9)
    with torch.no_grad():
        model.student.ca_head.cls_token.add_(1.0)
    before = model.teacher.ca_head.cls_token.clone()
    model.after_step(Progress(50, 100, 0, 1))
    expected = 0.95 * before + 0.05 * model.student.ca_head.cls_token  # half of the way from 0.9 to 1
    torch.testing.assert_close(model.teacher.ca_head.cls_token, expected)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"class_token": True}, "class_token"),
        ({"neighbours": 9}, "neighbours"),
        ({"neighbourhood": "sphere"}, "sphere"),
        ({"teacher_temp": 0.0}, "temperatures"),
        ({"patch_loss_weight": -1.0}, "patch_loss_weight"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        selfpatch(**options)


def test_crops_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 x 2"):
        selfpatch().losses([torch.rand(2, 2, 3, 8, 8)])
    with pytest.raises(ValueError, match="got 3"):
        selfpatch().losses([torch.rand(2, 3, 3, 16, 16)])


def test_a_constant_teacher_is_a_collapse():
    model = selfpatch()
    model.losses(views())
    assert model.collapse(Progress()) is None
    nn.init.zeros_(model.teacher.c_head.mlp[0].weight)
    model.losses(views())
    assert model.collapse(Progress())


def test_it_learns_which_crops_are_of_one_image():
    """Four colours: the loss falls well below that of a constant answer, ln 64 of the classes."""
    torch.manual_seed(0)
    colors = torch.randn(8, 1, 3, 1, 1) * 2
    groups = [colors + 0.1 * torch.randn(8, count, 3, side, side) for count, side in ((2, 16), (2, 12))]
    model = selfpatch(momentum=0.95)
    logged = steps(model, groups, 60, lr=2e-3, progress=LATER)
    assert logged[-1]["loss_cls"] < 0.6 * logged[0]["loss_cls"]
    assert logged[-1]["loss_patch"] < 0.9 * logged[0]["loss_patch"]
    assert model.collapse(Progress()) is None
    assert set(model.figures(groups, (0, 0, 0), (1, 1, 1))) == {"neighbours"}
