"""Errors that the user can fix, reported in a sentence instead of a traceback."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

# Exit statuses of the tools, beside 0 and, after a traceback, 1.
EXIT_MISTAKE = 2  # in a config, path, checkpoint or command line
EXIT_PREEMPTED = 85  # a signal stopped the run, which saved a checkpoint and can be resumed
EXIT_LOST = 86  # the process waited for another one in vain
EXIT_INTERRUPTED = 130  # Ctrl-C, and nothing was saved


class UserError(RuntimeError):
    """A mistake in a config, path, checkpoint or command line.

    The message names the thing, what was expected and what to do. The scripts in `tools/` print it without a
    traceback and exit with status 2.
    """


def told(error: UserError | ValueError | OSError) -> str:
    """The sentence for an error: its own, or for one of the file system which path it is about and what to do."""
    if not isinstance(error, OSError):
        text = str(error)
        # What torch's DataLoader makes of an error in a worker: its traceback, of which the last line tells.
        raised = list(re.finditer(r"^[\w.]*Error: ", text, re.MULTILINE)) if text.startswith("Caught ") else []
        return text[raised[-1].end() :].strip() if raised else text
    return f"{error.filename or 'a file'}: {error.strerror or error}. Choose another path, or make room there."


def print_error(error: UserError | ValueError | OSError, who: str = "") -> None:
    """Print ``error: <who><sentence>`` to standard error, in red on a terminal."""
    red, end = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error:{end} {who}{told(error)}", file=sys.stderr, flush=True)


def require(package: str, requirements: str) -> ModuleType:
    """Import `package`, or say in one sentence which requirements file installs it.

    Args:
        package: import name, e.g. ``"mmseg"``.
        requirements: file that installs it, e.g. ``"requirements/mm.txt"``.

    Raises:
        UserError: if the package is not installed. A package that is installed but broken raises its own error.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise UserError(f"{package} is not installed: run `make setup`, or `pip install -r {requirements}`.") from None
