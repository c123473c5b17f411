"""docs/tutorial.ipynb: its cells run one after the other, and no output is committed with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adpe.leaderboard.records import read_records

ROOT = Path(__file__).resolve().parents[2]
# In place of the values of the cell that is tagged "parameters".
SMALL = "scenes, epochs, iterations = (32, 6, 64), 1, 4"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def without_network() -> list[str]:
    """What runs a command where there is no network, as on a node of a cluster; nothing where that is not allowed."""
    command = ["unshare", "--net", "--map-root-user"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        return []
    listed = subprocess.run([*command, "cat", "/proc/net/route"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) <= 1  # a header at most
    return command


def test_no_output_is_committed():
    assert len(cells("code")) > 8
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow(45)
def test_the_tutorial_runs(tmp_path):
    """Every cell as it stands, but for the settings and the folder that it writes to; nothing is fetched on the way."""
    parts = []
    for cell in cells("code"):
        parts.append("".join(cell["source"]))
        parts += [SMALL] if "parameters" in cell["metadata"].get("tags", []) else []
    text = "\n".join(parts)
    folder = 'work = ROOT / "work_dirs/tutorial"'
    assert text.count(SMALL) == text.count(folder) == 1
    script = tmp_path / "tutorial.py"
    script.write_text(text.replace(folder, f"from pathlib import Path\nwork = Path({str(tmp_path / 'work')!r})"))
    variables = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # No cache of the user's either.
    variables |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [*without_network(), sys.executable, str(script)]
    done = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folders = {"pretrain", "linear-random", "linear-pretrained"}
    records = {name: read_records(tmp_path / "work" / name / "record.jsonl")[0][-1] for name in folders}
    last = done.stdout.strip().splitlines()[-1]
    for name in ("random", "pretrained"):
        assert f"{records[f'linear-{name}']['metrics']['mIoU']:.1f}" in last
    assert records["linear-random"]["pretrained_sha256"] is None
    assert records["linear-pretrained"]["pretrained_sha256"]
    assert (tmp_path / "work/reconstruct.png").stat().st_size > 10_000
