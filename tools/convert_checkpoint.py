#!/usr/bin/env python
"""Write a checkpoint of any known format in the names of another framework.

    python tools/convert_checkpoint.py work_dirs/.../encoder.safetensors vit.pth --to mmseg
    python tools/convert_checkpoint.py mae_pretrain_vit_base.pth encoder.safetensors --to adpe

The format of IN is recognised. OUT ends in .safetensors (timm and this project read it) or in .pth (all do). The
encoder is converted; `mae` and `huggingface_vitmae` take MAE's decoder and mask token too, `adpe` everything. Tensors
are copied bit by bit; sine-cosine positions, which this project makes itself, are written out for the others, on the
grid of pretraining.

OUT carries the specification of its model, that of IN, or what its tensors show; where they do not show enough,
--set gives the rest, e.g. --set num_heads=3 position=relative_interpolated method=MAE. A .pth for timm
or Hugging Face has no place for it. tools/share.py writes a folder with the config that transformers reads besides.

Exit status: 0 done, 2 a mistake in the command line or the files.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adpe.checkpoints.describing import Description, describe
from adpe.checkpoints.loading import save_checkpoint
from adpe.checkpoints.names import Framework, from_our_names, summarize, to_our_names
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, print_error
from adpe.files import atomic_write
from adpe.models.factory import SIZES
from adpe.models.specification import KEY, ModelSpecification, read_json

# What each framework expects around the tensors in a .pth file.
AROUND = {"mae": "model", "detectron2": "model", "mmseg": "state_dict", "mmpretrain": "state_dict"}


def convert(
    source: Path, target: Path, framework: Framework, img_size: int | None, force: bool, given: Mapping[str, Any]
) -> str:
    """Convert one file; returns a line that says what was done.

    Args:
        img_size: pixels of pretraining, where `source` does not say.
        given: keys of the specification that `source` does not say.

    Raises:
        UserError: if `source` cannot be read or converted, contradicts what is given, or `target` exists or is of an
            unknown kind.
    """
    if target.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{target}: expected a name ending in .safetensors or .pth.")
    if target.exists() and not force:
        raise UserError(f"{target} exists: give another name, or --force to replace it.")
    left_out: dict[str, str] = {}
    raw = read_file(source)
    ours = to_our_names(raw, str(source), left_out)
    described = describe(raw, ours, source)
    if img_size is not None:
        given = {**given, "pretrain_img_size": (img_size, img_size)}
    said, missing = _specification(described, given, source)
    if framework != "adpe" and "encoder.pos_embed" not in ours and "pretrain_img_size" in missing:
        raise UserError(
            f"{source} does not say of which size its positions are: give --img-size, the pixels of pretraining."
        )
    tensors, more = from_our_names(ours, framework, said.pretrain_img_size[0], str(source))
    left_out |= more
    if framework == "mmseg" or framework.startswith("huggingface"):
        said = replace(said, layer_scale=framework in ("mmseg", "huggingface_dinov2"))  # of ones, see from_our_names
    carried = {} if missing else {KEY: said.to_json()}
    if target.suffix == ".safetensors":
        save_checkpoint(tensors, target, {"format": "pt", **carried})
    else:
        plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        with atomic_write(target) as temporary:
            torch.save(_around(plain, framework, carried), temporary)
    if missing:
        print(
            f"{target} carries no specification, for want of {', '.join(missing)}: give them with --set",
            file=sys.stderr,
        )
    elif not described.carried:
        inferred = "; ".join(f"{key}: {value}" for key, value in described.inferred.items() if key not in given)
        print(f"inferred from {source}: {inferred}")
    rest = f"; left out {len(left_out)}: {summarize(left_out)}" if left_out else ""
    return f"wrote {target}: {len(tensors)} tensors in {framework}'s names{rest}"


def _specification(
    described: Description, given: Mapping[str, Any], source: Path
) -> tuple[ModelSpecification, list[str]]:
    """The specification of a file with what is given put in, and the keys that neither says."""
    said = json.loads(described.specification.to_json())
    for key, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if described.known(key) and said.get(key) not in (None, value):
            raise UserError(f"{source} says that {key} is {said.get(key)!r}, not {value!r}.")
        said[key] = value
    sizes = [(size["embed_dim"], size["depth"]) for size in SIZES.values()]
    usual = {"norm_eps"} | ({"num_heads"} if (said["embed_dim"], said["depth"]) in sizes else set())
    missing = sorted(described.guesses - set(given) - usual)
    if described.specification.position == "none":
        missing = [key for key in missing if key != "pretrain_img_size"]
    return read_json(json.dumps(said), f"{source} with what is given"), missing


def _around(tensors: dict[str, Any], framework: Framework, carried: dict[str, str]) -> dict[str, Any]:
    """What a framework expects around the tensors of a .pth file, with the specification where that has a place."""
    if framework in ("mmseg", "mmpretrain"):
        return {AROUND[framework]: tensors, "meta": carried}
    if framework == "timm" or framework.startswith("huggingface"):
        return tensors
    return {AROUND[framework]: tensors, **carried} if framework in AROUND else {"model": tensors, **carried}


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", type=Path, help=".pth, .pt, .pkl (detectron2) or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path, help=".safetensors or .pth")
    parser.add_argument("--to", required=True, choices=get_args(Framework), help="whose names to write")
    parser.add_argument("--img-size", type=int, help="pixels of pretraining, where IN does not say: the grid of its "
                        "positions")  # fmt: skip
    parser.add_argument("--set", nargs="+", type=_assignment, default=[], metavar="KEY=VALUE",
                        help="what the specification of IN does not say")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(arguments)
    try:
        print(convert(args.source, args.target, args.to, args.img_size, args.force, dict(args.set)))
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
