#!/usr/bin/env python
"""Evaluate a checkpoint with the test data and metrics of its config. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.train import main

if __name__ == "__main__":
    sys.exit(main("test_main"))
