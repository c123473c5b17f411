from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from adpe import doctor

SCRIPT = doctor.ROOT / "tools/doctor.py"


def run_doctor(*arguments: str, python: str | Path = sys.executable, **variables: str) -> subprocess.CompletedProcess:
    """`tools/doctor.py` in a process of its own, without this process's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ADPE_DATA")}
    command = [str(python), str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True)


def shadow(folder: Path, package: str, code: str) -> Path:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    return folder


def add_distribution(folder: Path, name: str, version: str, module: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    (info / "RECORD").write_text("")


def test_importing_the_doctor_imports_nothing_heavy():
    code = "import sys, adpe.doctor; print(sorted({'torch', 'numpy', 'rich', 'mmengine'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=doctor.ROOT, check=True)
    assert output.stdout.strip() == "[]"


def test_ops_of_mmcv_compute_the_right_values():
    torch = pytest.importorskip("torch")
    assert f"torch {torch.__version__};" in doctor.check_ops("cpu")


def test_two_distributions_of_one_package_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_distribution(tmp_path, "mmcv-lite", "2.1.0", "mmcv")
    add_distribution(tmp_path, "mmcv-other", "2.0.0", "mmcv")
    monkeypatch.syspath_prepend(tmp_path)
    provided = doctor.distributions()["mmcv"]
    assert {"mmcv-lite 2.1.0", "mmcv-other 2.0.0"} <= set(provided)
    check = doctor.check_package("mmcv", {"mmcv": {"found": "2.1.0"}}, ["mmcv-lite 2.1.0", "mmcv-other 2.0.0"])
    assert (check.status, check.detail) == ("fault", "mmcv-lite 2.1.0, mmcv-other 2.0.0")
    assert "`pip uninstall mmcv-lite mmcv-other`" in check.remedy


def test_two_builds_of_opencv_are_a_warning():
    (check,) = doctor.check_opencv(["opencv-python 5.0.0.93", "opencv-python-headless 5.0.0.93"])
    assert check.status == "warning"
    assert "`pip uninstall opencv-python opencv-python-headless`" in check.remedy
    assert list(doctor.check_opencv(["opencv-python-headless 5.0.0.93"])) == []


def test_what_follows_from_a_broken_package_points_at_it():
    steps = {"torch": {"found": "2"}, "mmengine": {"found": "0.10"}, "mmcv": {"error": "ImportError: x"}}
    check = doctor.check_package("mmseg", {**steps, "mmseg": {"error": "ImportError: x"}}, ["a 1"])
    assert (check.status, check.remedy) == ("fault", "fix mmcv first, which mmseg imports.")


def test_only_an_entry_of_pythonpath_itself_hides_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packages = shadow(tmp_path / "site-packages", "hidden_by_nothing", "")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.shadowing_path("hidden_by_nothing") is None
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{packages}")
    assert doctor.shadowing_path("hidden_by_nothing") == str(packages)


def test_disk_is_judged_where_the_folder_will_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check = doctor.check_disk("disk", tmp_path / "not/yet/there")
    assert check.detail.endswith(f" GB free in {tmp_path}")
    monkeypatch.setattr(doctor, "LOW_DISK", 1e30)
    assert doctor.check_disk("disk", tmp_path).status == "warning"


def test_data_roots_are_found_below_adpe_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ade/ADEChallengeData2016").mkdir(parents=True)
    monkeypatch.setenv("ADPE_DATA", str(tmp_path))
    found = {check.name: check.status for check in doctor.check_data()}
    assert found == {"data: ADE20K": "ok", "data: COCO": "info", "data: ImageNet": "info"}
    monkeypatch.setenv("ADPE_DATA", str(tmp_path / "none"))
    assert [check.status for check in doctor.check_data()] == ["info", "info", "info", "warning"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADPE_CACHE", "/somewhere/else")
    assert doctor.cache_folder() == Path("/somewhere/else")
    monkeypatch.delenv("ADPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert doctor.cache_folder() == Path("/caches/adpe")


def test_empty_environment_is_reported_without_rich(tmp_path: Path):
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    result = run_doctor(python=python)
    assert result.returncode == 1
    assert result.stdout.count("not installed") == len(doctor.CHAIN) + len(doctor.PACKAGES)
    assert result.stdout.count("run `make setup`") == 1
    quick = run_doctor("--quick", python=python)
    assert quick.returncode == 1
    assert "lacks torch, torchvision, timm," in quick.stderr


@pytest.mark.slow
def test_present_environment_runs_and_is_named_by_its_versions():
    result = run_doctor("--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (0, True), report
    checks = {check["name"]: check for check in report["checks"]}
    provided = importlib.metadata.packages_distributions()
    for name in doctor.CHAIN:
        distribution = provided[name][0]
        version = importlib.metadata.version(distribution)
        assert checks[name]["status"] == "ok"
        assert checks[name]["detail"].endswith(f"({distribution} {version})")
    assert checks["mmcv's ops on the CPU"]["status"] == "ok"
    assert run_doctor("--quick").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise ImportError('broken on purpose')", "ImportError: broken on purpose"),
        ("import os; os._exit(11)", "the interpreter crashed (exit status 11)"),
    ],
)
def test_broken_package_is_a_fault_with_one_remedy(tmp_path: Path, code: str, detail: str):
    folder = shadow(tmp_path, "mmcv", code)
    result = run_doctor("--json", PYTHONPATH=str(folder))
    assert result.returncode == 1
    faults = {check["name"]: check for check in json.loads(result.stdout)["checks"] if check["status"] == "fault"}
    assert set(faults) == {"mmcv", "mmseg", "mmdet"}
    assert faults["mmcv"]["detail"] == detail
    assert faults["mmcv"]["remedy"] == f"take {folder} off PYTHONPATH: its mmcv hides the installed one."
    assert all(faults[name]["remedy"].startswith("fix mmcv first") for name in ("mmseg", "mmdet"))
