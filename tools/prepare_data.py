#!/usr/bin/env python
"""Download and unpack a data set into the layout that the configs read.

    python tools/prepare_data.py ade20k data/ade          # 1 GB;  data_root=data/ade/ADEChallengeData2016
    python tools/prepare_data.py coco data/coco           # 20 GB; data_root=data/coco
    python tools/prepare_data.py cifar10 data/cifar10     # 0.2 GB; data_root=data/cifar10/cifar10.zip
    python tools/prepare_data.py imagenet data/imagenet --archive FOLDER     # 150 GB; train/ and val/ class folders

ImageNet needs an account: FOLDER has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and, for the classes of the
validation images, ILSVRC2012_devkit_t12.tar.gz, all from image-net.org. The others are downloaded from their official
places. After an interruption, rerun the same command to resume. `tools/verify_data.py` checks what is there.

Exit status: 0 done, 2 a mistake in the command line, or a file that cannot be had or is damaged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.data.preparation.prepare import DATA_SETS, prepare
from adpe.errors import UserError, print_error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(DATA_SETS))
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder to put it in")
    parser.add_argument("--archive", action="append", default=[], metavar="PATH_OR_URL", help="take an archive from "
                        "there, or all that are in a folder; may be repeated")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep downloaded archives, in ROOT/downloads")
    parser.add_argument("--no-checksum", action="store_true", help="do not verify the archives' checksums")
    args = parser.parse_args(arguments)
    try:
        for path in prepare(args.dataset, args.root, args.archive, args.keep, not args.no_checksum):
            print(f"ready: {path}")
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
