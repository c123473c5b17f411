"""Looking at files of data sets: folders, images' headers, label maps and JSON, with errors that name the file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpe.data.sources.names import EXTENSIONS, is_hidden, is_image, left_out
from adpe.data.sources.pixels import RefusedImage, Size, may_be_turned, orientation_to_apply, read_header
from adpe.errors import UserError

SAMPLE = 48
PathLike = str | os.PathLike[str]
Item = TypeVar("Item")
logger = logging.getLogger(__name__)


def existing_root(root: PathLike) -> Path:
    """A data root as a Path. Raises UserError if it is not a folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"Data root {root}: {'not a folder' if root.exists() else 'does not exist'}. Correct data_root."
        )
    return root


def list_images(folder: PathLike, suffix: str | None = None) -> list[Path]:
    """Sorted images in `folder` and the folders in it; other files are counted in a warning.

    Args:
        folder: the folder.
        suffix: what the images' names end in; by default any of `adpe.data.sources.names.EXTENSIONS`, in either case.

    Raises:
        UserError: if there is no folder or no image.
    """
    folder = existing_folder(folder)
    files = sorted(Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    images: list[Path] = []
    others: list[Path] = []
    for path in files:
        used = is_image(path.name) if suffix is None else path.name.endswith(suffix) and not is_hidden(path.name)
        (images if used else others).append(path)
    told = left_out((str(path.relative_to(folder)) for path in others), suffix or EXTENSIONS)
    if not images:
        raise UserError(f"{folder}: no images; {told or 'it has no files'}. Correct the folder, or set img_suffix.")
    if told:
        logger.warning("%s: %d images; %s", folder, len(images), told)
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


def size_of(labels: np.ndarray) -> Size:
    """Width and height of a label map ``(H, W)``."""
    return labels.shape[1], labels.shape[0]


def check_fit(image: Path, annotated: Size, source: PathLike, on_corrupt: str = "error") -> None:
    """Check by an image's header that annotations for `annotated` (width, height) from `source` fit it.

    Args:
        image: the image.
        annotated: width and height in pixels.
        source: where they come from: a label map, or a JSON.
        on_corrupt: ``"skip"`` passes over an image that is none, as its reader will.

    Raises:
        UserError: if they do not fit, or it is unknown how; or for a file that is no image.
    """
    try:
        header = read_header(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if on_corrupt == "skip":
            return
        raise UserError(f"{image}: not a readable image ({error}).") from None
    try:
        orientation_to_apply(header, annotated)
    except RefusedImage as error:
        raise UserError(f"{image} {error} The annotations: {source}.") from None


def check_orientations(images: Sequence[Path], annotated: Callable[[int], Size]) -> None:
    """Refuse images with an orientation that may or may not be meant for their annotations.

    Reads the first 4 KiB of every file: 0.1 ms or less each from a local disk.

    Args:
        images: the images.
        annotated: index of an image -> (width, height) of the pixels that its annotations are drawn on.

    Raises:
        UserError: with the number of such images, and what is wrong with the first.
    """
    refused = []
    with ThreadPoolExecutor(8) as pool:
        tagged = [index for index, may in enumerate(pool.map(_may_be_turned, images)) if may]
    for index in tagged:
        try:
            header = read_header(images[index])
            if header.orientation != 1:
                orientation_to_apply(header, annotated(index))
        except RefusedImage as error:
            refused.append(f"{images[index]} {error}")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # the reader's to skip or to refuse
    if refused:
        others = f" The same for {len(refused) - 1} other images." if len(refused) > 1 else ""
        raise UserError(refused[0] + others)


def _may_be_turned(image: Path) -> bool:
    try:
        return may_be_turned(image)
    except OSError:
        return False


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
