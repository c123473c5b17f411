#!/usr/bin/env python
"""Suites of runs, the leaderboard from their records, comparisons, claims. See --help and that of each command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.train import main

if __name__ == "__main__":
    # Tables are made without torch; the commands that train or build import it themselves.
    sys.exit(main("main", "adpe.suites.commands", needs={}))
