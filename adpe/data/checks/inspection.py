"""Looking at files of data sets: folders, images' headers, label maps and JSON, with errors that name the file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpe.errors import UserError

SAMPLE = 48
PathLike = str | os.PathLike[str]
Item = TypeVar("Item")


def existing_root(root: PathLike) -> Path:
    """A data root as a Path. Raises UserError if it is not a folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"Data root {root}: {'not a folder' if root.exists() else 'does not exist'}. Correct data_root."
        )
    return root


def list_images(folder: PathLike, suffix: str = ".jpg") -> list[Path]:
    """Sorted images in `folder` and the folders in it. Raises UserError if there is no folder or no image."""
    folder = existing_folder(folder)
    files = files_below(folder)
    images = [path for path in files if path.name.endswith(suffix)]
    if not images:
        suffixes = Counter(path.suffix for path in files).most_common(3)
        found = ", ".join(f"{count} {end or 'without suffix'}" for end, count in suffixes) or "no files"
        raise UserError(f"{folder}: no images *{suffix} (found {found}). Correct the folder, or set img_suffix.")
    return images


def existing_folder(folder: PathLike) -> Path:
    """`folder` as a Path. Raises UserError, telling what its parent has, if it is not a folder."""
    folder = Path(folder)
    if folder.is_dir():
        return folder
    parent = folder.parent
    while not parent.is_dir():
        parent = parent.parent
    found = first(sorted(path.name for path in parent.iterdir()), 8) or "nothing"
    raise UserError(
        f"{folder}: no such folder ({parent} has: {found}). Expected images/{{training,validation}}, for segmentation "
        "annotations/{training,validation}, for detection instances_{training,validation}.json, below the data root."
    )


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from an image's header. Raises UserError if it is not an image."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}).") from None


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """(height, width) uint8 labels. Raises UserError if the file is not an image of one 8-bit channel."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{path}: a label map of mode {image.mode}, expected one 8-bit channel with the labels. "
                    "Save it as an 8-bit greyscale or palette PNG."
                )
            return np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable label map ({error}).") from None


def read_json(path: Path) -> Any:
    """The contents of a JSON file. Raises UserError if there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Expected a JSON file there.") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from None


def absent(files: Sequence[Path]) -> list[Path]:
    """The paths that do not exist; one listing for each folder, as asking for each file is slow over a network."""
    present: dict[Path, set[str]] = {}
    for parent in {file.parent for file in files}:
        present[parent] = set(os.listdir(parent)) if parent.is_dir() else set()
    return [file for file in files if file.name not in present[file.parent]]


def files_below(folder: Path) -> list[Path]:
    """Sorted files in `folder` and the folders in it, without hidden ones (as mmengine lists them)."""
    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    )


def sample(items: Sequence[Item]) -> Sequence[Item]:
    """Up to `SAMPLE` items, evenly spaced."""
    if len(items) <= SAMPLE:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, SAMPLE).round().astype(int)]


def first(items: Iterable[Any], count: int = 3) -> str:
    """The first items in words, with dots if there are more."""
    names = [str(item) for item in items]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
