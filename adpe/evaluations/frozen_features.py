"""Features of a frozen encoder, computed once: for linear probes without augmentation, and for k-NN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS, HOOKS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError


class FeatureDataset(Dataset):
    """Features ``(N, D)`` and labels ``(N,)`` in the place of the images of `dataset`; a batch is one look-up.

    Indices may count passes, ``index + N * pass``, as `AdPESampler` gives them.
    """

    def __init__(self, features: Tensor, labels: Tensor, dataset: Any) -> None:
        self.features, self.labels, self.dataset, self.metainfo = features, labels, dataset, dataset.metainfo

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch, which torch's loader asks for where a data set can give it."""
        chosen = torch.as_tensor(indices) % len(self)
        return {"inputs": self.features[chosen], "data_samples": {"label": self.labels[chosen], "index": chosen}}


@FUNCTIONS.register_module()
def adpe_collate(batch: Any) -> Any:
    """torch's ``default_collate`` of a list of items; what is a batch already stays as it is."""
    return batch if isinstance(batch, dict) else default_collate(batch)


def compute_features(runner: Any, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Features ``(N, D)`` float32 and labels ``(N,)`` of all images, on the CPU, in the data set's order."""
    model = unwrapped(runner.model)
    loader_cfg = runner.cfg.train_dataloader
    loader: DataLoader = DataLoader(dataset, batch_size=256, num_workers=loader_cfg.get("num_workers", 0))
    started, training = time.time(), model.training
    model.eval()
    features, labels = [], []
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        features.append(model.frozen_features(data["inputs"]).cpu())
        labels.append(batch["data_samples"]["label"])
    model.train(training)
    runner.logger.info(f"features of {sum(map(len, labels))} training images in {time.time() - started:.1f} s")
    return torch.cat(features), torch.cat(labels)


@HOOKS.register_module()
class AdPEFeatureCacheHook(Hook):
    """Computes the features of the training images once, before training; every epoch then trains on them.

    For a frozen encoder and a training transform without randomness. Every process computes all of them. The loader has
    to have ``collate_fn=dict(type="adpe_collate")``.

    Raises:
        UserError: if the model's encoder is trained, or the transform augments.
    """

    def before_train(self, runner: Any) -> None:
        if not getattr(unwrapped(runner.model), "frozen", False):
            raise UserError("AdPEFeatureCacheHook: only a frozen encoder has features that stay: model.frozen=True.")
        wrapper: AdPESeededDataset = runner.train_dataloader.dataset
        dataset = wrapper.dataset
        if augments(runner.cfg.train_dataloader.dataset):
            raise UserError(
                "AdPEFeatureCacheHook: the training transform augments (is_training=True), and features computed once "
                "would not: set augment=True in the config, which leaves this hook out, or is_training=False."
            )
        features, labels = compute_features(runner, dataset)
        wrapper.dataset = FeatureDataset(features, labels, dataset)


@HOOKS.register_module()
class AdPEFeatureBankHook(Hook):
    """Gives `AdPEKNNClassifier` the features of the training images, before every evaluation."""

    def before_val(self, runner: Any) -> None:
        dataset = runner.train_dataloader.dataset.dataset
        if augments(runner.cfg.train_dataloader.dataset):
            raise UserError("k-NN compares with training images as they are: train transform with is_training=False.")
        unwrapped(runner.model).set_training_features(*compute_features(runner, dataset))


def augments(dataset: dict[str, Any]) -> bool:
    """Whether the config of a data set, wrapped or not, asks for a random transform."""
    inner = dataset.get("dataset") or dataset
    return bool((inner.get("transform") or {}).get("is_training"))
