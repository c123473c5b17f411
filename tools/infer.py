#!/usr/bin/env python
"""Predict pictures without labels with a trained model.

    python tools/infer.py CONFIG CHECKPOINT IMAGE|FOLDER|PATTERN... --out FOLDER

Segmentation writes NAME.png and NAME_mask.png (class numbers), detection NAME.png and predictions.json in COCO's
layout, classification predictions.json. Exit status: 0 done, 1 some pictures could not be read, 2 a mistake.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import EXIT_MISTAKE, UserError, print_error
from adpe.garbage import collect_rarely
from adpe.option_values import OptionAction


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="of the training; it is Python, and is executed")
    parser.add_argument("checkpoint", help="that the training wrote")
    parser.add_argument("images", nargs="+", help="pictures, folders, or patterns in quotes")
    parser.add_argument("--out", default="work_dirs/infer", help="folder (default: work_dirs/infer)")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at once (default: 4)")
    parser.add_argument("--score", type=float, default=0.3, help="objects below it are not drawn (default: 0.3)")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=OptionAction, metavar="KEY=VALUE", help="change the config")
    args = parser.parse_args(argv)
    collect_rarely()
    try:
        import adpe.engine  # noqa: F401  registers what configs name
        from adpe.engine.inference import infer

        found = infer(
            args.config, args.checkpoint, args.images, args.out, args.batch_size, args.score, args.device,
            args.cfg_options,
        )  # fmt: skip
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    for path, reason in found.unreadable.items():
        print(f"not read: {path}: {reason}", file=sys.stderr)
    print(f"{len(found.images)} pictures, {len(found.files)} files in {args.out}")
    return int(bool(found.unreadable))


if __name__ == "__main__":
    sys.exit(main())
