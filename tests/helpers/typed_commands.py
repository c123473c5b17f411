"""Commands as they are typed, run in the test's own process, which has imported what they need."""

from __future__ import annotations

import contextlib
import io
import runpy
import shlex
import sys
from pathlib import Path

import pytest


def run_script(words: list[str]) -> tuple[int, str]:
    """Run `python SCRIPT ARGUMENTS...` as the program of this process. Returns its exit status and what it printed.

    The script is found from the current folder, and its own folder comes first where modules are found, as in Python.
    The current folder is the same afterwards.
    """
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(Path.cwd())
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "path", [str(Path(words[0]).resolve().parent), *sys.path])
        try:
            runpy.run_path(words[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return status, printed.getvalue()


def typed(commands: str) -> str:
    """Run lines `python SCRIPT ARGUMENTS...`, continued by backslashes; each must end well. Returns what they print."""
    printed = ""
    for line in filter(None, map(str.strip, commands.replace("\\\n", " ").splitlines())):
        python, *words = shlex.split(line)
        assert python == "python", line
        status, lines = run_script(words)
        printed += lines
        assert status == 0, (line, printed[-3000:])
    return printed
