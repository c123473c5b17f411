"""EP and CAPI's attentive probes: published recipes, runs through the launcher, and what attention finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT
from torch import nn

import adpe
from adpe.engine.config import read_config
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.features import tokens
from adpe.evaluations.features.tokens import tokens_of
from adpe.evaluations.heads.attentive_heads import (
    AttentiveHead,
    EfficientProbe,
    MAELars,
    ManyHeads,
    best_of_each_source,
)
from adpe.leaderboard.records import read_records

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noisy colours, 20 images each to train on and 4 to test, and an encoder of width 64."""
    folder, generator = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + generator.integers(-40, 40, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    torch.manual_seed(0)
    model = adpe.create_encoder("adpe_vit_tiny_patch4", embed_dim=64, depth=2, num_heads=2, img_size=16)
    tensors = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(tensors, folder / "encoder.safetensors")
    return folder


def run(name: str, data: Path, work: Path, *options: str) -> dict[str, Any]:
    given = [f"data_root={data}", "num_classes=3", "image_size=16", f"pretrained={data / 'encoder.safetensors'}"]
    config = str(ROOT / "configs" / f"cifar10_{name}.py")
    assert train_main([config, "--work-dir", str(work), "--cfg-options", *given, *options]) == 0
    records, faults = read_records(work / "record.jsonl")
    assert faults == []
    return records[-1]


def test_the_published_recipes():
    ep = build_evaluation(read_config(ROOT / "configs" / "imagenet/ep_vitb.py").evaluation)
    assert (ep.num_queries, ep.d_out, ep.final_norm, ep.class_token) == (32, 1, False, False)
    assert (ep.epochs, ep.warmup_epochs, ep.blr, ep.batch_size, ep.weight_decay) == (90, 10, 0.1, 4096, 0.0)
    assert sum(p.numel() for p in EfficientProbe(768, 1000, 32).parameters()) == 1_383_400
    cfg = read_config(ROOT / "configs" / "imagenet/attentive_vitb.py")
    capi = build_evaluation(cfg.evaluation)
    assert capi.rates == (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    assert capi.decays == (5e-4, 1e-3, 5e-2)
    assert (capi.iterations, capi.warmup, capi.batch_size, capi.final_norm) == (12_500, 1250, 1024, True)
    assert sum(p.numel() for p in AttentiveHead(768, 1000).parameters()) == 1_950_952
    assert len(ManyHeads(64, 2).heads) == 120
    assert cfg.train_dataloader.dataset.transform.is_training
    assert not cfg.select_dataloader.dataset.transform.get("is_training")
    assert cfg.select_dataloader.dataset.split == cfg.train_dataloader.dataset.split == "train"


def test_ep_learns_on_kept_and_on_computed_tokens(data: Path, tmp_path: Path):
    few = ["evaluation.batch_size=20", "evaluation.epochs=12"]
    kept = run("ep", data, tmp_path / "kept", *few)
    assert kept["metrics"] == {"top1": 100.0}
    facts = kept["protocol"]["facts"]
    assert (facts["head"], facts["pooling"]) == ("EP", "8 queries, patch tokens before the final norm")
    again = run("ep", data, tmp_path / "again", *few)
    assert again["fingerprint"] == kept["fingerprint"]
    computed = run("ep", data, tmp_path / "computed", *few, "evaluation.cached=False")
    assert computed["metrics"] == {"top1": 100.0} and computed["fingerprint"] != kept["fingerprint"]


def test_heads_are_chosen_on_a_tenth_of_the_training_images(data: Path, tmp_path: Path):
    few = ["evaluation.batch_size=18", "evaluation.iterations=30", "evaluation.warmup=3"]
    record = run("attentive", data, tmp_path / "run", *few)
    assert set(record["metrics"]) == {"top1", "top1_cls", "top1_avg_patch", "top1_cls_avg_patch"}
    assert record["metrics"]["top1"] == 100.0
    found = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert len(found["heads"]) == 16
    for source, chosen in found["chosen"].items():
        own = [head["accuracy"] for head in found["heads"] if head["source"] == source]
        assert chosen["accuracy"] == max(own) and (chosen["accuracy"] * 6) % 1 == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ep", ["evaluation.batch_size=20", "evaluation.epochs=4"]),
     ("attentive", ["evaluation.batch_size=18", "evaluation.iterations=12", "evaluation.warmup=2"])],
)  # fmt: skip
def test_a_stopped_training_resumes_and_ends_alike(
    name: str, options: list[str], data: Path, tmp_path: Path, monkeypatch
):
    """Stopped after two passes, by what a scheduler does; the heads are equal bit by bit in the end."""
    run(name, data, tmp_path / "whole", *options)
    save, done = tokens.Progress.save, []

    def stop(self: Any, number: int) -> None:
        save(self, number)
        done.append(number)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, AssertionError)):
        patch.setattr(tokens.Progress, "save", stop)
        run(name, data, tmp_path / "stopped", *options)
    assert len(done) == 2
    run(name, data, tmp_path / "stopped", *options)
    whole, stopped = (torch.load(tmp_path / one / "probe.pt", weights_only=True) for one in ("whole", "stopped"))
    assert whole["key"] == stopped["key"] and whole["done"] == stopped["done"] > done[-1]
    for key, tensor in whole["head"].items():
        assert torch.equal(tensor, stopped["head"][key]), key


def test_tokens_before_and_after_the_final_norm(data: Path):
    holder = nn.Module()
    holder.backbone = adpe.load_encoder(data / "encoder.safetensors", verbose=False).eval()
    nn.init.normal_(holder.backbone.norm.weight)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        after = holder.backbone.forward_features(images)
        torch.testing.assert_close(tokens_of(holder, images, True), after)
        torch.testing.assert_close(holder.backbone.norm(tokens_of(holder, images, False)), after)


def test_attention_finds_a_class_that_sits_in_one_token():
    """Its place is random, its marker is known: a mean over 64 noisy tokens cannot tell, EP can."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (600,), generator=generator)
    tokens = torch.randn(600, 64, 16, generator=generator)
    tokens[:, :, 0] = 0.0
    place = torch.randint(0, 64, (600,), generator=generator)
    tokens[torch.arange(600), place] = F.one_hot(labels + 1, 16).float() * 4
    tokens[torch.arange(600), place, 0] = 8.0
    torch.manual_seed(0)
    probe = EfficientProbe(16, 4, num_queries=4)
    linear = nn.Sequential(nn.BatchNorm1d(16, affine=False), nn.Linear(16, 4))
    accuracy = {}
    for name, head, inputs in (("ep", probe, tokens), ("mean", linear, tokens.mean(1))):
        optimizer = MAELars(head.parameters(), lr=8.0)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(head(inputs[:400]), labels[:400]).backward()
            optimizer.step()
        accuracy[name] = float((head.eval()(inputs[400:]).argmax(1) == labels[400:]).float().mean())
    assert accuracy["ep"] > 0.9 > 0.7 > accuracy["mean"]


def test_the_first_of_equally_good_heads_is_chosen():
    points = [("cls", 1e-3, 0.0), ("cls", 1e-2, 0.0), ("patch", 1e-3, 0.0), ("patch", 1e-2, 0.0)]
    assert best_of_each_source(points, [0.5, 0.5, 0.2, 0.3]) == {"cls": 0, "patch": 3}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"type": "efficient_probe", "epochs": 5, "warmup_epochs": 5}, "warmup_epochs"),
        ({"type": "efficient_probe", "num_queries": 0}, "num_queries"),
        ({"type": "attentive_probe", "rates": ()}, "rates"),
        ({"type": "attentive_probe", "iterations": 10, "warmup": 10}, "warmup"),
        ({"type": "attentive_probe", "heads": 3}, "heads"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], key: str):
    with pytest.raises(UserError, match=key):
        build_evaluation(options)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("ep", ["evaluation.batch_size=100"], "batch_size = 100"),
        ("ep", ["train_dataloader.dataset.transform.is_training=True", "evaluation.batch_size=20"], "cached"),
        ("ep", ["evaluation.num_queries=5", "evaluation.batch_size=20"], "num_queries=5"),
        ("attentive", ["train_dataloader.dataset.transform.is_training=True", "evaluation.batch_size=18"], "select_"),
        ("attentive", ["evaluation.sources=[pixels]", "evaluation.batch_size=18"], "pixels"),
    ],
)
def test_what_cannot_be_run_is_told(name: str, options: list[str], key: str, data: Path, tmp_path: Path, capsys):
    given = [f"data_root={data}", "num_classes=3", "image_size=16", f"pretrained={data / 'encoder.safetensors'}"]
    config = str(ROOT / "configs" / f"cifar10_{name}.py")
    assert train_main([config, "--work-dir", str(tmp_path), "--cfg-options", *given, *options]) == 2
    assert key in capsys.readouterr().err
