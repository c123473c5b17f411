"""Trainings of domain adaptation: MAE's fine-tuning recipe by stages, resumed from the last epoch that was kept."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.errors import UserError
from adpe.evaluations.base import Subject, weights_digest
from adpe.evaluations.domain_adaptation.pacmac import DomainClassifier
from adpe.evaluations.features.tokens import Progress
from adpe.evaluations.heads.attentive_heads import mae_probe_rate
from adpe.models.layer_decay import layer_decay_groups

_KEPT = 10  # times in a stage that its state is written

# Of the model and a batch of every loader: the loss, and what is summed up over an epoch.
Losses = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """AdamW (betas 0.9 and 0.999) under layer decay; a line from 0, then half a cosine to `min_lr`, by step.

    Attributes:
        epochs: passes over the shorter of the loaders.
        batch_size: images of a step, of each domain.
        process_batch: images of each domain that are computed at once: those of a process or of an accumulation of the
            reference. The weight of the target's loss, the share of selected images, is of these. Divides `batch_size`.
        blr: learning rate for 256 images; times ``batch_size / 256``.
        min_lr: that the cosine ends in, for the last layer.
        warmup_epochs: of the line.
        layer_decay: rate of a layer over that of the next.
        weight_decay: of matrices.
    """

    epochs: int
    batch_size: int
    process_batch: int
    blr: float
    min_lr: float
    warmup_epochs: int
    layer_decay: float = 0.65
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("epochs", "batch_size", "process_batch", "warmup_epochs")}
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in counts.values())
        if not whole or not 0 <= self.warmup_epochs < self.epochs or min(self.batch_size, self.process_batch) < 1:
            raise ValueError(
                f"{counts}: expected whole numbers, a positive batch and fewer epochs of warm-up than epochs."
            )
        if self.batch_size % self.process_batch:
            raise ValueError(f"batch_size = {self.batch_size} is no multiple of process_batch = {self.process_batch}.")
        if not (self.blr > 0 and self.min_lr >= 0 and 0 < self.layer_decay <= 1 and self.weight_decay >= 0):
            raise ValueError(
                f"blr = {self.blr}, min_lr = {self.min_lr}, layer_decay = {self.layer_decay}, weight_decay = "
                f"{self.weight_decay}: expected a positive rate, a layer decay in (0, 1], and nothing negative."
            )

    @property
    def lr(self) -> float:
        """Learning rate at its peak."""
        return self.blr * self.batch_size / 256

    def rate(self, epoch: float) -> float:
        """Learning rate of the last layer after so many epochs."""
        return mae_probe_rate(epoch, self.lr, self.epochs, self.warmup_epochs, self.min_lr)

    def steps(self, images: int) -> int:
        """Of an epoch over so many images; what remains is left out."""
        return images // self.batch_size


class _State(nn.Module):
    """A model and the sums of its epochs, which are kept together."""

    sums: Tensor

    def __init__(self, model: nn.Module, epochs: int, columns: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("sums", torch.zeros(epochs, columns, dtype=torch.float64))


def train_stage(
    subject: Subject, stage: str, recipe: Recipe, model: DomainClassifier, loaders: Sequence[str], losses: Losses,
    columns: int, options: Any,
) -> Tensor:  # fmt: skip
    """Train a model in place; a stage that was stopped goes on, and ends as if it had not been.

    Args:
        subject: whose data and seed are taken.
        stage: its name, which names its file in the work directory.
        recipe: of the training.
        model: from where it starts.
        loaders: names, whose batches are zipped; an epoch ends with the shortest.
        losses: of `model` and a batch of every loader, which ``data_samples`` and images on the device make up.
        columns: length of what `losses` sums up.
        options: as JSON, all that the result depends on beside the recipe, data and seed.

    Returns:
        ``(epochs, columns)`` float64, the sums of every epoch.

    Raises:
        UserError: for data without a step, or a loss that is not finite.
    """
    datasets = [subject.dataset(name) for name in loaders]
    steps = min(recipe.steps(len(dataset)) for dataset in datasets)
    if not steps:
        fewest = min(len(dataset) for dataset in datasets)
        raise UserError(
            f"evaluation: batch_size = {recipe.batch_size} of {stage} with {fewest} images of {' and '.join(loaders)}: "
            "an epoch would have no step."
        )
    groups = layer_decay_groups(model, 1.0, recipe.weight_decay, recipe.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999))
    state = _State(model, recipe.epochs, columns).to(subject.device)
    read = [[dataset.paths(), _made_of(dataset)] for dataset in datasets]
    key = {"of": options, "recipe": asdict(recipe), "start": weights_digest(model), "data": _digest(read)}
    progress = Progress(subject, key, state, optimizer, f"{stage}.pt")
    number, every = zlib.crc32(stage.encode()), max(1, recipe.epochs // _KEPT)
    parts = recipe.batch_size // recipe.process_batch
    for epoch in range(progress.load(), recipe.epochs):
        torch.manual_seed(zlib.crc32(f"{subject.seed} {number} {epoch}".encode()))
        model.train()
        total = torch.zeros((), device=subject.device)
        batches = [_passing(subject, name, recipe, steps, epoch) for name in loaders]
        for count, drawn in enumerate(zip(*batches, strict=True)):
            step, part = divmod(count, parts)
            if part == 0:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(epoch + step / steps) * group["lr_scale"]
            loss, told = losses(model, *drawn)
            (loss / parts).backward()
            total += loss.detach()
            state.sums[epoch] += told
            if part == parts - 1:
                optimizer.step()
        if not bool(torch.isfinite(total)):
            raise UserError(f"{stage}: the loss is not finite in epoch {epoch + 1}; lower the recipe's blr.")
        if (epoch + 1) % every == 0 or epoch + 1 == recipe.epochs:
            progress.save(epoch + 1)
            subject.log(f"{stage}: epoch {epoch + 1} of {recipe.epochs}, loss {float(total) / (steps * parts):.4f}")
    model.eval()
    return state.sums.cpu()


def _passing(subject: Subject, name: str, recipe: Recipe, steps: int, epoch: int) -> Iterator[dict[str, Any]]:
    """Batches of `process_batch` in an order, and with draws, that are functions of seed, loader and epoch."""
    dataset = AdPESeededDataset(subject.dataset(name), subject.seed)
    generator = np.random.default_rng([subject.seed, zlib.crc32(name.encode()), epoch])
    order = generator.permutation(len(dataset))[: steps * recipe.batch_size]
    places = [int(index) + epoch * len(dataset) for index in order]
    workers = subject.loaders[name].num_workers
    pinned = subject.device.type == "cuda"
    for batch in DataLoader(dataset, recipe.process_batch, sampler=places, num_workers=workers, pin_memory=pinned):
        images = {key: value.to(subject.device) for key, value in batch.items() if key != "data_samples"}
        yield {**images, "label": batch["data_samples"]["label"].to(subject.device)}


def _made_of(dataset: Any) -> dict[str, str]:
    """What a data set makes of its images, in words."""
    return {name: str(value) for name, value in vars(dataset).items() if name in ("transform", "augmentation", "style")}


def _digest(content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content).encode('utf-8', 'surrogateescape')):08x}"
