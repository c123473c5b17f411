"""Short pretrainings on a few images: through the launcher, or by hand."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adpe.engine import launch
from adpe.methods.base import PretrainingMethod, Progress

ROOT = Path(__file__).resolve().parents[2]


def train_small(config: str, folder: Path, options: dict[str, Any] | None = None, resume: Path | None = None) -> Any:
    """Two optimiser steps of a config of `configs/pretrain/` on eight random images of 32 pixels: the Runner.

    With `resume`, a checkpoint of such a training in the same folder, what is left of it. An option of None is left
    out.
    """
    images = folder / "images" / "train" / "cat"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{i}.png")
    options = {
        "data_root": str(folder / "images"), "effective_batch": 4, "epochs": 1, "warmup_epochs": 0,
        "train_dataloader.batch_size": 4, "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False, "model.embed_dim": 48, "model.depth": 1, "model.num_heads": 3,
        **(options or {}),
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    arguments = argparse.Namespace(
        config=str((ROOT / "configs" / "pretrain" / f"{config}.py").resolve()),
        work_dir=str(folder / ("again" if resume else "work")),
        cfg_options=options, launcher="none", resume=resume and str(resume), amp=None, seed=None, deterministic=False,
    )  # fmt: skip
    return launch.train(arguments)


def steps(
    method: PretrainingMethod,
    images: Tensor | Sequence[Tensor],
    count: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress = Progress(),  # noqa: B008
) -> list[dict[str, float]]:
    """What `count` AdamW steps on the same ``(B, 3, H, W)`` images, or groups of views, log, one entry a step."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr, 0.05), lr=lr, betas=(0.9, 0.95))
    logged = []
    for _ in range(count):
        losses = method.losses(as_views(images), progress)
        optimizer.zero_grad()
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
        method.before_step(progress)
        optimizer.step()
        method.after_step(progress)
        logged.append({name: float(value.detach()) for name, value in losses.items()})
    return logged


def as_views(images: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Images ``(B, 3, H, W)`` as one group of one crop each; groups as they are."""
    return [images.unsqueeze(1)] if isinstance(images, Tensor) else images


def resumes_exactly(method: PretrainingMethod, images: Tensor | Sequence[Tensor]) -> bool:
    """Whether a copy that is given the state after two steps makes the third one as the original does."""
    fresh = copy.deepcopy(method)
    steps(method, images, 2)
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    one, other = steps(method, images, 1, seed=3), steps(fresh, images, 1, seed=3)
    state = fresh.state_dict()
    return one == other and all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def trains_in_bfloat16(method: PretrainingMethod, images: Tensor | Sequence[Tensor]) -> bool:
    """Under autocast and with recomputed blocks: the float32 losses to 2 %, and finite float32 gradients everywhere."""
    losses, state = [], copy.deepcopy(method.state_dict())
    for autocast in (False, True):
        method.load_state_dict(state)  # with centres as before the first pass
        method.encoder.set_grad_checkpointing(autocast)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses.append(method.losses(as_views(images)))
    objective = {name: value for name, value in losses[1].items() if "loss" in name}
    torch.stack(list(objective.values())).sum().backward()
    gradients = [parameter.grad for parameter in method.parameters() if parameter.requires_grad]
    return all(torch.isclose(value, losses[0][name], rtol=0.02) for name, value in objective.items()) and all(
        gradient is not None and gradient.dtype == torch.float32 and bool(gradient.isfinite().all())
        for gradient in gradients
    )
