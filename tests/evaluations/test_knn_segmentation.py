"""k-NN and logistic-regression segmentation of patch features: rules, and runs through the launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
from built_configs import ROOT

import adpe
from adpe.data.scenes import write_scenes
from adpe.data.views.probe_transforms import AdPESquash
from adpe.engine.config import read_config
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.heads.patch_probes import (
    Standardisation,
    fit_by_lbfgs,
    is_kept,
    knn_predict,
    most_frequent,
    nearest,
    patch_labels,
    split_images,
    vote,
)
from adpe.leaderboard.records import read_records
from adpe.leaderboard.uncertainty.paired_images import metrics_of, read_per_image
from adpe.parity.cases import GoldenCase

GOLDENS = ROOT / "tests" / "goldens_systems" / "knn_segmentation"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_train=40, num_val=12, num_unlabelled=2, size=48)
    torch.manual_seed(0)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    adpe.save_checkpoint(tensors, folder / "encoder.safetensors")
    return folder


def run(data: Path, work: Path, *options: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record, and what was selected."""
    config = str(ROOT / "configs" / "demo" / "knn_segmentation.py")
    given = [f"data_root={data}", f"pretrained={data / 'encoder.safetensors'}", *options]
    assert train_main([config, "--work-dir", str(work), "--seed", str(seed), "--cfg-options", *given]) == 0
    records, faults = read_records(work / "record.jsonl")
    assert faults == []
    return records[-1], json.loads((work / "selection.json").read_text())


def test_the_published_protocol():
    cfg = read_config(ROOT / "configs" / "dense/ade20k_knn_vitb.py")
    evaluation = build_evaluation(cfg.evaluation)
    assert (evaluation.ks, evaluation.distances) == ((1, 3, 10, 30), ("cosine", "L2"))
    assert (evaluation.ignore_labels, evaluation.size, evaluation.standardise) == ((0, 255), 224, True)
    assert evaluation.cs == pytest.approx([10 ** (-6 + 11 * i / 7) for i in range(8)])
    assert "224 patch labels" in evaluation.head
    for name in ("train_dataloader", "val_dataloader"):
        assert [step["type"] for step in cfg[name].dataset.pipeline] == [
            "LoadImageFromFile", "LoadAnnotations", "AdPESquash",
        ]  # fmt: skip
        assert cfg[name].dataset.pipeline[-1].size == 224


def test_a_run_selects_on_training_images_and_counts_every_pixel(data: Path, tmp_path: Path):
    record, found = run(data, tmp_path / "run")
    assert found["images"] == {"test": 12, "train": 36, "val": 4}
    assert len(found["validation_mIoU"]) == 8
    assert found["validation_mIoU"][found["chosen"]] == max(found["validation_mIoU"].values())
    facts = record["protocol"]["facts"]
    assert (facts["head"], facts["ignore_labels"]) == ("k-NN segmentation, 48 patch labels", [0, 255])
    arrays = read_per_image(record["per_image"])
    assert len(arrays["images"]) == 12 and len(arrays["classes"]) == 4
    whole = metrics_of(arrays, arrays["images"])["mIoU"](np.arange(12))
    assert record["metrics"]["mIoU"] == pytest.approx(whole) and whole > 25
    again, _ = run(data, tmp_path / "again")
    assert again["metrics"] == record["metrics"] and again["fingerprint"] == record["fingerprint"]
    _, other = run(data, tmp_path / "other", seed=1)
    assert other["validation_mIoU"] != found["validation_mIoU"]


def test_regression_is_another_protocol(data: Path, tmp_path: Path):
    record, found = run(data, tmp_path / "run", "evaluation.method=logreg", "evaluation.cs=[0.001,1.0]")
    assert list(found["validation_mIoU"]) == ["C=0.001", "C=1"]
    assert record["metrics"]["mIoU"] == record["metrics"]["mIoU_ignored_predicted"] > 25
    assert "logistic regression" in record["protocol"]["facts"]["head"]


def test_the_nearest_of_a_patch_is_itself_and_chunks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(300, 6, generator=generator)
    labels = torch.randint(0, 5, (300, 4), generator=generator)
    for distance in ("cosine", "L2"):
        assert torch.equal(knn_predict(bank, bank, labels, 1, distance), labels)
        queries = torch.randn(40, 6, generator=generator)
        assert torch.equal(nearest(queries, bank, 7, distance, 50), nearest(queries, bank, 7, distance))


def test_standardised_features_have_no_scale():
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(200, 4, generator=generator), torch.randn(50, 4, generator=generator)
    factor = torch.tensor([1.0, 100.0, 1.0, 1.0])
    plain = nearest(queries, bank, 3, "L2")
    assert not torch.equal(nearest(queries * factor, bank * factor, 3, "L2"), plain)
    scaled = Standardisation.of(bank * factor)
    ours = Standardisation.of(bank)
    found = nearest(scaled(queries * factor), scaled(bank * factor), 3, "L2")
    assert torch.equal(found, nearest(ours(queries), ours(bank), 3, "L2"))


@pytest.mark.parametrize("number", [1, 4, 7])
def test_regression_on_an_accelerator_has_the_same_optimum(number: int):
    """torch's L-BFGS, here on the CPU, against scikit-learn's in the reference's place."""
    case = GoldenCase("logreg", GOLDENS / "logreg.npz", json.loads((GOLDENS / "meta.json").read_text()))
    data, said = case.sibling("data").arrays, case.options
    train, _ = split_images(said["images"], data["input.permutation"].long())
    scaling = Standardisation.of(data["input.train_features"][train].flatten(0, 2))
    features = scaling(data["input.train_features"].flatten(0, 2))
    majority = most_frequent(patch_labels(data["input.train_labels"], said["patch_size"]))
    kept = is_kept(majority, said["ignore_labels"])
    classes, numbers = majority[kept].unique(return_inverse=True)
    found = fit_by_lbfgs(features[kept], classes, numbers, said["C"][number], 20_000)
    for ours, name in ((found.coefficient, "coefficient"), (found.intercept, "intercept")):
        theirs = case.arrays[f"output.{name}.{number}"].numpy()
        assert np.abs(ours - theirs).max() < 2e-4 * np.abs(theirs).max()
    guess = found.predict(scaling(data["input.test_features"].flatten(0, 2)))
    assert torch.equal(guess, case.arrays[f"output.prediction.{number}"].to(guess.dtype))


def test_votes():
    """The mode at each place, ties for the smallest; an ignored label wins only where there is nothing else."""
    labels = torch.tensor([[0, 1, 0], [0, 2, 0], [3, 2, 0], [2, 1, 0]], dtype=torch.uint8)
    everyone = torch.tensor([[0, 1, 2, 3]])
    assert vote(labels, everyone).tolist() == [[0, 1, 0]]
    assert vote(labels, everyone, never=(0, 255)).tolist() == [[2, 1, 0]]
    assert most_frequent(torch.tensor([[4, 4, 1, 1], [7, 2, 2, 9]])).tolist() == [1, 2]


def test_a_squashed_image_has_the_labels_of_the_file():
    """Bicubic with antialias as Pillow's, labels nearest; what `reduce_zero_label` took away is put back."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (30, 20, 3), np.uint8)
    labels = generator.integers(0, 3, (30, 20), np.uint8)
    reduced = labels - 1  # 0 becomes 255
    given = {"img": image[..., ::-1], "gt_seg_map": reduced, "reduce_zero_label": True, "img_path": "a/b.png"}
    found = AdPESquash(16, mean=(0, 0, 0), std=(1, 1, 1)).transform(given)
    wanted = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    assert torch.equal((found["inputs"] * 255).round().byte(), torch.from_numpy(wanted.transpose(2, 0, 1).copy()))
    nearest_labels = np.asarray(Image.fromarray(labels).resize((16, 16), Image.Resampling.NEAREST))
    assert np.array_equal(found["data_samples"]["label"].numpy(), nearest_labels)
    assert found["data_samples"]["img_path"] == "a/b.png"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "ignore_labels"), ({"ignore_labels": (0, 300)}, "300"), ({"ignore_labels": (0,), "method": "svm"}, "svm"),
        ({"ignore_labels": (0,), "ks": (0,)}, "ks"), ({"ignore_labels": (0,), "distances": ("l1",)}, "l1"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(options: dict[str, Any], key: str):
    with pytest.raises(UserError, match=key):
        build_evaluation({"type": "knn_segmentation", **options})


def test_too_few_images_to_hold_some_out():
    with pytest.raises(UserError, match="10"):
        split_images(9, torch.arange(9))
    train, validate = split_images(25, torch.arange(25))
    assert validate.tolist() == [0, 1] and len(train) == 23
