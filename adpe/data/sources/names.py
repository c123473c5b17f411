"""Which files of a folder or archive are images, and a sentence about those that are left out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def is_hidden(name: str) -> bool:
    """Whether a leading dot marks a file as hidden, as macOS's companions of images are, which end in .jpg as well."""
    return os.path.basename(name).startswith(".")


def is_image(name: str) -> bool:
    """Whether a file counts as an image by its name; upper and lower case are the same."""
    return not is_hidden(name) and name.lower().endswith(EXTENSIONS)


def left_out(names: Iterable[str], extensions: str | Sequence[str] = EXTENSIONS) -> str:
    """A clause about files that are left out for their names: how many, an example of each kind, why; "" for none.

    Args:
        names: of the files left out.
        extensions: what the names of images end in.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["hidden" if is_hidden(name) else os.path.splitext(name)[1] or "without suffix"].append(name)
    if not groups:
        return ""
    parts = [f"{len(found)} {kind} ({min(found)})" for kind, found in sorted(groups.items(), key=lambda g: -len(g[1]))]
    more = f", and {len(parts) - 6} other kinds" if len(parts) > 6 else ""
    ends = ", ".join([extensions] if isinstance(extensions, str) else extensions)
    return f"left out, as images end in {ends} and are not hidden: {', '.join(parts[:6])}{more}"
