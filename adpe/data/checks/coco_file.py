"""The parts of a COCO JSON that must fit together, and writing it again with corrections."""

from __future__ import annotations

import contextlib
import gc
import json as jsonlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adpe.data.checks.coco_values import Examination
from adpe.data.checks.inspection import first, read_json
from adpe.errors import UserError
from adpe.files import atomic_write

_NUMBERS = {int, float}


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Millions of small objects are made: looking for garbage among them takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_coco(path: Path) -> dict[str, Any]:
    """The contents of a COCO JSON of instances whose images, annotations (if any) and categories fit together.

    Raises:
        UserError: for lists, ids, names and sizes that are missing or wrong, and for annotations of unknown images or
            categories.
    """
    contents = read_json(path)
    for key in ("images", "annotations", "categories"):
        optional = key == "annotations"
        if optional and isinstance(contents, dict) and contents.get(key) is None:
            contents[key] = []
        if not isinstance(contents, dict) or not isinstance(contents.get(key), list):
            raise UserError(f"{path}: has no list {key!r}, expected COCO's instances: images, annotations, categories.")
        if not contents[key] and not optional:
            raise UserError(f"{path}: the list {key!r} is empty.")
    for key, needed in {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }.items():
        for item in contents[key]:
            if type(item) is not dict or not all(name in item for name in needed):
                missing = [name for name in needed if name not in item] if type(item) is dict else needed
                raise UserError(f"{path}: an item of {key!r} has no {first(missing)}: {str(item)[:100]}")
        if key != "annotations":
            _check_ids(path, key, [item["id"] for item in contents[key]])
    for image in contents["images"]:
        if type(image["file_name"]) is not str or not image["file_name"]:
            raise UserError(f"{path}: image {image['id']} has file_name={image['file_name']!r}, expected a name.")
        for side in ("width", "height"):
            if type(image[side]) not in _NUMBERS or image[side] < 1 or image[side] % 1:
                raise UserError(
                    f"{path}: image {image['id']} ({image['file_name']}) has {side}={image[side]!r}, expected its "
                    "number of pixels."
                )
    _check_names(path, contents["categories"])
    for key, known in (("image_id", "images"), ("category_id", "categories")):
        ids = {item["id"] for item in contents[known]}
        lost = [
            item.get("id")
            for item in contents["annotations"]
            if type(item[key]) not in (int, float, str) or item[key] not in ids
        ]
        if lost:
            raise UserError(
                f"{path}: {len(lost)} annotations (ids {first(lost, 8)}) whose {key} is not among {known!r}. Correct "
                "them or remove them."
            )
    return contents


def _check_ids(path: Path, key: str, ids: list[Any]) -> None:
    types = set(map(type, ids))
    if not (types <= _NUMBERS or types == {str}):
        wrong = next((value for value in ids if type(value) is not type(ids[0])), ids[0])
        raise UserError(f"{path}: ids of {key!r} such as {ids[0]!r} and {wrong!r}: expected numbers alone, or texts.")
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {len(repeated)} ids of {key!r} repeated ({first(repeated)}). They must differ.")


def _check_names(path: Path, categories: Sequence[dict[str, Any]]) -> None:
    nameless = [item["id"] for item in categories if type(item["name"]) is not str or not item["name"].strip()]
    if nameless:
        raise UserError(f"{path}: {len(nameless)} categories (ids {first(nameless)}) have no name. Name them.")
    repeated = [name for name, count in Counter(item["name"] for item in categories).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: several categories are called {first(repeated)}. Give each its own name.")


def order_categories(path: Path, contents: dict[str, Any], classes: Sequence[str]) -> bool:
    """Bring the categories into the order of the labels, adding those that the file lacks.

    mmdet and pycocotools number the classes in the order of the JSON, whatever the order asked for.

    Args:
        path: for messages.
        contents: changed in place.
        classes: names in the order of the labels.

    Returns:
        whether anything changed.

    Raises:
        UserError: if the file has none of the classes.
    """
    known = {category["name"]: category for category in contents["categories"]}
    found = [name for name in known if name in set(classes)]
    if not found:
        raise UserError(
            f"{path}: has none of the classes {first(classes, 10)}; its categories are {first(known, 10)}. Labels are "
            "matched by name: correct the classes, or the names in the file."
        )
    if found == list(classes):
        return False
    numbers = all(type(category["id"]) in _NUMBERS for category in known.values())
    free = max((int(category["id"]) for category in known.values()), default=0) + 1 if numbers else 0
    ordered = []
    for index, name in enumerate(classes):
        ordered.append(known.get(name) or {"id": free + index if numbers else f"no objects: {name}", "name": name})
    contents["categories"] = ordered + [known[name] for name in known if name not in set(classes)]
    return True


def image_sizes(contents: dict[str, Any]) -> np.ndarray:
    """(N, 2) float64, width and height of the image of each annotation."""
    sizes = np.asarray([[image["width"], image["height"]] for image in contents["images"]], dtype=np.float64)
    index = {image["id"]: row for row, image in enumerate(contents["images"])}
    rows = np.fromiter((index[item["image_id"]] for item in contents["annotations"]), np.int64)
    return sizes[rows].reshape(-1, 2)


def apply(contents: dict[str, Any], found: Examination, repair: bool) -> bool:
    """Change the annotations as the examination says. Returns whether anything changed."""
    repaired = found.repaired if repair else {}
    annotations = contents["annotations"]
    for row, values in found.normalised.items():
        annotations[row] = {**annotations[row], **values}
    for row, corrected in repaired.items():
        annotations[row] = None if corrected is None else {**annotations[row], **corrected}
    contents["annotations"] = [item for item in annotations if item is not None]
    changed = bool(found.normalised or repaired)
    for image in contents["images"]:
        for side in ("width", "height"):
            if type(image[side]) is float:
                image[side], changed = int(image[side]), True
    return changed


def write_coco(contents: dict[str, Any], path: Path) -> None:
    """Write a COCO JSON in ASCII, which is read the same under every locale.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(jsonlib.dumps(contents), encoding="ascii")
    except OSError as error:
        raise UserError(
            f"{path}: the corrected annotations cannot be written ({error.strerror or error}). Make room, or set "
            "ADPE_CACHE_DIR to a folder that can be written to."
        ) from None
