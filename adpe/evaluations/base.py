"""The contract between an evaluation on frozen features and the engine that runs it.

An evaluation is one file, one config and one test: it says what it reads, computes metrics, and returns what people
look at. Engine, records, tables and tools know this class alone. A new one is listed in
:data:`adpe.evaluations.EVALUATIONS`, its task in :data:`adpe.leaderboard.tasks.TASKS`, and a config names it::

    model = dict(type="AdPEFrozenEncoder", model=None, init_cfg=dict(type="Pretrained", checkpoint=pretrained))
    evaluation = dict(type="knn", k=20)
    train_dataloader = dict(batch_size=256, num_workers=4, dataset=dict(...))
    val_dataloader = ...

What trains a head through OpenMMLab (UperNet, Mask R-CNN, a linear layer on feature maps) is a config of mmseg or mmdet
and needs none of this.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adpe.errors import UserError
from adpe.evaluations import EVALUATIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(NamedTuple):
    """What an evaluation found.

    Attributes:
        metrics: value by name of :data:`adpe.leaderboard.tasks.METRICS`, unrounded, in the unit given there.
        per_image: arrays of :mod:`adpe.evaluations.metrics.per_image`, so that two encoders are compared over images.
        figures: pictures by name.
    """

    metrics: dict[str, float]
    per_image: dict[str, np.ndarray] | None = None
    figures: Mapping[str, Figure] = {}


@dataclass
class Subject:
    """What is evaluated, on what, and where.

    Attributes:
        model: the frozen encoder (`AdPEFrozenEncoder`), on `device`, in evaluation mode.
        loaders: by name: ``train``, ``val``, and whatever ``<name>_dataloader`` the config has besides. In order.
        device: of the model.
        seed: of the run.
        work_dir: for what can be resumed.
        log: takes a line for the log.
        features: pooled features of a loader's images, computed once: name to ``(N, D)`` float32 and ``(N,)`` int64.
    """

    model: Any
    loaders: dict[str, DataLoader]
    device: torch.device
    seed: int
    work_dir: Path
    log: Callable[[str], None]
    features: Callable[[str], tuple[Tensor, Tensor]]

    def dataset(self, name: str) -> Any:
        """The images behind a loader."""
        return self.loaders[name].dataset

    def batches(self, name: str) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Images ``(B, C, H, W)`` on the device and their ``data_samples``, batch by batch, in the data's order."""
        for batch in self.loaders[name]:
            yield batch["inputs"].to(self.device, non_blocking=True), batch["data_samples"]


class Evaluation:
    """Base of every evaluation on frozen features. Its arguments are the options of the config's ``evaluation``.

    Attributes:
        head: what published rows call it.
    """

    head: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """The few values that head its tables, beside backbone, crop and data."""
        return {}

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise UserError for data sets, by name, that it cannot be run on; called before any feature is computed."""

    def run(self, subject: Subject) -> Result:
        """Evaluate one encoder.

        Raises:
            UserError: if the data or the encoder do not allow it.
        """
        raise NotImplementedError


def build_evaluation(options: Mapping[str, Any]) -> Evaluation:
    """The evaluation that a config's ``evaluation`` names.

    Raises:
        UserError: for an unknown ``type`` or option.
    """
    given = dict(options)
    name = given.pop("type", None)
    if name not in EVALUATIONS:
        raise UserError(f"evaluation.type = {name!r} is none of {', '.join(EVALUATIONS)}.")
    module, _, cls = EVALUATIONS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"evaluation ({name}): {error}") from None


def weights_digest(model: nn.Module) -> str:
    """Of the weights: what features depend on beside the images."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@torch.no_grad()
def pooled_features(model: nn.Module, batches: Iterator[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, Tensor]:
    """Pooled features ``(N, D)`` float32 and labels ``(N,)`` int64 of all batches, on the CPU.

    Raises:
        UserError: for features that are not finite.
    """
    features, labels = [], []
    for images, samples in batches:
        found = model(images).float().cpu()
        if not bool(torch.isfinite(found).all()):
            first = int((~torch.isfinite(found).all(dim=1)).nonzero()[0])
            raise UserError(f"{samples['img_path'][first]}: the encoder's features are not finite.")
        features.append(found)
        labels.append(samples["label"])
    return torch.cat(features), torch.cat(labels)
