"""Segmentation from frozen patch features without a network: CAPI's k-NN and logistic regression (arXiv 2502.08769).

The mathematics is in :mod:`adpe.evaluations.heads.patch_probes`; here are the choice of k, distance or C on held-out
training images, the refit and the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.heads.patch_probes import (
    Distance,
    Standardisation,
    fit_logistic,
    is_kept,
    most_frequent,
    nearest,
    patch_labels,
    pixel_scores,
    split_images,
    vote,
)
from adpe.files import atomic_write

Method = Literal["knn", "logreg"]
PUBLISHED_C = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 8))
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Patches(NamedTuple):
    """Of images: features ``(N, h * w, D)`` float32, labels ``(N, h * w, p * p)`` uint8, and the images' paths."""

    features: Tensor
    labels: Tensor
    paths: list[str]


class PatchSegmentation(Evaluation):
    """Label every patch by its neighbours among the training patches, or by a multinomial regression.

    Images come through :class:`AdPESquash` at one size, and everything is counted on labels of that size: numbers
    compare with this protocol alone.

    Args:
        ignore_labels: values of the label maps that neither train nor count: (0, 255) on ADE20K, 255 elsewhere. It has
            no default: the published code had one that threw a class of Cityscapes away.
        method: "knn" copies the labels of the pixels of neighbours; "logreg" gives a patch one class.
        size: pixels, as of the data's transform; it stands in the protocol's name.
        ks: numbers of neighbours to choose from.
        distances: "cosine" and "L2".
        cs: inverse strengths of the penalty to choose from.
        standardise: features by mean and standard deviation of the training patches.
        search_dtype: "float32", or "bfloat16" as in the published configs, whose near ties depend on the device.

    The metric ``mIoU`` never predicts an ignored label; ``mIoU_ignored_predicted`` does, as the published numbers.
    """

    head = "patch segmentation"

    def __init__(
        self,
        ignore_labels: Sequence[int],
        method: Method = "knn",
        size: int = 224,
        ks: Sequence[int] = (1, 3, 10, 30),
        distances: Sequence[Distance] = ("cosine", "L2"),
        cs: Sequence[float] = PUBLISHED_C,
        standardise: bool = True,
        search_dtype: str = "float32",
    ) -> None:
        if method not in get_args(Method) or search_dtype not in _DTYPES:
            raise ValueError(
                f"method = {method!r}, search_dtype = {search_dtype!r}: knn or logreg, float32 or bfloat16."
            )
        if not ks or min(ks) < 1 or not {*distances} <= {*get_args(Distance)} or not cs or min(cs) <= 0:
            raise ValueError(f"ks = {ks}, distances = {distances}, cs = {cs}: expected numbers above 0, cosine and L2.")
        if not all(isinstance(label, int) and 0 <= label <= 255 for label in ignore_labels):
            raise ValueError(f"ignore_labels = {ignore_labels}: expected values of label maps, 0 to 255.")
        self.ignore_labels, self.method, self.size = tuple(ignore_labels), method, size
        self.ks, self.distances, self.cs = tuple(ks), tuple(distances), tuple(cs)
        self.standardise, self.search_dtype = standardise, search_dtype
        name = "k-NN" if method == "knn" else "logistic regression"
        self.head = f"{name} segmentation, {size} patch labels"  # type: ignore[misc]

    def facts(self) -> dict[str, Any]:
        return {"crop": self.size, "ignore_labels": list(self.ignore_labels), "pooling": None}

    def check(self, data: Mapping[str, Any]) -> None:
        train, val = data["train"], data["val"]
        for name, dataset in data.items():
            if not hasattr(dataset, "metainfo") or not hasattr(dataset, "get_data_info"):
                raise UserError(f"evaluation: {name}_dataloader has no label maps, but {type(dataset).__name__}.")
        if tuple(train.metainfo["classes"]) != tuple(val.metainfo["classes"]):
            raise UserError(
                f"evaluation: the classes of training {train.metainfo['classes'][:4]}... and of validation "
                f"{val.metainfo['classes'][:4]}... differ: labels would not mean the same."
            )
        split_images(len(train), torch.arange(len(train)))

    def run(self, subject: Subject) -> Result:
        sets = {"test": patches_of(subject, "val")}
        everything = patches_of(subject, "train")
        count = len(everything.paths)
        order = torch.from_numpy(np.random.default_rng(subject.seed).permutation(count))
        for name, images in zip(("train", "val"), split_images(count, order), strict=True):
            sets[name] = Patches(
                everything.features[images], everything.labels[images], [everything.paths[i] for i in images.tolist()]
            )
        if self.standardise:
            # Fitted on the images that train now, and not again.
            scaling = Standardisation.of(sets["train"].features.flatten(0, 1))
            sets = {name: part._replace(features=scaling(part.features)) for name, part in sets.items()}
        choose = self._knn if self.method == "knn" else self._logistic
        scores, predict = choose(subject, sets)
        best = max(scores, key=lambda point: scores[point])
        with atomic_write(subject.work_dir / "selection.json") as temporary:
            found = {"validation_mIoU": scores, "chosen": best, "images": {n: len(s.paths) for n, s in sets.items()}}
            Path(temporary).write_text(json.dumps({**found, "permutation_seed": subject.seed}, indent=1))
        subject.log(f"chosen: {best} with mIoU {100 * scores[best]:.2f} on {len(sets['val'].paths)} training images")
        prediction, published = predict(best)
        return self._result(subject, sets["test"], prediction, published)

    def _training(self, *parts: Patches) -> tuple[Tensor, Tensor]:
        """Features ``(M, D)`` and pixel labels ``(M, p * p)`` of the patches that train."""
        features = torch.cat([part.features.flatten(0, 1) for part in parts])
        labels = torch.cat([part.labels.flatten(0, 1) for part in parts])
        kept = is_kept(most_frequent(labels), self.ignore_labels)
        if not bool(kept.any()):
            raise UserError(f"evaluation.ignore_labels = {self.ignore_labels}: every training patch is ignored.")
        return features[kept], labels[kept]

    def _knn(
        self, subject: Subject, sets: Mapping[str, Patches]
    ) -> tuple[dict[str, float], Callable[[str], tuple[Tensor, Tensor]]]:
        bank, labels = self._training(sets["train"])
        if max(self.ks) > len(bank):
            raise UserError(f"evaluation.ks = {self.ks} with {len(bank)} training patches: expected 1 to {len(bank)}.")
        labels_there = labels.to(subject.device)

        def neighbours(part: Patches, bank: Tensor, k: int, distance: Distance) -> Tensor:
            queries = part.features.flatten(0, 1).to(subject.device)
            return nearest(queries, bank, k, distance, dtype=_DTYPES[self.search_dtype])

        # The nearest k are the first of the nearest 30.
        found = {distance: neighbours(sets["val"], bank, max(self.ks), distance) for distance in self.distances}
        points = {f"k={k} distance={distance}": (k, distance) for k in self.ks for distance in self.distances}
        scores = {}
        for name, (k, distance) in points.items():
            guess = vote(labels_there, found[distance][:, :k], self.ignore_labels).cpu()
            scores[name] = pixel_scores(sets["val"].labels, guess, self.ignore_labels)[0]

        def predict(name: str) -> tuple[Tensor, Tensor]:
            k, distance = points[name]
            bank, labels = self._training(sets["train"], sets["val"])
            places, labels = neighbours(sets["test"], bank, k, distance), labels.to(subject.device)
            return vote(labels, places, self.ignore_labels).cpu(), vote(labels, places).cpu()

        return scores, predict

    def _logistic(
        self, subject: Subject, sets: Mapping[str, Patches]
    ) -> tuple[dict[str, float], Callable[[str], tuple[Tensor, Tensor]]]:
        features, labels = self._training(sets["train"])
        features, majority, pixels = features.to(subject.device), most_frequent(labels), labels.shape[1]
        points = {f"C={c:g}": c for c in self.cs}
        scores = {}
        for name, c in points.items():
            guess = fit_logistic(features, majority, c).predict(sets["val"].features.flatten(0, 1))
            guess = guess[:, None].expand(-1, pixels)
            scores[name] = pixel_scores(sets["val"].labels, guess, self.ignore_labels)[0]
            subject.log(f"{name}: mIoU {100 * scores[name]:.2f} on held-out training images")

        def predict(name: str) -> tuple[Tensor, Tensor]:
            features, labels = self._training(sets["train"], sets["val"])
            model = fit_logistic(features.to(subject.device), most_frequent(labels), points[name])
            guess = model.predict(sets["test"].features.flatten(0, 1))[:, None].expand(-1, pixels)
            return guess, guess  # patches of ignored labels train no class

        return scores, predict

    def _result(self, subject: Subject, test: Patches, prediction: Tensor, published: Tensor) -> Result:
        miou, accuracy = pixel_scores(test.labels, prediction, self.ignore_labels)
        also, _ = pixel_scores(test.labels, published, self.ignore_labels)
        metrics = {"mIoU": 100 * miou, "aAcc": 100 * accuracy, "mIoU_ignored_predicted": 100 * also}
        classes = [str(name) for name in subject.dataset("val").metainfo["classes"]]
        first = int(bool(getattr(subject.dataset("val"), "reduce_zero_label", False)))
        return Result(metrics, areas(test, prediction, classes, first, self.ignore_labels))


def areas(
    test: Patches, prediction: Tensor, classes: Sequence[str], first: int, ignore_labels: Sequence[int]
) -> dict[str, np.ndarray]:
    """Intersections and unions ``(N, C)`` of :mod:`adpe.evaluations.metrics.per_image`, ignored pixels apart.

    Args:
        test: N images.
        prediction: ``(N * h * w, p * p)``.
        classes: C names.
        first: label of the first class.
        ignore_labels: not counted.
    """
    true = test.labels.flatten(1).long() - first
    found = prediction.reshape(len(true), -1).long() - first
    valid = is_kept(test.labels.flatten(1), ignore_labels)
    true = torch.where(valid, true, -1)
    found = torch.where(valid, found, -1)
    names = range(len(classes))
    both = torch.stack([((true == c) & (found == c)).sum(1) for c in names], dim=1)
    either = torch.stack([((true == c) | (found == c)).sum(1) for c in names], dim=1)
    images = ["/".join(Path(path).parts[-2:]) for path in test.paths]
    arrays = {"images": np.asarray(images), "classes": np.asarray(list(classes))}
    return {**arrays, "intersection": both.numpy(), "union": either.numpy()}


@torch.no_grad()
def patches_of(subject: Subject, name: str) -> Patches:
    """Patch features after the encoder's final norm and labels of the patches' pixels, of the images of a loader.

    Raises:
        UserError: for features that are not finite, or images whose labels are not of the same size.
    """
    backbone = subject.model.backbone
    features, labels, paths = [], [], []
    for images, samples in subject.batches(name):
        tokens = backbone.forward_features(images)[:, backbone.num_prefix_tokens :].float().cpu()
        if not bool(torch.isfinite(tokens).all()):
            first = int((~torch.isfinite(tokens).flatten(1).all(dim=1)).nonzero()[0])
            raise UserError(f"{samples['img_path'][first]}: the encoder's features are not finite.")
        maps = samples["label"]
        if maps.shape[-2:] != images.shape[-2:]:
            raise UserError(f"{samples['img_path'][0]}: labels of {tuple(maps.shape[-2:])} pixels for an image of "
                            f"{tuple(images.shape[-2:])}; end the pipeline with AdPESquash.")  # fmt: skip
        features.append(tokens)
        labels.append(patch_labels(maps, backbone.patch_size).view(len(images), tokens.shape[1], -1))
        paths += samples["img_path"]
    subject.log(f"patch features of {len(paths)} images of {name}")
    return Patches(torch.cat(features), torch.cat(labels), paths)
