#!/usr/bin/env python
"""k-means of an encoder's patch features: tokens for MaPeT, parts of images for SemMAE."""

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
from adpe.methods.kmeans import kmeans, nearest_centroid, random_points
from adpe.methods.tokenizers import patch_features, save_centroids, usage

_PER_CENTROID, _BATCH = 512, 64


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("encoder", help="exported encoder, or checkpoint")
    parser.add_argument("source", help="folder or archive of images")
    parser.add_argument("--count", type=int, required=True, help="centroids: the vocabulary, or the number of parts")
    parser.add_argument("--out", required=True, help="file to write, .safetensors")
    parser.add_argument("--split", help="folder in the source")
    parser.add_argument("--size", type=int, help="side of the images in pixels; that of pretraining if absent")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if args.count < 2:
            raise UserError(f"--count {args.count}: expected at least 2.")
        encoder = load_encoder(args.encoder, verbose=False).eval()
        source = ImageSource(args.source, split=args.split)
        size = args.size or encoder.pretraining_size[0]
        whole = MultiCrop(size=size, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
        patches = (size // encoder.patch_size) ** 2
        chosen = spaced(len(source), max(1, -(-_PER_CENTROID * args.count // patches)))
        features = []
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            images = torch.cat([whole(source.load(i)[0], crop_generator(0, 0, i)) for i in part])
            features.append(patch_features(encoder, images).flatten(0, 1))
            print(f"features of {start + len(part)} of {len(chosen)} images", flush=True)
        points = torch.cat(features)
        start_points = random_points(points, args.count, torch.Generator().manual_seed(args.seed))
        centroids = kmeans(points, start_points, args.iterations)
        tokens = nearest_centroid(points, centroids)
        share, perplexity = usage(tokens, args.count)
        print(f"{len(points)} patches: {share:.0%} of {args.count} centroids used, perplexity {perplexity:.1f}")
        if share < 0.5:
            raise UserError(f"under half of {args.count} centroids are used: take a smaller --count or other images.")
        save_centroids(args.out, centroids, encoder=str(Path(args.encoder).resolve()), parts="kmeans")
        print(f"written to {args.out}")
    except (UserError, ValueError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
