"""Every system against the numbers recorded from its reference, through `tools/check_parity.py`'s own checks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from adpe.parity import SYSTEMS
from adpe.parity.cases import check_directory

GOLDENS = Path(__file__).resolve().parents[1] / "goldens_systems"
DIRECTORIES = sorted(folder.name for folder in GOLDENS.iterdir())


def test_every_recorded_system_has_a_check():
    assert set(DIRECTORIES) <= set(SYSTEMS)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_system_agrees_with_its_reference(name: str):
    results = check_directory(GOLDENS / name)
    assert not [(one.case, one.errors, one.remark) for one in results if not one.passed]


@pytest.mark.parametrize(("name", "case"), [("mfm", "pretrain_vit"), ("linear_segmentation", "head_last")])
def test_another_number_is_told(name: str, case: str, tmp_path: Path):
    shutil.copytree(GOLDENS / name, tmp_path / name)
    arrays = dict(np.load(tmp_path / name / f"{case}.npz"))
    arrays["output.loss"] = arrays["output.loss"] * np.float32(1.001)
    np.savez(tmp_path / name / f"{case}.npz", **arrays)
    assert [one.case for one in check_directory(tmp_path / name) if not one.passed] == [case]
