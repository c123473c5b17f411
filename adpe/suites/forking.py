"""Starts the trainings of a suite as forks of one process that has imported torch and OpenMMLab already.

Importing them takes most of the seconds in which a small training does not train. The process imports what every
training does, and then what earlier ones did besides. Where there is a GPU, whose driver does not survive a fork, it
declines, and trainings start as usual.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import math
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adpe.files import ROOT
from adpe.garbage import collect_rarely

FIRST = ("adpe.engine", "adpe.engine.launch")
# Packages whose modules are worth having at the next start. torch's own are loaded already, or start threads.
_LEARNT = ("adpe", "matplotlib", "mmcv", "mmdet", "mmengine", "mmseg", "pycocotools", "scipy", "sklearn", "timm",
           "torchvision")  # fmt: skip
_MOST = 2**20  # bytes of a message
_PATIENCE = 120  # s for an answer, which modules that are being imported may delay


class Process(Protocol):
    """What the runner needs of a process: :class:`subprocess.Popen` provides it, too."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, as of `subprocess`; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit status.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """


class Forker:
    """The process that forks, from the runner's side. It ends with the block; what it started does not.

    Args:
        environment: of the process and of what it starts.
        root: their current folder.
    """

    def __init__(self, environment: Mapping[str, str], root: Path = ROOT) -> None:
        self.environment = dict(environment)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adpe.suites.forking", str(theirs.fileno())],
                cwd=root, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self._statuses: dict[int, int] = {}
        self.is_there = self.accepts = True

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_there = False
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: int, lock: int) -> Forked | None:
        """Start a Python script in a session of its own.

        Args:
            arguments: the script and its arguments.
            environment: of the script.
            log: descriptor that its output goes to.
            lock: descriptor that stays open as long as the script or a process of its runs.

        Returns:
            the process, or None where the forking one declines or is gone.
        """
        if not (self.is_there and self.accepts):
            return None
        changed = {name: text for name, text in environment.items() if self.environment.get(name) != text}
        message = json.dumps({"arguments": list(arguments), "environment": changed}).encode()
        try:
            socket.send_fds(self._channel, [message], [log, lock])
        except OSError as error:
            self.is_there = self.is_there and error.errno == errno.EMSGSIZE
            return None
        try:
            pid = self._answer()
        except KeyboardInterrupt:
            if (pid := self._answer()) is not None:  # what was asked for has begun nevertheless
                os.killpg(pid, signal.SIGTERM)
            raise
        return None if pid is None else Forked(self, pid)

    def _answer(self) -> int | None:
        """The number of the process that was asked for; None where there will be none."""
        deadline = time.monotonic() + _PATIENCE
        while self.is_there and self.accepts:
            if not select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
            if (pid := self._receive()) is not None:
                return pid
        return None

    def status(self, pid: int, timeout: float | None = 0) -> int | None:
        """Exit status of a process that was started; None while it runs, for `timeout` seconds at most."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while pid not in self._statuses and self.is_there:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._channel], [], [], left)[0]:
                return None
            self._receive()
        while pid not in self._statuses:
            if not _runs(pid):
                self._statuses[pid] = 1  # nobody is left who knows it
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.05)
        return self._statuses[pid]

    def _receive(self) -> int | None:
        """Read a message: the number of a process that began, or nothing where one ended or the other side is gone."""
        try:
            message = self._channel.recv(_MOST)
        except OSError:
            message = b""
        if not message:
            self.is_there = False
            return None
        told: dict[str, Any] = json.loads(message)
        if "status" in told:
            self._statuses[told["pid"]] = told["status"]
            return None
        self.accepts = told["pid"] is not None
        return told["pid"]  # type: ignore[no-any-return]


class Forked:
    """A process that was forked; see :class:`Process`."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self.pid, self._forker = pid, forker

    def poll(self) -> int | None:
        return self._forker.status(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        status = self._forker.status(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# The other side ------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> bool:
    """Fork what is asked for through a socket until its other end is closed.

    It declines once the project's code has changed: a record names the commit that is checked out.

    Returns:
        whether this is the process that forks; in a fork it returns, or raises SystemExit, when its script has run.
    """
    collect_rarely()
    channel = socket.socket(fileno=descriptor)
    import torch

    if torch.accelerator.is_available():
        return True
    _import(FIRST)
    sources = _sources()
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    learnt, telling = os.pipe()
    while True:
        ready = select.select([descriptor, ended, learnt], [], [])[0]
        if ended in ready:
            os.read(ended, _MOST)
            _tell_ended(channel)
        if learnt in ready:
            _import(os.read(learnt, _MOST).decode().split())
            sources |= {name: stamp for name, stamp in _sources().items() if name not in sources}
        if descriptor in ready:
            message, descriptors, _, _ = socket.recv_fds(channel, _MOST, 2)
            if not message:
                return True
            if sources != _sources():
                for one in descriptors:
                    os.close(one)
                _tell(channel, pid=None)
                continue
            began, beginning = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (channel.detach(), ended, ending, learnt, began, beginning):
                    os.close(one)
                _become(json.loads(message), descriptors[0], telling)
                return False
            for one in (*descriptors, beginning):
                os.close(one)
            os.read(began, 1)  # until it has a session, by which it is stopped
            os.close(began)
            if not _tell(channel, pid=pid):  # nobody would know of it
                os.killpg(pid, signal.SIGKILL)
                return True


def _sources() -> dict[str, tuple[int, int] | None]:
    """Size and time of the files of the project's modules that are loaded."""
    found: dict[str, tuple[int, int] | None] = {}
    for name, module in [*sys.modules.items()]:
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] == "adpe":
            try:
                status = os.stat(path)
                found[name] = (status.st_size, status.st_mtime_ns)
            except OSError:
                found[name] = None
    return found


def _tell_ended(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(channel, pid=found[0], status=os.waitstatus_to_exitcode(found[1]))


def _tell(channel: socket.socket, **what: int | None) -> bool:
    try:
        channel.send(json.dumps(what).encode())
    except OSError:
        return False
    return True


def _import(names: Iterable[str]) -> None:
    """Import modules; one that cannot be imported fails where it is needed, and says why."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # forks share what is never looked at again


def _become(request: Mapping[str, Any], log: int, telling: int) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` would, then tell which modules it imported."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.update(request["environment"])
    # As in a new process, two of which do not draw the same without a seed.
    random.seed()
    np.random.seed()
    sys.modules["torch"].seed()
    sys.argv = request["arguments"]
    before = set(sys.modules)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        new = [name for name in sys.modules if name not in before and name.partition(".")[0] in _LEARNT]
        with contextlib.suppress(OSError):
            os.write(telling, " ".join([*new, ""]).encode())


if __name__ == "__main__" and serve(int(sys.argv[1])):
    os._exit(0)  # nothing is left to do, and taking a thousand modules down takes a while
