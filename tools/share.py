#!/usr/bin/env python
"""Write an encoder as a folder for the Hugging Face hub: weights, config, and a model card made of its records.

    python tools/share.py work_dirs/mae/encoder.safetensors FOLDER --license cc-by-4.0 --records RECORDS...

`hf upload OWNER/NAME FOLDER` sends it; `adpe.from_pretrained` reads the folder, or OWNER/NAME.
Exit status: 0 done, 2 a mistake in the command line or the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import EXIT_MISTAKE, UserError, print_error
from adpe.sharing.hub import FOLDERS, save_pretrained


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", metavar="ENCODER", help="file of an encoder, as a pretraining writes it")
    parser.add_argument("folder", metavar="FOLDER", help="to write")
    parser.add_argument("--name", help="OWNER/NAME on the hub, for the card; default: the folder's name")
    parser.add_argument("--license", help="of the weights, e.g. cc-by-4.0; default: not stated")
    parser.add_argument("--records", nargs="+", default=[], metavar="FILE", help="record.jsonl of evaluations of it")
    parser.add_argument("--to", choices=FOLDERS, default="adpe", dest="framework", help="whose names the weights have; "
                        "default: adpe, which timm reads too")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace weights that are there")
    try:
        folder = save_pretrained(**vars(parser.parse_args(arguments)))
    except (UserError, OSError) as error:
        print_error(error)
        return EXIT_MISTAKE
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
