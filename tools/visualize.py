#!/usr/bin/env python
"""Draw what a pretrained model does: reconstructions, the adversary's positions and their drift, attention.

    python tools/visualize.py reconstruct CHECKPOINT IMAGES... [--mask-ratio 0.75] [--seed 0]
    python tools/visualize.py positions   CHECKPOINT [--run WORK_DIR]
    python tools/visualize.py attention   CHECKPOINT IMAGES... [--query ROW,COLUMN] [--heads each]

Exit status: 0 done, 2 a mistake in the command line or the files.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import adpe
from adpe.checkpoints.loading import load_checkpoint
from adpe.checkpoints.reading import build_model, read_model_config
from adpe.data.sources.images import ImageSource
from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.errors import UserError, print_error
from adpe.methods.adpe import AdPE
from adpe.methods.adversary_figures import draw_adversary, draw_drift
from adpe.methods.base import PretrainingMethod
from adpe.methods.mae import MAE
from adpe.models.vit import VisionTransformer
from adpe.viz.attention_maps import attention_maps, draw_attention
from adpe.viz.figures import save_png
from adpe.viz.predictions import read_scalars
from adpe.viz.reconstructions import draw_reconstructions


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("checkpoint", help="of any format that adpe.load_checkpoint reads")
    common.add_argument("--model", help="e.g. adpe_vit_base_patch16; default: what the checkpoint's config says")
    common.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the model, e.g. "
                        "position=relative adversary=coordinate")  # fmt: skip
    common.add_argument("--out", metavar="PNG", help="default: <command>.png")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("images", nargs="+", help="images, or folders and archives of images")
    images.add_argument("--count", type=int, default=6, help="take that many of them; default: 6")
    images.add_argument("--size", type=int, help="pixels to resize and crop to; default: the model's image size")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("reconstruct", parents=[common, images], help="masked images and what is painted")
    command.add_argument("--mask-ratio", type=float, help="share of the patches that is hidden; default: the model's")
    command.add_argument("--seed", type=int, default=0, help="of the masks")
    command = commands.add_parser("positions", parents=[common], help="what the adversary does, and its drift")
    command.add_argument(
        "--run", metavar="WORK_DIR", help="run whose log has the drift; default: the checkpoint's folder"
    )
    command = commands.add_parser("attention", parents=[common, images], help="attention maps of the encoder")
    command.add_argument("--query", default="class", help="class, or ROW,COLUMN of a patch; default: class")
    command.add_argument("--heads", choices=["mean", "each"], default="mean", help="average them or draw each")
    command.add_argument(
        "--blocks", type=int, nargs="+", help="default: four over the depth, the last for --heads each"
    )
    return parser.parse_args(arguments)


def build(args: argparse.Namespace) -> PretrainingMethod | VisionTransformer:
    """The model of a checkpoint, not loaded: a pretraining method, or the encoder alone of a dense task."""
    return build_model(args.checkpoint, args.model, **dict(assignment(text) for text in args.set))


def load_autoencoder(args: argparse.Namespace) -> MAE:
    """The masked autoencoder of a pretraining checkpoint, to evaluate."""
    model = build(args)
    if not isinstance(model, MAE):
        raise UserError(f"{args.checkpoint} is not of a masked autoencoder, which {args.command} draws.")
    load_checkpoint(model, args.checkpoint)
    return model.eval()


def load_encoder(args: argparse.Namespace) -> VisionTransformer:
    """The encoder of any checkpoint, to evaluate."""
    if args.model is None and read_model_config(args.checkpoint) is None:
        return adpe.load_encoder(args.checkpoint, **dict(assignment(text) for text in args.set)).eval()
    model = build(args)
    encoder = model if isinstance(model, VisionTransformer) else model.encoder
    # Backbones of dense tasks have no final norm; attention does not need it.
    load_checkpoint(encoder, args.checkpoint, allow_missing=["norm.*"])
    return encoder.eval()


def assignment(text: str) -> tuple[str, Any]:
    """``key=value`` with a Python literal or a word as value."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UserError(f"--set {text}: expected KEY=VALUE.")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def read_images(args: argparse.Namespace, encoder: VisionTransformer) -> Tensor:
    """``(B, 3, size, size)``, normalised: the images' centres."""
    size = args.size or min(encoder.img_size)
    if size <= 0 or size % encoder.patch_size:
        raise UserError(f"--size {size}: expected a multiple of the patch size {encoder.patch_size}.")
    if args.count < 1:
        raise UserError(f"--count {args.count}: expected at least 1.")
    source = ImageSource(args.images, on_corrupt="error")
    to_tensor = v2.Compose([
        v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    pictures: list[Image.Image] = [source.open(index) for index in range(min(args.count, len(source)))]
    return torch.stack([to_tensor(picture) for picture in pictures])


def reconstructions(args: argparse.Namespace) -> list[Path]:
    """Image, visible patches, reconstruction, and the reconstruction pasted into the visible patches."""
    model = load_autoencoder(args)
    if args.mask_ratio is not None:
        if not 0 < args.mask_ratio < 1:
            raise UserError(f"--mask-ratio {args.mask_ratio}: expected a number between 0 and 1.")
        model.mask_ratio = args.mask_ratio
    images = read_images(args, model.encoder)
    h, w = model.encoder.patch_embed.grid(images)
    noise = torch.rand(len(images), h * w, generator=torch.Generator().manual_seed(args.seed))
    figure = draw_reconstructions(model, images, noise, IMAGENET_MEAN, IMAGENET_STD)
    return [save_png(figure, args.out or "reconstruct.png")]


def positions(args: argparse.Namespace) -> list[Path]:
    """The adversary's positions, and their drift where the run's log is at hand."""
    model = load_autoencoder(args)
    if not isinstance(model, AdPE) or not model.adversary.learns:
        raise UserError(f"{args.checkpoint} has no adversary that learns: MAE, MAE+ and the random control have none.")
    out = Path(args.out or "positions.png")
    written = [save_png(draw_adversary(model), out)]
    run = Path(args.run or Path(args.checkpoint).parent)
    try:
        figure = draw_drift(read_scalars(run))
    except (UserError, ValueError) as error:
        if args.run:
            raise UserError(f"--run {run}: {error}") from None
        print(f"no drift drawn: {error} Name the run with --run.")
        return written
    return [*written, save_png(figure, out.with_name(f"{out.stem}_drift.png"))]


def attention(args: argparse.Namespace) -> list[Path]:
    """Attention of the class token or of a patch, per block or per head."""
    encoder = load_encoder(args)
    images = read_images(args, encoder)
    h, w = encoder.patch_embed.grid(images)
    query = patch(args.query, h, w)
    depth = len(encoder.blocks)
    last = [depth - 1]
    blocks = args.blocks or (
        last if args.heads == "each" else sorted({max(depth * n // 4, 1) - 1 for n in range(1, 5)})
    )
    if bad := [block for block in blocks if not 0 <= block < depth]:
        raise UserError(f"--blocks {bad}: the encoder has blocks 0 to {depth - 1}.")
    try:
        of_blocks = attention_maps(encoder, images, query)
    except UserError as error:
        raise UserError(f"--query {args.query}: {error}") from None
    maps: dict[str, Tensor] = {}
    for block in blocks:
        to_patches = of_blocks[block]
        if args.heads == "mean":
            maps[f"block {block}"] = to_patches.mean(1)
        else:
            maps |= {f"block {block} head {head}": to_patches[:, head] for head in range(to_patches.shape[1])}
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    figure = draw_attention((images * scale + shift).clamp(0, 1), maps, query)
    return [save_png(figure, args.out or "attention.png")]


def patch(query: str, h: int, w: int) -> tuple[int, int] | None:
    """Row and column of ``ROW,COLUMN``; None for ``class``."""
    if query == "class":
        return None
    numbers = query.split(",")
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        row, column = map(int, numbers)
        if row < h and column < w:
            return row, column
    raise UserError(f"--query {query}: expected class, or ROW,COLUMN within {h} x {w} patches, counted from 0.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(arguments)
    commands = {"reconstruct": reconstructions, "positions": positions, "attention": attention}
    try:
        for path in commands[args.command](args):
            print(f"wrote {path}")
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
