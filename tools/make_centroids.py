#!/usr/bin/env python
"""Tokens for MaPeT and parts of images for SemMAE, from an encoder.

kmeans: of its patch features. heads: of its last block's attention, nothing to train. attention: part tokens that are
trained to explain the images, after SemMAE's description, details ours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adpe.checkpoints.loading import load_encoder
from adpe.data.classification import spaced
from adpe.data.sources.images import ImageSource
from adpe.data.views.multicrop import MultiCrop, crop_generator
from adpe.errors import UserError, print_error
from adpe.methods.masks.part_attention import train_parts
from adpe.methods.targets.kmeans import kmeans, nearest_centroid, random_points, squared_error
from adpe.methods.targets.tokenizers import (
    AttentionTokenizer,
    HeadTokenizer,
    KMeansTokenizer,
    Tokenizer,
    patch_features,
    save_tokenizer,
    usage,
)

# Patches a centroid that are looked at, images at a time, and the least share of the patches that makes a part.
_PER_CENTROID, _BATCH, _LEAST_PART = 512, 64, 0.005


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("encoder", help="exported encoder, or checkpoint")
    parser.add_argument("source", help="folder or archive of images")
    parser.add_argument("--kind", choices=("kmeans", "heads", "attention"), default="kmeans")
    parser.add_argument("--count", type=int, help="the vocabulary, or the number of parts; heads have their own")
    parser.add_argument("--out", required=True, help="file to write, .safetensors")
    parser.add_argument("--split", help="folder in the source")
    parser.add_argument("--size", type=int, help="side of the images in pixels; that of pretraining if absent")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=1, help="k-means from other points; the best is kept")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps of --kind attention")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
        raise UserError(f"--count {args.count}: expected at least 2, and none for --kind heads.")
    if min(args.iterations, args.restarts, args.steps) < 1:
        raise UserError("--iterations, --restarts and --steps: expected at least 1.")
    encoder = load_encoder(args.encoder, verbose=False).eval().to(args.device)
    source = ImageSource(args.source, split=args.split)
    size = args.size or encoder.pretraining_size[0]
    whole = MultiCrop(size=size, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    patches = (size // encoder.patch_size) ** 2
    count = args.count or encoder.num_heads
    chosen = spaced(len(source), max(1, -(-_PER_CENTROID * count // patches)))
    groups = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
    crops = (torch.cat([whole(source.load(i)[0], crop_generator(0, 0, i)) for i in group]) for group in groups)
    batches = (batch.to(args.device) for batch in crops)
    tokenizer: Tokenizer
    if args.kind == "heads":
        tokenizer = HeadTokenizer(encoder)
        tokens = torch.cat([tokenizer.tokens(batch).cpu() for batch in batches])
    elif args.kind == "kmeans":
        points = torch.cat([patch_features(encoder, batch).flatten(0, 1) for batch in batches])
        generator = torch.Generator().manual_seed(args.seed)
        tries = [kmeans(points, random_points(points, count, generator), args.iterations) for _ in range(args.restarts)]
        tokenizer = KMeansTokenizer(encoder, min(tries, key=lambda centroids: squared_error(points, centroids)))
        tokens = nearest_centroid(points, tokenizer.centroids).cpu()
    else:
        images = torch.cat([*batches])
        with torch.no_grad():
            features = torch.cat([encoder.forward_features(batch) for batch in images.split(_BATCH)])
        trained = train_parts(features, images, encoder.patch_size, count, args.steps, seed=args.seed)
        tokenizer = AttentionTokenizer(encoder, trained)
        tokens = trained(features).argmax(dim=1).cpu()
    share, perplexity = usage(tokens, count)
    print(f"{tokens.numel()} patches: {share:.0%} of {count} used, perplexity {perplexity:.1f}")
    if share < 0.5:
        raise UserError(f"under half of {count} are used: take a smaller --count or other images.")
    least = float(torch.bincount(tokens.flatten(), minlength=count).min()) / tokens.numel()
    if args.kind == "attention" and least < _LEAST_PART:
        raise UserError(f"a part has {least:.2%} of the patches, expected {_LEAST_PART:.1%}: take a smaller --count.")
    save_tokenizer(args.out, tokenizer, args.encoder)
    print(f"written to {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
