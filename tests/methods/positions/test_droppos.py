"""DropPos: its recipe, the numbers that its page says of wrong turns, what it refuses, and that it learns places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.errors import UserError
from adpe.methods.base import Progress
from adpe.methods.positions.droppos import DropPos, smoothed_places
from adpe.methods.self_distillation.clipping import clip_each_grad_norm_
from adpe.parity.cases import GoldenCase, read_directory
from adpe.parity.methods.droppos import _model

ROOT = Path(__file__).resolve().parents[3]
GOLDENS = ROOT / "tests" / "goldens_systems" / "droppos"
TINY = {
    "img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 1,
    "decoder_num_heads": 3,
}  # fmt: skip


def droppos(**options) -> DropPos:
    torch.manual_seed(0)
    return adpe.create_method("droppos", "adpe_vit_tiny_patch4", **{**TINY, **options})


def golden() -> tuple[DropPos, GoldenCase]:
    case = GoldenCase("pretrain", GOLDENS / "pretrain.npz", read_directory(GOLDENS)[0])
    return _model(case), case


def test_recipe_of_vit_base():
    """PRETRAIN.md, scripts and code of Haochen-Wang409/DropPos."""
    cfg = config("configs/pretrain/positions/droppos_vitb_800e.py")
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (2048, 64, 800)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 2048 / 256)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.optimizer.weight_decay) == ("OptimWrapper", 0.05)
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.9, 0.95)
    assert cfg.optim_wrapper.clip_grad == {"type": "each", "max_norm": 5.0}
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.T_max, cosine.eta_min) == (10, 10, 790, 0.0)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 1, (0.2, 1.0))
    assert (crops["interpolation"], crops["hflip"]) == ("bicubic", 0.5)
    model = meta_model("configs/pretrain/positions/droppos_vitb_800e.py").model
    assert (model.mask_ratio, model.pos_mask_ratio, model.sigma, model.smoothing) == (0.75, 0.75, 1.0, "reference")
    assert (model.attn_guide, model.dropped_token, model.multi_task) == (True, "param", 0.0)
    assert (model.encoder.embed_dim, len(model.encoder.blocks), model.encoder.num_heads) == (768, 12, 12)
    decoder = model.decoder
    assert (decoder.embed.out_features, len(decoder.blocks), decoder.pred.out_features) == (512, 2, 196)
    assert decoder.blocks[0].attn.num_heads == 16
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_small_recipe():
    """36 patches of a crop of 24 pixels: 9 are seen, 2 of them with their position."""
    cfg = config("configs/pretrain/positions/cifar10_droppos.py")
    assert cfg.train_dataloader.dataset.crops["size"] == cfg.model.img_size == 24
    cfg.model.update(depth=1, decoder_depth=1)
    model = MODELS.build(cfg.model).model
    assert (model.smoothing, model.decoder.pred.out_features) == ("row", 36)
    draw = model.draw(torch.rand(2, 3, 24, 24))
    assert (draw.mask.visible_indices.shape, draw.dropped.sum(1).tolist()) == ((2, 9), [7, 7])


def test_two_steps_through_the_launcher(tmp_path: Path):
    runner = train_small("positions/cifar10_droppos", tmp_path, {"model.decoder_depth": 1})
    assert runner.iter == 2 and (tmp_path / "work" / "encoder.safetensors").is_file()
    assert runner.optim_wrapper.clip_func is clip_each_grad_norm_
    scalars = runner.message_hub.log_scalars
    assert {"train/loss", "train/accuracy", "train/grad_norm"} <= set(scalars)


def test_targets_add_up_to_one_but_in_the_reference():
    """Section 5 of the page: 0.886 in a corner, up to 1.110 beside the border, 1 inside; the identity below 0.098."""
    ours, theirs = (smoothed_places((14, 14), 1.0, kind) for kind in ("row", "reference"))
    torch.testing.assert_close(ours.sum(1), torch.ones(196))
    sums = theirs.sum(1).view(14, 14)
    assert sums[0, 0].item() == pytest.approx(0.886, abs=1e-3)
    assert sums.max().item() == pytest.approx(1.110, abs=1e-3)
    assert sums[6, 6].item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(smoothed_places((6, 6), 0.098), torch.eye(36))
    assert not torch.equal(smoothed_places((6, 6), 0.11), torch.eye(36))


def test_places_of_a_grid_that_is_not_square():
    target = smoothed_places((2, 3), 1.0)
    assert target[0, 3].item() == pytest.approx(target[0, 1].item())  # below, and to the right
    assert target[0, 2] < target[0, 4]  # two columns away, and one diagonally


@pytest.mark.parametrize(
    ("changes", "loss"),
    [({}, 3.8298), ({"smoothing": "row"}, 3.8050), ({"attn_guide": False}, 3.8030)],
)
def test_losses_of_other_forms(changes: dict, loss: float):
    """On the inputs of the golden `pretrain`; the values are the page's."""
    model, case = golden()
    for name, value in changes.items():
        setattr(model, name, value)
    images = case.arrays["input.images"]
    draw = model.draw(images, case.arrays["input.noise"], case.arrays["input.position_noise"])
    scores = model.decoder(model.encode(images, draw))
    assert model.place_loss(scores, draw, images, 1.0)[0].item() == pytest.approx(loss, abs=6e-5)


def test_the_smoothing_falls_by_epoch():
    """s_0 (1 - e / E): an epoch's iterations share one value, and the last epoch is not without smoothing."""
    model, images = droppos(), torch.rand(4, 1, 3, 24, 24)

    def loss(*progress: int) -> float:
        torch.manual_seed(1)
        return model.losses([images], Progress(*progress))["loss"].item()

    assert loss(0, 40, 0, 4) == loss(9, 40, 0, 4) != loss(10, 40, 1, 4)
    model.sigma = 0.25
    last = loss(0, 1, 0, 1)
    model.sigma = 1.0
    assert loss(39, 40, 3, 4) == last


def test_positions_are_dropped_where_it_is_said():
    """What the encoder is given differs from the patches' own embedding by the position, or by the learned token."""
    model, images = droppos(), torch.rand(2, 3, 24, 24)
    draw = model.draw(images)
    seen: list[torch.Tensor] = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(images, draw)
    table = model.encoder.position_table((6, 6), model.encoder.cls_token)[0, 1:]
    patches = draw.mask.visible_of(model.encoder.patch_embed(images))
    added = seen[0][:, 1:] - patches
    expected = torch.where(draw.dropped.unsqueeze(-1), model.mask_pos_token, table[draw.mask.visible_indices])
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)


def test_gradients_are_clipped_tensor_by_tensor():
    """As one call of torch's a tensor; the others stay, and the largest norm is told."""
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,), (1,))]
    for tensor, scale in zip(tensors[:3], (10.0, 0.01, 3.0), strict=True):
        tensor.grad = scale * torch.randn_like(tensor)
    twins = [nn.Parameter(torch.zeros_like(t)) for t in tensors[:3]]
    for twin, tensor in zip(twins, tensors, strict=False):
        twin.grad = tensor.grad.clone()
    largest = max(float(t.grad.norm()) for t in twins)
    for twin in twins:
        nn.utils.clip_grad_norm_([twin], 1.5)
    assert clip_each_grad_norm_(tensors, 1.5).item() == pytest.approx(largest)
    for twin, tensor in zip(twins, tensors, strict=False):
        torch.testing.assert_close(tensor.grad, twin.grad)
    with pytest.raises(ValueError, match="max_norm=0"):
        clip_each_grad_norm_(tensors, 0)


def test_the_optimiser_wrapper_clips_so():
    cfg = config("configs/pretrain/positions/cifar10_droppos.py")
    cfg.model.update(embed_dim=48, depth=1, num_heads=3, decoder_embed_dim=48, decoder_depth=1)
    model = MODELS.build(cfg.model)
    cfg.optim_wrapper.clip_grad.max_norm = 1e-3
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model(torch.rand(2, 3, 24, 24), mode="loss")
    wrapper.optimizer.register_step_pre_hook(lambda *_: norms.extend(p.grad.norm() for p in model.parameters()))
    norms: list[torch.Tensor] = []
    wrapper.update_params(losses["loss"])
    assert len(norms) == len(list(model.parameters())) and max(norms) <= 1.001e-3
    assert sum(norm > 0.99e-3 for norm in norms) > len(norms) / 2
    cfg.optim_wrapper.clip_grad = {"type": "each", "max_norm": 0}
    with pytest.raises(UserError, match=r"optim_wrapper\.clip_grad"):
        build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"pos_mask_ratio": 0.0}, "pos_mask_ratio=0.0"),
        ({"smoothing": "column"}, "column"),
        ({"dropped_token": "none"}, "none"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"position": "relative"}, "positions"),
        ({"class_token": False}, "class token"),
        ({"num_classes": 3}, "classes"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        droppos(**options)


def test_crops_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 6\).*\(8, 8\)"):
        droppos().losses([torch.rand(1, 1, 3, 32, 32)])


@pytest.mark.parametrize("options", [{}, {"multi_task": 0.05}, {"dropped_token": "wrong_pos"}])
def test_a_resumed_step_is_equal_and_bfloat16_trains(options: dict):
    assert resumes_exactly(droppos(**options), torch.rand(2, 3, 24, 24))
    assert trains_in_bfloat16(droppos(**options), torch.randn(2, 3, 24, 24))


def test_places_are_learned_from_content():
    """Each patch shows its place in its colours: a short training finds it far above the chance of 1 in 36."""
    rows = torch.linspace(-2, 2, 6).repeat_interleave(4)
    ramp = torch.stack([rows.view(-1, 1).expand(24, 24), rows.expand(24, 24), torch.zeros(24, 24)])
    torch.manual_seed(0)
    images = ramp + 0.1 * torch.randn(32, 3, 24, 24)
    model = droppos(sigma=0.0)
    logged = steps(model, images, 90, lr=3e-3)
    assert logged[0]["accuracy"] < 0.1
    assert sum(one["accuracy"] for one in logged[-10:]) / 10 > 0.7
    figures = model.figures([images[:3].unsqueeze(1)], (0, 0, 0), (1, 1, 1))
    assert list(figures) == ["places"]
