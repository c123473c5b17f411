"""k-NN accuracy against scikit-learn's and by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from adpe.evaluations.knn import features, knn_accuracy
from adpe.methods.factory import create_model
from adpe.models.vit import VisionTransformer


def test_votes_are_weighted_by_similarity():
    train = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.81]]), dim=1)
    labels = torch.tensor([0, 1, 1])
    # One very near neighbour of class 0 outvotes two far ones of class 1: e^(1/.07) > 2 e^(.6/.07).
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), k=3) == 100.0
    # At a high temperature the majority wins.
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), k=3, temperature=10.0) == 0.0


def test_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(30)
    centres = torch.randn(10, 16, generator=generator)
    points = F.normalize(centres[labels] + 1.2 * torch.randn(300, 16, generator=generator), dim=1)
    train, test = points[:200], points[200:]
    classifier = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs = classifier.fit(train.numpy(), labels[:200].numpy()).score(test.numpy(), labels[200:].numpy())
    ours = knn_accuracy(train, labels[:200], test, labels[200:], k=5)
    assert 20 < ours < 100
    assert ours == pytest.approx(100 * theirs)


def test_features_are_the_mean_of_the_patch_tokens():
    encoder = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    images = torch.randn(3, 3, 16, 16)
    expected = F.normalize(encoder.forward_features(images)[:, 1:].mean(1), dim=1)
    torch.testing.assert_close(features(encoder, [images[:2], images[2:]]), expected.detach())


def test_features_of_the_class_token():
    encoder = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    images = torch.randn(3, 3, 16, 16)
    expected = F.normalize(encoder.forward_features(images)[:, 0], dim=1)
    torch.testing.assert_close(features(encoder, [images], "token"), expected.detach())
    with pytest.raises(ValueError, match="global_pool must be avg, or token where there is a class token; got 'max'"):
        features(encoder, [images], "max")


def test_too_many_neighbours():
    with pytest.raises(ValueError, match="k=4 with 3 training"):
        knn_accuracy(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), k=4)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[2] / "tools" / "knn.py"
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)


def test_the_script_on_a_checkpoint_that_knows_its_model(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, colour in (("blue", (20, 20, 200)), ("red", (200, 20, 20))):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.clip(np.array(colour) + generator.integers(-20, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / name / f"{i}.png")
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 16}
    model = create_model("adpe_vit_tiny_patch4", adversary="coordinate", **options)
    config = {"type": "AdPEPretraining", "model": "adpe_vit_tiny_patch4", "adversary": "coordinate", **options}
    meta = {"cfg": f"model = {config!r}\n"}
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "epoch_1.pth")
    result = run(tmp_path / "epoch_1.pth", "--source", tmp_path / "data", "--k", 3)
    assert result.returncode == 0, result.stderr
    # Even a random encoder tells red from blue.
    assert "k-NN top-1 100.00%" in result.stdout
    result = run(tmp_path / "epoch_1.pth", "--source", tmp_path / "data", "--k", 30)
    assert result.returncode == 2 and "k=30 with 8 training" in result.stderr
