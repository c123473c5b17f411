"""MaPeT: its recipe, who sees whom, orders, tokens, what it refuses, and that it learns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import EPOCH_LENGTH, config, meta_model, schedule
from frozen_encoders import tokenizer_file
from mmengine.registry import MODELS
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16
from torch import nn

import adpe
from adpe.checkpoints.loading import load_encoder
from adpe.errors import UserError
from adpe.leaderboard.records import file_sha256
from adpe.methods.base import Progress
from adpe.methods.mapet import MaPeT, Order
from adpe.methods.masks.rectangles import rectangles
from adpe.methods.targets.pixels import jitter_colors
from adpe.methods.targets.tokenizers import load_tokenizer

TINY = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}


def mapet(folder: Path, **options) -> MaPeT:
    tokens = str(tokenizer_file(folder, 8))
    torch.manual_seed(0)
    return adpe.create_method("mapet", "adpe_vit_tiny_patch4", tokenizer=tokens, **{**TINY, **options})


def test_recipe_of_vit_base():
    """The scripts of aimagelab/MaPeT; rates of single epochs by hand."""
    name = "configs/pretrain/targets/mapet_vitb_300e.py"
    cfg = config(name)
    assert (cfg.effective_batch, cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (2048, 310, 1.5e-3)
    assert (cfg.optim_wrapper.optimizer.weight_decay, cfg.optim_wrapper.clip_grad.max_norm) == (0.05, 3.0)
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.9, 0.999)
    rates = np.array(schedule(json.dumps(cfg.param_scheduler), 310 * EPOCH_LENGTH)).reshape(310, EPOCH_LENGTH) * 1.5e-3
    assert (rates == rates[:, :1]).all()
    assert rates[[0, 5, 309], 0] == pytest.approx([1e-6, 1e-6 + 0.5 * (1.5e-3 - 1e-6), 1e-5])
    for epoch in (10, 150, 299):
        by_hand = 1e-5 + (1.5e-3 - 1e-5) / 2 * (1 + math.cos(math.pi * epoch / 300))
        assert rates[epoch, 0] == pytest.approx(by_hand)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], crops["hflip"]) == (224, 1, 0.0)
    assert (tuple(crops["scale"]), tuple(crops["ratio"])) == ((1.0, 1.0), (1.0, 1.0))
    model = meta_model(name).model
    assert (model.vocabulary, model.least, model.upper, model.order, model.color_jitter) == (
        8192, 50, None, "random", 0.4,
    )  # fmt: skip
    encoder = model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (768, 12, 12, 16)
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert encoder.pos_embed is not None and model.decoder.out_features == 8192
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_initialisation():
    torch.manual_seed(0)
    model = adpe.create_method("mapet", "adpe_vit_small_patch4", vocabulary=64, img_size=32, depth=2)
    block = model.encoder.blocks[0]
    parts = (block.attn.qkv.weight, block.mlp.fc1.weight, model.decoder.weight, model.encoder.pos_embed)
    for weight in (*parts, model.mask_positional_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.cls_token.abs().max() < 1e-5
    assert torch.equal(block.ls1.gamma, torch.full_like(block.ls1.gamma, 0.1))
    bound = 1 / math.sqrt(3 * 4 * 4)  # torch's for a convolution
    assert bound * 0.95 < model.encoder.patch_embed.proj.weight.abs().max() <= bound


def test_small_recipe(tmp_path: Path):
    cfg = config("configs/pretrain/targets/cifar10_mapet.py", {"tokenizer": str(tokenizer_file(tmp_path, 64))})
    cfg.model.depth = 1
    model = MODELS.build(cfg.model).model
    assert (model.vocabulary, model.context_of(65), model.encoder.embed_dim) == (64, 17, 192)
    mae = config("configs/pretrain/cifar10_mae.py")
    for key in ("train_dataloader", "param_scheduler", "train_cfg", "effective_batch"):
        assert cfg[key] == mae[key], key


def test_two_steps_through_the_launcher(tmp_path: Path):
    """The tokenizer is in the checkpoint as its file has it, and not in the exported encoder."""
    tokens = tokenizer_file(tmp_path, 8)
    runner = train_small("targets/cifar10_mapet", tmp_path, {"tokenizer": str(tokens), "model.vocabulary": 8})
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    with safe_open(tmp_path / "frozen.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(state[f"model.tokenizer.{name}"], file.get_tensor(name)), name
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert all(key.startswith("encoder.") for key in [*file.keys()])
        assert json.loads(next(iter(file.metadata().values())))["method"] == "MaPeT"
    loaded = load_encoder(tmp_path / "work" / "encoder.safetensors", verbose=False)
    assert torch.equal(loaded.blocks[0].ls1.gamma, state["model.encoder.blocks.0.ls1.gamma"])
    assert torch.equal(loaded.pos_embed, state["model.encoder.pos_embed"])
    record = json.loads((tmp_path / "work" / "record.jsonl").read_text().splitlines()[-1])
    assert record["made_with"]["tokenizer"] == {
        "kind": "kmeans", "vocabulary": 8, "encoder_method": "MAE", "file_sha256": file_sha256(tokens),
        "encoder_sha256": file_sha256(tmp_path / "frozen.safetensors"),
    }  # fmt: skip
    assert {"train/loss", "train/accuracy"} <= set(runner.message_hub.log_scalars)


@pytest.mark.parametrize("least", [1, 5, 16])
def test_every_row_sees_every_token_once(least: int):
    """As content or as position: N keys a row, and no content of its own or of a later one among the queries."""
    torch.manual_seed(0)
    permutation = torch.stack([torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16)]) for _ in range(4)])
    order = Order.of(permutation, least)
    content, queries = order.masks(least)
    assert (content.sum(2) == 17).all() and (queries.sum(2) == 17).all()
    for image in range(4):
        for row, token in enumerate(order.predicted[image].tolist()):
            seen = queries[image, row, :17]
            assert torch.equal(seen, (order.rank[image] < least) | (order.rank[image] < order.rank[image, token]))
            assert queries[image, row, 17 + row]


def test_a_query_does_not_see_what_it_predicts(tmp_path: Path):
    """Pixels of one patch change only what may see it: context all, a predicted patch the later ones."""
    model, images = mapet(tmp_path).eval(), torch.randn(1, 3, 32, 32)
    order = model.draw(images, torch.rand(1, 64, generator=torch.Generator().manual_seed(1)))
    token = int(order.rank[0].argsort()[40])
    row, column = divmod(token - 1, 8)
    other = images.clone()
    other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    with torch.no_grad():
        changed = (model.predict(images, order) - model.predict(other, order)).abs().amax(dim=-1)[0]
    ranks = order.rank[0].gather(0, order.predicted[0])
    assert torch.equal(changed > 0, ranks > 40)


def test_the_upper_limit_leaves_the_loss_alone(tmp_path: Path):
    model, images = mapet(tmp_path), torch.randn(2, 3, 32, 32)
    noise, tokens = torch.rand(2, 64), torch.randint(8, (2, 64))
    order = model.draw(images, noise)
    logits, wanted = model.predict(images, order), tokens.gather(1, order.predicted - 1)
    model.upper = 30
    limited = model.draw(images, noise)
    assert limited.scored.sum(1).tolist() == [30 - 17 + 1] * 2
    by_hand = nn.functional.cross_entropy(logits[limited.scored], wanted[limited.scored])
    assert model(images, tokens, noise).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(("grid", "count"), [((8, 8), 48), ((14, 14), 147), ((6, 10), 45)])
def test_rectangles_are_blocks_of_the_number_that_is_asked(grid: tuple[int, int], count: int):
    torch.manual_seed(0)
    chosen = rectangles(torch.rand(64, grid[0] * grid[1]), grid, count)
    assert chosen.sum(1).tolist() == [count] * 64

    def neighbours(flags: torch.Tensor) -> float:
        field = flags.view(-1, *grid)
        same = [field[:, 1:] == field[:, :-1], field[:, :, 1:] == field[:, :, :-1]]
        return torch.cat([pair.flatten() for pair in same]).float().mean().item()

    random = torch.rand(64, grid[0] * grid[1]).argsort(dim=1) < count
    assert neighbours(chosen) > neighbours(random) + 0.1


def test_blockwise_order_predicts_rectangles_in_random_order(tmp_path: Path):
    model, images = mapet(tmp_path, order="blockwise"), torch.randn(8, 3, 32, 32)
    torch.manual_seed(3)
    order = model.draw(images)
    assert order.rank[:, 0].tolist() == [0] * 8
    assert order.predicted.shape == (8, 48)
    ranks = order.rank.gather(1, order.predicted)
    assert ranks.min() == 17 and not (ranks.diff(dim=1) > 0).all(dim=1).any()


def test_tokens_are_those_of_the_file_whatever_happens_around_them(tmp_path: Path):
    """The initialisation, training mode and autocast do not reach the tokenizer, the jitter not its images."""
    model, images = mapet(tmp_path, color_jitter=0.4), torch.randn(4, 3, 32, 32)
    expected = load_tokenizer(tmp_path / "tokens.safetensors").tokens(images)
    assert len(expected.unique()) > 4
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokenizer.tokens(images), expected)
        model.losses([images.unsqueeze(1)])
    assert torch.equal(model.used, torch.bincount(expected.flatten(), minlength=8))


def test_colour_jitter_is_torchvisions():
    """Each of six orders by torchvision's functions, at the factors that were drawn."""
    from torchvision.transforms.v2 import functional as tv

    images = torch.rand(24, 3, 8, 8)
    torch.manual_seed(2)
    found = jitter_colors(images, 0.4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.manual_seed(2)
    factors = (1 + 0.4 * (2 * torch.rand(3, 24, 1, 1, 1) - 1)).view(3, 24)
    order = torch.rand(24, 3).argsort(dim=1)
    assert len(order.unique(dim=0)) == 6
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for i, image in enumerate(images):
        expected = image
        for kind in order[i].tolist():
            expected = functions[kind](expected, float(factors[kind, i]))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"least": 65}, "least=65"),
        ({"order": "spiral"}, "spiral"),
        ({"color_jitter": 1.5}, "color_jitter"),
        ({"vocabulary": 9}, "vocabulary=9"),
        ({"upper": 0}, "upper=0"),
        ({"upper": 10}, "upper=10"),
        ({"learned_pos_embed": False}, "learned_pos_embed"),
        ({"position": "relative"}, "absolute"),
        ({"num_classes": 3}, "no classes"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str, tmp_path: Path):
    with pytest.raises(ValueError, match=key):
        mapet(tmp_path, **options).losses([torch.rand(1, 1, 3, 32, 32)])


def test_training_without_tokens_is_refused():
    model = adpe.create_method("mapet", "adpe_vit_tiny_patch4", vocabulary=8, **TINY)
    with pytest.raises(UserError, match=r"model\.tokenizer"):
        model.losses([torch.rand(1, 1, 3, 32, 32)])


@pytest.mark.parametrize(("tokens", "key"), [((2, 49), "49"), ((3, 64), "3, 64"), (None, "vocabulary 8")])
def test_tokens_of_another_grid_or_vocabulary_are_refused(tokens: tuple | None, key: str, tmp_path: Path):
    given = torch.zeros(tokens, dtype=torch.long) if tokens else torch.full((2, 64), 8)
    with pytest.raises(ValueError, match=key):
        mapet(tmp_path)(torch.rand(2, 3, 32, 32), given)


@pytest.mark.parametrize("options", [{}, {"order": "blockwise", "color_jitter": 0.4, "drop_path_rate": 0.2}])
def test_a_resumed_step_is_equal_and_bfloat16_trains(options: dict, tmp_path: Path):
    assert resumes_exactly(mapet(tmp_path, **options), torch.randn(2, 3, 32, 32))
    assert trains_in_bfloat16(mapet(tmp_path, **options), torch.randn(2, 3, 32, 32))


def test_unused_tokens_are_a_collapse(tmp_path: Path):
    model = mapet(tmp_path)
    assert model.collapse(Progress()) is None
    model.used[:3] = 1000
    assert "8 tokens" in model.collapse(Progress())
    model.used[3:5] = 1000
    assert model.collapse(Progress()) is None
    assert model.scalars() == pytest.approx({"tokens/used": 5 / 8, "tokens/entropy": math.log(5)})


def test_it_learns_below_the_entropy_of_the_tokens_and_draws(tmp_path: Path):
    model = mapet(tmp_path)
    images = torch.randn(16, 3, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    logged = steps(model, images, 60, lr=2e-3)
    last = np.mean([entry["loss"] for entry in logged[-10:]])
    assert logged[0]["loss"] == pytest.approx(math.log(8), abs=0.3)
    assert last < min(math.log(8), model.scalars()["tokens/entropy"]) - 0.2
    assert logged[-1]["accuracy"] > logged[0]["accuracy"]
    assert set(model.figures([images[:2].unsqueeze(1)], (0, 0, 0), (1, 1, 1))) == {"tokens"}
