"""Dual prompts (DualCoOp, arXiv 2206.09541) as an evaluation of a frozen encoder, a linear head beside them.

Both are trained on the same batches, known labels and loss: what the prompts add is the metric ``over_linear``. The
mathematics is in :mod:`adpe.evaluations.heads.dual_prompts`, the heads in
:mod:`adpe.evaluations.multi_label.label_heads`, the text sides in :mod:`adpe.evaluations.multi_label.class_texts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from adpe.evaluations.attentive_probe import check_batch
from adpe.evaluations.backdoor.triggers import normalisation_of
from adpe.evaluations.base import Result, Subject
from adpe.evaluations.features.tokens import Progress, TrainingTokens, tokens_of
from adpe.evaluations.heads.dual_prompts import asymmetric_loss, probabilities
from adpe.evaluations.multi_label.class_texts import text_side
from adpe.evaluations.multi_label.label_heads import DualPromptHead, LinearLabels, Prompts, Weights
from adpe.evaluations.multi_label.probe import (
    Batches,
    EmptyClasses,
    MultiLabelEvaluation,
    digest,
    keep_classes,
    per_image_of,
    train_heads,
)
from adpe.leaderboard.uncertainty.images import bootstrap_difference
from adpe.leaderboard.uncertainty.paired_images import metrics_of
from adpe.methods.schedules import seamed_cosine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLES = 1000
_PICTURES, _SHOWN_CLASSES = 6, 4


class DualPromptRecognition(MultiLabelEvaluation):
    """Two learned prompts a class over the regions of an image, beside a linear head on the mean of its patches.

    Patch tokens are read after the encoder's final norm. The last epoch counts: there is nothing to choose (the
    reference takes the epoch that is best on the test images).

    Args:
        text: ``dict(type="clip", checkpoint=FILE)``, ``dict(type="random")`` or ``dict(type="table")``, with the
            options in :mod:`adpe.evaluations.multi_label.class_texts`.
        known: see :class:`MultiLabelEvaluation`, as for the next two.
        mask_seed: likewise.
        empty_classes: likewise.
        region_scale: of cosines under the softmax over regions.
        logit_scale: of the aggregated ones.
        weights: "softmax" over regions, or "uniform", the control.
        prompts: "dual", or "positive" alone, the control.
        loss_weight: of the loss, which is a sum over images and labels.
        gamma_neg: focusing of absent labels; 2 published (the class in the reference's file has 4).
        gamma_pos: of present ones.
        clip: added to the probability of absence.
        epochs: passes over the training images.
        warmup_epochs: of these, at first, of a rate that rises from `warmup_lr`: one is all at `warmup_lr`. Then a
            cosine by epoch.
        warmup_lr: of the first epoch.
        lr: peak of contexts, or of the table.
        projection_lr: peak of the projection to the text's space, which the published system does not train.
        linear_lr: peak of the linear head.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images of a step; the last, smaller batch of a pass is left out.
        cached: tokens are computed once; for images without augmentation.
    """

    head = "dual prompts"

    def __init__(
        self,
        text: Mapping[str, Any],
        known: float = 0.5,
        mask_seed: int | None = None,
        empty_classes: EmptyClasses = "skip",
        region_scale: float = 20.0,
        logit_scale: float = 5.0,
        weights: Weights = "softmax",
        prompts: Prompts = "dual",
        loss_weight: float = 0.03,
        gamma_neg: float = 2.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        epochs: int = 50,
        warmup_epochs: int = 1,
        warmup_lr: float = 1e-5,
        lr: float = 0.002,
        projection_lr: float = 0.002,
        linear_lr: float = 0.002,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch_size: int = 32,
        cached: bool = False,
    ) -> None:
        super().__init__(known, mask_seed, empty_classes)
        for key, word, kind in (("weights", weights, Weights), ("prompts", prompts, Prompts)):
            if word not in get_args(kind):
                raise ValueError(f"{key} = {word!r} is none of {', '.join(get_args(kind))}.")
        positive = {
            "region_scale": region_scale, "logit_scale": logit_scale, "loss_weight": loss_weight, "lr": lr,
            "projection_lr": projection_lr, "linear_lr": linear_lr, "batch_size": batch_size - 1,
        }  # fmt: skip
        wrong = [key for key, value in positive.items() if not value > 0]
        wrong += [key for key, value in {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos}.items() if value < 0]
        if wrong or not 0 <= clip < 1 or not 0 <= warmup_epochs < epochs or warmup_lr < 0:
            raise ValueError(
                f"{wrong or f'clip = {clip}, warmup_epochs = {warmup_epochs} of epochs = {epochs}'}: expected positive "
                "rates and scales, at least 2 images a batch, a clip below 1, and fewer epochs of warm-up than epochs."
            )
        self.text = text_side(text)
        self.region_scale, self.logit_scale, self.weights, self.prompts = region_scale, logit_scale, weights, prompts
        self.loss_weight, self.gamma_neg, self.gamma_pos, self.clip = loss_weight, gamma_neg, gamma_pos, clip
        self.epochs, self.warmup_epochs, self.warmup_lr = epochs, warmup_epochs, warmup_lr
        self.lr, self.projection_lr, self.linear_lr = lr, projection_lr, linear_lr
        self.momentum, self.weight_decay, self.batch_size, self.cached = momentum, weight_decay, batch_size, cached

    def facts(self) -> dict[str, Any]:
        said = self.text.told()
        return {
            **super().facts(), "pooling": f"{self.weights} over regions", "text": said, "projection": "learned",
            "contexts": getattr(self.text, "contexts", None), "prompts": self.prompts,
            "system": "dual prototypes" if said.startswith("table") else "dual prompts on another image side",
            "epochs": self.epochs, "batch": self.batch_size, "augmented": not self.cached, "selection": "last epoch",
        }  # fmt: skip

    def check(self, data: Mapping[str, Any]) -> None:
        super().check(data)
        check_batch(self.batch_size, len(data["train"]))

    def run(self, subject: Subject) -> Result:
        targets, dataset = self.training_targets(subject), subject.dataset("val")
        width = subject.model.backbone.embed_dim
        torch.manual_seed(subject.seed)
        with torch.random.fork_rng():  # the same one beside every text side
            linear = LinearLabels(width, len(dataset.classes))
        texts = self.text.build(dataset.classes, width, subject.seed)
        dual = DualPromptHead(width, texts, self.region_scale, self.logit_scale, self.weights, self.prompts)
        heads = nn.ModuleDict({"dual": dual, "linear": linear}).to(subject.device)
        images, prefix = np.arange(len(targets)), subject.model.backbone.num_prefix_tokens
        data = TrainingTokens(subject, "train", images, self.batch_size, True, self.cached, targets)
        groups = [
            {"params": [p for p in texts.parameters() if p.requires_grad], "peak": self.lr},
            {"params": dual.projection.parameters(), "peak": self.projection_lr},
            {"params": linear.parameters(), "peak": self.linear_lr},
        ]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

        def loss_of(tokens: Tensor, labels: Tensor) -> Tensor:
            patches = tokens[:, prefix:]
            # Their parameters are their own: the sum trains each as if it were alone.
            pair = dual(patches)[0], linear(patches.mean(dim=1))
            focus = (self.gamma_neg, self.gamma_pos, self.clip)
            return self.loss_weight * torch.stack([asymmetric_loss(one, labels, *focus) for one in pair]).sum()

        said = {**vars(self), "text": [repr(self.text), self.text.told()], "labels": digest(targets)}
        progress = Progress(subject, said, heads, optimizer)
        train_heads(
            subject, progress, Batches(data.steps, data.passing), self.epochs, loss_of,
            lambda epoch, peak: seamed_cosine(epoch, self.epochs, self.warmup_epochs, peak, self.warmup_lr, lag=0),
            "lr, .projection_lr or .linear_lr",
        )  # fmt: skip
        return self._measure(subject, heads, prefix)

    @torch.no_grad()
    def _measure(self, subject: Subject, heads: nn.ModuleDict, prefix: int) -> Result:
        dataset = subject.dataset("val")
        found: dict[str, list[Tensor]] = {"dual": [], "linear": []}
        shown: list[tuple[Tensor, Tensor]] = []
        mean_share = []
        for images, _ in subject.batches("val"):
            patches = tokens_of(subject.model, images, final_norm=True)[:, prefix:]
            logits, weights = heads["dual"](patches)
            found["dual"].append(probabilities(logits).cpu())
            found["linear"].append(probabilities(heads["linear"](patches.mean(dim=1))).cpu())
            mean_share.append(weights[:, :, 0].mean(dim=1).cpu())
            if not shown:
                shown.append((images[:_PICTURES].cpu(), weights[:_PICTURES].cpu()))
        scores = {name: torch.cat(parts) for name, parts in found.items()}
        (own, each), (linear, each_linear) = (
            self.measure(scores[name], dataset.targets) for name in ("dual", "linear")
        )
        arrays, others = (per_image_of(scores[name], dataset) for name in ("dual", "linear"))
        first, second = (metrics_of(one, one["images"])["mAP"] for one in (arrays, others))
        gain = bootstrap_difference(lambda d: first(d) - second(d), len(dataset), resamples=_RESAMPLES)
        interval = f"{gain.low:+.2f} to {gain.high:+.2f}" if gain.low is not None else "no spread"
        over = own["mAP"] - linear["mAP"]
        subject.log(
            f"dual prompts {own['mAP']:.2f} mAP, {over:+.2f} over the linear head ({interval} over images, 95 %)"
        )
        share = float(torch.cat(mean_share).mean())
        subject.log(f"weight of the mean region: {share:.1%}")
        keep_classes(
            subject, dataset, {"dual": each, "linear": each_linear},
            {"over_linear": over, "over_linear_95": [gain.low, gain.high], "weight_of_the_mean_region": share},
        )  # fmt: skip
        figure = self._figure(subject, dataset, *shown[0])
        metrics = {**own, **{f"linear_{name}": value for name, value in linear.items()}, "over_linear": over}
        return Result(metrics, arrays, {"regions": figure})

    @staticmethod
    def _figure(subject: Subject, dataset: Any, images: Tensor, weights: Tensor) -> Figure:
        """Weights ``(B, C, 1 + N)`` over pictures ``(B, 3, H, W)``, of the classes that most of them have."""
        from adpe.viz.patch_maps import draw_patch_maps

        mean, std = (part.flatten().tolist() for part in normalisation_of(dataset, torch.device("cpu")))
        present = (dataset.targets[: len(images)] == 1).sum(axis=0)
        classes = np.argsort(-present, kind="stable")[:_SHOWN_CLASSES]
        maps = {dataset.classes[label]: weights[:, label, 1:] for label in classes}
        return draw_patch_maps(images, maps, subject.model.backbone.patch_embed.grid(images), mean, std)
