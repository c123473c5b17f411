"""The command `adpe`: one word for each of the tools, for a checkout and for an installed package alike."""

from __future__ import annotations

import runpy
import sys

from adpe import __version__
from adpe.files import ROOT

# Command to the tool that answers it and the words it puts first, and what it is for.
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "train": ("train.py", [], "train a config: pretraining, segmentation, detection, classification"),
    "test": ("test.py", [], "evaluate a checkpoint"),
    "evaluate": ("evaluate.py", [], "evaluate frozen encoders and rank them in one table"),
    "infer": ("infer.py", [], "predict pictures without labels"),
    "convert": ("convert_checkpoint.py", [], "write a checkpoint by another framework's names"),
    "share": ("share.py", [], "write an encoder as a folder for the Hugging Face hub"),
    "visualize": ("visualize.py", [], "draw reconstructions, positions and attention"),
    "prepare": ("prepare_data.py", [], "download a data set and lay it out"),
    "data": ("verify_data.py", [], "verify a data set before training on it"),
    "doctor": ("doctor.py", [], "say what is installed and whether it works together"),
    "suite": ("benchmark.py", ["run"], "run a suite"),
    "leaderboard": ("benchmark.py", ["table"], "show the table of records"),
    "protocol": ("benchmark.py", ["protocol"], "print the resolved protocol of a config"),
}


def main() -> int:
    """Run a command; returns the exit status."""
    if len(sys.argv) > 1 and sys.argv[1] == "--version":
        print(__version__)
        return 0
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
        lines = [f"  {name:<12} {text}" for name, (_, _, text) in COMMANDS.items()]
        usage = "\n".join(["usage: adpe COMMAND [arguments]; adpe COMMAND --help", *lines])
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    tool, words, _ = COMMANDS[sys.argv[1]]
    sys.argv = [f"adpe {sys.argv[1]}", *words, *sys.argv[2:]]
    sys.path.insert(0, str(ROOT))
    try:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
