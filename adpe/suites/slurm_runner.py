"""Executes the runs of a suite under Slurm: one batch job a run, each after the one it needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.suites.local_runner import finished_record
from adpe.suites.suite import Run

SECONDS_TO_SAVE = 120  # between the signal and the time limit


def batch_command(
    run: Run, folder: Path, partition: str, gpus_per_node: int, after: str | None, python: str
) -> list[str]:
    """The ``sbatch`` command of a run.

    Args:
        run: what to train.
        folder: of the suite's runs.
        partition: of the cluster.
        gpus_per_node: that a node has.
        after: id of the job whose encoder it needs.
        python: interpreter on the nodes.
    """
    per_node = min(run.gpus, gpus_per_node)
    work_dir = run.work_dir(folder)
    training = shlex.join([python, "-u", "tools/train.py", run.config, "--launcher", "slurm", *run.arguments(folder)])
    # Preempted (status 85), it has saved a checkpoint and asks for its place again.
    script = f'srun --kill-on-bad-exit=1 {training} || {{ [ $? -eq 85 ] && scontrol requeue "$SLURM_JOB_ID"; }}'
    command = ["sbatch", "--parsable", f"--partition={partition}", f"--job-name={run.suite}/{run.name}"]
    command += [f"--nodes={-(-run.gpus // per_node)}", f"--ntasks-per-node={per_node}", f"--gres=gpu:{per_node}"]
    command += ["--cpus-per-task=5", "--requeue", f"--signal=USR1@{SECONDS_TO_SAVE}", "--open-mode=append"]
    command += [f"--chdir={ROOT}", f"--output={work_dir / 'output.log'}"]
    command += [f"--dependency=afterok:{after}"] if after else []
    return [*command, "--wrap", script]


def script_lines(runs: Sequence[Run], folder: Path, partition: str, gpus_per_node: int) -> list[str]:
    """A shell script that submits all runs, for reading before doing it."""
    lines = []
    for run in runs:
        after = f"${_variable(run.needs)}" if run.needs else None
        command = batch_command(run, folder, partition, gpus_per_node, after, "python")
        text = shlex.join(command).replace(f"'--dependency=afterok:{after}'", f"--dependency=afterok:{after}")
        lines.append(f"mkdir -p {shlex.quote(str(run.work_dir(folder)))}; {_variable(run.name)}=$({text})")
    return lines


def submit(runs: Sequence[Run], folder: Path, partition: str, gpus_per_node: int) -> list[str]:
    """Submit every run that is neither finished nor in the queue. Returns a line for each.

    Raises:
        UserError: if Slurm is not there or refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not there: --slurm needs Slurm; without it the runs are local processes.")
    lines, jobs = [], {}
    for run in runs:
        work_dir = run.work_dir(folder)
        file = work_dir / "slurm_job"
        if finished_record(run, folder):
            lines.append(f"finished  {run.name}")
            continue
        if file.is_file() and _queued(job := file.read_text().strip()):
            jobs[run.name] = job
            lines.append(f"queued    {run.name} (job {job})")
            continue
        work_dir.mkdir(parents=True, exist_ok=True)
        command = batch_command(run, folder, partition, gpus_per_node, jobs.get(run.needs or ""), sys.executable)
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        job = answer.stdout.strip().partition(";")[0]
        if answer.returncode or not job.isdigit():
            raise UserError(f"sbatch refused {run.name} (status {answer.returncode}): {answer.stderr.strip() or job}")
        file.write_text(f"{job}\n")
        jobs[run.name] = job
        lines.append(f"submitted {run.name} (job {job})")
    return lines


def _queued(job: str) -> bool:
    answer = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and bool(answer.stdout.strip())


def _variable(name: str | None) -> str:
    return "job_" + re.sub(r"\W", "_", str(name))
