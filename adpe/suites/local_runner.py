"""Executes the runs of a suite as local processes: several at a time, resumable at any point.

A run is finished when its folder holds its record. A folder is locked by whoever runs in it, its training processes
included, so that two executions of one suite share the work instead of doing it twice, and one that was killed outright
does not start what is still running.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adpe.errors import EXIT_PREEMPTED
from adpe.files import ROOT, atomic_write
from adpe.leaderboard.records import append_record, read_records
from adpe.suites.forking import Forker, Process
from adpe.suites.suite import Run
from adpe.suites.training_log import fraction_done

WAITING, RUNNING, ELSEWHERE, FINISHED = "waiting", "running", "running elsewhere", "finished"
FAILED, BLOCKED, INTERRUPTED = "failed", "needs a failed run", "interrupted"
_OVER = (FINISHED, FAILED, BLOCKED, INTERRUPTED)
_ETA = re.compile(r"eta: ((?:\d+ days?, )?[\d:]+)")
_LOSS = re.compile(r"\bloss: ([\d.]+)")
_SHOWN = 20  # rows of the progress table
_TIME_TO_SAVE = 60  # s that an interrupted training has to save its checkpoint


@dataclass
class State:
    """Where a run stands."""

    run: Run
    state: str = WAITING
    fraction: float = 0.0
    detail: str = ""
    started: float | None = None
    seconds: float = 0.0
    process: Process | None = None
    devices: str | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def finished_record(run: Run, folder: Path) -> dict[str, Any] | None:
    """The record of a run that is over, else None."""
    path = run.work_dir(folder) / "record.jsonl"
    if not path.is_file():
        return None
    records = [one for one in read_records(path)[0] if one["run"] == run.name and one["seed"] == run.seed]
    return records[-1] if records else None


def changed_command(run: Run, folder: Path) -> str | None:
    """The command a run was executed with, if it is another than it would be today; the order of options is free."""
    path = run.work_dir(folder) / "command.txt"
    if not path.is_file():
        return None
    before = path.read_text().strip()
    return before if sorted(shlex.split(before)) != sorted(run.command(folder)) else None


def estimate(runs: Sequence[Run], folder: Path) -> list[str]:
    """What the runs that are not finished will cost, in sentences: from finished ones like them, else as declared."""
    measured: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        record = finished_record(run, folder)
        if record:
            hours = record["wall_time_s"] * record["hardware"]["processes"] / 3600
            measured.setdefault((run.method if run.task == "pretraining" else "", run.config), []).append(hours)
    left = [run for run in runs if not finished_record(run, folder)]
    lines = [f"{len(runs)} runs, {len(runs) - len(left)} finished, {len(left)} to do."]
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in left:
        groups.setdefault((run.method if run.task == "pretraining" else "", run.config), []).append(run)
    total, unknown = 0.0, 0
    for key, members in groups.items():
        what = f"{len(members)} x {key[1]}"
        cost = members[0].cost
        if key in measured:
            each = statistics.median(measured[key])
            lines.append(f"  {what}: {each * len(members):,.1f} process hours (measured, {each:.2f} each).")
            total += each * len(members)
        elif cost is not None:
            hours = cost.gpu_hours * len(members)
            lines.append(f"  {what}: {hours:,.0f} {cost.gpu} hours ({cost.gpu_hours:,.0f} each; {cost.source}).")
            total += hours
        else:
            lines.append(f"  {what}: cost not known, neither declared nor measured.")
            unknown += len(members)
    if total:
        parts = f"; {unknown} runs of unknown cost come on top" if unknown else ""
        lines.append(f"Together about {total:,.0f} hours of one process or GPU, of different kinds{parts}.")
    return lines


def execute(runs: Sequence[Run], folder: Path, *, jobs: int = 1, console: Console | None = None) -> bool:
    """Execute the runs, `jobs` at a time, and show how they go.

    A run that fails stops those that need it and no other. An interruption (Ctrl-C, SIGTERM) asks the trainings to
    save a checkpoint, from which the same call resumes.

    Returns:
        whether every run is finished.
    """
    console = console or Console()
    states = {run.name: State(run) for run in runs}
    slots = deque(_devices(jobs, max((run.gpus for run in runs), default=1)), maxlen=jobs)
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, tuple[str, int]] = {}
    with _terminable(), contextlib.ExitStack() as stack:
        live, forker = None, None
        if sum(state.run.gpus == 1 and not finished_record(state.run, folder) for state in states.values()) > 1:
            forker = stack.enter_context(Forker(_environment(jobs, 1)))
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, refresh_per_second=4, transient=False))
        try:
            while any(state.state not in _OVER for state in states.values()):
                for state in states.values():
                    _advance(state, states, folder, slots, forker)
                if live:
                    live.update(_screen(states, folder))
                else:
                    _print_changes(states, shown, console)
                time.sleep(0.2)
        except KeyboardInterrupt:
            _stop(states, folder)
        if live:
            live.update(_screen(states, folder))
        else:
            _print_changes(states, shown, console)
    for state in states.values():
        if state.state == FAILED:
            console.print(Text(f"{state.run.name} failed: {state.detail}", style="red"))
    if any(state.state == INTERRUPTED for state in states.values()):
        console.print("Interrupted; rerun the same command to resume from the checkpoints.")
    return all(state.state == FINISHED for state in states.values())


def _devices(jobs: int, gpus: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each slot; None leaves it as it is."""
    if jobs == 1:
        return [None]
    import torch

    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = known.split(",") if known else [str(index) for index in range(torch.cuda.device_count())]
    if len(names) < jobs * gpus:
        return [None] * jobs
    return [",".join(names[slot * gpus : (slot + 1) * gpus]) for slot in range(jobs)]


def _environment(jobs: int, gpus: int) -> dict[str, str]:
    """Of a training, of which `jobs` share the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs // gpus)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}


def _advance(
    state: State, states: Mapping[str, State], folder: Path, slots: deque[str | None], forker: Forker | None
) -> None:
    if state.state in (WAITING, ELSEWHERE):
        needed = states.get(state.run.needs or "")
        if needed is not None and needed.state in (FAILED, BLOCKED, INTERRUPTED):
            state.state = BLOCKED if needed.state != INTERRUPTED else INTERRUPTED
            state.detail = needed.run.name
        elif _collect(state, folder):
            pass
        elif (needed is None or needed.state == FINISHED) and slots:
            _start(state, folder, slots, forker)
    elif state.state == RUNNING:
        _follow(state, folder)
        assert state.process is not None
        status = state.process.poll()
        if status is not None:
            state.stack.close()
            slots.append(state.devices)
            if not _collect(state, folder):
                state.state = INTERRUPTED if status == EXIT_PREEMPTED else FAILED
                state.detail = _reason(status, state.run.work_dir(folder) / "output.log")


def _collect(state: State, folder: Path) -> bool:
    """If the run is over, see that its record is in the suite's file, which a crash may have prevented."""
    record = finished_record(state.run, folder)
    if record is None:
        return False
    append_record(folder / "records.jsonl", record)
    state.state, state.fraction, state.seconds = FINISHED, 1.0, float(record.get("wall_time_s") or 0.0)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items() if value is not None)
    state.detail = metrics[:60]
    if before := changed_command(state.run, folder):
        state.detail += f" (ran with other options: {before}; remove its folder to repeat it)"
    return True


def _start(state: State, folder: Path, slots: deque[str | None], forker: Forker | None) -> None:
    run, work_dir = state.run, state.run.work_dir(folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = os.open(work_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state.state, state.detail = ELSEWHERE, "another process runs it"
            return
        if _collect(state, folder):  # finished between the look for its record and the lock
            return
        state.devices = slots.popleft()
        with atomic_write(work_dir / "command.txt") as temporary:
            temporary.write_text(shlex.join(run.command(folder)) + "\n")
        environment = _environment(slots.maxlen or 1, run.gpus)
        if state.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = state.devices
        log = stack.enter_context(open(work_dir / "output.log", "ab"))
        command = run.command(folder, sys.executable)
        # A session of its own: Ctrl-C reaches it from here, once. The lock lives as long as the training does.
        if forker is not None and run.gpus == 1:
            state.process = forker.start(command[1:], environment, log.fileno(), lock)
        if state.process is None:
            state.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        state.stack = stack.pop_all()
        state.state, state.started, state.detail = RUNNING, time.time(), ""


def _follow(state: State, folder: Path) -> None:
    state.seconds = time.time() - (state.started or time.time())
    epochs = state.run.options.get("epochs") or state.run.options.get("record.pretraining_epochs")
    for line in reversed(_tail(state.run.work_dir(folder) / "output.log")):
        done = fraction_done(line, int(epochs) if epochs else None)
        if done is not None:
            state.fraction = done
            loss, eta = _LOSS.search(line), _ETA.search(line)
            state.detail = " ".join(filter(None, (loss and f"loss {loss[1]}", eta and f"still {eta[1]}")))
            return


def _tail(path: Path, size: int = 8192) -> list[str]:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace").splitlines()


def _reason(status: int, log: Path) -> str:
    lines = _tail(log)
    said = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()][-1:]
    return f"exit status {status}; {said[-1] if said else 'it said nothing'} (log: {log})"


def _stop(states: Mapping[str, State], folder: Path) -> None:
    running = [state for state in states.values() if state.state == RUNNING and state.process is not None]
    for state in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state.process.pid, signal.SIGTERM)  # type: ignore[union-attr]
    deadline = time.time() + _TIME_TO_SAVE
    for state in running:
        assert state.process is not None
        try:
            state.process.wait(max(0.1, deadline - time.time()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(state.process.pid, signal.SIGKILL)
            state.process.wait()
        state.stack.close()
        _collect(state, folder)
    for state in states.values():
        if state.state not in _OVER:
            state.state = INTERRUPTED


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _screen(states: Mapping[str, State], folder: Path) -> Group:
    rank = {RUNNING: 0, FAILED: 1, INTERRUPTED: 1, ELSEWHERE: 2, FINISHED: 3, WAITING: 4, BLOCKED: 5}
    ordered = sorted(states.values(), key=lambda state: rank[state.state])
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "", "time", ""):
        table.add_column(title, overflow="fold", style="dim" if not title else "")
    styles = {RUNNING: "cyan", FINISHED: "green", FAILED: "red", BLOCKED: "red", INTERRUPTED: "yellow"}
    for state in ordered[:_SHOWN]:
        minutes, seconds = divmod(round(state.seconds), 60)
        table.add_row(
            Text(state.run.name),
            Text(state.state, style=styles.get(state.state, "")),
            ProgressBar(total=1.0, completed=state.fraction, width=16),
            f"{minutes}:{seconds:02d}",
            Text(state.detail),
        )
    counts = {name: sum(state.state == name for state in ordered) for name in rank}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    more = f"{len(ordered) - _SHOWN} more not shown. " if len(ordered) > _SHOWN else ""
    return Group(table, Text(f"{more}{words}. Records: {folder / 'records.jsonl'}", style="dim"))


def _print_changes(states: Mapping[str, State], shown: dict[str, tuple[str, int]], console: Console) -> None:
    """A line for every run whose state changed, and one per minute of a run, where there is no terminal to draw on."""
    for name, state in states.items():
        now = (state.state, int(state.seconds // 60) if state.state == RUNNING else 0)
        if shown.get(name) != now and state.state != WAITING:
            passed = f" {state.fraction:4.0%} after {now[1]} min" if now[1] else ""
            detail = f": {state.detail}" if state.detail else ""
            console.print(Text(f"{state.state:9} {name}{passed}{detail}"), soft_wrap=True)
        shown[name] = now
