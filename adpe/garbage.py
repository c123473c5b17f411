"""Python's garbage collections, which cost a command a fifth of its start while it imports torch and OpenMMLab."""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()


def collect_rarely() -> None:
    """Let collections wait until 50,000 objects more are there, as while modules are imported, of which all stay."""
    gc.set_threshold(50_000, *_USUAL[1:])


def collect_as_usual() -> None:
    """Collect as often as Python does by itself."""
    gc.set_threshold(*_USUAL)
