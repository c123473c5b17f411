#!/usr/bin/env python
"""Tokens for MaPeT and parts of images for SemMAE, from an encoder: k-means of its patch features, or its heads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adpe.checkpoints.loading import load_encoder
from adpe.data.classification import spaced
from adpe.data.images import ImageSource
from adpe.data.multicrop import MultiCrop, crop_generator
from adpe.errors import UserError, print_error
from adpe.methods.kmeans import kmeans, nearest_centroid, random_points, squared_error
from adpe.methods.tokenizers import HeadTokenizer, Tokenizer, patch_features, save_tokenizer, usage

_PER_CENTROID, _BATCH = 512, 64


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("encoder", help="exported encoder, or checkpoint")
    parser.add_argument("source", help="folder or archive of images")
    parser.add_argument("--kind", choices=("kmeans", "heads"), default="kmeans")
    parser.add_argument("--count", type=int, help="centroids of k-means: the vocabulary, or the number of parts")
    parser.add_argument("--out", required=True, help="file to write, .safetensors")
    parser.add_argument("--split", help="folder in the source")
    parser.add_argument("--size", type=int, help="side of the images in pixels; that of pretraining if absent")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=1, help="k-means from other points; the best is kept")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        _make(args)
    except (UserError, ValueError) as error:
        print_error(error)
        return 2
    return 0


def _make(args: argparse.Namespace) -> None:
    if (args.count is None) != (args.kind == "heads") or (args.count is not None and args.count < 2):
        raise UserError(f"--count {args.count}: expected at least 2 for k-means, and none for --kind heads.")
    if args.iterations < 1 or args.restarts < 1:
        raise UserError(f"--iterations {args.iterations} --restarts {args.restarts}: expected at least 1.")
    encoder = load_encoder(args.encoder, verbose=False).eval()
    source = ImageSource(args.source, split=args.split)
    size = args.size or encoder.pretraining_size[0]
    whole = MultiCrop(size=size, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    patches = (size // encoder.patch_size) ** 2
    count = args.count or encoder.num_heads
    chosen = spaced(len(source), max(1, -(-_PER_CENTROID * count // patches)))
    batches = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
    images = (torch.cat([whole(source.load(i)[0], crop_generator(0, 0, i)) for i in batch]) for batch in batches)
    centroids: torch.Tensor | None = None
    tokenizer: Tokenizer
    if args.kind == "heads":
        tokenizer = HeadTokenizer(encoder)
        tokens = torch.cat([tokenizer.tokens(batch).flatten() for batch in images])
    else:
        points = torch.cat([patch_features(encoder, batch).flatten(0, 1) for batch in images])
        generator = torch.Generator().manual_seed(args.seed)
        tries = [kmeans(points, random_points(points, count, generator), args.iterations) for _ in range(args.restarts)]
        centroids = min(tries, key=lambda centres: squared_error(points, centres))
        tokens = nearest_centroid(points, centroids)
    share, perplexity = usage(tokens, count)
    what = "centroids" if centroids is not None else "heads"
    print(f"{len(tokens)} patches: {share:.0%} of {count} {what} used, perplexity {perplexity:.1f}")
    if share < 0.5:
        raise UserError(f"under half of {count} {what} are used: take a smaller --count or other images.")
    save_tokenizer(args.out, args.encoder, centroids)
    print(f"written to {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
