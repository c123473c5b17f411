"""What a data set read: number of images, hashes of their names and of the contents of a sample, transforms."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adpe.engine.resolved_protocol.description import as_json, attributes
from adpe.errors import UserError

_SAMPLE = 64  # images whose contents are hashed, evenly spaced
# What a data set read: its number, names and contents stand in their own places.
_CONTENT = ("data_list", "data_bytes", "data_address", "data_prefix", "images", "chosen", "coco", "cat_img_map")


def data_description(dataset: Any) -> dict[str, Any] | None:
    """Number of images, hashes of their names with labels and of the contents of a sample, and the transforms."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if dataset is None:
        return None
    names, contents = hashlib.sha256(), hashlib.sha256()
    count = len(dataset)
    sampled = {index * count // _SAMPLE for index in range(_SAMPLE)} if count > _SAMPLE else set(range(count))
    for index in range(count):
        item = _item(dataset, index)
        names.update(_named(item).encode())
        if index in sampled:
            annotations = {key: value for key, value in item.items() if "path" not in str(key)}
            contents.update(json.dumps(as_json(annotations), sort_keys=True, default=str).encode())
            for content in _files(dataset, index, item):
                contents.update(content)
    built = {name: value for name, value in attributes(dataset, {id(dataset)}).items() if name not in _CONTENT}
    return {
        "images": count,
        "names": names.hexdigest()[:16],
        "contents": contents.hexdigest()[:16],
        "classes": len((getattr(dataset, "metainfo", None) or {}).get("classes") or ()),
        "built": {"class": type(dataset).__name__, **built},
    }


def _item(dataset: Any, index: int) -> dict[str, Any]:
    """What the data set knows of an item without reading its image."""
    if hasattr(dataset, "get_data_info"):
        info = dataset.get_data_info(index)
        return info if isinstance(info, dict) else {}
    if hasattr(dataset, "images"):
        at = int(dataset.chosen[index]) if hasattr(dataset, "chosen") else index
        return {"img_path": dataset.images.path(at), "label": dataset.images.label(at)}
    return {}


def _named(item: Mapping[str, Any]) -> str:
    """An item in a line: its paths by their last two parts, as machines agree on them, its label, number of objects."""
    paths = [value for key, value in item.items() if "path" in key and isinstance(value, (str, Path))]
    names = ["/".join(str(path).rsplit("/", 2)[-2:]) for path in paths]
    return f"{names} {item.get('label')} {len(item.get('instances') or ())}\n"


def _files(dataset: Any, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    images = getattr(dataset, "images", None)
    if images is not None and hasattr(images, "read"):
        with contextlib.suppress(UserError):  # a damaged image is left out of the training too, and reported there
            yield images.read(int(dataset.chosen[index]) if hasattr(dataset, "chosen") else index)
        return
    for key, value in item.items():
        if "path" in key and isinstance(value, (str, Path)):
            with contextlib.suppress(OSError):
                yield Path(value).read_bytes()
