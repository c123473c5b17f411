"""Several labels an image on a frozen encoder: what such evaluations share, and a linear probe on pooled features.

Dual prompts, which take a linear head along, are in
:mod:`adpe.evaluations.multi_label.dual_prompt_recognition`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.attentive_probe import check_batch, finite
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.features.tokens import Progress, TrainingFeatures, refuse_random
from adpe.evaluations.heads.dual_prompts import asymmetric_loss, known_labels, probabilities
from adpe.evaluations.multi_label.label_heads import LinearLabels
from adpe.evaluations.multi_label.metrics import average_precision, ranked_precision, threshold_scores
from adpe.files import atomic_write
from adpe.methods.schedules import seamed_cosine

EmptyClasses = Literal["skip", "zero"]


class MultiLabelEvaluation(Evaluation):
    """What evaluations with several labels an image share: which labels are known, and what is measured.

    Args:
        known: probability with which a label of an image is known in training; the others are left out of the loss.
        mask_seed: of which are known, drawn once for a run; None for the run's seed.
        empty_classes: "skip" leaves classes without a test image that has them out of means over classes; "zero" counts
            them as 0, as the reference.
    """

    def __init__(self, known: float, mask_seed: int | None, empty_classes: EmptyClasses) -> None:
        if isinstance(known, bool) or not 0 < known <= 1:
            raise ValueError(f"known = {known!r}: expected a share of the labels above 0, at most 1.")
        if empty_classes not in get_args(EmptyClasses):
            raise ValueError(f"empty_classes = {empty_classes!r} is none of {', '.join(get_args(EmptyClasses))}.")
        self.known, self.mask_seed, self.empty_classes = known, mask_seed, empty_classes

    def facts(self) -> dict[str, Any]:
        return {"known": self.known, "mask_seed": self.mask_seed, "empty_classes": self.empty_classes}

    def check(self, data: Mapping[str, Any]) -> None:
        for name in ("train", "val"):
            targets = getattr(data[name], "targets", None)
            if not isinstance(targets, np.ndarray):
                raise UserError(
                    f"evaluation: {name}_dataloader has no rows of labels, but {type(data[name]).__name__}; give "
                    "AdPEMultiLabelCoco or AdPEMultiLabelMasks."
                )
            if not (targets == 1).any() or not (targets == 0).any():
                word = "present" if (targets == 0).any() else "absent"
                raise UserError(
                    f"evaluation: no label is {word} in the {len(targets)} images of {name}_dataloader "
                    f"({', '.join(data[name].classes[:8])}): there is nothing to tell apart."
                )

    def training_targets(self, subject: Subject) -> Tensor:
        """``(N, C)`` int64 of 1, 0 and -1, of which `known` are left; logs how many, and the rarest class."""
        dataset = subject.dataset("train")
        seed = subject.seed if self.mask_seed is None else self.mask_seed
        whole = torch.from_numpy(dataset.targets).long()
        targets = known_labels(whole, self.known, torch.Generator().manual_seed(seed))
        present = (targets == 1).sum(0)
        if not bool(present.any()):
            raise UserError(
                f"evaluation.known = {self.known}: of {int((whole == 1).sum())} labels that are present in training, "
                "none is known. Take more of them."
            )
        rarest = int(present.argmin())
        subject.log(
            f"known labels: {float((targets >= 0).double().mean()):.1%} of {tuple(targets.shape)}, "
            f"{int(present.sum())} present; fewest of {dataset.classes[rarest]}: {int(present[rarest])}"
        )
        return targets

    def measure(self, scores: Tensor, targets: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """mAP, CF1 and OF1 in percent of probabilities ``(N, C)``, and the classes' average precision in [0, 1]."""
        numbers = scores.double().numpy()
        each, mean = ranked_precision(numbers, targets, self.empty_classes)
        at_half = threshold_scores(numbers, targets, 0.5, self.empty_classes)
        return {"mAP": mean, "CF1": at_half["CF1"], "OF1": at_half["OF1"]}, each


def per_image_of(scores: Tensor, dataset: Any) -> dict[str, np.ndarray]:
    """The arrays of :mod:`adpe.evaluations.metrics.per_image`."""
    return {
        "images": np.asarray(["/".join(Path(path).parts[-2:]) for path in dataset.paths()]),
        "classes": np.asarray(dataset.classes),
        "scores": scores.double().numpy(),
        "targets": dataset.targets,
    }


class Batches(NamedTuple):
    """Training data: the steps of a pass, and its batches by number."""

    steps: int
    passing: Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def train_heads(
    subject: Subject, progress: Progress, data: Batches, epochs: int, loss_of: Callable[[Tensor, Tensor], Tensor],
    rate_of: Callable[[int, float], float], option: str,
) -> None:  # fmt: skip
    """Train the head of `progress` from where it is, with the rate ``rate_of(epoch, peak)`` of every group.

    Raises:
        UserError: for a loss that is not finite; it names `option`.
    """
    progress.head.train()
    for epoch in range(progress.load(), epochs):
        for group in progress.optimizer.param_groups:
            group["lr"] = rate_of(epoch, group["peak"])
        total = torch.zeros((), device=subject.device)
        for inputs, targets in data.passing(epoch):
            loss = loss_of(inputs, targets)
            progress.optimizer.zero_grad()
            loss.backward()
            progress.optimizer.step()
            total += loss.detach()
        finite(total, f"epoch {epoch + 1}", option)
        progress.save(epoch + 1)
        if (epoch + 1) % max(1, epochs // 10) == 0:
            subject.log(f"epoch {epoch + 1} of {epochs}, loss {float(total) / data.steps:.4f}")
    progress.head.eval()


class MultiLabelProbe(MultiLabelEvaluation):
    """A linear layer on pooled features: mean binary cross-entropy of the known labels.

    The recipe is that of DINO-MM's evaluation (arXiv 2204.05381): SGD, a cosine by epoch, no weight decay. Its layer
    has no batch norm, its training images are cropped anew in every pass, and it reads the class tokens of four blocks:
    ``batch_norm=False``, ``cached=False`` and the encoder's ``blocks="four_last"``.

    Args:
        epochs: passes over the training features.
        blr: learning rate for 256 images; times ``batch_size / 256``.
        batch_size: features of a step; the last, smaller batch of an epoch is left out.
        momentum: of SGD.
        weight_decay: of SGD.
        known: see :class:`MultiLabelEvaluation`, as for the next two.
        mask_seed: likewise.
        empty_classes: likewise.
        batch_norm: before the linear layer, without affine parameters.
        cached: features are computed once, of images that are not augmented; else in every pass.
    """

    head = "multi-label linear probe"

    def __init__(
        self,
        epochs: int = 100,
        blr: float = 0.01,
        batch_size: int = 256,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        known: float = 1.0,
        mask_seed: int | None = None,
        empty_classes: EmptyClasses = "skip",
        batch_norm: bool = True,
        cached: bool = True,
    ) -> None:
        super().__init__(known, mask_seed, empty_classes)
        if epochs < 1 or batch_size < 2 or not blr > 0:
            raise ValueError(
                f"epochs = {epochs}, batch_size = {batch_size}, blr = {blr}: expected at least 1, at least 2, and more "
                "than 0."
            )
        self.epochs, self.blr, self.batch_size = epochs, blr, batch_size
        self.momentum, self.weight_decay = momentum, weight_decay
        # Private, told among the facts: protocols without them stay as they were recorded.
        self._batch_norm, self._cached = batch_norm, cached

    def facts(self) -> dict[str, Any]:
        own = {"epochs": self.epochs, "batch": self.batch_size, "augmented": not self._cached}
        return {**super().facts(), **own, **({} if self._batch_norm else {"batch norm": False})}

    def check(self, data: Mapping[str, Any]) -> None:
        super().check(data)
        check_batch(self.batch_size, len(data["train"]))

    def run(self, subject: Subject) -> Result:
        targets, dataset = self.training_targets(subject), subject.dataset("val")
        torch.manual_seed(subject.seed)
        test, _ = subject.features("val")
        data = self._batches(subject, targets)
        width, classes = test.shape[1], len(dataset.classes)
        head = LinearLabels(width, classes, batch_norm=self._batch_norm).to(subject.device)
        peak = self.blr * self.batch_size / 256
        groups = [{"params": head.parameters(), "peak": peak}]
        optimizer = torch.optim.SGD(groups, lr=peak, momentum=self.momentum, weight_decay=self.weight_decay)

        def loss_of(features: Tensor, labels: Tensor) -> Tensor:
            known = (labels >= 0).sum().clamp(min=1)
            return asymmetric_loss(head(features), labels, 0, 0, 0, 1e-12) / known

        progress = Progress(subject, {**vars(self), "labels": digest(targets)}, head, optimizer)
        train_heads(
            subject, progress, data, self.epochs, loss_of,
            lambda epoch, peak: seamed_cosine(epoch, self.epochs, 0, peak, lag=0), "blr",
        )  # fmt: skip
        with torch.no_grad():
            parts = [probabilities(head(part.to(subject.device))).cpu() for part in test.split(4096)]
        scores = torch.cat(parts)
        metrics, each = self.measure(scores, dataset.targets)
        known = dataset.targets >= 0
        micro = average_precision(scores.double().numpy()[known], dataset.targets[known] == 1)
        keep_classes(subject, dataset, {"linear": each})
        return Result({**metrics, "mAP_micro": micro}, per_image_of(scores, dataset))

    def _batches(self, subject: Subject, targets: Tensor) -> Batches:
        """Pooled features ``(B, F)`` and labels ``(B, C)`` on the device, in an order by (seed, pass)."""
        if not self._cached:
            anew = TrainingFeatures(subject, "train", self.batch_size, targets)
            return Batches(anew.steps, anew.passing)
        refuse_random(subject, "train")
        features, _ = subject.features("train")
        steps = len(features) // self.batch_size

        def passing(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = np.random.default_rng([subject.seed, number]).permutation(len(features))
            for chosen in np.split(order[: steps * self.batch_size], steps):
                yield features[chosen].to(subject.device), targets[chosen].to(subject.device)

        return Batches(steps, passing)


def digest(targets: Tensor) -> str:
    """Of known labels ``(N, C)`` int64: a training that went on with others would be neither of both."""
    return hashlib.sha256(targets.numpy().tobytes()).hexdigest()[:16]


def keep_classes(
    subject: Subject, dataset: Any, each: Mapping[str, np.ndarray], besides: Mapping[str, Any] | None = None
) -> None:
    """Average precision by class, with its number of test images, into ``classes.json``."""
    present = (dataset.targets == 1).sum(axis=0)
    rows = {
        name: {"images": int(present[i]), **{head: 100 * float(ap[i]) for head, ap in each.items()}}
        for i, name in enumerate(dataset.classes)
    }
    with atomic_write(subject.work_dir / "classes.json") as temporary:
        Path(temporary).write_text(json.dumps({"average_precision": rows, **(besides or {})}, indent=1))
