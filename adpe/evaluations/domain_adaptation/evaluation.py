"""PACMAC as an evaluation (arXiv 2206.08222): how far an encoder carries from one domain to another, and whether
self-training on reliable images of the other domain helps.

A classifier is fine-tuned on labelled images of the source (source-only), and from there adapted to unlabelled ones of
the target. Beside it stand the same fine-tuning on the target's labels (oracle) and self-training without a committee
(confidence alone); all are scored on test images of the target. Labels of the target's training images are read by the
oracle, and to report how many pseudo-labels are right; by nothing else.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.data.domains import AdPEDomainDataset
from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.domain_adaptation.committee_figure import draw_committee
from adpe.evaluations.domain_adaptation.pacmac import (
    Committee,
    DomainClassifier,
    NoAgreement,
    ProbeMode,
    committee_views,
)
from adpe.evaluations.domain_adaptation.training import Recipe, train_stage
from adpe.evaluations.metrics.accuracy import accuracy_of
from adpe.files import atomic_write
from adpe.models.vit import VisionTransformer

Baseline = Literal["oracle", "confidence", "random_views"]
RESAMPLES = 1000
_SHOWN = 8
# What is summed up over the target images of an epoch.
_SUMS = ("images", "selected", "selected_right", "consistent", "confident", "no_agreement", "right")


class DomainAdaptation(Evaluation):
    """PACMAC and its baselines on the target's test images.

    ``train_dataloader`` gives the source, ``target_dataloader`` the target to adapt to, ``val_dataloader`` its test
    images; all are `AdPEDomainDataset`, of "augmented", "pair" and "clean" view.

    Args:
        finetune: of :class:`Recipe`, for the classifiers on source and, as the oracle, on target labels.
        adapt: of :class:`Recipe`, for the adaptation.
        views: k of the committee.
        mask_ratio: share of the patches that a view hides.
        threshold: of the confidence, above which an image is selected without the committee.
        weight: of the target's loss.
        label_smoothing: of all losses.
        no_agreement: see :class:`adpe.evaluations.domain_adaptation.pacmac.Committee`.
        probe_mode: likewise.
        baselines: of "oracle", "confidence" (no committee) and "random_views" (a committee of random disjoint views).
    """

    head = "PACMAC"

    def __init__(
        self,
        finetune: Mapping[str, Any],
        adapt: Mapping[str, Any],
        views: int = 2,
        mask_ratio: float = 0.75,
        threshold: float = 0.5,
        weight: float = 0.1,
        label_smoothing: float = 0.1,
        no_agreement: NoAgreement = "drop",
        probe_mode: ProbeMode = "train",
        baselines: Sequence[Baseline] = ("oracle", "confidence"),
    ) -> None:
        self.finetune, self.adapt = Recipe(**finetune), Recipe(**adapt)
        unknown = [name for name in baselines if name not in get_args(Baseline)]
        if unknown:
            raise ValueError(f"baselines: {unknown[0]!r} is none of {', '.join(get_args(Baseline))}.")
        if views < 1:
            raise ValueError(f"views = {views!r}: expected at least 1; the baseline 'confidence' has none.")
        self.views, self.mask_ratio, self.threshold, self.weight = views, mask_ratio, threshold, weight
        self.label_smoothing, self.no_agreement, self.probe_mode = label_smoothing, no_agreement, probe_mode
        self.baselines = tuple(baselines)
        self.committee()

    def committee(self, views: int | None = None, seeding: bool = True) -> Committee:
        """The rule of selection, with another number of views, or random ones."""
        return Committee(
            self.views if views is None else views, self.mask_ratio, self.threshold, self.weight, self.label_smoothing,
            self.no_agreement, seeding, self.probe_mode,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {
            "committee": f"{self.views} views, mask ratio {self.mask_ratio:g}", "threshold": self.threshold,
            "weight": self.weight, "probe_mode": self.probe_mode, "no_agreement": self.no_agreement,
            "epochs": f"{self.finetune.epochs} on the source, {self.adapt.epochs} adapting",
        }  # fmt: skip

    def check(self, data: Mapping[str, Any]) -> None:
        if "target" not in data:
            raise UserError("evaluation (pacmac): the config has no target_dataloader, the domain to adapt to.")
        for name, views in (("train", ("augmented", "pair")), ("target", ("pair",)), ("val", ("clean",))):
            dataset = data[name]
            if not isinstance(dataset, AdPEDomainDataset) or dataset.view not in views:
                raise UserError(
                    f"{name}_dataloader.dataset: expected an AdPEDomainDataset with view={' or '.join(views)}, got "
                    f"{type(dataset).__name__}{f', view={dataset.view}' if hasattr(dataset, 'view') else ''}."
                )
        source = data["train"].class_names()
        for name in ("target", "val"):
            own = data[name].class_names()
            if own != source:
                raise UserError(
                    f"{name}_dataloader: source and target must have images of the same classes, by the names of their "
                    f"folders. In the source alone: {_names(source - own)}; in {name} alone: {_names(own - source)}."
                )
        train, target, test = (_images(data[name]) for name in ("train", "target", "val"))
        if train & target:
            raise UserError(
                f"train_dataloader and target_dataloader share {len(train & target)} images in one style, such as "
                f"{min(train & target)[0]}: give source and target other folders, parts or styles."
            )
        if "oracle" in self.baselines and target & test:
            raise UserError(
                f"target_dataloader and val_dataloader share {len(target & test)} images, such as "
                f"{min(target & test)[0]}: the oracle would be trained on its test. Give them other parts, or take "
                "oracle out of evaluation.baselines."
            )

    def run(self, subject: Subject) -> Result:
        encoder: VisionTransformer = copy.deepcopy(subject.model.backbone).requires_grad_(True)
        dataset = subject.dataset("val")
        if encoder.num_classes != len(dataset.classes):
            raise UserError(
                f"evaluation (pacmac): model.num_classes = {encoder.num_classes} with {len(dataset.classes)} classes."
            )
        start = DomainClassifier(encoder).to(subject.device)
        patches = int(np.prod(encoder.grid_of(encoder.img_size)))
        committee_views(torch.zeros(1, patches), self.views, self.mask_ratio)  # before hours of training
        models = {"source_only": self._supervised(subject, "source_only", start, "train")}
        if "oracle" in self.baselines:
            models["oracle"] = self._supervised(subject, "oracle", start, "target")
        sums: dict[str, Tensor] = {}
        rules: dict[str, Committee] = {
            "confidence": self.committee(views=0),
            "random_views": self.committee(seeding=False),
        }
        chosen: dict[str, Committee] = {name: rule for name, rule in rules.items() if name in self.baselines}
        chosen["pacmac"] = self.committee()
        for name, rule in chosen.items():
            models[name], sums[name] = self._adapted(subject, name, models["source_only"], rule)
        scores = {name: _scores(subject, model) for name, model in models.items()}
        return self._result(subject, models["pacmac"], scores, sums)

    def _supervised(self, subject: Subject, stage: str, start: DomainClassifier, name: str) -> DomainClassifier:
        def losses(model: DomainClassifier, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = model(batch.get("augmented", batch["inputs"]))
            right = (logits.argmax(dim=1) == batch["label"]).sum().double()
            loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
            return loss, torch.stack([right])

        model = copy.deepcopy(start)
        train_stage(subject, stage, self.finetune, model, [name], losses, 1, {"smoothing": self.label_smoothing})
        return model

    def _adapted(
        self, subject: Subject, stage: str, start: DomainClassifier, rule: Committee
    ) -> tuple[DomainClassifier, Tensor]:
        def losses(
            model: DomainClassifier, source: dict[str, Tensor], target: dict[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            images = source.get("augmented", source["inputs"])
            step = rule.step(model, images, source["label"], target["inputs"], target["augmented"])
            found = step.selection
            right = found.pseudo_labels == target["label"]
            columns = (torch.ones_like(right), found.selected, found.selected & right, found.consistent,
                       found.confident, found.selected & ~found.agreed, right)  # fmt: skip
            return step.loss, torch.stack([column.sum().double() for column in columns])

        model = copy.deepcopy(start)
        return model, train_stage(
            subject, stage, self.adapt, model, ["train", "target"], losses, len(_SUMS), vars(rule)
        )

    def _result(
        self, subject: Subject, model: DomainClassifier, scores: dict[str, tuple[Tensor, Tensor]],
        sums: dict[str, Tensor],
    ) -> Result:  # fmt: skip
        dataset = subject.dataset("val")
        found = {name: accuracy_of(*one, dataset) for name, one in scores.items()}
        right = {name: arrays["rank"] == 0 for name, (_, arrays) in found.items()}
        intervals = bootstrap(right, subject.seed)
        metrics = {f"{name}_top1": found[name][0]["top1"] for name in ("pacmac", *scores)}
        gain = intervals["pacmac"]["gain"]
        metrics.update(pacmac_gain=gain[0], pacmac_gain_low=gain[1], pacmac_gain_high=gain[2])
        for name in ("pacmac", "source_only"):
            metrics[f"{name}_mean_top1"] = class_mean(right[name], found[name][1]["label"])
        for name, rows in sums.items():
            metrics.update(selection_metrics(name, rows[-1]))
        epochs = {name: [dict(zip(_SUMS, row, strict=True)) for row in rows.tolist()] for name, rows in sums.items()}
        with atomic_write(subject.work_dir / "pacmac.json") as temporary:
            temporary.write_text(json.dumps({"top1": intervals, "target_images_by_epoch": epochs}, indent=1))
        for name, told in intervals.items():
            low, high = told["top1"][1:]
            line = f"{name}: {told['top1'][0]:.2f} on target test images (95 % over images {low:.2f} to {high:.2f})"
            if name != "source_only":
                line += f", {told['gain'][0]:+.2f} ({told['gain'][1]:+.2f} to {told['gain'][2]:+.2f}) over source-only"
            subject.log(line)
        arrays = {**found["pacmac"][1], **{f"{name}_rank": arrays["rank"] for name, (_, arrays) in found.items()}}
        return Result(metrics, arrays, {"committee": self._figure(subject, model)})

    def _figure(self, subject: Subject, model: DomainClassifier) -> Any:
        """Clean target test images, evenly spaced, and what the committee of the adapted model says of them."""
        dataset = subject.dataset("val")
        count = min(_SHOWN, len(dataset))
        samples = [dataset[(2 * i + 1) * len(dataset) // (2 * count)] for i in range(count)]
        images = torch.stack([sample["inputs"] for sample in samples]).to(subject.device)
        with torch.no_grad():
            selection = self.committee().select(model, model(images), images)
            attention = model.patch_attention(images)
        normalise = dataset.transform.transforms[-1]
        mean, std = (torch.as_tensor(part).view(3, 1, 1) for part in (normalise.mean, normalise.std))
        pixels = (images.cpu() * std + mean).clamp(0, 1)
        labels = [sample["data_samples"]["label"] for sample in samples]
        return draw_committee(pixels, attention.cpu(), selection, labels, dataset.classes, model.encoder.patch_size)


@torch.no_grad()
def _scores(subject: Subject, model: DomainClassifier) -> tuple[Tensor, Tensor]:
    """Probabilities ``(M, classes)`` and labels ``(M,)`` of the target's test images, on the CPU."""
    scores, labels = [], []
    for images, samples in subject.batches("val"):
        scores.append(model(images).softmax(dim=1).cpu())
        labels.append(samples["label"])
    return torch.cat(scores), torch.cat(labels)


def selection_metrics(name: str, row: Tensor) -> dict[str, float]:
    """In percent, of the sums `_SUMS` of an epoch: what was selected, and how much of it right; of PACMAC all there is.

    A precision of nothing is left out.
    """
    told = dict(zip(_SUMS, row.tolist(), strict=True))
    prefix = "" if name == "pacmac" else f"{name}_"
    metrics = {f"{prefix}selected_share": 100 * told["selected"] / told["images"]}
    if told["selected"]:
        metrics[f"{prefix}selected_precision"] = 100 * told["selected_right"] / told["selected"]
    if name == "pacmac":
        metrics["no_agreement_share"] = 100 * told["no_agreement"] / told["images"]
        metrics["pseudo_label_top1"] = 100 * told["right"] / told["images"]
    return metrics


def class_mean(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of their accuracy, in percent."""
    return 100 * float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def bootstrap(right: Mapping[str, np.ndarray], seed: int) -> dict[str, dict[str, list[float]]]:
    """Top-1 of every model and its gain over source-only, with the ends of 95 % intervals over images, in percent.

    Args:
        right: of every model ``(M,)`` bool; ``source_only`` among them. All are drawn together.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    hits = 100.0 * np.stack([*right.values()], axis=1)  # (M, models)
    count = len(hits)
    drawn = np.stack([hits[generator.integers(count, size=count)].mean(axis=0) for _ in range(RESAMPLES)])

    def interval(of: float, draws: np.ndarray) -> list[float]:
        return [of, *map(float, np.quantile(draws, (0.025, 0.975)))]

    means, base = hits.mean(axis=0), list(right).index("source_only")
    return {
        name: {
            "top1": interval(float(means[i]), drawn[:, i]),
            "gain": interval(float(means[i] - means[base]), drawn[:, i] - drawn[:, base]),
        }
        for i, name in enumerate(right)
    }


def _images(dataset: AdPEDomainDataset) -> set[tuple[str, str]]:
    """The images of a data set, by path and style."""
    return {(path, dataset.style or "") for path in dataset.paths()}


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "") or "none"
