"""Attentive probes as evaluations: EP (arXiv 2506.10178) and CAPI's many heads at once (arXiv 2502.08769).

The heads, optimiser and schedules are in :mod:`adpe.evaluations.heads.attentive_heads`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.features.tokens import Progress, TrainingTokens, is_random, tokens_of
from adpe.evaluations.heads.attentive_heads import (
    CAPI_DECAYS,
    CAPI_RATES,
    EfficientProbe,
    MAELars,
    ManyHeads,
    best_of_each_source,
    capi_factors,
    capi_split,
    mae_probe_rate,
)
from adpe.evaluations.metrics.accuracy import accuracy_of
from adpe.files import atomic_write


class EfficientProbing(Evaluation):
    """EP: queries that attend to the tokens before the final norm, batch norm, linear; MAE's linear-probe recipe.

    All training images train, and the last epoch counts: there is nothing to choose.

    Args:
        num_queries: Q; divides ``width / d_out``.
        d_out: by which channels are reduced.
        class_token: put the class tokens in front of the patches (the paper's "ep_all").
        final_norm: read tokens after the encoder's final norm; the published code reads them before.
        epochs: passes over the training images.
        warmup_epochs: of a linear warm-up, before a cosine to 0, both by iteration.
        blr: learning rate for 256 images; times ``batch_size / 256``.
        batch_size: images of a step, whose statistics the batch norm takes.
        weight_decay: of LARS.
        cached: tokens are computed once; for images without augmentation.
    """

    head = "EP"

    def __init__(
        self,
        num_queries: int = 32,
        d_out: int = 1,
        class_token: bool = False,
        final_norm: bool = False,
        epochs: int = 90,
        warmup_epochs: int = 10,
        blr: float = 0.1,
        batch_size: int = 4096,
        weight_decay: float = 0.0,
        cached: bool = False,
    ) -> None:
        if not 0 <= warmup_epochs < epochs or batch_size < 2 or not blr > 0 or min(num_queries, d_out) < 1:
            raise ValueError(
                f"epochs = {epochs}, warmup_epochs = {warmup_epochs}, batch_size = {batch_size}, blr = {blr}, "
                f"num_queries = {num_queries}, d_out = {d_out}: expected fewer epochs of warm-up than epochs, at least "
                "2 images a batch, a positive rate, at least one query."
            )
        self.num_queries, self.d_out, self.class_token, self.final_norm = num_queries, d_out, class_token, final_norm
        self.epochs, self.warmup_epochs, self.blr, self.batch_size = epochs, warmup_epochs, blr, batch_size
        self.weight_decay, self.cached = weight_decay, cached

    def facts(self) -> dict[str, Any]:
        tokens = "all tokens" if self.class_token else "patch tokens"
        norm = "after" if self.final_norm else "before"
        return {
            "pooling": f"{self.num_queries} queries, {tokens} {norm} the final norm", "epochs": self.epochs,
            "batch": self.batch_size, "augmented": not self.cached, "selection": "last epoch",
        }  # fmt: skip

    def check(self, data: Mapping[str, Any]) -> None:
        check_batch(self.batch_size, len(data["train"]))

    def run(self, subject: Subject) -> Result:
        dataset, width = subject.dataset("val"), subject.model.backbone.embed_dim
        # Before any token, so that it starts alike whether they are kept or not.
        head = EfficientProbe(width, len(dataset.classes), self.num_queries, self.d_out).to(subject.device)
        first = 0 if self.class_token else subject.model.backbone.num_prefix_tokens
        images = np.arange(len(subject.dataset("train")))
        data = TrainingTokens(subject, "train", images, self.batch_size, self.final_norm, self.cached)
        optimizer = MAELars(head.parameters(), weight_decay=self.weight_decay)
        peak = self.blr * self.batch_size / 256
        progress = Progress(subject, vars(self), head, optimizer)
        for epoch in range(progress.load(), self.epochs):
            total = torch.zeros((), device=subject.device)
            for step, (tokens, labels) in enumerate(data.passing(epoch)):
                at = epoch + step / data.steps
                optimizer.param_groups[0]["lr"] = mae_probe_rate(at, peak, self.epochs, self.warmup_epochs)
                loss = F.cross_entropy(head(tokens[:, first:]), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            finite(total, f"epoch {epoch + 1}", "blr")
            progress.save(epoch + 1)
            if (epoch + 1) % max(1, self.epochs // 10) == 0:
                subject.log(f"EP: epoch {epoch + 1} of {self.epochs}, loss {float(total) / data.steps:.4f}")
        count = sum(parameter.numel() for parameter in head.parameters())
        subject.log(f"EP: {count:,} trained parameters")
        head.eval()
        scores, wanted = [], []
        with torch.no_grad():
            for batch, samples in subject.batches("val"):
                tokens = tokens_of(subject.model, batch, self.final_norm)[:, first:]
                scores.append(head(tokens).softmax(dim=1).cpu())
                wanted.append(samples["label"])
        return Result(*accuracy_of(torch.cat(scores), torch.cat(wanted), dataset))


class AttentiveProbe(Evaluation):
    """CAPI's probes: a head for every source of features, rate and weight decay, trained at once on the same batches.

    A tenth of the training images chooses the best head of each source, which the test set sees once. ``top1`` is the
    attentive head's over patch tokens, ``top1_<source>`` that of the linear ones.

    Args:
        sources: of "cls", "avg_patch", "cls_avg_patch", which are linear, and "patch". None takes all, without those of
            the class token for an encoder without one.
        rates: for 256 images; times ``batch_size / 256``.
        decays: of everything but biases.
        iterations: steps.
        warmup: steps of the warm-up, from 0; a cosine to 0 follows.
        batch_size: images of a step.
        final_norm: tokens after the encoder's final norm.
        cached: tokens are computed once; for images without augmentation. Otherwise ``select_dataloader`` gives the
            training images without it.
        split_seed: of the tenth.
    """

    head = "attentive probe (CAPI)"

    def __init__(
        self,
        sources: Sequence[str] | None = None,
        rates: Sequence[float] = CAPI_RATES,
        decays: Sequence[float] = CAPI_DECAYS,
        iterations: int = 12_500,
        warmup: int = 1250,
        batch_size: int = 1024,
        final_norm: bool = True,
        cached: bool = False,
        split_seed: int = 42,
    ) -> None:
        if not 0 <= warmup < iterations or batch_size < 1 or not rates or min(rates) <= 0 or not decays:
            raise ValueError(
                f"iterations = {iterations}, warmup = {warmup}, batch_size = {batch_size}, rates = {rates}, decays = "
                f"{decays}: expected a shorter warm-up, a positive batch, positive rates and some decays."
            )
        self.sources = None if sources is None else tuple(sources)
        self.rates, self.decays = tuple(rates), tuple(decays)
        self.iterations, self.warmup, self.batch_size = iterations, warmup, batch_size
        self.final_norm, self.cached, self.split_seed = final_norm, cached, split_seed

    def facts(self) -> dict[str, Any]:
        return {
            "pooling": f"patch tokens {'after' if self.final_norm else 'before'} the final norm",
            "iterations": self.iterations, "batch": self.batch_size, "augmented": not self.cached,
            "selection": f"10 % of training, of {len(self.rates) * len(self.decays)} a source",
        }  # fmt: skip

    def check(self, data: Mapping[str, Any]) -> None:
        train, _ = capi_split(len(data["train"]), self.split_seed)
        check_batch(self.batch_size, len(train))
        if len(train) == len(data["train"]):
            raise UserError(f"{len(data['train'])} training images: a tenth of them has to choose among the heads.")
        if "select" in data and data["select"].paths() != data["train"].paths():
            raise UserError("select_dataloader must give the images of train_dataloader, in the same order.")
        if "select" not in data and is_random(data["train"]):
            raise UserError(
                "train_dataloader transforms images at random: select_dataloader has to give the same images without "
                "augmentation, to choose among the heads."
            )

    def run(self, subject: Subject) -> Result:
        backbone, dataset = subject.model.backbone, subject.dataset("val")
        own = ("cls", "avg_patch", "cls_avg_patch", "patch") if backbone.num_prefix_tokens else ("avg_patch", "patch")
        sources = own if self.sources is None else self.sources
        if not backbone.num_prefix_tokens and any("cls" in source for source in sources):
            raise UserError(f"evaluation.sources = {sources}: the encoder has no class token.")
        model = ManyHeads(backbone.embed_dim, len(dataset.classes), sources, self.rates, self.decays).to(subject.device)
        train, held_out = capi_split(len(subject.dataset("train")), self.split_seed)
        data = TrainingTokens(subject, "train", train, self.batch_size, self.final_norm, self.cached)
        self._train(subject, model, data)
        model.eval()
        name = "select" if "select" in subject.loaders else "train"
        chosen = Subset(subject.dataset(name), held_out.tolist())
        right, count = torch.zeros(len(model.points), dtype=torch.int64), 0
        for batch in DataLoader(chosen, batch_size=256, num_workers=subject.loaders[name].num_workers):
            logits = self._logits(subject, model, batch["inputs"].to(subject.device))
            labels = batch["data_samples"]["label"]
            right += (logits.argmax(1).cpu() == labels[:, None]).sum(0)
            count += len(labels)
        accuracy = (right.double() / count).tolist()
        best = best_of_each_source(model.points, accuracy)
        self._keep(subject, model, accuracy, best)
        scores: dict[str, list[Tensor]] = {source: [] for source in best}
        wanted = []
        for images, samples in subject.batches("val"):
            logits = self._logits(subject, model, images).softmax(1).cpu()
            wanted.append(samples["label"])
            for source, number in best.items():
                scores[source].append(logits[..., number])
        results = {source: accuracy_of(torch.cat(rows), torch.cat(wanted), dataset) for source, rows in scores.items()}
        main = "patch" if "patch" in results else next(iter(results))
        metrics = {f"top1_{source}": found["top1"] for source, (found, _) in results.items() if source != main}
        return Result({**results[main][0], **metrics}, results[main][1])

    def _train(self, subject: Subject, model: ManyHeads, data: TrainingTokens) -> None:
        optimizer = torch.optim.AdamW(model.parameter_groups(self.batch_size), betas=(0.9, 0.95), eps=1e-8)
        factors = capi_factors(self.iterations, self.warmup)
        told = max(1, self.iterations // 10)
        progress = Progress(subject, vars(self), model, optimizer)
        at = progress.load()
        while at < self.iterations:
            for tokens, labels in data.passing(at // data.steps):
                for group in optimizer.param_groups:
                    group["lr"] = float(factors[at]) * group["base_lr"]
                loss = model.loss(self._split(subject, model, tokens), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                at += 1
                if at % told == 0:
                    finite(loss.detach(), f"step {at}", "rates")
                    subject.log(
                        f"attentive probe: step {at} of {self.iterations}, mean loss {float(loss.detach()):.4f}"
                    )
                if at == self.iterations:
                    break
            progress.save(at)

    @staticmethod
    def _split(subject: Subject, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes, heads)`` of tokens ``(B, K + N, D)``."""
        prefix = subject.model.backbone.num_prefix_tokens
        return model(tokens[:, 0], tokens[:, prefix:])

    @torch.no_grad()
    def _logits(self, subject: Subject, model: nn.Module, images: Tensor) -> Tensor:
        return self._split(subject, model, tokens_of(subject.model, images, self.final_norm))

    @staticmethod
    def _keep(subject: Subject, model: ManyHeads, accuracy: Sequence[float], best: Mapping[str, int]) -> None:
        """All accuracies on held-out training images, and what was chosen, into ``selection.json``."""
        points: list[dict[str, Any]] = [
            {"source": source, "lr": rate, "weight_decay": decay, "accuracy": found}
            for (source, rate, decay), found in zip(model.points, accuracy, strict=True)
        ]
        chosen = {source: points[number] for source, number in best.items()}
        with atomic_write(subject.work_dir / "selection.json") as temporary:
            Path(temporary).write_text(json.dumps({"heads": points, "chosen": chosen}, indent=1))
        for source, point in chosen.items():
            found = f"lr {point['lr']:g}, weight decay {point['weight_decay']:g}"
            subject.log(f"{source}: {found}, {100 * point['accuracy']:.2f} on held-out training images")


def check_batch(batch_size: int, images: int) -> None:
    """Raise UserError if a pass over so many training images has no step."""
    if batch_size > images:
        raise UserError(
            f"evaluation.batch_size = {batch_size} with {images} training images: an epoch would have no step."
        )


def finite(loss: Tensor, where: str, option: str) -> None:
    """Raise UserError if a loss is not finite."""
    if not bool(torch.isfinite(loss)):
        raise UserError(f"the probe's loss is not finite in {where}; lower evaluation.{option}.")
