"""The batch scripts tools/slurm_job.sh and tools/slurm_array.sh, under stand-ins for Slurm's commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_slurm import executable

ROOT = Path(__file__).resolve().parents[2]
JOB, ARRAY = ROOT / "tools/slurm_job.sh", ROOT / "tools/slurm_array.sh"


def batch(
    script: Path, folder: Path, *arguments: str, status: int = 0, **variables: str
) -> subprocess.CompletedProcess:
    """Run a batch script as Slurm would: a copy elsewhere, with its variables; srun notes its words and ends so."""
    copy = folder / "spool" / "slurm_script"
    executable(copy, script.read_text())
    executable(folder / "bin/srun", f'#!/bin/sh\nfor word; do echo "$word"; done > {folder}/srun\nexit {status}\n')
    executable(folder / "bin/scontrol", f'#!/bin/sh\necho "$*" > {folder}/requeued\n')
    given = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "6",
    }
    return subprocess.run(
        ["bash", copy, *arguments], env={**given, **variables}, capture_output=True, text=True, cwd="/", check=False
    )


def directives(script: Path) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE)
    assert len(lines) == script.read_text().count("\n#SBATCH")
    return dict(lines)


@pytest.mark.parametrize("script", [JOB, ARRAY])
def test_what_is_asked_for(script: Path):
    asked = directives(script)
    assert asked["signal"] == "USR1@120" and asked["requeue"] == "" and asked["open-mode"] == "append"
    # Left to whoever submits.
    assert not {"partition", "account", "time", "array"} & set(asked)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("status", [0, 1, 85])
def test_a_job_runs_every_rank_and_is_requeued_after_a_saved_checkpoint(tmp_path: Path, status: int):
    done = batch(JOB, tmp_path, "configs/a.py", "--work-dir", "a b", status=status)
    assert done.returncode == status, done.stderr
    words = (tmp_path / "srun").read_text().splitlines()
    assert {"--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=6"} <= set(words)
    assert words[words.index("python") :] == [
        "python", "-u", "tools/train.py", "configs/a.py", "--launcher", "slurm", "--resume", "--work-dir", "a b",
    ]  # fmt: skip
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() == "requeue 77\n") if status == 85 else not requeued.exists()


@pytest.mark.parametrize("status", [0, 1, 85])
def test_a_task_of_an_array_runs_its_line(tmp_path: Path, status: int):
    commands = ["python tools/train.py one.py --resume", "python tools/train.py 'two words.py' --resume"]
    (tmp_path / "commands.txt").write_text("\n".join(commands) + "\n")
    done = batch(ARRAY, tmp_path, "commands.txt", status=status, SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == status, done.stderr
    assert (tmp_path / "srun").read_text().splitlines()[-3:] == ["bash", "-c", f"exec {commands[1]}"]
    assert (tmp_path / "requeued").exists() == (status == 85)


def test_mistakes_are_told(tmp_path: Path):
    (tmp_path / "commands.txt").write_text("true\n")
    for script, arguments, variables, words in (
        (JOB, [], {}, "usage: sbatch"),
        (ARRAY, [], {}, "usage: sbatch"),
        (ARRAY, ["commands.txt"], {}, "SLURM_ARRAY_TASK_ID"),
        (ARRAY, ["commands.txt"], {"SLURM_ARRAY_TASK_ID": "2"}, "has no line 2"),
        (ARRAY, ["none.txt"], {"SLURM_ARRAY_TASK_ID": "1"}, "none.txt"),
    ):
        done = batch(script, tmp_path, *arguments, **variables)
        assert done.returncode and words in done.stderr
        assert not (tmp_path / "srun").exists()


@pytest.mark.slow
def test_the_commands_that_make_an_array_of_a_suite(tmp_path: Path):
    """Those at the top of slurm_array.sh, but for sbatch: what needs an encoder in the second file."""
    text = ARRAY.read_text()
    lines = [line.removeprefix("#   ") for line in text.splitlines() if "> all.txt" in line or "> first.txt" in line]
    assert len(lines) == 2
    script = (
        "\n".join(lines).replace("python tools", f"{sys.executable} {ROOT}/tools").replace("SUITE", "small_cifar10")
    )
    subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, check=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    )
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("first.txt", "second.txt"))
    # Three seeds of seven pretrainings, and of two probes on them and on a random start.
    assert (len(first), len(second)) == (3 * (7 + 2), 3 * 7 * 2)
    work = tmp_path / "work_dirs/suites/small_cifar10"
    made = {line.split(" --work-dir ")[1].split()[0] for line in first}
    for line in second:
        (encoder,) = re.findall(r" pretrained=(\S+)/encoder.safetensors", line)
        assert encoder in made and encoder.startswith(str(work)) and " --resume " in line
