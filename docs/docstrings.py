"""Docstrings as Markdown, for the site: Sphinx's roles become links. mkdocs.yml names this extension of griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(attr|class|data|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of every object."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring:
            text = _ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _link(match: re.Match[str]) -> str:
    role, name = match.groups()
    # Constants have no docstring, and so no place on the site.
    return f"[`{name}`][{name}]" if name.startswith("adpe.") and role != "data" else f"`{name}`"
