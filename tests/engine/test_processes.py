"""What Slurm says of a job's processes, the lock of a work directory, and signals and ports told in a sentence."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training

from adpe.engine.hooks.checkpointing import AdPECheckpointHook, read_training_checkpoint
from adpe.engine.launch import train_main
from adpe.engine.processes import check_launcher, first_host, lock_work_dir, unlock_work_dirs
from adpe.errors import UserError
from adpe.garbage import collect_rarely


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node17", "node17"),
        ("node[17-18]", "node17"),
        ("gpu[017-018,020],login1", "gpu017"),
        ("gpu-a[3,5-7]", "gpu-a3"),
        ("rack[1-2]-n[03-04].cluster", "rack1-n03.cluster"),
        ("a,b[1-2]", "a"),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, str]:
    """Address and port that a process of a Slurm job step takes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "ADPE_LAUNCHER")):
            monkeypatch.delenv(name)
    known = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
    for name, value in {**known, "RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", **variables}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in variables:
            monkeypatch.setenv(name, "")  # so that it is restored afterwards
            monkeypatch.delenv(name)
    check_launcher("slurm")
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == ("1", "1", "16")
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def test_rank_0_is_on_the_first_node_and_jobs_have_ports_of_their_own(monkeypatch):
    lists = {"SLURM_NODELIST": "n[1-4]", "SLURM_JOB_NODELIST": "n[1-4]"}
    address, port = slurm(monkeypatch, SLURM_JOB_ID="4711", SLURM_STEP_ID="0", **lists)
    assert address == "n1" and 15000 <= int(port) < 30000
    # A step may have some of the nodes only.
    assert slurm(monkeypatch, SLURM_JOB_ID="4711", SLURM_STEP_ID="0", SLURM_STEP_NODELIST="n[3-4]", **lists) == (
        "n3",
        port,
    )
    ports = {
        slurm(monkeypatch, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step), **lists)[1]
        for job in range(4711, 4731)
        for step in range(3)
    }
    assert len(ports) == 60
    assert slurm(monkeypatch, SLURM_JOB_ID="4711", MASTER_ADDR="10.0.0.7", MASTER_PORT="1234") == ("10.0.0.7", "1234")


HOLD = """
import os, sys, time
from adpe.engine.processes import lock_work_dir
lock_work_dir(sys.argv[1], "none")
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_a_work_dir_is_locked_until_the_training_ends_however_it_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=tiny_training.environment(),
    )  # fmt: skip
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=rf"{tmp_path.name}.*process {holder.pid} on {socket.gethostname()}"):
            lock_work_dir(str(tmp_path / "."), "none")
        holder.kill()
        holder.wait()
        assert os.path.exists(f"/proc/{child}")  # as a worker of the data loader may outlive its training
        lock_work_dir(str(tmp_path), "none")
        lock_work_dir(str(tmp_path), "none")  # its own
        assert f"process {os.getpid()} " in (tmp_path / "training.lock").read_text()
    finally:
        unlock_work_dirs()
        os.kill(child, signal.SIGKILL)


def test_a_second_training_in_a_work_dir_is_refused_and_changes_nothing(tmp_path, capsys):
    path = tiny_training.config(tmp_path)
    assert train_main([str(path), "--work-dir", str(tmp_path / "w")]) == 0
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=tiny_training.environment(),
    )  # fmt: skip
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "w").rglob("*"))
    try:
        assert train_main([str(path), "--work-dir", str(tmp_path / "w"), "--seed", "1"]) == 2
    finally:
        holder.kill()
        holder.wait()
        os.kill(child, signal.SIGKILL)
    assert f"process {holder.pid}" in capsys.readouterr().err
    assert sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "w").rglob("*")) == before
    assert train_main([str(path), "--work-dir", str(tmp_path / "w"), "--resume"]) == 0


def interrupted(folder: Path, command: list[str], **values: object) -> tuple[int, str]:
    """Exit status and output of a training that gets SIGINT once it trains."""
    config = tiny_training.config(folder, name="long.py", iterations=100000, interval=100000, **values)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command[:1], str(tiny_training.ROOT / "tools" / command[1]), str(config), *command[2:], "--work-dir",
             str(folder / "w")], stdout=log, stderr=log, env=tiny_training.environment(), start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 250
        while not (folder / "w" / "seen.txt.0").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, (folder / "log").read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        status = process.wait(120)
    return status, (folder / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [[sys.executable, "train.py"], ["bash", "dist_train.sh", "2"]])
def test_ctrl_c_saves_says_how_to_resume_and_ends_with_85(tmp_path, command):
    status, text = interrupted(tmp_path, command, extra="default_hooks['checkpoint']['poll_interval'] = 5")
    assert status == 85, text
    (saved,) = (tmp_path / "w").glob("*.pth")
    assert str(saved) in text and "--resume" in text and "Traceback" not in text
    assert read_training_checkpoint(saved)["meta"]["iter"] == int(saved.stem.partition("_")[2])


def test_the_second_ctrl_c_ends_the_run_at_once_but_not_the_same_one_passed_on(capfd):
    hook = AdPECheckpointHook(interval=1)
    before = signal.signal(signal.SIGINT, hook._note)
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert hook.signal == signal.SIGINT and capfd.readouterr().err.count("SIGINT") == 1
        hook.noted -= 3.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_without_a_checkpoint_is_one_line(tmp_path, capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    extra = f"custom_hooks = [dict(type='KillHook', at=2, number={int(signal.SIGINT)})]"
    path = tiny_training.config(tmp_path, extra=extra)
    options = ["--cfg-options", "default_hooks.checkpoint=None"]
    assert train_main([str(path), "--work-dir", str(tmp_path / "w"), *options]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_training_collects_garbage_as_usual(tmp_path):
    usual = gc.get_threshold()
    collect_rarely()
    assert gc.get_threshold() != usual
    assert train_main([str(tiny_training.config(tmp_path)), "--work-dir", str(tmp_path / "w")]) == 0
    assert gc.get_threshold() == usual


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "adpe.distributed", "1", str(tmp_path / "none.py")]
        result = subprocess.run(
            command, env={**tiny_training.environment(), "PORT": str(port)}, capture_output=True, text=True, check=False
        )
    assert result.returncode == 2 and str(port) in result.stderr and "Traceback" not in result.stderr
