"""Compare the multi-crop input pipeline with torchvision's transforms, on one core and in one run.

    python benchmarks/speed/input_pipeline.py --images FOLDER_OR_ARCHIVE --seconds 5

Prints images/s of CPU time with ratios, how far the crops agree pixel by pixel for the same parameters, and the moments
of the crop parameters that each side draws.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as pillow_functional
from torchvision.transforms.v2 import functional as tensor_functional

from adpe.data.dataset import AdPEImageDataset
from adpe.data.images import ImageSource
from adpe.data.multicrop import IMAGENET_MEAN, IMAGENET_STD, CropBox, MultiCrop, crop_generator
from adpe.errors import UserError

CHUNK = 25  # images for which one method runs before the next has its turn, so that all see the same machine
TARGET = 2.5


class Options(NamedTuple):
    """What both sides are asked for."""

    size: int
    crops: int
    interpolation: str

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Of our side."""
        return {"size": self.size, "num_crops": self.crops, "interpolation": self.interpolation, **more}

    def multicrop(self, **more: Any) -> MultiCrop:
        """Our side."""
        return MultiCrop(**self.arguments(**more))


def main() -> int:
    """Run the comparison; the exit status is 1 if the target over the usual data set is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", help="folder, tar, tar.xz or zip (default: generated photographs)")
    parser.add_argument("--split", help="folder inside --images")
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU time for each method (default: 5)")
    parser.add_argument("--limit", type=int, default=200, help="distinct images, spread over the source (default: 200)")
    parser.add_argument("--size", type=int, default=112, help="crop size in pixels (default: 112)")
    parser.add_argument("--crops", type=int, default=4, help="crops per image (default: 4)")
    parser.add_argument("--interpolation", choices=["bicubic", "bilinear"], default="bicubic")
    arguments = parser.parse_args()
    pin_to_one_core()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = arguments.images or generate_images(Path(folder))
            source = ImageSource(path, split=arguments.split)
        except UserError as error:
            Console(stderr=True).print(f"[red]error:[/red] {error}")
            return 2
        indices = np.unique(np.linspace(0, len(source) - 1, arguments.limit).astype(int)).tolist()
        options = Options(arguments.size, arguments.crops, arguments.interpolation)
        images = [source.open(index) for index in indices]
        sizes = np.array([image.size for image in images])
        console.print(
            f"{len(indices)} images of {source!r}, {sizes.mean(0)[0]:.0f} x {sizes.mean(0)[1]:.0f} pixels on average; "
            f"{arguments.crops} crops of {arguments.size}, {arguments.interpolation}; one core, one thread"
        )
        scaled = AdPEImageDataset(path, arguments.split, options.arguments(normalize="device"), decode="scaled")
        ratio = show_speed(console, source, scaled, indices, options, arguments.seconds)
        show_pixels(console, images, options)
        show_reductions(console, source, scaled, indices)
        show_parameters(console, sizes, options)
    met = ratio >= TARGET
    console.print(
        f"{'[green]met' if met else '[red]missed'}[/]: {ratio:.2f}x the usual data set, target {TARGET}x",
        highlight=False,
    )
    return 0 if met else 1


def pin_to_one_core() -> None:
    """One core and one torch thread, so that images/s are per core."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def generate_images(folder: Path, count: int = 64) -> str:
    """JPEGs of ImageNet's usual sizes with structure at every scale, roughly as large in bytes as photographs."""
    generator = np.random.default_rng(0)
    for index in range(count):
        width, height = (500, 375) if index % 4 else (375, 500)
        pixels = np.zeros((height, width, 3))
        for cells in (4, 16, 64, 256):
            noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
        pixels = (pixels * 220 / pixels.max() + generator.normal(10, 8, pixels.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.jpg", quality=92)
    return str(folder)


def show_speed(
    console: Console,
    source: ImageSource,
    scaled: AdPEImageDataset,
    indices: list[int],
    options: Options,
    seconds: float,
) -> float:
    """Print the table of speeds; return ours over the usual data set."""
    size, crops, mode = options.size, options.crops, InterpolationMode(options.interpolation)
    normalize = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=mode),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(**normalize),
        ]
    )
    tensor_view = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**normalize),
        ]
    )

    def decode(index: int) -> Image.Image:  # as torchvision's own loader does
        return Image.open(io.BytesIO(source.read(index))).convert("RGB")

    def ours(**more: Any) -> Callable[[int], object]:
        crop = options.multicrop(**more)

        def one(index: int) -> object:
            pixels, _ = source.decode_pixels(index)
            height, width = pixels.shape[:2]
            return crop.apply(pixels, crop.sample(height, width, crop_generator(0, 0, index)))

        return one

    def usual(index: int) -> object:
        image = decode(index)
        return torch.stack([view(image) for _ in range(crops)])

    def on_tensors(index: int) -> object:
        image = v2.functional.pil_to_tensor(decode(index))
        return torch.stack([tensor_view(image) for _ in range(crops)])

    methods: dict[str, Callable[[int], object]] = {
        "ours": ours(),
        "ours, normalize='device' (uint8)": ours(normalize="device"),
        "ours, normalize='device', decode='scaled'": scaled.__getitem__,
        "ours, resize='pillow'": ours(resize="pillow"),
        "A: torchvision, one decode": usual,
        "B: torchvision, a decode for each crop": lambda index: torch.stack(
            [view(decode(index)) for _ in range(crops)]
        ),
        "C: torchvision v2 on uint8 tensors, one decode": on_tensors,
        "D: decoding alone, by Pillow": source.open,
        "E: decoding alone, as ours": source.decode_pixels,
    }
    speeds = measure(methods, indices, seconds)
    table = Table("method", "images/s per core", "ms", *(f"over {name}" for name in "ABCDE"), title="Speed")
    for name, speed in speeds.items():
        ratios = [f"{speed / speeds[other]:.2f}x" for other in speeds if other[1] == ":"]
        table.add_row(name, f"{speed:.0f}", f"{1000 / speed:.2f}", *ratios)
    console.print(table)
    return speeds["ours"] / speeds["A: torchvision, one decode"]


def measure(methods: dict[str, Callable[[int], object]], indices: list[int], seconds: float) -> dict[str, float]:
    """Images/s of CPU time for each method, which take turns."""
    spent, done = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0)
    for method in methods.values():
        for index in indices[:CHUNK]:
            method(index)
    position = 0
    while sum(spent.values()) < seconds * len(methods):
        chunk = [indices[(position + i) % len(indices)] for i in range(CHUNK)]
        position += CHUNK
        for name, method in methods.items():
            start = time.process_time()
            for index in chunk:
                method(index)
            spent[name] += time.process_time() - start
            done[name] += CHUNK
    return {name: done[name] / spent[name] for name in methods}


def show_pixels(console: Console, images: list[Image.Image], options: Options) -> None:
    """Print how far crops of the same parameters agree, in levels of 255."""
    size, mode = [options.size] * 2, InterpolationMode(options.interpolation)
    crop, crop_pillow = (options.multicrop(normalize="device", resize=resize) for resize in ("torch", "pillow"))

    def torchvision_crops(functional: Any, image: Any, boxes: list[CropBox]) -> torch.Tensor:
        views = []
        for *box, flipped in boxes:
            view = functional.resized_crop(image, *box, size, mode, antialias=True)
            view = functional.hflip(view) if flipped else view
            views.append(view if isinstance(view, torch.Tensor) else tensor_functional.pil_to_tensor(view))
        return torch.stack(views)

    rows = []
    for index, image in enumerate(images):
        boxes = crop.sample(image.height, image.width, crop_generator(0, 0, index))
        theirs_tensor = torchvision_crops(tensor_functional, tensor_functional.pil_to_tensor(image), boxes)
        theirs_pillow = torchvision_crops(pillow_functional, image, boxes)
        rows.append((crop.apply(image, boxes), crop_pillow.apply(image, boxes), theirs_tensor, theirs_pillow))
    ours, ours_pillow, theirs_tensor, theirs_pillow = (torch.cat(column).int() for column in zip(*rows, strict=True))
    table = Table(
        "crops of the same parameters", "mean difference", "differ by > 1", "largest", title="Pixels (levels of 255)"
    )
    for name, left, right in (
        ("ours, torchvision on tensors", ours, theirs_tensor),
        ("ours, torchvision on Pillow images", ours, theirs_pillow),
        ("ours with resize='pillow', torchvision on Pillow images", ours_pillow, theirs_pillow),
        ("torchvision on tensors, on Pillow images", theirs_tensor, theirs_pillow),
    ):
        difference = (left - right).abs()
        share = (difference > 1).float().mean().item()
        table.add_row(name, f"{difference.float().mean().item():.4f}", f"{share:.1e}", f"{difference.max().item()}")
    console.print(table)


def show_reductions(console: Console, source: ImageSource, scaled: AdPEImageDataset, indices: list[int]) -> None:
    """Print which share of the images is decoded at a reduced size, and what that changes in their crops' pixels."""
    (crops,) = scaled.crops
    factors, differences = [], []
    for index in indices:
        pixels, _ = source.decode_pixels(index)
        height, width = pixels.shape[:2]
        boxes = crops.sample(height, width, crop_generator(0, 0, index))
        factors.append(crops.reduction(boxes))
        if factors[-1] > 1:
            differences.append((crops.apply(pixels, boxes).int() - scaled[index]["inputs"].int()).abs().float())
    shares = ", ".join(f"{factors.count(factor) / len(factors):.0%} at 1/{factor}" for factor in sorted(set(factors)))
    difference = torch.stack(differences) if differences else torch.zeros(1)
    console.print(
        f"decode='scaled': {shares}; of the crops at reduced size, mean difference {difference.mean().item():.2f} of "
        f"255, 99 % below {np.quantile(difference.numpy(), 0.99):.0f}"
    )


def show_parameters(console: Console, sizes: np.ndarray, options: Options, draws: int = 20_000) -> None:
    """Print moments of the crop parameters on both sides and the Kolmogorov-Smirnov test between them."""
    torch.manual_seed(0)
    crop = options._replace(crops=1).multicrop()
    ours, theirs = [], []
    for draw in range(draws):
        width, height = sizes[draw % len(sizes)].tolist()
        canvas = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        ours.append((height, width, *crop.sample(height, width, crop_generator(0, 1, draw))[0]))
        box = transforms.RandomResizedCrop.get_params(canvas, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((height, width, *box, bool(torch.rand(1) < 0.5)))
    table = Table("parameter", "ours", "torchvision", "KS p-value", title=f"Mean ± standard deviation of {draws} crops")
    for (name, left), right in zip(describe(ours).items(), describe(theirs).values(), strict=True):
        cells = [f"{values.mean():.4f} ± {values.std():.4f}" for values in (left, right)]
        table.add_row(name, *cells, f"{ks_2samp(left, right).pvalue:.2f}")
    console.print(table)


def describe(crops: list[tuple]) -> dict[str, np.ndarray]:
    """Area share, log ratio, relative position (NaN-free) and flip of (H, W, top, left, h, w, flipped) rows."""
    height, width, top, left, h, w, flipped = np.array(crops, dtype=float).T
    return {
        "share of the area": h * w / (height * width),
        "log(width / height)": np.array([math.log(value) for value in w / h]),
        "top, of its range": top / np.maximum(height - h, 1),
        "left, of its range": left / np.maximum(width - w, 1),
        "flipped": flipped,
    }


if __name__ == "__main__":
    sys.exit(main())
