"""Linear probe on features that are computed once: MAE's head and optimiser, without augmentation.

MAE's own probe (arXiv 2111.06377, table 10) crops and flips, and so passes every image through the encoder in every
epoch: that is a training, ``configs/imagenet/linear_vitb.py``. Here an epoch takes a fraction of a second.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.engine.optim.lars import AdPELars, lars_groups
from adpe.engine.resuming.reproducible import AdPESampler
from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.metrics.accuracy import accuracy_of
from adpe.methods.schedules import warmup_cosine


class LinearProbe(Evaluation):
    """A BatchNorm without affine parameters (eps 1e-6) and a linear layer on pooled features, trained by LARS.

    Args:
        epochs: passes over the training features.
        warmup_epochs: of the linear warm-up, before a cosine to 0.
        lr: learning rate at its peak.
        batch_size: features of a step; the last, smaller batch of an epoch is left out.
        momentum: of LARS.
        weight_decay: of the linear layer's matrix.
        trust_coeff: of LARS.
        head_init_std: of the linear layer's truncated normal initialisation.
    """

    head = "linear probe"

    def __init__(
        self,
        epochs: int = 90,
        warmup_epochs: int = 10,
        lr: float = 25.6,
        batch_size: int = 512,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coeff: float = 0.001,
        head_init_std: float = 0.01,
    ) -> None:
        if not 0 <= warmup_epochs < epochs or batch_size < 2 or not lr > 0:
            raise ValueError(
                f"epochs = {epochs}, warmup_epochs = {warmup_epochs}, batch_size = {batch_size}, lr = {lr}: expected "
                "fewer epochs of warm-up than epochs, at least 2 features a batch and a positive rate."
            )
        self.epochs, self.warmup_epochs, self.lr, self.batch_size = epochs, warmup_epochs, lr, batch_size
        self.momentum, self.weight_decay, self.trust_coeff = momentum, weight_decay, trust_coeff
        self.head_init_std = head_init_std

    def facts(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "batch": self.batch_size, "augmented": False}

    def check(self, data: Any) -> None:
        if self.batch_size > len(data["train"]):
            raise UserError(
                f"evaluation.batch_size = {self.batch_size} with {len(data['train'])} training images: an epoch "
                "would have no step."
            )

    def run(self, subject: Subject) -> Result:
        head = self.trained(subject)
        return Result(*accuracy_of(*self.scores(head, subject, "val"), subject.dataset("val")))

    def trained(self, subject: Subject) -> nn.Module:
        """The head, trained on the features of ``train``."""
        # Before the features, so that it starts alike whether they are computed or read.
        head = probe_head(subject.model.backbone.embed_dim, len(subject.dataset("train").classes), self.head_init_std)
        features, labels = subject.features("train")
        head = head.to(subject.device)
        loss = self._train(head, features.to(subject.device), labels.to(subject.device), subject.seed)
        subject.log(f"linear probe: {self.epochs} epochs, loss {loss:.4f} in the last")
        return head

    @torch.no_grad()
    def scores(self, head: nn.Module, subject: Subject, name: str) -> tuple[Tensor, Tensor]:
        """Probabilities ``(N, classes)`` of a loader's images, and their labels ``(N,)``."""
        features, labels = subject.features(name)
        return torch.cat([head(part.to(subject.device)).softmax(dim=1).cpu() for part in features.split(4096)]), labels

    def _train(self, head: nn.Module, features: Tensor, labels: Tensor, seed: int) -> float:
        groups = lars_groups(head.parameters())
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay, "trust_coeff": self.trust_coeff}
        optimizer = AdPELars(groups, lr=self.lr, **options)
        order = AdPESampler(range(len(features)), {"type": "DefaultSampler", "shuffle": True}, seed)
        steps = len(features) // self.batch_size
        head.train()
        total = torch.zeros((), device=features.device)
        for epoch in range(self.epochs):
            order.set_epoch(epoch)
            indices = torch.tensor(list(order), device=features.device) % len(features)
            total.zero_()
            for step, chosen in enumerate(indices.split(self.batch_size)[:steps]):
                at = epoch * steps + step
                rate = warmup_cosine(at, self.epochs * steps, self.warmup_epochs * steps, self.lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = F.cross_entropy(head(features[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            if not bool(torch.isfinite(total)):
                raise UserError(f"linear probe: the loss is not finite in epoch {epoch + 1}; lower evaluation.lr.")
        head.eval()
        return float(total) / steps


def probe_head(width: int, classes: int, init_std: float) -> nn.Sequential:
    """MAE's probe: BatchNorm without affine parameters, eps 1e-6, then a linear layer ``(width) -> (classes)``."""
    linear = nn.Linear(width, classes)
    nn.init.zeros_(linear.bias)
    nn.init.trunc_normal_(linear.weight, std=init_std)
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), linear)
