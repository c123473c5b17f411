"""Text from files for terminals, spreadsheets and pages. Needs the standard library alone."""

from __future__ import annotations

import re
from typing import Any

# ECMA-48: control sequences, strings that a terminator ends (titles, links), other escapes of one character.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls but for tab and line feed, and what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def without_controls(value: Any) -> Any:
    """A JSON value, its texts and names without escape sequences and control characters; others as they are."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else _CONTROLS.sub("", _SEQUENCES.sub("", value))
    if isinstance(value, dict):
        return {without_controls(name): without_controls(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_controls(item) for item in value]
    return value


def spreadsheet_safe(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: an apostrophe before ``= + - @``, tab or return; numbers stay."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_numbers(text) else text


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(word) for word in text.split(" ")])
    except ValueError:
        return False
