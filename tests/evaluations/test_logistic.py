"""Logistic regression on pooled features, and low-shot draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT

import adpe
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.logistic import drawn, shots_of
from adpe.leaderboard.records import read_records

COLOURS = {"blue": (90, 90, 140), "green": (90, 140, 90), "red": (140, 90, 90)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                shade = np.array(colour) + generator.integers(-60, 60, 3)
                pixels = np.clip(shade + generator.integers(-40, 40, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    torch.manual_seed(0)
    model = adpe.create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=1, num_heads=2, img_size=16)
    tensors = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(tensors, folder / "encoder.safetensors")
    return folder


def start(data: Path, work: Path, *options: str) -> int:
    given = [f"data_root={data}", "num_classes=3", "image_size=16", f"pretrained={data / 'encoder.safetensors'}"]
    config = str(ROOT / "configs" / "cifar10/logistic.py")
    return train_main([config, "--work-dir", str(work), "--cfg-options", *given, *options])


def run(data: Path, work: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert start(data, work, *options) == 0
    records, faults = read_records(work / "record.jsonl")
    assert faults == []
    return records[-1], json.loads((work / "selection.json").read_text())


def test_all_images_then_few(data: Path, tmp_path: Path):
    """Mean and standard deviation over draws are those of the draws; few images are worse than all."""
    whole, (only,) = run(data, tmp_path / "all")
    assert only["images"] == 60 and whole["metrics"]["top1"] == only["top1"] > 50
    assert whole["per_image"] is not None and len(only["held_out_accuracy"]) == 7
    few, draws = run(data, tmp_path / "few", "evaluation.shots=2", "evaluation.draws=4")
    assert [one["images"] for one in draws] == [6] * 4
    values = [one["top1"] for one in draws]
    assert few["metrics"]["top1"] == pytest.approx(np.mean(values)) and len(set(values)) > 1
    assert few["metrics"]["top1_sd"] == pytest.approx(np.std(values, ddof=1))
    assert few["metrics"]["top1"] < whole["metrics"]["top1"]
    assert few["protocol"]["facts"]["training images"] == "2 a class" and few["fingerprint"] != whole["fingerprint"]
    again, _ = run(data, tmp_path / "again", "evaluation.shots=2", "evaluation.draws=4")
    assert again["metrics"] == few["metrics"]


def test_shares_are_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    found = drawn(labels, 0.1, np.random.default_rng(0))
    assert np.bincount(labels[found]).tolist() == [10, 5, 1]
    assert not np.array_equal(found, drawn(labels, 0.1, np.random.default_rng(1)))
    assert (shots_of(None, 7), shots_of(5, 7), shots_of(0.01, 7)) == (7, 5, 1)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"shots": 0}, "shots = 0"), ({"shots": 1.5}, "1.5"), ({"shots": 1}, "shots = 1"), ({"draws": 3}, "draws = 3"),
        ({"cs": (0.0,)}, "cs"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(options: dict[str, Any], key: str):
    with pytest.raises(UserError, match=key):
        build_evaluation({"type": "logistic", **options})


def test_a_class_with_too_few_images_is_named(data: Path, tmp_path: Path, capsys):
    assert start(data, tmp_path, "evaluation.shots=21") == 2
    assert "blue" in capsys.readouterr().err
