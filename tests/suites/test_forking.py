"""Scripts that are started as forks: as a start by Python does it, and nothing is lost with the process that forks."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training
import torch
from faults.trainings import wait_until

from adpe.suites.forking import Forked, Forker

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU does not survive a fork")


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker(tiny_training.environment()) as forker:
        yield forker


def start(forker: Forker, folder: Path, text: str, *arguments: str, **environment: str) -> Forked:
    (folder / "script.py").write_text(text)
    with open(folder / "log", "ab") as log, open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        script = [str(folder / "script.py"), *arguments]
        process = forker.start(script, {**forker.environment, **environment}, log.fileno(), lock.fileno())
    assert process is not None
    return process


def is_locked(folder: Path) -> bool:
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_script_runs_as_by_python(forker: Forker, tmp_path: Path) -> None:
    text = "import os, sys\nprint(__name__, sys.argv[1:], os.environ['OWN'], os.getsid(0) == os.getpid(), flush=True)\n"
    process = start(forker, tmp_path, f"{text}print('wrong', file=sys.stderr)\nsys.exit(3)", "a b", OWN="x")
    assert process.wait(60) == process.poll() == 3
    assert (tmp_path / "log").read_text() == "__main__ ['a b'] x True\nwrong\n"


def test_an_error_is_told_and_the_next_script_is_not_touched(forker: Forker, tmp_path: Path) -> None:
    assert start(forker, tmp_path, "import os\nos.environ['OWN'] = 'y'\nraise ValueError('of mine')").wait(60) == 1
    assert "ValueError: of mine" in (tmp_path / "log").read_text()
    assert start(forker, tmp_path, "import os\nassert 'OWN' not in os.environ").wait(60) == 0


def test_what_one_script_imports_is_there_for_the_next(forker: Forker, tmp_path: Path) -> None:
    text = "import sys\nprint('adpe.leaderboard.claims' in sys.modules)\nimport adpe.leaderboard.claims"
    for _ in range(2):
        assert start(forker, tmp_path, text).wait(60) == 0
    assert (tmp_path / "log").read_text() == "False\nTrue\n"


def test_two_scripts_do_not_draw_the_same_without_a_seed(forker: Forker, tmp_path: Path) -> None:
    text = "import random, torch\nimport numpy as np\nprint(random.random(), np.random.rand(), float(torch.rand(())))"
    for _ in range(2):
        assert start(forker, tmp_path, text).wait(60) == 0
    first, second = ((tmp_path / "log").read_text().splitlines()[number].split() for number in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_the_lock_lives_as_long_as_the_script(forker: Forker, tmp_path: Path) -> None:
    process = start(forker, tmp_path, "import time\ntime.sleep(600)")
    assert process.poll() is None and is_locked(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not is_locked(tmp_path)


def test_a_script_outlives_the_process_that_forked_it(tmp_path: Path) -> None:
    with Forker(tiny_training.environment()) as forker:
        go = tmp_path / "go"
        text = f"import os, time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.05)"
        process = start(forker, tmp_path, text)
        forker._process.kill()
        assert forker.start(["script.py"], forker.environment, 1, 1) is None
        assert process.poll() is None and is_locked(tmp_path)
        go.touch()
        assert process.wait(60) == 1  # nobody knows its status: what counts is its record
        assert not is_locked(tmp_path)


def test_code_that_changed_is_not_run_under_the_name_of_todays(tmp_path: Path) -> None:
    """A fork would run what was read before, and its record name what is there now."""
    package = tmp_path / "adpe_copy"
    shutil.copytree(tiny_training.ROOT / "adpe", package / "adpe", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**tiny_training.environment(), "PYTHONPATH": str(package)}
    with Forker(environment, root=package) as forker:
        process = start(forker, tmp_path, "import time, adpe\ntime.sleep(1)\nprint(adpe.__file__)\nraise SystemExit(5)")
        with open(package / "adpe" / "garbage.py", "a") as file:
            file.write("\n")
        with open(tmp_path / "log", "ab") as log:
            assert forker.start([str(tmp_path / "script.py")], environment, log.fileno(), log.fileno()) is None
        assert process.wait(60) == 5  # it is still known how this one ends
    assert (tmp_path / "log").read_text() == f"{package / 'adpe' / '__init__.py'}\n"


def test_a_start_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\ntime.sleep(600)")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # trainings of other tests may have left theirs
    try:
        with Forker(tiny_training.environment()) as forker, open(tmp_path / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # It is still importing torch then.
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                forker.start([str(tmp_path / "script.py")], forker.environment, lock.fileno(), lock.fileno())
            lock.close()
            assert wait_until(lambda: not is_locked(tmp_path), 20)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_is_the_same_in_every_bit(forker: Forker, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path, iterations=6)
    arguments = [str(tiny_training.ROOT / "tools" / "train.py"), str(config), "--seed", "3", "--work-dir"]
    subprocess.run([sys.executable, *arguments, str(tmp_path / "whole")], check=True, env=tiny_training.environment())
    with open(tmp_path / "log", "wb") as log:
        process = forker.start([*arguments, str(tmp_path / "forked")], forker.environment, log.fileno(), log.fileno())
    assert process is not None and process.wait(120) == 0, (tmp_path / "log").read_text()
    states = [torch.load(tmp_path / run / "iter_6.pth", weights_only=True) for run in ("whole", "forked")]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    assert all(torch.equal(one, states[1]["state_dict"][name]) for name, one in states[0]["state_dict"].items())
