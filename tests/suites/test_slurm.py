"""Slurm: the commands of a suite's jobs, jobs that are submitted again, and a training started by srun."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
from test_suite import write

from adpe.errors import UserError
from adpe.suites.slurm_runner import Cluster, batch_command, script_lines, submit
from adpe.suites.suite import Run, expand
from adpe.suites.suite_file import read_suite

# Stands for srun: starts the tasks on this machine, passes signals on, and ends with the highest of their statuses.
SRUN = """
import os, signal, subprocess, sys
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--") and "=" in word)
command = sys.argv[sys.argv.index(os.environ["PYTHON"]):]
given = {"SLURM_NTASKS": options["ntasks"], "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0",
         "SLURM_STEP_NODELIST": "localhost", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
tasks = [subprocess.Popen(command, env={**os.environ, **given, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
         for rank in range(int(options["ntasks"]))]
def forward(number, frame):
    for task in tasks:
        task.send_signal(number)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, forward)
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def first_two(folder: Path, runs_in: Path) -> list[Run]:
    """A pretraining, and a fine-tuning that needs it."""
    return expand(read_suite(write(folder)), runs_in, seeds=[0])[:2]


def test_batch_jobs_wait_for_their_pretraining(tmp_path):
    runs = expand(read_suite(write(tmp_path)), Path("runs/two"), gpus=16, seeds=[0])
    cluster = Cluster("gpu", 8, 12, "1-00:00:00", "vision", ["--qos=long"])
    command = batch_command(runs[1], Path("runs/two"), cluster, "77", "python")
    assert {
        "--partition=gpu", "--nodes=2", "--ntasks-per-node=8", "--gres=gpu:8", "--cpus-per-task=12",
        "--time=1-00:00:00", "--account=vision", "--qos=long", "--dependency=afterok:77",
    } <= set(command)  # fmt: skip
    script = command[-1]
    words = shlex.split(script.partition(";")[0])
    assert words[0] == "srun" and {"--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=12"} <= set(words)
    assert words[words.index("python") :][:6] == [
        "python", "-u", "tools/train.py", "configs/ade20k_upernet_vitb.py", "--launcher", "slurm",
    ]  # fmt: skip
    assert "'record.sweep=lr 0.0001'" in script and "--resume" in script
    lines = script_lines(runs, Path("runs/two"), cluster)
    assert "job_mae_pretraining_seed0=$(sbatch" in lines[0]
    assert "--dependency=afterok:$job_mae_pretraining_seed0" in lines[1]


def test_what_is_left_to_the_cluster_is_not_asked_for(tmp_path):
    command = batch_command(first_two(tmp_path, tmp_path)[0], tmp_path, Cluster("gpu"), None, "python")
    assert not [word for word in command if word.startswith(("--time", "--account", "--dependency"))]


@pytest.mark.parametrize("status", [0, 1, 85])
def test_the_batch_script_requeues_after_a_saved_checkpoint_and_keeps_the_status(tmp_path, status):
    script = batch_command(first_two(tmp_path, tmp_path)[0], tmp_path, Cluster("gpu"), None, "python")[-1]
    executable(tmp_path / "bin" / "srun", f"#!/bin/sh\nexit {status}\n")
    executable(tmp_path / "bin" / "scontrol", f'#!/bin/sh\necho "$*" > {tmp_path}/requeued\n')
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}
    assert subprocess.run(["sh", "-c", script], env=environment, check=False).returncode == status
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() == "requeue 77\n") if status == 85 else not requeued.exists()


def test_submitting_is_resumable(tmp_path, monkeypatch):
    tools, jobs = tmp_path / "bin", tmp_path / "jobs"
    executable(tools / "sbatch", f'#!/bin/sh\nprintf "%s\\n" "$*" >> {jobs}\nwc -l < {jobs}\n')
    executable(tools / "squeue", '#!/bin/sh\ncase "$3" in 1) echo RUNNING None ;; *) exit 1 ;; esac\n')
    folder = tmp_path / "runs"
    runs = first_two(tmp_path, folder)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="sbatch"):
        submit(runs, folder, Cluster("gpu"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert submit(runs, folder, Cluster("gpu")) == [
        "submitted mae/pretraining/seed0 (job 1)",
        "submitted mae/upernet/lr-0.0001/seed0 (job 2)",
    ]
    # Job 1 is still in the queue, job 2 is gone without a record.
    assert submit(runs, folder, Cluster("gpu")) == [
        "queued    mae/pretraining/seed0 (job 1)",
        "submitted mae/upernet/lr-0.0001/seed0 (job 3)",
    ]
    submitted = [shlex.split(line) for line in jobs.read_text().splitlines()]
    assert ["--dependency=afterok:1" in line for line in submitted] == [False, True, True]


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "Dependency"])
def test_a_job_that_waits_for_a_failed_one_is_submitted_anew(tmp_path, monkeypatch, reason):
    tools, jobs, cancelled = tmp_path / "bin", tmp_path / "jobs", tmp_path / "cancelled"
    executable(tools / "sbatch", f'#!/bin/sh\nprintf "%s\\n" "$*" >> {jobs}\nwc -l < {jobs}\n')
    executable(tools / "squeue", f'#!/bin/sh\ncase "$3" in [24]) echo PENDING {reason} ;; *) exit 1 ;; esac\n')
    executable(tools / "scancel", f'#!/bin/sh\necho "$*" >> {cancelled}\n')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    runs = first_two(tmp_path, tmp_path / "runs")
    submit(runs, tmp_path / "runs", Cluster("gpu"))
    # The pretraining, job 1, failed; job 2 is cancelled, and its successor waits for the new pretraining, job 3.
    submit(runs, tmp_path / "runs", Cluster("gpu"))
    assert cancelled.read_text() == "2\n"
    submitted = [shlex.split(line) for line in jobs.read_text().splitlines()]
    after = [[word for word in line if word.startswith("--dependency")] for line in submitted]
    assert after == [[], ["--dependency=afterok:1"], [], ["--dependency=afterok:3"]]


@pytest.mark.slow
def test_a_training_under_srun_saves_on_the_signal_and_its_status_is_85(tmp_path):
    config = tiny_training.config(
        tmp_path, name="job.py", iterations=100000, interval=100000,
        extra="custom_hooks = [dict(type='KillHook', at=3, number=10, parent=True)]\n"
        "default_hooks['checkpoint']['poll_interval'] = 5",
    )  # fmt: skip
    executable(tmp_path / "bin" / "srun", f"#!{sys.executable}{SRUN}")
    script = tiny_training.ROOT / "tools" / "slurm_train.sh"
    result = subprocess.run(
        ["bash", script, "gpu", "job", config, "--work-dir", tmp_path / "w"],
        env={**tiny_training.environment(), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GPUS": "2"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 85, result.stderr
    (saved,) = (tmp_path / "w").glob("*.pth")
    seen = [(tmp_path / "w" / f"seen.txt.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) and saved.name == f"iter_{len(seen[0])}.pth"


def test_what_slurm_train_asks_for(tmp_path):
    executable(tmp_path / "bin" / "srun", '#!/bin/sh\nfor word; do echo "$word"; done\n')
    variables = {
        "GPUS": "16",
        "CPUS_PER_TASK": "12",
        "TIME": "1-00:00:00",
        "ACCOUNT": "a b",
        "SRUN_ARGS": "--qos=x --y",
    }
    path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHON": "python"}
    command = ["bash", str(tiny_training.ROOT / "tools" / "slurm_train.sh"), "gpu", "job", "c.py", "--resume"]
    words = subprocess.run(command, env={**path, **variables}, capture_output=True, text=True, check=True).stdout
    assert {
        "--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--cpus-per-task=12", "--time=1-00:00:00",
        "--account=a b", "--qos=x", "--y", "--kill-on-bad-exit=0", "--wait=60",
    } <= set(words.splitlines())  # fmt: skip
    assert words.splitlines()[-4:] == ["c.py", "--launcher", "slurm", "--resume"]
    words = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout
    assert "--time" not in words and "--account" not in words
