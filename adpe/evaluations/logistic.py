"""Logistic regression on pooled features, of all training images or of few: low-shot classification.

Few are a share of every class (1 %, 10 %) or a number of it, drawn several times; numbers are means over draws. The
regression is :func:`adpe.evaluations.heads.patch_probes.fit_logistic`'s, run to its optimum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.heads.patch_probes import Standardisation, fit_logistic
from adpe.evaluations.metrics.accuracy import accuracy_of
from adpe.files import atomic_write

_HELD_OUT = 0.2


class LogisticProbe(Evaluation):
    """Multinomial regression on standardised features, its penalty chosen on a fifth of the images that train.

    The fifth is of the drawn images alone, by class, so that no other label is seen; the regression is then fitted to
    all that are drawn.

    Args:
        shots: images of a class: a whole number, a share in (0, 1) of the class's, at least one, or None for all.
        draws: subsets, each by a seed of its own; 1 without `shots`.
        cs: inverse strengths of the penalty. With one there is no choice, which one image a class needs.

    ``top1`` (and ``top5``) are means over draws, ``top1_sd`` is their standard deviation (n - 1).
    """

    head = "logistic regression"

    def __init__(
        self,
        shots: float | None = None,
        draws: int = 1,
        cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
    ) -> None:
        counted = isinstance(shots, int) and not isinstance(shots, bool) and shots >= 1
        if not (shots is None or counted or (isinstance(shots, float) and 0 < shots < 1)):
            raise ValueError(f"shots = {shots!r}: expected images a class, a share between 0 and 1, or None for all.")
        if not isinstance(draws, int) or draws < 1 or (shots is None and draws != 1):
            raise ValueError(f"draws = {draws!r} with shots = {shots!r}: expected at least 1, and 1 without shots.")
        if not cs or min(cs) <= 0:
            raise ValueError(f"cs = {cs!r}: expected numbers above 0.")
        if shots == 1 and len(cs) > 1:
            raise ValueError(f"shots = 1 leaves no image to choose among cs = {cs!r}: give one.")
        self.shots, self.draws, self.cs = shots, draws, tuple(cs)

    def facts(self) -> dict[str, Any]:
        few = "all" if self.shots is None else f"{self.shots:.0%}" if self.shots < 1 else f"{self.shots} a class"
        return {"training images": few, "draws": self.draws, "augmented": False}

    def check(self, data: Mapping[str, Any]) -> None:
        labels = data["train"].images.labels[data["train"].chosen]
        for label in range(len(data["train"].classes)):
            there, name = int((labels == label).sum()), data["train"].classes[label]
            least = 1 if len(self.cs) == 1 else 2
            if there < (self.shots or 1) or shots_of(self.shots, there) < least:
                raise UserError(
                    f"evaluation.shots = {self.shots} of the class {name}, which has {there} training images: "
                    f"expected {least} to train on (2 where one of several evaluation.cs is chosen)."
                )

    def run(self, subject: Subject) -> Result:
        (train, labels), (test, wanted) = subject.features("train"), subject.features("val")
        dataset = subject.dataset("val")
        found: list[dict[str, float]] = []
        chosen: list[dict[str, Any]] = []
        arrays = None
        for draw in range(self.draws):
            rng = np.random.default_rng([subject.seed, draw])
            indices = torch.from_numpy(drawn(labels.numpy(), self.shots, rng))
            scaling = Standardisation.of(train[indices])
            features, own = scaling(train[indices]).to(subject.device), labels[indices]
            c, scores = self._choose(features, own, rng)
            model = fit_logistic(features, own, c)
            logits = model.scores(scaling(test).to(subject.device))
            every = torch.full((len(test), len(dataset.classes)), -torch.inf, dtype=torch.float64)
            every[:, torch.from_numpy(model.classes)] = logits
            metrics, arrays = accuracy_of(every.clamp(min=-1e300), wanted, dataset)
            found.append(metrics)
            chosen.append({"images": len(indices), "C": c, "held_out_accuracy": scores, **metrics})
            subject.log(f"draw {draw + 1} of {self.draws}: {len(indices)} images, C = {c:g}, {metrics['top1']:.2f}")
        with atomic_write(subject.work_dir / "selection.json") as temporary:
            Path(temporary).write_text(json.dumps(chosen, indent=1))
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        if self.draws > 1:
            means["top1_sd"] = float(np.std([one["top1"] for one in found], ddof=1))
        return Result(means, arrays if self.draws == 1 else None)

    def _choose(self, features: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[float, dict[str, float]]:
        """The C with the best accuracy on a fifth of every class, of equal ones the first; and all accuracies."""
        if len(self.cs) == 1:
            return self.cs[0], {}
        held_out = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels.numpy()):
            own = np.flatnonzero(labels.numpy() == label)
            held_out[rng.permutation(own)[: max(1, int(_HELD_OUT * len(own)))]] = True
        train, rest = torch.from_numpy(~held_out), torch.from_numpy(held_out)
        scores = {}
        for c in self.cs:
            model = fit_logistic(features[train.to(features.device)], labels[train], c)
            right = model.predict(features[rest.to(features.device)]) == labels[rest]
            scores[f"{c:g}"] = float(right.double().mean())
        best = max(range(len(self.cs)), key=lambda i: scores[f"{self.cs[i]:g}"])
        return self.cs[best], scores


def shots_of(shots: float | None, there: int) -> int:
    """How many of a class's images train: a number, a share rounded, at least one, or all."""
    if shots is None:
        return there
    return int(shots) if shots >= 1 else max(1, round(shots * there))


def drawn(labels: np.ndarray, shots: float | None, rng: np.random.Generator) -> np.ndarray:
    """Indices ``(M,)`` of the images that train, the same number or share of every class, in their order."""
    found = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        found.append(rng.permutation(own)[: shots_of(shots, len(own))])
    return np.sort(np.concatenate(found))
