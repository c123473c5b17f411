#!/usr/bin/env python
"""Time to read 1,000 records and to make the leaderboard's tables of them: the committed records under other names.

python benchmarks/speed/leaderboard_table.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adpe.files import ROOT
from adpe.leaderboard.formats import to_markdown
from adpe.leaderboard.published import read_published
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import read_records

COUNT = 1000


def main() -> None:
    """Print processor and wall time, imports apart."""
    files = sorted((ROOT / "benchmarks" / "records").glob("*.jsonl"))
    parsed = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lines = []
    for copy in range(1 + COUNT // len(parsed)):
        for one in parsed:
            kept = one if copy == 0 else {name: value for name, value in one.items() if name != "protocol"}
            lines.append(json.dumps(kept | {"method": f"{one['method']} {copy}", "run": f"{one['run']}-{copy}"}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        path.write_text("\n".join(lines[:COUNT]) + "\n")
        cpu, wall = time.process_time(), time.perf_counter()
        read, _ = read_records(path)
        to_markdown(build_leaderboard(read, published=read_published()))
    spent = f"{time.process_time() - cpu:.2f} s of processor time, {time.perf_counter() - wall:.2f} s"
    print(f"{len(read)} records and the published rows: {spent}")


if __name__ == "__main__":
    main()
