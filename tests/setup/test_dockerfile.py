"""The Dockerfile: what it copies is there, its first step has all that the set-up reads, its commands are shell."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_mmcv

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STEPS = [line.partition(" ")[::2] for line in TEXT.splitlines() if line and not line.startswith("#")]


def test_instructions():
    assert [name for name, _ in STEPS if name in ("FROM", "RUN", "COPY", "CMD")] == [
        "FROM", "RUN", "COPY", "COPY", "COPY", "COPY", "COPY", "RUN", "COPY", "CMD",
    ]  # fmt: skip
    assert {name for name, _ in STEPS} == {"ARG", "FROM", "RUN", "WORKDIR", "ENV", "COPY", "CMD"}
    for name, value in STEPS:
        if name == "ARG":
            assert re.fullmatch(r"[A-Z_]+=\S+", value), "every argument has a default"
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", value], check=False).returncode == 0


def test_the_copied_files_are_what_the_set_up_reads(tmp_path: Path):
    """In a tree of them alone, setup.sh has the keys of its stages, and the builder of mmcv imports."""
    for name, value in STEPS:
        *sources, target = value.split()
        if name == "COPY" and sources != ["."]:
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / target)
                    continue
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    script = f"source tools/setup.sh; venv={sys.prefix}; for s in torch runtime mm mmcv package; do key_of $s; done"
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr and len(set(done.stdout.split())) == 3, done.stderr
    script = "import runpy; names = runpy.run_path('tools/build_mmcv.py'); print(names['pinned_mmcv'](), names['ROOT'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 0 and str(tmp_path) in done.stdout, done.stderr
    (make,) = [value for name, value in STEPS if name == "RUN" and "make" in value.split()[-6:]]
    assert "make setup" in make


def test_cuda_ops_are_built_for_the_gpus_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the build of an image there is no GPU to see."""
    cuda = build_mmcv.torch.version.cuda
    monkeypatch.setattr(build_mmcv.cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;8.0+PTX")
    assert build_mmcv.ops_kind() == "cpu"  # no nvcc
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {cuda}, V1'\n")
    nvcc.chmod(0o755)
    assert build_mmcv.ops_kind() == (f"cu{cuda.replace('.', '')}_sm80_sm90" if cuda else "cpu")
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 9.1, V1'\n")
    assert build_mmcv.ops_kind() == "cpu"  # of another CUDA
