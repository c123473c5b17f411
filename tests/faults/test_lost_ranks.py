"""Two processes of which one is killed, hangs or raises: the other ends in time, the rank is named, nothing is left."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import tiny_training
from faults.trainings import end, session, wait_until
from mmengine.config import Config

from adpe.distributed import free_port
from adpe.engine.processes import TIMEOUT, join
from adpe.errors import UserError

SHORT = 12  # s that a process waits for the other one; on a busy machine they start seconds apart
TORCHRUN_ENDS = 30  # s, after which torchrun kills what does not end by SIGTERM
SLACK = 90  # s, of a busy machine


def train_two(folder: Path, extra: str) -> tuple[int, str, float]:
    """Train with two processes; exit status, standard error, and s from the last iteration to the end."""
    path = tiny_training.config(folder, iterations=100000, interval=100000, extra=extra)
    port = free_port()
    command = ["bash", str(tiny_training.ROOT / "tools" / "dist_train.sh"), str(path), "2"]
    with open(folder / "out", "w") as out, open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            [*command, "--work-dir", str(folder / "w")], stdout=out, stderr=errors, start_new_session=True,
            env={**tiny_training.environment(), "PORT": str(port)},
        )  # fmt: skip
        try:
            status = process.wait(600)
            ended = time.time()
            assert wait_until(lambda: not session(process.pid), 5), "processes are left"
        finally:
            end(process.pid)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        probe.bind(("127.0.0.1", port))
    lines = [file.stat().st_mtime for file in (folder / "w").glob("seen.txt.*")]
    return status, (folder / "errors").read_text(), ended - max(lines, default=ended)


def at_iteration_3(number: int) -> str:
    return f"custom_hooks = [dict(type='KillHook', at=3, rank=1, number={int(number)})]"


@pytest.mark.slow(70)
def test_a_hanging_rank_is_named_by_the_other_which_ends_in_time(tmp_path):
    bounded = f"env_cfg = dict(dist_cfg=dict(timeout={SHORT}))\n{at_iteration_3(signal.SIGSTOP)}"
    status, errors, seconds = train_two(tmp_path, bounded)
    assert status == 128 + signal.SIGKILL, errors  # torchrun's, 30 s after the other one gave up
    assert "error: rank 1 does not answer (" in errors and "env_cfg.dist_cfg.timeout" in errors
    assert f"Timed out waiting {SHORT}000ms" in errors and "Traceback" not in errors
    assert SHORT - 1 < seconds < SHORT + TORCHRUN_ENDS + SLACK


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_other_ends_at_once(tmp_path):
    status, errors, seconds = train_two(tmp_path, at_iteration_3(signal.SIGKILL))
    assert status == 128 + signal.SIGKILL, errors
    assert "error: rank 1 failed (SIGKILL); the other processes were ended." in errors and "Traceback" not in errors
    assert seconds < SLACK


@pytest.mark.slow
def test_a_raising_rank_is_named_with_its_error(tmp_path):
    wrong = "import os\nif os.environ['RANK'] == '1':\n    train_dataloader['dataset']['jitter'] = 'wide'"
    status, errors, _ = train_two(tmp_path, wrong)
    assert status == 1, errors
    assert "error: rank 1 failed (exit status 1); the other processes were ended." in errors
    assert errors.count("Traceback (most recent call last)") == 1 and "TypeError" in errors


def test_the_wait_is_bounded_by_the_config():
    for seconds in (0, -1, "long", True, None):
        cfg = Config({"env_cfg": {"dist_cfg": {"backend": "nccl", "timeout": seconds}}})
        with pytest.raises(UserError, match=r"env_cfg\.dist_cfg\.timeout must be a positive number of seconds, got"):
            join(cfg, "pytorch")
    cfg = Config({})
    join(cfg, "none")
    assert cfg.to_dict() == {} and TIMEOUT == 1800
