"""k-NN accuracy against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from adpe.evaluations.knn import knn_votes


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
