"""CAPI's patch-label segmentation against numbers recorded from its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.heads.patch_probes import (
    Standardisation,
    fit_logistic,
    is_kept,
    knn_predict,
    most_frequent,
    patch_labels,
    pixel_scores,
    split_images,
)
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error

_COEFFICIENTS = 2e-4


class _Sets(NamedTuple):
    """Patches of the training, validation and test images: features, labels of their pixels, majority labels."""

    features: dict[str, Tensor]
    labels: dict[str, Tensor]
    scaling: Standardisation
    ignored: list[int]

    def training(self, *names: str) -> tuple[Tensor, Tensor]:
        """Kept patches of some sets, and the labels of their pixels."""
        features = torch.cat([self.features[name] for name in names])
        labels = torch.cat([self.labels[name] for name in names])
        kept = is_kept(most_frequent(labels), self.ignored)
        return features[kept], labels[kept]


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that this protocol does not compute.
    """
    checks = {"data": _data, "knn": _knn, "logreg": _logreg, "miou": _miou}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _sets(case: GoldenCase, standardise: bool = True) -> _Sets:
    data = case if "input.train_features" in case.arrays else case.sibling("data")
    said, arrays = case.options, data.arrays
    patch = said["patch_size"]
    train, validate = split_images(said["images"], arrays["input.permutation"].long())
    images = {"train": arrays["input.train_features"][train], "val": arrays["input.train_features"][validate]}
    images["test"] = arrays["input.test_features"]
    maps = {"train": arrays["input.train_labels"][train], "val": arrays["input.train_labels"][validate]}
    maps["test"] = arrays["input.test_labels"]
    features = {name: value.flatten(0, 2) for name, value in images.items()}
    scaling = Standardisation.of(features["train"])
    if standardise:
        features = {name: scaling(value) for name, value in features.items()}
    labels = {name: patch_labels(value, patch) for name, value in maps.items()}
    return _Sets(features, labels, scaling, list(said["ignore_labels"]))


def _data(case: GoldenCase) -> CaseResult:
    sets = _sets(case)
    majority = most_frequent(sets.labels["train"])
    ours = {f"{name}_standardised": value for name, value in sets.features.items()}
    ours |= {"mean": sets.scaling.mean, "scale": sets.scaling.scale}
    error = largest_error(relative_error(value, case.arrays[f"output.{name}"]) for name, value in ours.items())
    exact = {"train_majority": majority, "kept": is_kept(majority, sets.ignored)}
    return case.result({
        "standardised features": error,
        "exact": largest_error(relative_error(value, case.arrays[f"output.{name}"]) for name, value in exact.items()),
    })  # fmt: skip


def _choose(
    case: GoldenCase, sets: _Sets, grid: dict[str, Any], predict: Callable[..., Tensor]
) -> tuple[list[float], Any]:
    """Errors of the validation's mIoU, and the grid point with the first best one."""
    errors, scores = [], []
    for name, point in grid.items():
        found = predict(sets.features["val"], *sets.training("train"), point)
        scores.append(pixel_scores(sets.labels["val"], found, sets.ignored)[0])
        errors.append(abs(scores[-1] - case.options["validation_mIoU"][name]))
    return errors, list(grid.values())[int(np.argmax(scores))]


def _knn(case: GoldenCase) -> CaseResult:
    said = case.options
    sets = _sets(case, said.get("standardised", True))
    names = list(said["validation_mIoU"])
    points = [(int(n.split("neighbors=")[1].split("_")[0]), n.rpartition("=")[2]) for n in names]

    def predict(queries: Tensor, bank: Tensor, labels: Tensor, point: tuple[int, Any]) -> Tensor:
        return knn_predict(queries, bank, labels, *point)

    errors, best = _choose(case, sets, dict(zip(names, points, strict=True)), predict)
    chosen = (said["chosen"]["num_neighbors"], said["chosen"]["distance"])
    exact = [0.0 if best == chosen else float("inf")]
    everything = sets.training("train", "val")
    for point in points:
        recorded = case.arrays.get(f"output.prediction.{point[1]}.{point[0]}")
        if recorded is not None:
            exact.append(relative_error(predict(sets.features["test"], *everything, point), recorded))
    final = predict(sets.features["test"], *everything, best)
    exact.append(relative_error(final, case.arrays["output.test_prediction"]))
    scores = pixel_scores(sets.labels["test"], final, sets.ignored)
    errors += [abs(scores[0] - said["test"]["mIoU"]), abs(scores[1] - said["test"]["acc"])]
    return case.result({"exact": largest_error(exact), "mIoU": largest_error(errors)})


def _logreg(case: GoldenCase) -> CaseResult:
    said, sets = case.options, _sets(case)

    def predict(queries: Tensor, bank: Tensor, labels: Tensor, c: float) -> Tensor:
        found = fit_logistic(bank, most_frequent(labels), c).predict(queries)
        return found[:, None].expand(-1, labels.shape[1])

    grid = dict(zip(said["validation_mIoU"], said["C"], strict=True))
    errors, best = _choose(case, sets, grid, predict)
    exact = [0.0 if best == said["chosen"]["C"] else float("inf")]
    coefficients = []
    bank, labels = sets.training("train", "val")
    majority = most_frequent(labels)
    final = torch.empty(0)
    for number, c in enumerate(said["C"]):
        fitted = fit_logistic(bank, majority, c)
        ours = {"coefficient": fitted.coefficient, "intercept": fitted.intercept - fitted.intercept.mean()}
        for name, value in ours.items():
            theirs = case.arrays[f"output.{name}.{number}"]
            coefficients.append(relative_error(torch.from_numpy(value), theirs))
        found = fitted.predict(sets.features["test"])
        exact.append(relative_error(found, case.arrays[f"output.prediction.{number}"]))
        if c == best:
            final = found
    exact.append(relative_error(final, case.arrays["output.test_prediction"]))
    scores = pixel_scores(sets.labels["test"], final[:, None].expand(-1, labels.shape[1]), sets.ignored)
    errors += [abs(scores[0] - said["test"]["mIoU"]), abs(scores[1] - said["test"]["acc"])]
    result = case.result({
        "exact": largest_error(exact), "mIoU": largest_error(errors), "coefficients": largest_error(coefficients),
    })  # fmt: skip
    result.tolerances["coefficients"] = _COEFFICIENTS
    return result


def _miou(case: GoldenCase) -> CaseResult:
    said = case.options
    scores = pixel_scores(case.arrays["input.labels"], case.arrays["input.prediction"], said["ignore_labels"])
    return case.result({"mIoU": max(abs(scores[0] - said["mIoU"]), abs(scores[1] - said["accuracy"]))})
