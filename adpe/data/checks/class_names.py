"""Files that name the classes of a data root, and their colours."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adpe.data.checks.inspection import PathLike, first, read_json
from adpe.errors import UserError

Colour = tuple[int, int, int]
_COLOUR = re.compile(r"(.*\S)\s+#([0-9a-fA-F]{6})")


@dataclass(frozen=True)
class ClassFile:
    """Names in the order of the labels, and an (R, G, B) of 0..255 for each, or none."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()


def find_class_file(root: Path, classes: Sequence[str] | PathLike | None = None) -> Path | None:
    """The file of a data root's classes.

    Args:
        root: the data root.
        classes: the file, absolute or below the root; by default the only ``classes*.json`` or ``classes*.txt`` there.

    Returns:
        None if there is none, or if `classes` are the names themselves.

    Raises:
        UserError: if there are several.
    """
    if isinstance(classes, str | os.PathLike):
        return root / classes
    if classes is not None:
        return None
    files = sorted([*root.glob("classes*.json"), *root.glob("classes*.txt")])
    if len(files) > 1:
        raise UserError(
            f"{root}: found {', '.join(path.name for path in files)}, expected one. Name it with classes=..."
        )
    return files[0] if files else None


def read_class_file(path: Path) -> ClassFile:
    """Read a JSON list of names, or a text file (``.txt``) of one name a line, such as ``road`` or ``road #804080``.

    Raises:
        UserError: if the file is missing, no such list, or gives colours to some of the classes only.
    """
    if path.suffix != ".txt":
        return ClassFile(checked_names(read_json(path), str(path)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Expected a text file of class names there."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error}).") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [_COLOUR.fullmatch(line) for line in lines]
    palette = [tuple(bytes.fromhex(match[2])) for match in found if match]
    if palette and len(palette) < len(lines):
        lacking = first([line for line, match in zip(lines, found, strict=True) if not match])
        raise UserError(f"{path}: no colour for {lacking}. Write NAME #RRGGBB in every line, or in none.")
    names = [match[1] if match else line for line, match in zip(lines, found, strict=True)]
    return ClassFile(checked_names(names, str(path)), tuple((r, g, b) for r, g, b in palette))


def checked_names(names: object, where: str) -> tuple[str, ...]:
    """The names, if they are a list of different ones.

    Raises:
        UserError: naming `where` they come from.
    """
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'{where}: expected a list of the classes\' names, such as ["wall", "building"].')
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {first(repeated)} repeated. Give each class its own name.")
    return tuple(names)
