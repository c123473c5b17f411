#!/usr/bin/env python
"""Evaluate a checkpoint with the test data and metrics of its config. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import UserError, require


def main() -> int:
    """Run, once what it needs is installed."""
    try:
        require("torch", "requirements/runtime.txt")
        require("mmengine", "requirements/mm.txt")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from adpe.engine.launch import test_main

    return test_main()


if __name__ == "__main__":
    sys.exit(main())
