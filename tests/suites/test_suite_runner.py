"""Executing suites: real trainings in processes of their own, killed, interrupted, shared between two executions."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import yaml
from rich.console import Console

from adpe.files import ROOT
from adpe.leaderboard.records import append_record, read_records
from adpe.suites.local_runner import estimate, execute, finished_record
from adpe.suites.suite import Run, expand
from adpe.suites.suite_file import read_suite

VARIABLES = "pretrained = None\nlr = 0.05\noptim_wrapper['optimizer']['lr'] = lr\nenv_cfg = dict(pretrained=pretrained)"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tiny_training.environment().items():
        monkeypatch.setenv(name, value)


def suite_file(folder: Path, **task_options: Any) -> Path:
    pretraining = tiny_training.config(folder, name="pretraining.py", iterations=6, extra=VARIABLES)
    transfer = tiny_training.config(folder, name="transfer.py", iterations=12, extra=VARIABLES)
    content = {
        "title": "Tiny",
        "seeds": [0],
        "methods": [{"name": "A", "pretraining": str(pretraining)}, {"name": "B one"}],
        "tasks": [{"name": "t", "config": str(transfer), "options": task_options}],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def runs_of(folder: Path, **task_options: Any) -> tuple[list[Run], Path]:
    work = folder / "work" / "tiny"
    return expand(read_suite(suite_file(folder, **task_options)), work), work


def names(work: Path) -> list[str]:
    records, faults = read_records(work / "records.jsonl")
    assert faults == []
    return sorted(record["run"] for record in records)


def trainings(work: Path) -> int:
    """How often a training came to its end in the folder."""
    return sum(log.read_text().count("Finished: ") for log in work.rglob("output.log"))


ALL = ["a/pretraining/seed0", "a/t/seed0", "b-one/t/seed0"]


@pytest.mark.slow(20)
def test_a_killed_run_resumes_and_finished_ones_are_not_repeated(tmp_path: Path) -> None:
    runs, work = runs_of(tmp_path, kill_at=9)
    assert not execute(runs, work, console=Console(quiet=True))
    assert names(work) == ["a/pretraining/seed0"]  # the transfers were killed, once each
    assert execute(runs, work, console=Console(quiet=True))
    assert names(work) == ALL and trainings(work) == 3
    log = (work / "b-one/t/seed0/output.log").read_text()
    assert "Load checkpoint from" in log  # it went on, from iteration 5
    record = finished_record(runs[-1], work)
    assert record is not None
    assert {key: record[key] for key in ("suite", "run", "method", "start", "seed", "sweep")} == {
        "suite": "tiny", "run": "b-one/t/seed0", "method": "B one", "start": "random", "seed": 0, "sweep": None,
    }  # fmt: skip
    # Again: nothing runs, nothing is recorded twice, and a record that a crash kept from the suite's file is added.
    (work / "records.jsonl").unlink()
    started = time.time()
    assert execute(runs, work, console=Console(quiet=True))
    assert time.time() - started < 5 and trainings(work) == 3 and names(work) == ALL
    lines = estimate(runs, work)
    assert lines == ["3 runs, 3 finished, 0 to do."]


@pytest.mark.slow
def test_two_executions_neither_lose_nor_duplicate(tmp_path: Path) -> None:
    path, work = suite_file(tmp_path), tmp_path / "work"
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "run", str(path), "--work-dir", str(work)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert names(work / "tiny") == ALL and trainings(work / "tiny") == 3
    assert all(output.count("finished ") >= 3 for output in outputs), outputs


@pytest.mark.slow
def test_an_interruption_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path, work = suite_file(tmp_path, iterations=4000), tmp_path / "work"
    command = [
        sys.executable,
        str(ROOT / "tools/benchmark.py"),
        "run",
        str(path),
        "--work-dir",
        str(work),
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = work / "tiny/b-one/t/seed0/output.log"
    deadline = time.time() + 120
    while time.time() < deadline and not (log.exists() and "Iter(train)" in log.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "rerun the same command" in output, output
    assert not (work / "tiny/b-one/t/seed0/record.jsonl").exists()
    assert list((work / "tiny/b-one/t/seed0").glob("iter_*.pth")), log.read_text()[-2000:]
    found = subprocess.run(["pgrep", "-f", str(work)], capture_output=True, text=True, check=False).stdout
    assert found == ""  # no orphan


@pytest.mark.slow
def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    path = suite_file(tmp_path)
    work = tmp_path / "work" / "tiny"
    runs = expand(read_suite(path), work, pretraining_options={"model.typ": "None"})
    console = Console(record=True, width=300, file=io.StringIO())
    assert not execute(runs, work, console=console)
    text = console.export_text()
    assert "needs a failed run a/t/seed0: a/pretraining/seed0" in text
    assert "a/pretraining/seed0 failed: exit status 2; error:" in text and "model.typ" in text
    assert names(work) == ["b-one/t/seed0"]


def test_torn_and_foreign_records_are_no_finished_run(tmp_path: Path) -> None:
    runs, work = runs_of(tmp_path)
    run = runs[-1]
    record = {
        "schema": 1, "run": run.name, "method": "B one", "task": "pretrain", "dataset": "d", "seed": 0, "metrics": {},
        "config": run.config, "time": "t", "wall_time_s": 3600.0, "hardware": {"processes": 2},
    }  # fmt: skip
    file = run.work_dir(work) / "record.jsonl"
    assert append_record(file, {**record, "seed": 1}) and finished_record(run, work) is None
    with open(file, "a") as stream:
        stream.write('{"schema": 1, "run": "b-one/t/se')
    assert finished_record(run, work) is None
    assert append_record(file, record) and not append_record(file, record)
    assert finished_record(run, work) == record
    assert estimate(runs, work)[0] == "3 runs, 1 finished, 2 to do."
    # What was measured stands for the like of it.
    assert f"  1 x {run.config}: 2.0 process hours (measured, 2.00 each)." in estimate(runs, work)
