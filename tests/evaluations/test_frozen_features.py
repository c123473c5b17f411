"""Evaluations on frozen features through the launcher: k-NN and linear probe, records, resume, several encoders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT
from safetensors import safe_open

import adpe
from adpe.engine.evaluating import evaluate_main
from adpe.engine.launch import train_main
from adpe.evaluations.features.frozen_encoder import AdPEFrozenEncoder, last_tokens, pool_tokens
from adpe.leaderboard.records import read_records
from adpe.leaderboard.uncertainty.paired_images import metrics_of, read_per_image

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}
SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noisy colours: 16 images to train on, 4 to test."""
    folder, generator = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + generator.integers(-40, 40, (32, 32, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def encoder(path: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = adpe.create_encoder("adpe_vit_tiny_patch4", **SHAPE)
    adpe.save_checkpoint({f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}, path)
    return path


def options(data: Path, *more: str) -> list[str]:
    return ["--cfg-options", f"data_root={data}", "num_classes=3", *more]


def run(name: str, work: Path, *arguments: str) -> dict[str, Any]:
    config = str(ROOT / "configs" / f"cifar10_{name}.py")
    assert train_main([config, "--work-dir", str(work), *arguments]) == 0
    records, faults = read_records(work / "record.jsonl")
    assert faults == []
    return records[-1]


def test_knn(data: Path, tmp_path: Path) -> None:
    """The sizes are the file's; record, per-image file and votes agree."""
    file = encoder(tmp_path / "encoder.safetensors")
    record = run("knn", tmp_path / "run", *options(data, f"pretrained={file}", "evaluation.k=3"))
    facts = record["protocol"]["facts"]
    assert (facts["head"], facts["neighbours"], facts["backbone"]) == ("k-NN", [3, 0.07], "ViT 2 x 32, patch 4")
    assert record["metrics"] == {"top1": 100.0} and record["checkpoint"] is None
    assert (record["task"], record["start"]) == ("classification", "pretrained")
    assert record["pretrained_sha256"] is not None and record["protocol"]["data"]["train"]["images"] == 48
    arrays = read_per_image(record["per_image"])
    assert sorted(arrays["images"]) == sorted(f"{name}/{i}.png" for name in COLOURS for i in range(4))
    assert metrics_of(arrays, arrays["images"])["top1"](np.arange(12)) == 100.0
    # The features that were kept are the encoder's own, of unaugmented images.
    model = adpe.load_encoder(file, verbose=False).eval()
    with safe_open(tmp_path / "run" / "features_val.safetensors", "pt") as kept:
        features = kept.get_tensor("features")
    pixels = np.asarray(Image.open(data / "test" / "blue" / "0.png"), np.float32) / 255
    image = torch.from_numpy((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        torch.testing.assert_close(features[:1], model.forward_features(image)[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_linear_probe(data: Path, tmp_path: Path) -> None:
    """Learns, repeats itself bit by bit, and goes on from kept features; another seed or encoder is another result."""
    file = encoder(tmp_path / "encoder.safetensors")
    probe = ["model.global_pool=avg", "evaluation.batch_size=16", "evaluation.epochs=30", "evaluation.warmup_epochs=3"]
    few = [*probe, f"pretrained={file}"]
    first = run("linear", tmp_path / "run", *options(data, *few))
    assert first["metrics"] == {"top1": 100.0} and first["protocol"]["facts"]["head"] == "linear probe"
    written = (tmp_path / "run" / "features_train.safetensors").stat().st_mtime_ns
    time.sleep(0.01)
    again = run("linear", tmp_path / "run", "--resume", *options(data, *few))
    assert (tmp_path / "run" / "features_train.safetensors").stat().st_mtime_ns == written
    assert again["fingerprint"] == first["fingerprint"] and again["metrics"] == first["metrics"]
    other = [*probe, f"pretrained={encoder(tmp_path / 'other.safetensors', seed=2)}"]
    run("linear", tmp_path / "run", *options(data, *other))
    assert (tmp_path / "run" / "features_train.safetensors").stat().st_mtime_ns != written
    longer = run("linear", tmp_path / "longer", *options(data, *few, "evaluation.epochs=31"))
    assert longer["fingerprint"] != first["fingerprint"]


def test_several_encoders_in_one_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [encoder(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("one", "two"))]
    config = str(ROOT / "configs" / "cifar10/knn.py")
    arguments = [config, *map(str, files), "--work-dir", str(tmp_path / "work"), *options(data, "evaluation.k=3")]
    assert evaluate_main(arguments) == 0
    assert capsys.readouterr().out.count("100.00") == 2
    folders = {path.parent.name for path in (tmp_path / "work").rglob("record.jsonl")}
    assert folders == {f"{tmp_path.name}-one", f"{tmp_path.name}-two"}


def test_labels_are_matched_by_name(data: Path, tmp_path: Path) -> None:
    """A test set that lacks the first class: numbered by itself, every label would mean another class."""
    part = tmp_path / "part"
    (part / "test").mkdir(parents=True)
    (part / "train").symlink_to(data / "train")
    for name in ("green", "red"):
        (part / "test" / name).symlink_to(data / "test" / name)
    file = encoder(tmp_path / "encoder.safetensors")
    more = [f"pretrained={file}", "evaluation.k=3", "val_dataloader.dataset.num_classes=2"]
    assert run("knn", tmp_path / "run", *options(part, *more))["metrics"]["top1"] == 100.0


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_features_before_the_final_norm_give_those_after_it(pool: str) -> None:
    """Norm and pooling by hand; features that are pooled before the norm are others."""
    torch.manual_seed(0)
    made = dict(model="adpe_vit_tiny_patch8", global_pool=pool, **SHAPE)
    both = {norm: AdPEFrozenEncoder(**made, final_norm=norm) for norm in (True, False)}
    with torch.no_grad():
        both[True].backbone.norm.weight.uniform_(0.5, 2.0)
    both[False].load_state_dict(both[True].state_dict())
    images = torch.randn(3, 3, 32, 32)
    before, backbone = both[False](images), both[False].backbone
    tokens = backbone.norm(last_tokens(backbone, images, final_norm=False))
    torch.testing.assert_close(pool_tokens(tokens, 1, pool), both[True](images))  # type: ignore[arg-type]
    if pool == "token":
        torch.testing.assert_close(backbone.norm(before), both[True](images))
    assert (before - both[True](images)).abs().max() > 0.1


def test_the_protocol_says_that_features_are_read_before_the_norm(data: Path, tmp_path: Path) -> None:
    path = encoder(tmp_path / "encoder.safetensors")
    common = options(data, f"pretrained={path}", "evaluation.k=3", "model.global_pool=token")
    after = run("knn", tmp_path / "a", *common)
    before = run("knn", tmp_path / "b", *common, "model.final_norm=False")
    assert after["protocol"]["facts"]["pooling"] == "token"
    assert before["protocol"]["facts"]["pooling"] == "token, before the final norm"
    assert before["fingerprint"] != after["fingerprint"]
    # Features that were kept of the one reading do not serve the other.
    run("knn", tmp_path / "a", *common, "model.final_norm=False")
    kept = [safe_open(tmp_path / name / "features_val.safetensors", "pt") for name in "ab"]
    for name in kept[1].keys():  # noqa: SIM118  the file is no mapping
        assert torch.equal(kept[0].get_tensor(name), kept[1].get_tensor(name))
