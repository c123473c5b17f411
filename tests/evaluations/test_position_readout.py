"""Readout of positions and attention distance: against scikit-learn and by hand, and through the launcher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

pytest.importorskip("mmengine")
from built_configs import ROOT

import adpe
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.positions import Positions, block_tokens, targets
from adpe.leaderboard.records import read_records
from adpe.models.attention import attention_weights
from adpe.models.vit import VisionTransformer


def encoder(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(24, 4, embed_dim=24, depth=2, num_heads=2, **options).eval()


def batches(images: torch.Tensor, size: int = 5) -> list[torch.Tensor]:
    return list(images.split(size))


def test_r2_is_that_of_linear_regression():
    """Of every block, on images that were not fitted; coordinates weigh as they vary."""
    model, images = encoder(), torch.randn(40, 3, 24, 24)
    train, test = images[:30], images[30:]
    evaluation = Positions(ridge=1e-12)
    maps = evaluation.fit(model, iter(batches(train)))
    r2, low, high = evaluation.score(model, maps, iter(batches(test)), seed=0)
    wanted = targets((6, 6), torch.device("cpu")).numpy()
    with torch.no_grad():
        fitted, tested = block_tokens(model, train), block_tokens(model, test)
    for block, (x, y) in enumerate(zip(fitted, tested, strict=True)):
        regression = LinearRegression().fit(x.flatten(0, 1).numpy(), np.tile(wanted, (30, 1)))
        predicted = regression.predict(y.flatten(0, 1).numpy())
        expected = r2_score(np.tile(wanted, (10, 1)), predicted, multioutput="variance_weighted")
        assert r2[block] == pytest.approx(expected, abs=2e-4)
        assert low[block] <= r2[block] <= high[block]


def test_positions_are_readable_where_there_are_any():
    """A sine-cosine table gives them away, content alone does not."""
    images, evaluation = 0.1 * torch.randn(60, 3, 24, 24), Positions()
    found = {}
    for position in ("absolute", "none"):
        model = encoder(position=position)
        maps = evaluation.fit(model, iter(batches(images[:40])))
        found[position] = evaluation.score(model, maps, iter(batches(images[40:])), seed=0)[0]
    assert found["absolute"][0] > 0.9
    assert abs(found["none"]).max() < 0.1


def test_attention_distance_by_hand():
    """Weights of every pair of patches, without the class token, times their distance; alike weights: the uniform."""
    model, images = encoder(), torch.randn(7, 3, 24, 24)
    distance, uniform = Positions(attention_images=7).attention(model, iter(batches(images, 4)))
    assert distance.shape == (2, 2)
    with torch.no_grad():
        x, _ = model.embed(images)
        first = model.blocks[0]
        weights = attention_weights(first.attn.terms(first.norm1(x)), slice(None), 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, 2, 37))
    patches = weights[:, :, 1:, 1:]
    places = targets((6, 6), torch.device("cpu")).float()
    between = (places[:, None] - places[None]).norm(dim=-1)
    expected = ((patches * between).sum(-1) / patches.sum(-1)).mean((0, 2))
    np.testing.assert_allclose(distance[0], expected.numpy(), rtol=1e-5)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    alike, _ = Positions(attention_images=7).attention(model, iter(batches(images, 4)))
    np.testing.assert_allclose(alike, uniform, rtol=1e-5)
    assert uniform == pytest.approx(float(between.mean()), rel=1e-6)


@pytest.mark.parametrize("options", [{"position": "relative"}, {"class_token": False}])
def test_weights_are_those_that_the_layer_applies(options: dict):
    """Weights times values, projected, are the layer's output."""
    model, images = encoder(**options), torch.randn(2, 3, 24, 24)
    attention = model.blocks[0].attn
    if attention.rel_pos_table is not None:
        torch.nn.init.normal_(attention.rel_pos_table)
    with torch.no_grad():
        x, grid = model.embed(images)
        inputs = (x, model.relative_term(grid), grid)
        terms = attention.terms(*inputs)
        mixed = attention_weights(terms, slice(None), model.num_prefix_tokens) @ terms.v
        ours = attention.proj(mixed.transpose(1, 2).flatten(2))
        torch.testing.assert_close(ours, attention(*inputs), rtol=1e-4, atol=1e-5)
    Positions().attention(model, iter([images]))


def test_fewer_images_than_asked_for_are_averaged_over():
    model, images = encoder(), torch.randn(6, 3, 24, 24)
    few, _ = Positions(attention_images=100).attention(model, iter(batches(images)))
    all_, _ = Positions(attention_images=6).attention(model, iter(batches(images)))
    one, _ = Positions(attention_images=1).attention(model, iter(batches(images)))
    np.testing.assert_allclose(few, all_)
    assert not np.allclose(one, all_)


def test_bad_input():
    with pytest.raises(UserError, match="ridge = 0"):
        build_evaluation({"type": "positions", "ridge": 0})
    with pytest.raises(UserError, match="attention_images = 0"):
        build_evaluation({"type": "positions", "attention_images": 0})
    model = encoder()
    with torch.no_grad():
        model.norm.weight.fill_(1)
        model.blocks[1].mlp.fc2.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Positions().fit(model, iter([torch.randn(2, 3, 24, 24)]))


def test_through_the_launcher(tmp_path: Path):
    """Record, numbers of every block, figure; the same again with the same seed."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    torch.manual_seed(1)
    model = adpe.create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=2, num_heads=2, img_size=32)
    path = tmp_path / "encoder.safetensors"
    adpe.save_checkpoint({f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}, path)
    config = str(ROOT / "configs" / "cifar10/positions.py")
    options = [f"data_root={tmp_path / 'data'}", "num_classes=2", f"pretrained={path}"]
    found = []
    for run in ("one", "two"):
        assert train_main([config, "--work-dir", str(tmp_path / run), "--cfg-options", *options]) == 0
        records, faults = read_records(tmp_path / run / "record.jsonl")
        assert not faults and records[-1]["task"] == "positions"
        found.append(records[-1]["metrics"])
    assert found[0] == found[1]
    told = json.loads((tmp_path / "one" / "positions.json").read_text())
    assert len(told["r2"]) == len(told["low"]) == 3 and len(told["distance"]) == 2
    assert found[0]["position_R2"] == pytest.approx(told["r2"][-1])
    assert 0.1 < found[0]["position_R2_max"] <= 1 and 1 < found[0]["attention_distance"] < 8
    assert (tmp_path / "one" / "positions.png").is_file()
