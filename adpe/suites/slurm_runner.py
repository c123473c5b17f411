"""Executes the runs of a suite under Slurm: one batch job per run, each after the one it needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adpe.errors import EXIT_PREEMPTED, UserError
from adpe.files import ROOT, atomic_write
from adpe.suites.local_runner import finished_record
from adpe.suites.suite import Run

SECONDS_TO_SAVE = 120  # between the signal and the time limit
# As in tools/slurm_train.sh: a rank that ends first gives the others 60 s, so that all end with status 85.
_SRUN = "srun --kill-on-bad-exit=0 --wait=60"


@dataclass(frozen=True)
class Cluster:
    """What the jobs ask of Slurm; None leaves it to the cluster's defaults.

    Attributes:
        time: limit of a job, as ``sbatch --time`` takes it. A run that reaches it saves a checkpoint and is requeued.
        arguments: further ones of sbatch.
    """

    partition: str
    gpus_per_node: int = 8
    cpus_per_task: int = 5
    time: str | None = None
    account: str | None = None
    arguments: Sequence[str] = ()


def batch_command(run: Run, folder: Path, cluster: Cluster, after: str | None, python: str) -> list[str]:
    """The ``sbatch`` command of a run.

    Args:
        run: what to train.
        folder: of the suite's runs.
        cluster: where.
        after: id of the job whose encoder it needs.
        python: interpreter on the nodes.
    """
    per_node = min(run.gpus, cluster.gpus_per_node)
    work_dir = run.work_dir(folder)
    cpus = f"--cpus-per-task={cluster.cpus_per_task}"  # srun does not take it from sbatch since Slurm 22.05
    training = shlex.join([python, "-u", "tools/train.py", run.config, "--launcher", "slurm", *run.arguments(folder)])
    # Stopped by the signal, it has saved a checkpoint and asks for its place again.
    script = (
        f"{_SRUN} {cpus} {training}; status=$?; "
        f'[ $status -eq {EXIT_PREEMPTED} ] && scontrol requeue "$SLURM_JOB_ID"; exit $status'
    )
    command = ["sbatch", "--parsable", f"--partition={cluster.partition}", f"--job-name={run.suite}/{run.name}"]
    command += [f"--nodes={-(-run.gpus // per_node)}", f"--ntasks-per-node={per_node}", f"--gres=gpu:{per_node}"]
    command += [cpus, "--requeue", f"--signal=USR1@{SECONDS_TO_SAVE}", "--open-mode=append"]
    command += [f"--chdir={ROOT}", f"--output={work_dir / 'output.log'}"]
    command += [f"--time={cluster.time}"] if cluster.time else []
    command += [f"--account={cluster.account}"] if cluster.account else []
    command += [f"--dependency=afterok:{after}"] if after else []
    return [*command, *cluster.arguments, "--wrap", script]


def script_lines(runs: Sequence[Run], folder: Path, cluster: Cluster) -> list[str]:
    """A shell script that submits all runs, for reading before doing it."""
    lines = []
    for run in runs:
        after = f"${_variable(run.needs)}" if run.needs else None
        command = batch_command(run, folder, cluster, after, "python")
        text = shlex.join(command).replace(f"'--dependency=afterok:{after}'", f"--dependency=afterok:{after}")
        lines.append(f"mkdir -p {shlex.quote(str(run.work_dir(folder)))}; {_variable(run.name)}=$({text})")
    return lines


def submit(runs: Sequence[Run], folder: Path, cluster: Cluster) -> list[str]:
    """Submit every run that is neither finished nor in the queue. Returns a line for each.

    A job that waits for one that failed, or that was submitted again, is cancelled and submitted anew.

    Raises:
        UserError: if Slurm is not there or refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not there: --slurm needs Slurm; without it the runs are local processes.")
    lines: list[str] = []
    jobs: dict[str, str] = {}
    for run in runs:
        work_dir = run.work_dir(folder)
        file = work_dir / "slurm_job"
        if finished_record(run, folder):
            lines.append(f"finished  {run.name}")
            continue
        after = jobs.get(run.needs or "")
        told = "submitted"
        job, _, needed = file.read_text().strip().partition(" ") if file.is_file() else ("", "", "")
        state = _state(job) if job else ""
        if state.startswith("PENDING") and ("NeverSatisfied" in state or (after and needed and after != needed)):
            subprocess.run(["scancel", job], capture_output=True, check=False)
            told = f"cancelled job {job}, which waited for a failed one; submitted"
        elif state:
            jobs[run.name] = job
            lines.append(f"queued    {run.name} (job {job})")
            continue
        work_dir.mkdir(parents=True, exist_ok=True)
        command = batch_command(run, folder, cluster, after, sys.executable)
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        job = answer.stdout.strip().partition(";")[0]
        if answer.returncode or not job.isdigit():
            raise UserError(f"sbatch refused {run.name} (status {answer.returncode}): {answer.stderr.strip() or job}")
        with atomic_write(file) as temporary:
            temporary.write_text(f"{job} {after or '-'}\n")
        jobs[run.name] = job
        lines.append(f"{told} {run.name} (job {job})")
    return lines


def _state(job: str) -> str:
    """State and reason of a job in the queue, such as ``"PENDING Dependency"``; empty if it is not there."""
    answer = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T %r"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _variable(name: str | None) -> str:
    return "job_" + re.sub(r"\W", "_", str(name))
