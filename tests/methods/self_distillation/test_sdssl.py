"""SDSSL on MoCo v3, BYOL and SimCLR: recipes, what learns from what, batches, guards, and that it learns."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

pytest.importorskip("mmengine")
from built_configs import EPOCH_LENGTH, config, meta_model, schedule
from mmengine.registry import MODELS
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16
from torch import nn

import adpe
from adpe.checkpoints.loading import load_encoder
from adpe.data.views.multicrop import MultiCrop
from adpe.errors import UserError
from adpe.methods.base import Progress
from adpe.methods.self_distillation.sdssl import SDSSL, row_first_table

BASES = ("moco", "byol", "simclr")
TINY = {"img_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "hidden": 32, "out_dim": 16}
SMALL_RUN = {"model.out_dim": 16, "model.hidden": 32, "model.depth": 2}


def sdssl(base: str = "moco", **options) -> SDSSL:
    torch.manual_seed(0)
    return adpe.create_method("sdssl", "adpe_vit_tiny_patch4", base=base, **{**TINY, **options})


def two_views(images: int = 6, seed: int = 0) -> list[torch.Tensor]:
    return [torch.randn(images, 2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("base", BASES)
def test_recipe_of_vit_base(base: str):
    """The JSON files of hagiss/SDSSL; rates of single steps by hand. The number of GPUs is ours."""
    name = f"configs/pretrain/self_distillation/sdssl_{base}_vitb_300e.py"
    cfg = config(name)
    peak = (1.3e-4 if base == "simclr" else 1.5e-4) * 1024 / 256
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (1024, 128, 300)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)) == (pytest.approx(peak), 0.1, (0.9, 0.999))
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.get("clip_grad"), cfg.sync_bn) == ("OptimWrapper", None, "torch")
    rates = schedule(json.dumps(cfg.param_scheduler), 300 * EPOCH_LENGTH)
    warmup, cosine = 40 * EPOCH_LENGTH, 260 * EPOCH_LENGTH
    assert [rates[0], rates[1], rates[warmup - 1]] == pytest.approx([0, 1 / (warmup - 1), 1])
    for step in (0, 700, cosine - 1):
        assert rates[warmup + step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / cosine)))
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 2, (0.08, 1.0))
    assert (crops["interpolation"], crops["hflip"]) == ("bilinear", 0.5)
    for colors, blur, solarize in zip(MultiCrop(**crops).colors, (1.0, 0.1), (0.0, 0.2), strict=True):
        assert (colors.jitter, colors.jitter_p, colors.grey_p) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (colors.blur_p, colors.radius, colors.solarize_p) == (blur, (0.1, 2.0), solarize)
    model = meta_model(name).model
    encoder = model.encoder
    assert (model.base, model.self_distillation, model.ratio) == (base, True, 1.0 if base == "moco" else 0.8)
    assert (model.temperature, model.momentum) == (0.2, 0.996)
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (768, 12, 12, 16)
    widths = [[m.out_features for m in head if isinstance(m, nn.Linear)] for head in model.projector]
    assert widths == [[2048, 2048, 256]] * 11 + [[4096, 4096, 256]]
    widths = [[m.out_features for m in head if isinstance(m, nn.Linear)] for head in model.predictor]
    assert widths == ([] if base == "simclr" else [[4096, 256]] * 12)
    # No norm behind BYOL's heads; in the others one without parameters.
    ends = {type(head[-1]) for head in (*model.projector, *model.predictor)}
    assert ends == ({nn.Linear} if base == "byol" else {nn.BatchNorm1d})
    decayed = {id(p) for p in model.parameter_groups(1.0, 0.1)[0]["params"]}
    spared = {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in decayed}
    assert all(n.endswith(".bias") or dict(model.named_parameters())[n].ndim == 1 for n in spared)
    assert "encoder.cls_token" not in spared


@pytest.mark.parametrize("base", BASES)
def test_baselines_are_an_option_and_have_its_name(base: str):
    name = {"moco": "MoCo v3", "byol": "BYOL", "simclr": "SimCLR"}[base]
    for own in ({}, {"self_distillation": False}):
        cfg = config(f"configs/pretrain/self_distillation/cifar10_sdssl_{base}.py", own)
        assert cfg.record.method == ("" if own else "SD-") + name
        cfg.model.update(depth=2, hidden=64)
        model = MODELS.build(cfg.model).model
        assert (model.title, len(model.projector)) == (cfg.record.method, 1 if own else 2)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size) == (256, 256)


def test_initialisation():
    torch.manual_seed(0)
    model = adpe.create_method("sdssl", "adpe_vit_small_patch4", img_size=24, depth=2, hidden=64, out_dim=16)
    encoder, width = model.encoder, 384
    for weight, bound in (
        (encoder.patch_embed.proj.weight, math.sqrt(6 / (3 * 16 + width))),
        (encoder.blocks[0].attn.qkv.weight, math.sqrt(6 / (2 * width))),
        (encoder.blocks[0].mlp.fc1.weight, math.sqrt(6 / (5 * width))),
    ):
        assert bound * 0.99 < weight.abs().max() <= bound
    assert encoder.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    table = encoder.pos_embed[0]
    # Row 1, column 0: the first channel is sin(row), the middle one sin(column).
    assert table[1 + 6, [0, width // 2]].tolist() == pytest.approx([math.sin(1), 0.0])
    assert torch.equal(encoder.pos_embed, row_first_table(6, 6, width))
    assert not [p for p in encoder.patch_embed.parameters() if p.requires_grad] and not encoder.norm.bias.requires_grad
    for mine, theirs in zip(model.teacher["encoder"].parameters(), encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad


def gradients(model: SDSSL, part: str) -> set[str]:
    """Which of encoder, lower and last projectors and predictors a part of the loss reaches."""
    first, second = two_views()[0].unbind(1)
    model.zero_grad()
    getattr(model.parts(first, second, 0.5), part).backward()
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-12:
            module, _, rest = name.partition(".")
            last = rest.startswith(f"{len(model.projector) - 1}.")
            found.add(module if module == "encoder" else f"{module} {'last' if last else 'lower'}")
    return found


@pytest.mark.parametrize("base", ["moco", "byol"])
def test_what_learns_from_what(base: str):
    model = sdssl(base)
    assert gradients(model, "last") == {"encoder", "projector last", "predictor last"}
    assert gradients(model, "mid") == {"encoder", "projector lower", "predictor lower"}
    assert gradients(model, "detached") == {"predictor lower", "predictor last"}


def test_what_learns_from_what_in_simclr():
    model = sdssl("simclr")
    assert gradients(model, "last") == {"encoder", "projector last"}
    assert gradients(model, "mid") == {"encoder", "projector lower"}


@pytest.mark.parametrize("base", BASES)
def test_losses_at_the_start_and_their_weights(base: str):
    """The parts by name, weighted by the schedule; a baseline has the last layer's alone."""
    model, views = sdssl(base), two_views(8)
    torch.manual_seed(1)
    halfway = model.losses(views, Progress(50, 100))
    first, second = views[0].unbind(1)
    parts = model.parts(first, second, 1.0)
    ratio = model.ratio / 2
    assert float(halfway["mid_weight"]) == pytest.approx(ratio)
    assert halfway["loss_mid"].item() == pytest.approx(ratio * parts.mid.item(), rel=1e-3)
    if base != "simclr":
        assert halfway["loss_detached"].item() == pytest.approx(3 * parts.detached.item(), rel=1e-3)
    about = {"moco": 0.8 * math.log(8), "byol": 4.0, "simclr": math.log(15)}[base]
    assert halfway["loss_last"].item() == pytest.approx(about, rel=0.6)
    assert set(sdssl(base, self_distillation=False).losses(views)) == {"loss_last", "mid_weight"}


@pytest.mark.parametrize("base", BASES)
def test_two_steps_through_the_launcher(base: str, tmp_path: Path):
    """What is exported is the teacher's encoder, SimCLR's own, with a table of positions that other tasks resize."""
    runner = train_small(f"self_distillation/cifar10_sdssl_{base}", tmp_path, SMALL_RUN)
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    prefix = "model.encoder." if base == "simclr" else "model.teacher.encoder."
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert json.loads(next(iter(file.metadata().values())))["method"] == runner.cfg.record.method
        assert {f"encoder.{name.removeprefix(prefix)}" for name in state if name.startswith(prefix)} == {*file.keys()}
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name), state[prefix + name.removeprefix("encoder.")]), name
    loaded = load_encoder(tmp_path / "work" / "encoder.safetensors", verbose=False)
    assert torch.equal(loaded.pos_embed, row_first_table(6, 6, 48))
    assert {"train/loss_last", "train/loss_mid", "train/mid_weight"} <= set(runner.message_hub.log_scalars)
    if base != "simclr":
        moved = state["model.teacher.encoder.blocks.0.mlp.fc1.weight"]
        assert not torch.equal(moved, state["model.encoder.blocks.0.mlp.fc1.weight"])
        # What is frozen is the same to the bit, whatever the momentum.
        assert torch.equal(
            state["model.teacher.encoder.patch_embed.proj.weight"], state["model.encoder.patch_embed.proj.weight"]
        )


def test_accumulation_is_refused_for_it_changes_the_loss(tmp_path: Path):
    with pytest.raises(UserError, match=r"train_dataloader\.batch_size=4.*effective_batch=2"):
        train_small("self_distillation/cifar10_sdssl_moco", tmp_path, {**SMALL_RUN, "train_dataloader.batch_size": 2})


@pytest.mark.parametrize("base", BASES)
def test_a_resumed_step_is_equal_and_bfloat16_trains(base: str):
    """The teacher, its BatchNorms' statistics and the spread are part of the state."""
    assert resumes_exactly(sdssl(base), two_views())
    assert trains_in_bfloat16(sdssl(base, temperature=1.0), two_views(32))


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for base in ("moco", "simclr"):
        vectors, target = given()
        own = slice(4 * rank, 4 * rank + 4)
        mine = (vectors[:, :, own] if base == "simclr" else vectors[:, 0, own]).clone().requires_grad_()
        loss = whole(sdssl(base), mine, target[own])
        loss.backward()
        for tensor in (loss.detach(), mine.grad):
            tensor /= 2  # DistributedDataParallel averages over processes
        total = loss.detach().clone()
        dist.all_reduce(total)
        found[base] = (total, mine.grad)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def given() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors ``(layers, views, B, E)`` and the teacher's ``(B, E)`` of eight images."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, 2, 8, 16, generator=generator), torch.randn(8, 16, generator=generator)


def whole(model: SDSSL, vectors: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if model.base == "moco":
        return model.compare(vectors, target).mean()
    parts = model.contrast(F.normalize(vectors, dim=-1).flatten(1, 2))
    return parts.last + 0.5 * parts.mid


@pytest.mark.slow(15)
def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path):
    """Keys of other processes are negatives, and in SimCLR carry gradients to where they come from."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for base in ("moco", "simclr"):
        vectors, target = given()
        mine = (vectors if base == "simclr" else vectors[:, 0]).clone().requires_grad_()
        loss = whole(sdssl(base), mine, target)
        loss.backward()
        assert ranks[0][base][0].item() == pytest.approx(loss.item(), rel=1e-5)
        both = torch.cat([rank[base][1] for rank in ranks], dim=-2)
        torch.testing.assert_close(both, mine.grad, rtol=1e-4, atol=1e-7)


def test_constant_targets_are_a_collapse():
    model = sdssl("byol")
    model.losses(two_views(32))
    assert model.collapse(Progress()) is None
    assert model.scalars() == {"targets/spread": pytest.approx(float(model.spread))} and 0.2 < model.spread < 1.1
    with torch.no_grad():
        model.teacher["projector"][-1].weight.zero_()[:, :].add_(1.0)
    model.losses(two_views(32))
    assert str(round(float(model.spread), 3)) in model.collapse(Progress())
    model.spread.fill_(math.nan)
    assert model.collapse(Progress()) is not None


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"base": "dino"}, "dino"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"hidden": 31}, "hidden=31"),
        ({"learned_pos_embed": False}, "learned_pos_embed"),
        ({"num_classes": 3}, "no classes"),
        ({"class_token": False}, "class token"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        sdssl(**options)


@pytest.mark.parametrize(
    ("views", "key"),
    [
        ([torch.randn(4, 1, 3, 16, 16)], "num_crops=2"),
        ([torch.randn(4, 1, 3, 16, 16), torch.randn(4, 1, 3, 8, 8)], "num_crops=2"),
        ([torch.randn(1, 2, 3, 16, 16)], "batch_size"),
    ],
)
def test_views_that_cannot_be_are_refused(views: list[torch.Tensor], key: str):
    with pytest.raises(UserError, match=key):
        sdssl().losses(views)


@pytest.mark.parametrize("base", BASES)
def test_it_learns_to_find_the_other_view_and_draws(base: str):
    """Two noisy views of the same picture get nearer to each other than to other pictures."""
    torch.manual_seed(3)
    pictures = torch.randn(24, 1, 3, 4, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    views = pictures + 0.5 * torch.randn(24, 2, 3, 16, 16)
    model = sdssl(base, momentum=0.9)

    def found() -> float:
        with torch.no_grad():
            one, other = (F.normalize(model.class_tokens(view)[-1], dim=-1) for view in views.unbind(1))
        one, other = one - one.mean(0), other - other.mean(0)
        return float(((one @ other.T).argmax(1) == torch.arange(24)).float().mean())

    before = found()
    logged = steps(model, [views], 30, lr=2e-3, progress=Progress(50, 100))
    assert logged[-1]["loss_last"] < 0.5 * logged[0]["loss_last"]
    assert logged[-1]["loss_mid"] < 0.8 * logged[0]["loss_mid"]
    assert found() > before + 0.1
    assert set(model.figures([views[:3]], (0, 0, 0), (1, 1, 1))) == {"views"}
