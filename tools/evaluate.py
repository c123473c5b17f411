#!/usr/bin/env python
"""Evaluate frozen encoders by a config that has an `evaluation`, and rank them in one table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.engine.evaluating import evaluate_main

if __name__ == "__main__":
    raise SystemExit(evaluate_main())
