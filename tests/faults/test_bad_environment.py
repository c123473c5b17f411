"""What surrounds a run fails: disk full, read-only folders, packages missing or wrong, locks left behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training
from faults.trainings import Training, wait_until, write_data
from rich.console import Console
from test_suite_runner import names, runs_of

from adpe.engine.hooks.checkpointing import latest_checkpoint
from adpe.engine.launch import train_main
from adpe.suites.local_runner import execute

ROOT = tiny_training.ROOT


class Mount:
    """A file system of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {result.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Mount]:
    (tmp_path / "disk").mkdir()
    disk = Mount(tmp_path / "disk")
    yield disk
    disk.unmount()


def tool(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of tools/ in a process of its own, with environment variables."""
    environment = {**tiny_training.environment(), **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(tmp_path, small_disk):
    training = Training("pretraining", iterations=12, workers=0)
    data, log = write_data(tmp_path / "data"), tmp_path / "log"
    small_disk.mount("size=8m")  # two checkpoints of 3.2 MB, and half of the third
    work_dir = small_disk.folder / "work"
    assert training.start(data, work_dir, log).wait(240) == 2, log.read_text()[-2000:]
    error = log.read_text().split("error: ")[-1]
    assert f"checkpoint {work_dir / 'iter_9.pth'} could not be saved: [Errno 28] No space left on device" in error
    assert "--resume" in error
    assert "Traceback" not in log.read_text()
    assert not list(work_dir.glob(".*.tmp"))
    found = latest_checkpoint(work_dir)
    assert found is not None and (found[0].name, found[1]["iter"]) == ("iter_6.pth", 6)
    small_disk.mount("remount,size=64m")
    assert training.start(data, work_dir, log, "--resume").wait(240) == 0, log.read_text()[-2000:]
    assert "resumed epoch: 1, iter: 6" in log.read_text()
    found = latest_checkpoint(work_dir)
    assert found is not None and found[1]["iter"] == 12


def test_a_read_only_folder_is_refused_before_anything_is_built(tmp_path, small_disk, capsys):
    small_disk.mount("size=1m,ro")
    config = tiny_training.config(tmp_path)
    disk = small_disk.folder
    for folder, words in (
        (disk, "is not writable"),
        (disk / "a", "cannot be made: Read-only"),
    ):
        assert train_main([str(config), "--work-dir", str(folder)]) == 2
        assert f"error: --work-dir {folder} {words}" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path):
    (tmp_path / "mmdet").mkdir()
    code = "raise ModuleNotFoundError(\"No module named 'mmdet'\", name='mmdet')"
    (tmp_path / "mmdet" / "__init__.py").write_text(code)
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = tool("tools/train.py", "configs/demo/detection.py", "--work-dir", tmp_path / "w", **variables)
    assert result.returncode == 2, result.stderr
    assert "error: mmdet is not installed: run `make setup`, or `pip install -r requirements/mm.txt`" in result.stderr


def test_mmcv_without_its_compiled_ops_is_a_fault_with_a_remedy(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("__version__ = '1.0.0'")
    result = tool("tools/doctor.py", "--quick", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert result.returncode == 1
    assert "lacks mmcv's compiled ops: run `make " in result.stderr


@pytest.mark.slow
def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path, monkeypatch):
    for name, value in tiny_training.environment().items():
        monkeypatch.setenv(name, value)
    runs, work = runs_of(tmp_path)
    run = runs[-1]
    lock = run.work_dir(work) / "lock"
    lock.parent.mkdir(parents=True)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); f.write('old'); f.flush(); "
    code += "fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
    with open(lock) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert wait_until(lock.exists, 1) and lock.read_text() == "old"
    assert execute([run], work, console=Console(quiet=True))
    assert names(work) == [run.name]
