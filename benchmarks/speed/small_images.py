"""Compare the batches of a small data set with and without its cache of decoded images, on one core and in one run.

    python benchmarks/speed/small_images.py --images ARCHIVE --split train

Prints images/s of CPU time with the ratio, in how many values the batches differ, and which share of a training's time
on this machine's device is spent waiting for them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import MODELS
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from adpe.data.dataset import AdPEImageDataset
from adpe.engine.config import read_config
from adpe.engine.settings.device import crop_on_device
from adpe.errors import UserError
from benchmarks.speed.input_pipeline import pin_to_one_core

TARGET = 3.0


def main() -> int:
    """Run the comparison; the exit status is 1 if the target is missed or a value differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pretrain/cifar10_mae_plus", help="pretraining config")
    parser.add_argument("--images", help="folder or archive (default: 2,000 generated JPEGs of 32 pixels)")
    parser.add_argument("--split", help="folder inside --images")
    parser.add_argument("--batches", type=int, default=20, help="batches for each side (default: 20)")
    parser.add_argument("--steps", type=int, default=20, help="training steps; 0 leaves them out (default: 20)")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        options = {"data_root": arguments.images or generate_images(Path(folder) / "images")}
        try:
            cfg = read_config(arguments.config, {**options, "train_dataloader.dataset.split": arguments.split})
            if arguments.images is None:
                cfg.train_dataloader.dataset.cache_dir = folder
            if arguments.steps:
                show_waiting(console, cfg.copy(), arguments.steps)
            pin_to_one_core()
            met = show_speed(console, cfg, arguments.batches)
        except UserError as error:
            Console(stderr=True).print(f"[red]error:[/red] {error}")
            return 2
    return 0 if met else 1


def generate_images(folder: Path, count: int = 2000) -> str:
    """JPEGs of 32 x 32 with structure at two scales."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32))
        noise = generator.normal(0, 10, (32, 32, 3))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{index:04d}.jpg")
    return str(folder)


def show_speed(console: Console, cfg: Config, batches: int) -> bool:
    """Print the rates of collated batches, which take turns; whether the target is met and no value differs."""
    arguments = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ("type", "cache")}
    size = cfg.train_dataloader.batch_size
    datasets = {name: AdPEImageDataset(**arguments, cache=name == "cache") for name in ("no cache", "cache")}
    handed = AdPEImageDataset(**{**arguments, "crop_on": "device"}, cache=True)
    order = np.random.default_rng(0).permutation(len(handed))
    order = np.resize(order, size * (batches + 1)).reshape(-1, size)
    makers: dict[str, Callable[[list[int]], Any]] = {name: one.__getitems__ for name, one in datasets.items()}
    makers["cache, cropped on the device (without the crops)"] = handed.__getitems__
    spent, differing = dict.fromkeys(makers, 0.0), 0
    for number, indices in enumerate(order.tolist()):
        made = {}
        for name, make in makers.items():
            start = time.process_time()
            made[name] = default_collate(make(indices))["inputs"]
            spent[name] += time.process_time() - start if number else 0.0  # the first warms up
        differing += int((made["no cache"] != made["cache"]).sum())
    rates = {name: batches * size / seconds for name, seconds in spent.items()}
    table = Table(
        "batches", "images/s per core", "us per image", "ratio", title=f"{len(handed)} images, {size} a batch"
    )
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}", f"{1e6 / rate:.0f}", f"{rate / rates['no cache']:.2f}x")
    console.print(table)
    ratio = rates["cache"] / rates["no cache"]
    met = ratio >= TARGET and differing == 0
    console.print(f"{'met' if met else 'missed'}: {ratio:.2f}x, target {TARGET}x; {differing} values differ")
    return met


def show_waiting(console: Console, cfg: Config, steps: int) -> None:
    """Print the share of a training's time that the device waits for its batches."""
    crop_on_device(cfg)
    loader, device = cfg.train_dataloader, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = AdPEImageDataset(**{key: value for key, value in loader.dataset.items() if key != "type"})
    model = MODELS.build(cfg.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = DataLoader(dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=default_collate,
                         sampler=torch.arange(loader.batch_size * (steps + 3)).remainder(len(dataset)).tolist(),
                         pin_memory=device.type == "cuda")  # fmt: skip
    waited, begin, iterator = 0.0, 0.0, iter(batches)
    for step in range(steps + 3):
        if step == 3:  # after a start with full queues
            waited, begin = 0.0, time.perf_counter()
        start = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - start
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        optimizer.zero_grad()
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    total = time.perf_counter() - begin
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(
        f"{name}, {loader.num_workers} workers: {steps * loader.batch_size / total:.0f} images/s in float32, of which "
        f"{waited / total:.1%} of the time is spent waiting for batches"
    )


if __name__ == "__main__":
    sys.exit(main())
