#!/usr/bin/env python
"""Write a checkpoint of any known format in the names of another framework.

    python tools/convert_checkpoint.py work_dirs/.../encoder.safetensors vit.pth --to mmseg
    python tools/convert_checkpoint.py mae_pretrain_vit_base.pth encoder.safetensors --to adpe

The format of IN is recognised. OUT ends in .safetensors (timm and this project read it) or in .pth (all do). The
encoder is converted; `mae` takes decoder and mask token too, `adpe` everything. Tensors are copied bit by bit;
sine-cosine positions, which this project recomputes, are written out for the others.

Exit status: 0 done, 2 a mistake in the command line or the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adpe.checkpoints.loading import save_checkpoint
from adpe.checkpoints.names import Framework, from_our_names, summarize, to_our_names
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, print_error
from adpe.files import atomic_write

# What each framework expects around the tensors in a .pth file.
AROUND = {"mae": "model", "detectron2": "model", "mmseg": "state_dict", "mmpretrain": "state_dict"}


def convert(source: Path, target: Path, framework: Framework, img_size: int, force: bool) -> str:
    """Convert one file; returns a line that says what was done.

    Raises:
        UserError: if `source` cannot be read or converted, or `target` exists or is of an unknown kind.
    """
    if target.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{target}: expected a name ending in .safetensors or .pth.")
    if target.exists() and not force:
        raise UserError(f"{target} exists: give another name, or --force to replace it.")
    left_out: dict[str, str] = {}
    ours = to_our_names(read_file(source), str(source), left_out)
    tensors, more = from_our_names(ours, framework, img_size, str(source))
    left_out |= more
    if target.suffix == ".safetensors":
        save_checkpoint(tensors, target, {"format": "pt"})
    else:
        plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        with atomic_write(target) as temporary:
            torch.save({AROUND[framework]: plain} if framework in AROUND else plain, temporary)
    rest = f"; left out {len(left_out)}: {summarize(left_out)}" if left_out else ""
    return f"wrote {target}: {len(tensors)} tensors in {framework}'s names{rest}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", type=Path, help=".pth, .pt, .pkl (detectron2) or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path, help=".safetensors or .pth")
    parser.add_argument("--to", required=True, choices=get_args(Framework), help="whose names to write")
    parser.add_argument("--img-size", type=int, default=224, help="pixels that sine-cosine positions are written for "
                        "where IN has none; default: 224")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(arguments)
    try:
        print(convert(args.source, args.target, args.to, args.img_size, args.force))
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
