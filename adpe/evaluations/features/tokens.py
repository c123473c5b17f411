"""Tokens of a frozen encoder as training data: kept where images stay as they are, else computed batch by batch."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.errors import UserError
from adpe.evaluations.base import Subject, weights_digest
from adpe.evaluations.features.frozen_encoder import last_tokens
from adpe.files import atomic_write

# Images that pass through the encoder at once.
_CHUNK = 256
_PROBED = 8  # images of which it is seen whether their transform is random


@torch.no_grad()
def tokens_of(model: nn.Module, images: Tensor, final_norm: bool) -> Tensor:
    """Class tokens and patch tokens ``(B, K + N, D)`` float32 after the last block, before or after the final norm."""
    backbone: Any = model.backbone
    return _finite(torch.cat([last_tokens(backbone, part, final_norm).float() for part in images.split(_CHUNK)]))


def _finite(tokens: Tensor) -> Tensor:
    if not bool(torch.isfinite(tokens).all()):
        raise UserError("the encoder's tokens of a batch of images are not finite.")
    return tokens


def is_random(dataset: Any) -> bool:
    """Whether the images of a data set are transformed at random, as its first ones show."""
    indices = range(min(_PROBED, len(dataset)))
    return not all(torch.equal(dataset[i]["inputs"], dataset[i]["inputs"]) for i in indices)


def refuse_random(subject: Subject, name: str) -> None:
    """Raise UserError if the images of a loader, whose features are to be kept, are transformed at random."""
    if is_random(subject.dataset(name)):
        raise UserError(
            f"evaluation.cached = True, but {name}_dataloader transforms images at random: they would be drawn "
            "once. Set evaluation.cached=False, or a transform without is_training."
        )


class Progress:
    """Head and optimiser between passes, in the work directory: a training that was stopped goes on from them.

    Everything random is a function of seed and pass, so that it ends as if it had not been stopped.

    Args:
        subject: encoder and data.
        options: of the evaluation; a file of others, of another encoder, seed or training images is not read.
        head: that is trained.
        optimizer: of the head.
        name: of the file.
    """

    def __init__(
        self, subject: Subject, options: Mapping[str, Any], head: nn.Module, optimizer: Any, name: str = "probe.pt"
    ) -> None:
        self.subject, self.head, self.optimizer = subject, head, optimizer
        self.path = subject.work_dir / name
        names = hashlib.sha256("\n".join(subject.dataset("train").paths()).encode()).hexdigest()[:16]
        self.key = f"{weights_digest(subject.model)} {subject.seed} {names} {json.dumps(options, sort_keys=True)}"

    def load(self) -> int:
        """Put back what was saved; the number of steps or passes that are done."""
        try:
            saved = torch.load(self.path, map_location=self.subject.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return 0
        if not isinstance(saved, dict) or saved.get("key") != self.key:
            return 0
        self.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.subject.log(f"{self.path.stem} resumes after {saved['done']}, from {self.path}")
        return int(saved["done"])

    def save(self, done: int) -> None:
        """After so many steps or passes."""
        state = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_write(self.path) as temporary:
            torch.save({"key": self.key, "done": done, **state}, temporary)


class TrainingTokens:
    """Batches of tokens and labels of some images, in an order that is a function of (seed, pass over them).

    Args:
        subject: encoder and data.
        name: of the loader, whose workers read the images.
        indices: of the images.
        batch_size: images of a step; the last, smaller batch of a pass is left out.
        final_norm: of :func:`tokens_of`.
        cached: keep the tokens in half precision (N x tokens x D x 2 bytes of memory), for images that are not
            augmented.
        labels: ``(images, ...)`` in place of the data's own, in its order.

    Raises:
        UserError: for fewer images than a batch, or kept tokens of images that are transformed at random.
    """

    def __init__(
        self, subject: Subject, name: str, indices: np.ndarray, batch_size: int, final_norm: bool, cached: bool,
        labels: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.name, self.indices, self.batch_size = subject, name, np.asarray(indices), batch_size
        self.final_norm, self.labels = final_norm, labels
        self.steps = len(self.indices) // batch_size
        if not self.steps:
            raise UserError(
                f"evaluation.batch_size = {batch_size} with {len(self.indices)} images of {name}: a pass has no step."
            )
        self.kept: tuple[Tensor, Tensor] | None = None
        if cached:
            refuse_random(subject, name)
            parts = [
                (self._read(images).half().cpu(), self._labels(samples)) for images, samples in subject.batches(name)
            ]
            tokens, labels = (torch.cat(columns) for columns in zip(*parts, strict=True))
            self.kept = tokens[self.indices], labels[self.indices]
            subject.log(f"tokens of {len(self.indices)} images of {name} kept")

    def passing(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens ``(B, K + N, D)`` float32 and labels ``(B, ...)`` of pass `number`, on the device."""
        device = self.subject.device
        order = np.random.default_rng([self.subject.seed, number]).permutation(len(self.indices))
        order = order[: self.steps * self.batch_size]
        if self.kept is not None:
            for chosen in np.split(order, self.steps):
                yield self.kept[0][chosen].to(device).float(), self.kept[1][chosen].to(device)
            return
        dataset = AdPESeededDataset(self.subject.dataset(self.name), self.subject.seed)
        places = [int(index) + number * len(dataset) for index in self.indices[order]]
        workers = self.subject.loaders[self.name].num_workers
        for batch in DataLoader(dataset, self.batch_size, sampler=places, num_workers=workers, pin_memory=True):
            images = batch["inputs"].to(device, non_blocking=True)
            yield self._read(images), self._labels(batch["data_samples"]).to(device)

    def _read(self, images: Tensor) -> Tensor:
        return tokens_of(self.subject.model, images, self.final_norm)

    def _labels(self, samples: Mapping[str, Any]) -> Tensor:
        return samples["label"] if self.labels is None else self.labels[samples["index"]]


class TrainingFeatures(TrainingTokens):
    """Pooled features ``(B, F)`` in the place of tokens, computed anew in every pass: for images that are augmented.

    Args:
        subject: as of :class:`TrainingTokens`, like the others.
        name: likewise.
        batch_size: likewise.
        labels: likewise.
    """

    def __init__(self, subject: Subject, name: str, batch_size: int, labels: Tensor) -> None:
        every = np.arange(len(subject.dataset(name)))
        super().__init__(subject, name, every, batch_size, subject.model.final_norm, cached=False, labels=labels)

    def _read(self, images: Tensor) -> Tensor:
        return _finite(self.subject.model(images))
