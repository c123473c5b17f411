#!/usr/bin/env python
"""Pretrain small ViTs by MAE and AdPE, transfer them to segmentation and detection, and print a leaderboard."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import UserError, print_error


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, help="annotated data in ADE20K's layout (images/, annotations/, each "
                        "with training/ and validation/) with COCO's instances_{training,validation}.json; default: "
                        "scenes that come with the installed packages")  # fmt: skip
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH",
                        help="more folders or archives of photographs to pretrain on")  # fmt: skip
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"),
                        help="where everything is written; default: %(default)s")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="repetitions; default: three")
    parser.add_argument("--epochs", type=int, help="of pretraining; default: the suite's")
    parser.add_argument("--iterations", type=int, help="of each training on annotated images; default: the suite's")
    parser.add_argument("--image-size", type=int, help="short side of annotated images in pixels; default: 48")
    parser.add_argument("--scenes", nargs=3, type=int, default=None, metavar=("TRAIN", "VAL", "MORE"),
                        help="numbers of synthetic scenes, the last without annotations; default: suite's")  # fmt: skip
    args = parser.parse_args()
    from adpe.demo.chain import Options, run_demo

    try:
        run_demo(
            Options(
                args.work_dir, args.data_root, tuple(args.images), tuple(args.seeds), args.epochs, args.iterations,
                tuple(args.scenes) if args.scenes else None, args.image_size,
            )
        )  # fmt: skip
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Rerun the same command to resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
