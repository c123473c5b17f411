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

from adpe.files import ROOT
from adpe.garbage import collect_rarely

FIRST = ("torch", "adpe.engine", "adpe.engine.launch")
# Packages whose modules are worth to be there at the next start. torch's own are there, or start threads.
_LEARNT = ("adpe", "matplotlib", "mmcv", "mmdet", "mmengine", "mmseg", "pycocotools", "scipy", "sklearn", "timm",
           "torchvision")  # fmt: skip
_MOST = 2**20  # bytes of a message


class Process(Protocol):
    """What the runner needs of a process: :class:`subprocess.Popen` has it, too."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, as of `subprocess`; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same at its end.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """


class Forker:
    """The process that forks, from the runner's side; it ends with the block, not so what it has started.

    Args:
        environment: of the process and of what it starts.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adpe.suites.forking", str(theirs.fileno())],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self._statuses: dict[int, int] = {}
        self.is_there = True

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
        if not self.is_there:
            return None
        changed = {name: text for name, text in environment.items() if self.environment.get(name) != text}
        message = json.dumps({"arguments": list(arguments), "environment": changed}).encode()
        try:
            socket.send_fds(self._channel, [message], [log, lock])
        except OSError as error:
            self.is_there = self.is_there and error.errno == errno.EMSGSIZE
            return None
        while self.is_there:
            pid = self._receive()
            if pid is not None:
                return Forked(self, pid)
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
        return int(told["pid"])


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
    except FileNotFoundError:
        return False


# The other side ------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> bool:
    """Fork what is asked for through a socket until its other end is closed.

    Returns:
        whether this is the process that forks; in a fork it returns, or raises SystemExit, when its script has run.
    """
    collect_rarely()
    channel = socket.socket(fileno=descriptor)
    _import(FIRST)
    torch = sys.modules.get("torch")
    if torch is None or torch.accelerator.is_available():
        return True
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
        if descriptor in ready:
            message, descriptors, _, _ = socket.recv_fds(channel, _MOST, 2)
            if not message:
                return True
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
            try:
                channel.send(json.dumps({"pid": pid}).encode())
            except OSError:  # nobody would know of it
                os.killpg(pid, signal.SIGKILL)
                return True


def _tell_ended(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError, OSError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            status = os.waitstatus_to_exitcode(found[1])
            channel.send(json.dumps({"pid": found[0], "status": status}).encode())


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
