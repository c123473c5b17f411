#!/usr/bin/env python
"""Evaluate frozen encoders by a config that has an `evaluation`, and rank them in one table."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.train import main

if __name__ == "__main__":
    sys.exit(main("evaluate_main", "adpe.engine.evaluating"))
