"""k-NN accuracy against scikit-learn's and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

pytest.importorskip("mmengine")
from built_configs import ROOT

import adpe
from adpe.engine.launch import train_main
from adpe.evaluations.knn import knn_votes
from adpe.leaderboard.records import read_records


def knn_accuracy(train, labels, test, wanted, **options):
    votes = knn_votes(train, labels, test, int(torch.cat([labels, wanted]).max()) + 1, **options)
    return 100 * float((votes.argmax(1) == wanted).double().mean())


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


def test_too_many_neighbours():
    with pytest.raises(ValueError, match="k=4 with 3 training"):
        knn_accuracy(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), k=4)


def test_layers_are_those_of_encoders_of_that_depth(tmp_path: Path):
    """The last block is the plain evaluation; the first one that of the encoder without its second block."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (16, 16, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{i}.png")
    torch.manual_seed(0)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=2, num_heads=2, img_size=16)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    adpe.save_checkpoint(tensors, tmp_path / "two.safetensors")
    lower = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.blocks.1.")}
    adpe.save_checkpoint(lower, tmp_path / "one.safetensors")

    def metrics(config: str, file: str, *options: str) -> dict[str, float]:
        work = tmp_path / f"{config}-{file}"
        given = [f"data_root={tmp_path}", "num_classes=2", "image_size=16", f"pretrained={tmp_path / file}.safetensors"]
        arguments = [str(ROOT / "configs" / f"{config}.py"), "--work-dir", str(work), "--cfg-options", *given, *options]
        assert train_main(arguments) == 0
        assert (work / "layers.png").exists() == (config == "cifar10/knn_layers")
        records, _ = read_records(work / "record.jsonl")
        return records[-1]["metrics"]

    layers = metrics("cifar10/knn_layers", "two", "evaluation.k=3")
    plain = metrics("cifar10/knn", "two", "evaluation.k=3", "model.global_pool=token")
    first = metrics("cifar10/knn", "one", "evaluation.k=3", "model.global_pool=token")
    assert layers == {**plain, "top1_block_1": first["top1"], "top1_block_2": plain["top1"]}
    assert first["top1"] != plain["top1"]
