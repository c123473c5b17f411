"""What an installed package is: the wheel's files, and its command in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    beside = {".git", ".venv", "build", "work_dirs", "data"}
    anywhere = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(
        ROOT, source, ignore=lambda at, names: anywhere(at, names) | (beside if Path(at) == ROOT else set())
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_one_package_with_its_configs(site: Path):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"adpe"}
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.py")}
    assert {
        path.relative_to(site / "adpe/checkout/configs") for path in site.rglob("checkout/configs/**/*.py")
    } == shipped
    assert (site / "adpe/leaderboard/html/page.css").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, ["usage: adpe", "leaderboard"]),
        (["nonsense"], 2, ["usage: adpe"]),
        (["train", "--help"], 0, ["--cfg-options"]),
        (["leaderboard"], 0, ["48.1"]),
        (["train", "ade20k_upernet_vitbb"], 2, ["configs/ade20k_upernet_vitb.py"]),
    ],
)
def test_commands_of_an_installed_package(site: Path, tmp_path: Path, arguments, status, words):
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    command = [sys.executable, "-W", "ignore", "-m", "adpe.cli", *arguments]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == status, answer.stderr
    assert all(word in answer.stdout + answer.stderr for word in words), answer.stdout + answer.stderr
