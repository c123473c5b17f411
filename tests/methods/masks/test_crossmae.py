"""CrossMAE: its recipe, the subset that is predicted, queries that do not see each other, what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from mmengine.registry import MODELS
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.methods.crossmae import CrossMAE

TINY = {
    "img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 2,
    "decoder_num_heads": 3,
}  # fmt: skip


def crossmae(**options) -> CrossMAE:
    torch.manual_seed(0)
    return adpe.create_method("crossmae", "adpe_vit_tiny_patch4", **{**TINY, **options})


@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"predicted_ratio": 0.25}, 1 / 3)])
def test_recipe_of_vit_base(options: dict, scale: float):
    """README of TonyLianLong/CrossMAE."""
    name = "configs/pretrain/masks/crossmae_vitb_800e.py"
    cfg = config(name, options)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (4096, 1024, 800)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 16 * scale)
    assert (cfg.optim_wrapper.optimizer.weight_decay, tuple(cfg.optim_wrapper.optimizer.betas)) == (0.05, (0.9, 0.95))
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.T_max, cosine.eta_min) == (40, 40, 760, 0.0)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"])) == (224, 1, (0.2, 1.0))
    assert cfg.model.predicted_ratio == options.get("predicted_ratio", 0.75)
    model = meta_model(name).model
    assert (model.mask_ratio, model.norm_pix_loss, model.mix_input, model.mixed) == (0.75, True, True, [*range(12)])
    assert tuple(model.decoder.mixture.weight.shape) == (12, 13)
    assert (model.decoder.pred.in_features, len(model.decoder.blocks)) == (512, 12)
    assert {block.cross_attn.num_heads for block in model.decoder.blocks} == {16}
    assert all(block.self_attn is None for block in model.decoder.blocks)


def test_two_steps_through_the_launcher(tmp_path: Path):
    """The exported encoder starts transfer with a norm that was not trained."""
    runner = train_small("masks/cifar10_crossmae", tmp_path, {"model.decoder_depth": 2})
    assert runner.iter == 2
    with safe_open(tmp_path / "work" / "encoder.safetensors", "pt") as file:
        names = set(file.keys())
        assert torch.equal(file.get_tensor("encoder.norm.weight"), torch.ones(48))
    assert not [name for name in names if "decoder" in name or "mask_token" in name]


def test_queries_do_not_see_each_other():
    """Predicted at once or one by one is the same; with self-attention it is not."""
    images = torch.randn(2, 3, 24, 24)
    for self_attn in (False, True):
        model = crossmae(self_attn=self_attn).eval()
        mask = model.random_mask(images, torch.rand(2, 36))
        chosen, maps = model.predicted_indices(mask), model.maps(images, mask)
        together = model.predict(maps, chosen, (6, 6))
        alone = torch.cat([model.predict(maps, one, (6, 6)) for one in chosen.split(1, dim=1)], dim=1)
        assert torch.allclose(together, alone, atol=1e-6) is not self_attn


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 27), (0.5, 18), (0.25, 9)])
def test_as_many_patches_are_predicted_as_asked(ratio: float, count: int):
    model = crossmae(predicted_ratio=ratio)
    mask = model.random_mask(torch.randn(3, 3, 24, 24), torch.rand(3, 36))
    chosen = model.predicted_indices(mask)
    assert chosen.shape == (3, count)
    assert mask.hidden.bool().gather(1, chosen).all()
    assert (chosen[:, 1:] > chosen[:, :-1]).all()


def test_the_mixture_starts_at_the_mean_and_does_not_decay():
    ours, theirs = crossmae(), crossmae(reference=True)
    assert torch.equal(ours.decoder.mixture.weight, torch.full((2, 3), 1 / 3))
    for model, decays in ((ours, False), (theirs, True)):
        decayed = {
            id(p) for group in model.parameter_groups(1e-3, 0.05) if group["weight_decay"] for p in group["params"]
        }
        assert (id(model.decoder.mixture.weight) in decayed) is decays


@pytest.mark.parametrize(("options", "key"), [
    ({"predicted_ratio": 0.9}, "predicted_ratio"), ({"predicted_ratio": 0.0}, "predicted_ratio"),
    ({"mixed_blocks": [2]}, "mixed_blocks"), ({"mixed_blocks": [], "mix_input": False}, "mixed_blocks"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        crossmae(**options)


def test_a_resumed_step_is_equal_and_bfloat16_trains():
    images = torch.randn(4, 3, 24, 24)
    assert resumes_exactly(crossmae(predicted_ratio=0.25), images)
    assert trains_in_bfloat16(crossmae(), images)


def test_it_learns_what_the_visible_patches_tell():
    """A quarter of the patches tells the colour of the others; tokens of another image do not."""
    torch.manual_seed(1)
    images = (torch.randn(16, 3, 1, 1) + torch.linspace(-1, 1, 24).view(1, 1, 1, 24)).repeat(1, 1, 24, 1)
    model = crossmae(norm_pix_loss=False)
    logged = steps(model, images, 150, lr=3e-3)
    model.eval()
    mask = model.random_mask(images, torch.rand(16, 36))
    target = torch.take_along_dim(model.target(images), model.predicted_indices(mask).unsqueeze(-1), dim=1)

    def error(maps: list[torch.Tensor]) -> float:
        with torch.no_grad():
            prediction = model.predict(maps, model.predicted_indices(mask), (6, 6))
        return float((prediction - target).square().mean() / target.var())

    maps = model.maps(images, mask)
    assert logged[-1]["loss"] < 0.3 * logged[0]["loss"]
    assert error(maps) < 0.15
    assert error([tokens.roll(1, 0) for tokens in maps]) > 0.5


def test_built_by_the_config():
    cfg = config("configs/pretrain/masks/cifar10_crossmae.py", {"predicted_ratio": 0.25})
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 / 3)
    model = MODELS.build(cfg.model).model
    assert (model.predicted_ratio, len(model.decoder.blocks), model.encoder.patch_size) == (0.25, 6, 4)
