#!/usr/bin/env python
"""Cost of a training step of pretraining configs, image for image, over that of the first one.

Every contestant trains on random images of the crops that its config asks for, in turns, so that all see the same
machine; its own optimiser, drop path and frozen models are part of the step, decoding and augmentation are not. Frozen
encoders of tokens and parts, where a config names none, are random ones of the size of the config's encoder.

    python benchmarks/speed/method_cost.py configs/pretrain/cifar10_mae_plus.py configs/pretrain/masks/cifar10_semmae.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import adpe.engine  # noqa: F401  registers models and optimisers
from adpe.checkpoints.loading import save_checkpoint
from adpe.engine.config import read_config
from adpe.errors import UserError, print_error
from adpe.methods.targets.tokenizers import KMeansTokenizer, save_tokenizer
from adpe.models.factory import create_encoder
from adpe.models.specification import specification_of
from benchmarks.speed.machine import pick_clock

DEFAULT = [
    "cifar10_mae_plus",
    "cifar10_mae",
    "cifar10_adpe",
    "masks/cifar10_semmae",
    "targets/cifar10_mapet",
    "targets/cifar10_mfm",
    *(f"self_distillation/cifar10_sdssl_{base}" for base in ("moco", "byol", "simclr")),
]
# Options of configs that name a file of tokens or parts.
_FILES = ("tokenizer", "parts")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"configs/pretrain/{name}.py" for name in DEFAULT]
    parser.add_argument("configs", nargs="*", default=names, help="the first is what the others are compared with")
    parser.add_argument("--images", type=int, default=16, help="images a step (default: 16)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of every config (default: 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        if min(arguments.images, arguments.steps) < 1:
            raise UserError("--images and --steps: expected at least 1.")
        milliseconds = costs(arguments.configs, arguments.images, arguments.steps, torch.device(arguments.device))
    except UserError as error:
        print_error(error)
        return 2
    table = Table("config", "crops an image", "ms an image", "over the first", title="Cost of a step")
    first = next(iter(milliseconds.values()))
    for name, value in milliseconds.items():
        crops = ", ".join(f"{one['num_crops']} x {one['size']}" for one in groups_of(read_config(name)))
        table.add_row(Path(name).stem, crops, f"{value:.2f}", f"{value / first:.2f}")
    Console().print(table)
    return 0


def costs(configs: list[str], images: int, steps: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds an image of a training step, by config."""
    clock = pick_clock(device)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {name: make_step(name, images, device, Path(folder)) for name in configs}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(steps + 1):
            for name, step in contestants.items():
                start = clock()
                step()
                if number:  # the first one warms up
                    times[name].append(clock() - start)
    return {name: 1e3 * statistics.median(spent) / images for name, spent in times.items()}


def make_step(name: str, images: int, device: torch.device, folder: Path) -> Callable[[], Any]:
    """One training step of a config's model on random images, as a call.

    Raises:
        UserError: for a config of another model.
    """
    cfg = read_config(name)
    options = {key: str(random_tokens(cfg.model, folder)) for key in _FILES if key in cfg and cfg[key] is None}
    cfg = read_config(name, options) if options else cfg
    if cfg.model.get("type") != "AdPEPretraining":
        raise UserError(f"{name}: model.type is {cfg.model.get('type')!r}, expected AdPEPretraining.")
    channels = cfg.model.get("in_chans", 3)
    views = [
        torch.rand(images, one["num_crops"], channels, one["size"], one["size"], device=device)
        for one in groups_of(cfg)
    ]
    cfg.optim_wrapper.optimizer.pop("fused", None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).to(device).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return lambda: model.train_step({"inputs": views, "data_samples": None}, wrapper)


def groups_of(cfg: Any) -> list[dict[str, Any]]:
    """Options of the crops of a config, one for each group of views."""
    crops = cfg.train_dataloader.dataset.crops
    return [crops] if isinstance(crops, dict) else list(crops)


def random_tokens(model: Any, folder: Path) -> Path:
    """A file of as many random centroids as a config's vocabulary, or 5, of a random encoder of its size."""
    count = model.get("vocabulary", 5)
    path = folder / f"{model['model']}_{count}.safetensors"
    if not path.exists():
        encoder = create_encoder(model["model"], img_size=model.get("img_size", 224))
        file = folder / f"{model['model']}.safetensors"
        state = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
        save_checkpoint(state, file, specification=specification_of(encoder, encoder.img_size))
        save_tokenizer(path, KMeansTokenizer(encoder, torch.randn(count, encoder.embed_dim)), file)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
