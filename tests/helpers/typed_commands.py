"""Commands as they are typed, or stand in a page, run in the test's own process, which has imported what they need."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adpe import cli
from adpe.files import ROOT


def blocks(page: str, language: str) -> list[str]:
    """The code of a language in a page of docs/, block by block."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_program(arguments: list[str], program: Callable[[], Any]) -> tuple[int, str]:
    """Call a program with these `sys.argv`. Returns its exit status and what it printed.

    The current folder is the same afterwards.
    """
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(Path.cwd())
        patch.setattr(sys, "argv", arguments)
        patch.setattr(sys, "path", [*sys.path])
        try:
            sys.exit(program())
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return status, printed.getvalue()


def run_script(words: list[str]) -> tuple[int, str]:
    """Run `python SCRIPT ARGUMENTS...` as the program of this process. Returns its exit status and what it printed.

    The script is found from the current folder, and its own folder comes first where modules are found, as in Python.
    """

    def script() -> None:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")

    return run_program(words, script)


def typed(commands: str) -> str:
    """Run lines `python SCRIPT ARGUMENTS...` or `adpe ARGUMENTS...`, continued by backslashes; each must end well.

    Returns what they print.
    """
    printed = ""
    for line in filter(None, map(str.strip, commands.replace("\\\n", " ").splitlines())):
        words = shlex.split(line)
        assert words[0] in ("python", "adpe"), line
        status, lines = run_script(words[1:]) if words[0] == "python" else run_program(words, cli.main)
        printed += lines
        assert status == 0, (line, printed[-3000:])
    return printed
