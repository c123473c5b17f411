#!/usr/bin/env python
"""k-NN accuracy of the frozen encoders of checkpoints, e.g. of every epoch of a pretraining."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.progress import track

from adpe.checkpoints.loading import load_encoder
from adpe.data.images import ImageSource
from adpe.data.multicrop import MultiCrop, crop_generator
from adpe.errors import UserError, print_error
from adpe.evaluations.knn import features, knn_accuracy, spaced


def batches(source: ImageSource, size: int, limit: int | None) -> Iterator[torch.Tensor]:
    """Whole images resized to a square, normalised, 256 at a time; evenly spaced if there are more than `limit`."""
    whole = MultiCrop(size=size, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    chosen = spaced(len(source), limit)
    for start in range(0, len(chosen), 256):
        part = chosen[start : start + 256]
        yield torch.cat([whole(source.load(i)[0], crop_generator(0, 0, i)) for i in part])


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="checkpoints: of a training, exported, or of another framework")
    parser.add_argument("--source", required=True, help="folder or archive with class folders")
    parser.add_argument("--train-split", default="train", help="folder in the source")
    parser.add_argument("--test-split", default="test", help="folder in the source")
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--global-pool", choices=["avg", "token"], default="avg", help="mean of patches or class token")
    parser.add_argument("--limit", type=int, help="images of each split at most; all if absent")
    parser.add_argument("--size", type=int, help="side in pixels; that of pretraining if absent")
    args = parser.parse_args()
    try:
        splits = [ImageSource(args.source, split=split) for split in (args.train_split, args.test_split)]
        labels = [torch.as_tensor(source.labels)[spaced(len(source), args.limit)] for source in splits]
        for checkpoint in track(args.checkpoints, description="k-NN", disable=not sys.stdout.isatty()):
            encoder = load_encoder(checkpoint, verbose=False)
            size = args.size or encoder.pretraining_size[0]
            train, test = (features(encoder, batches(source, size, args.limit), args.global_pool) for source in splits)
            accuracy = knn_accuracy(train, labels[0], test, labels[1], args.k)
            print(f"{checkpoint}  k-NN top-1 {accuracy:.2f}% at {size} pixels", flush=True)
    except (UserError, ValueError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
