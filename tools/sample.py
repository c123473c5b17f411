#!/usr/bin/env python
"""Draw pictures from an image sequence model, a file sequence.safetensors that a training with method="sequence" wrote.

    python tools/sample.py FILE --text "a 2 left of a 0" --guidance 3 --top-k 64 --seed 0 --out grid.png

Every --text, or name of a class, is a row; without any, rows are drawn of the null text. Guidance comes first, then
temperature, top-k and top-p. Exit status: 0 done, 2 a mistake in the command line or the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adpe.errors import UserError, print_error
from adpe.methods.parti.image_sequences import load_sequence_model
from adpe.viz.figures import draw_images, save_png


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="sequence.safetensors")
    parser.add_argument("--text", nargs="+", default=[], help="texts, or names of classes, a row each")
    parser.add_argument("--count", type=int, default=8, help="pictures of each (default: 8)")
    parser.add_argument("--guidance", type=float, default=3.0, help="1 is the plain model (default: 3)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, help="codes that are kept; all if absent")
    parser.add_argument("--top-p", type=float, help="share of the probability that is kept; all if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="samples.png", metavar="PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    try:
        if args.count < 1:
            raise UserError(f"--count {args.count}: expected at least 1.")
        model = load_sequence_model(args.file).to(args.device)
        if args.text:
            rows = model.encode(args.text)
        else:
            rows = torch.zeros(1, model.text_tokens, dtype=torch.long)
        _, pictures = model.draw(
            rows.repeat(args.count, 1), args.guidance, args.temperature, args.top_k, args.top_p, args.seed
        )
    except (UserError, ValueError) as error:
        print_error(error)
        return 2
    columns = {f"{number + 1}": images for number, images in enumerate(pictures.cpu().split(len(rows)))}
    save_png(draw_images(columns, "; ".join(args.text)), args.out)
    print(f"{len(pictures)} pictures in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
