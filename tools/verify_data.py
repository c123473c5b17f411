#!/usr/bin/env python
"""Check a data set before training on it: counts, labels, categories, every image decoded.

    python tools/verify_data.py ade20k data/ade/ADEChallengeData2016    # the 2016 scene parsing challenge
    python tools/verify_data.py voc data/VOCdevkit/VOC2012              # with SBD's maps: train, trainaug, val
    python tools/verify_data.py cityscapes data/cityscapes              # fine annotations, maps of train ids
    python tools/verify_data.py coco-stuff data/coco_stuff164k          # maps of train ids
    python tools/verify_data.py masks FOLDER        # {images,annotations}/{training,validation}, any classes
    python tools/verify_data.py coco data/coco                          # annotations/, train2017/, val2017/
    python tools/verify_data.py coco-like FOLDER    # instances_{training,validation}.json, images/{training,validation}

--quick looks at 48 images of each split instead of all. --label-policy says which annotations are wrong: all that are
not as COCO has them (strict, the default), those that training with label_policy=repair could not repair (it also
writes the repaired JSON and names it), or those that it could not read (report). Exit status: 0 all right, 1 something
is wrong, 2 a mistake in the command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from adpe.data.checks.coco import POLICIES
from adpe.data.checks.verify import VERIFIERS
from adpe.errors import UserError, print_error


def show_progress(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    """A progress bar on a terminal."""
    return track(items, description=text, total=total, disable=not sys.stdout.isatty(), transient=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(VERIFIERS))
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that has it")
    parser.add_argument("--quick", action="store_true", help="look at 48 images of each split instead of all")
    parser.add_argument("--classes", metavar="FILE", help="for masks: a JSON list of the classes' names, or text "
                        "with a name a line; default: the only classes*.json or classes*.txt in ROOT")  # fmt: skip
    parser.add_argument("--zero-is-a-class", action="store_true", help="for masks: label 0 is the first class, not "
                        "unlabelled (reduce_zero_label=False in a config)")  # fmt: skip
    parser.add_argument("--label-policy", choices=POLICIES, help="for coco and coco-like: which annotations are wrong")
    args = parser.parse_args(arguments)
    if args.label_policy and args.dataset not in ("coco", "coco-like"):
        parser.error("--label-policy is about COCO annotations: it goes with coco and coco-like.")
    if (args.classes or args.zero_is_a_class) and args.dataset != "masks":
        parser.error("--classes and --zero-is-a-class go with masks.")
    options: dict[str, Any] = {"policy": args.label_policy} if args.label_policy else {}
    if args.dataset == "masks":
        options = {"classes": args.classes, "reduce_zero_label": not args.zero_is_a_class}
    try:
        findings = VERIFIERS[args.dataset](args.root, args.quick, show_progress, **options)
    except UserError as error:
        print_error(error)
        return 1
    table = Table("check", "", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        status = Text("right", "green") if finding.right else Text("wrong", "red")
        table.add_row(finding.check, status, Text(finding.found, overflow="fold"))
    Console().print(table)
    wrong = sum(not finding.right for finding in findings)
    print(f"{args.root}: {wrong} of {len(findings)} checks failed." if wrong else f"{args.root}: all checks passed.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
