"""Masks without learning: ColorMAE's filtered noise and Pixio's blocks, their recipes and statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.errors import UserError
from adpe.methods.mae import MAE
from adpe.methods.masks.masking import rank_mask
from adpe.methods.masks.rankings import BankRanking, BlockRanking, ColorRanking

TINY = {
    "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 1,
    "decoder_num_heads": 3,
}  # fmt: skip


def masked(method: str = "mae", **options) -> MAE:
    torch.manual_seed(0)
    return adpe.create_method(method, "adpe_vit_tiny_patch4", **{**TINY, **options})


def alike(hidden: torch.Tensor, grid: int) -> float:
    """Share of neighbouring patches that are both hidden or both visible; 0.625 for independent ones at 0.75."""
    state = hidden.bool().view(-1, grid, grid)
    pairs = [state[:, 1:] == state[:, :-1], state[:, :, 1:] == state[:, :, :-1]]
    return float(torch.cat([pair.flatten() for pair in pairs]).float().mean())


@pytest.mark.parametrize("epochs", [300, 800, 1600])
def test_recipe_of_colormae(epochs: int):
    """README of carlosh93/ColorMAE: mmpretrain's MAE with 8 x 512 images."""
    name = "configs/pretrain/masks/mae_colormask_vitb_800e.py"
    cfg = config(name, {"epochs": epochs})
    assert (cfg.effective_batch, cfg.train_cfg.max_epochs) == (4096, epochs)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 16)
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.T_max, cosine.eta_min) == (40, epochs - 40, 0.0)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 1, (0.2, 1.0))
    model = meta_model(name).model
    assert (model.title, model.ranking.color, model.ranking.sigma) == ("MAE", "green", (1.0, 2.0))
    assert (len(model.decoder.blocks), model.decoder.pred.in_features, model.mask_ratio) == (8, 512, 0.75)


def test_recipe_of_pixio():
    """scripts/pretrain of facebookresearch/pixio, on ImageNet."""
    name = "configs/pretrain/masks/pixio_vith_400e.py"
    cfg = config(name)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (8192, 64, 400)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2.5e-5 * 32)
    assert (cfg.optim_wrapper.optimizer.weight_decay, tuple(cfg.optim_wrapper.optimizer.betas)) == (0.05, (0.9, 0.95))
    assert cfg.param_scheduler[0].end == 40
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (256, 1, (0.2, 1.0))
    model = meta_model(name).model
    encoder, decoder = model.encoder, model.decoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (1280, 32, 16, 16)
    assert tuple(encoder.cls_token.shape) == (1, 8, 1280) and tuple(encoder.pos_embed.shape) == (1, 8 + 256, 1280)
    assert tuple(decoder.pos_embed.shape) == (1, 8 + 256, 512)
    assert (len(decoder.blocks), decoder.num_heads, model.ranking.side, model.mask_ratio) == (32, 16, 4, 0.75)
    assert encoder.blocks[-1].drop_path.rate == 0.4
    decayed = {id(p) for g in model.parameter_groups(1.0, 0.05) if g["weight_decay"] for p in g["params"]}
    assert {id(encoder.pos_embed), id(decoder.pos_embed), id(encoder.cls_token)} <= decayed


@pytest.mark.parametrize("name", ["masks/cifar10_mae_plus_colormask", "masks/cifar10_mae_plus_blocks"])
def test_two_steps_through_the_launcher(name: str, tmp_path: Path):
    narrow = {"model.decoder_embed_dim": 48, "model.decoder_depth": 1, "model.decoder_num_heads": 3}
    assert train_small(name, tmp_path, narrow).iter == 2
    assert (tmp_path / "work" / "encoder.safetensors").is_file()


@pytest.mark.parametrize(("color", "share"), [
    ("white", 0.625), ("red", 0.83), ("blue", 0.60), ("green", 0.77), ("purple", 0.63),
])  # fmt: skip
def test_neighbours_are_alike_as_the_colour_says(color: str, share: float):
    """Measured on the windows of tests/goldens_systems/colormae; green and purple depend on the deviations most."""
    generator = torch.Generator().manual_seed(0)
    noise = ColorRanking(color)(400, (14, 14), generator=generator)
    found = alike(rank_mask(noise, 0.75).hidden, 14)
    assert found == pytest.approx(share, abs=0.05)


def test_ratio_is_kept_and_images_differ():
    ranking = ColorRanking("green")
    hidden = rank_mask(ranking(8, (14, 14)), 0.75).hidden.bool()
    assert hidden.sum(1).tolist() == [147] * 8
    assert len(hidden.unique(dim=0)) == 8


@pytest.mark.parametrize(("grid", "side", "visible"), [((8, 8), 2, 16), ((6, 6), 2, 8), ((6, 6), 3, 9), ((4, 8), 4, 0)])
def test_blocks_stay_whole(grid: tuple[int, int], side: int, visible: int):
    """``int(blocks * 0.25)`` blocks are visible: 2 of 9, not 2.25."""
    ranking = BlockRanking(side)
    count = grid[0] * grid[1]
    assert ranking.visible(count, 0.75) == visible
    if visible:
        mask = rank_mask(ranking(5, grid), 0.75, visible)
        blocks = mask.hidden.bool().view(5, grid[0] // side, side, grid[1] // side, side).transpose(2, 3).flatten(3)
        assert (blocks.all(-1) | ~blocks.any(-1)).all()
        assert mask.visible_indices.shape == (5, visible)


@pytest.mark.parametrize(("mask", "key"), [
    ({"type": "color", "color": "pink"}, "color"), ({"type": "color", "color": "red", "sigma": (1, 2)}, "sigma"),
    ({"type": "color", "color": "green", "sigma": (2, 1)}, "sigma"), ({"type": "block", "side": 0}, "side"),
    ({"type": "stripes"}, "mask"), ({"type": "color", "colour": "red"}, "colour"),
])  # fmt: skip
def test_masks_that_cannot_be_are_refused(mask: dict, key: str):
    with pytest.raises((ValueError, TypeError), match=key):
        masked(mask=mask)


def test_blocks_that_do_not_tile_the_grid_are_refused():
    with pytest.raises(ValueError, match="5 x 5"):
        masked(mask={"type": "block", "side": 5})(torch.randn(2, 3, 32, 32))


def test_a_bank_of_patterns(tmp_path: Path):
    """Every image gets a pattern, crop and flips of its own; a file that is none is refused."""
    path = tmp_path / "bank.npz"
    np.savez(path, np.random.default_rng(0).normal(size=(4, 20, 20)).astype(np.float32))
    noise = BankRanking(str(path))(6, (8, 8))
    assert noise.shape == (6, 64) and len(noise.unique(dim=0)) == 6
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"bank\.npz"):
        BankRanking(str(path))


@pytest.mark.parametrize("options", [
    {"mask": {"type": "color", "color": "green"}},
    {"mask": {"type": "block", "side": 2}, "num_class_tokens": 3, "learned_pos_embed": True,
     "decoder_learned_pos_embed": True},
])  # fmt: skip
@pytest.mark.parametrize("method", ["mae", "mae_plus"])
def test_a_resumed_step_is_equal_and_bfloat16_trains(method: str, options: dict):
    images = torch.randn(4, 3, 32, 32)
    assert resumes_exactly(masked(method, **options), images)
    assert trains_in_bfloat16(masked(method, **options), images)


@pytest.mark.parametrize("mask", [{"type": "color", "color": "green", "sigma": (0.5, 1)}, {"type": "block", "side": 2}])
def test_it_learns_what_the_visible_patches_tell(mask: dict):
    """The colour of a ramp; tokens of another image do not tell it."""
    torch.manual_seed(1)
    images = (torch.randn(16, 3, 1, 1) + torch.linspace(-1, 1, 32)).repeat(1, 1, 32, 1)
    model = masked(mask=mask, norm_pix_loss=False)
    steps(model, images, 150, lr=3e-3)
    drawn, target = model.eval().random_mask(images), model.target(images)
    with torch.no_grad():
        tokens = model.encode(images, drawn)
        error, scrambled = (
            float((model.decoder.pred(model.decode(given, drawn, (8, 8))) - target).square().mean() / target.var())
            for given in (tokens, tokens.roll(1, 0))
        )
    assert error < 0.35 and scrambled > 1.0, (error, scrambled)
