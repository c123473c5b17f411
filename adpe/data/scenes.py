"""Synthetic data: scanned digits over photographs, both from installed packages, so that no download is needed.

The scenes are composed in `adpe.data.composition`. Files written below the root::

    images/{training,validation}/scene_00000.jpg         RGB, size x size
    annotations/{training,validation}/scene_00000.png    8-bit: 1 = background, 2..4 = digits 0..2; 0 does not occur
    unlabelled/scene_00000.jpg                           images alone, for pretraining
    instances_{training,validation}.json                 COCO: 3 categories "0", "1", "2" with ids 1..3, RLE masks
    classes.json                                         names of the semantic classes, index = label - 1
    scenes.json                                          the arguments, and what each scene is composed of
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adpe.data.composition import NUM_CLASSES, Scene, compose_scenes
from adpe.errors import UserError, require

# Increase when the same arguments no longer give the same pixels.
VERSION = 3
CLASSES = ("background", *map(str, range(NUM_CLASSES)))
JPEG_QUALITY = 92


def write_scenes(
    root: str | os.PathLike[str],
    num_train: int = 400,
    num_val: int = 100,
    num_unlabelled: int = 1500,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Write the embedded data below `root`, or leave it alone when it is there already.

    The same arguments give the same bytes. Everything is written to a temporary folder beside `root`, which is then
    renamed, so that `root` is either absent or complete. Scene number i of a split depends on the seed and the size
    alone: a larger number of scenes adds scenes.

    Args:
        root: folder to write; may exist if it is empty or was written by this function with the same arguments.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        num_unlabelled: number of scenes without annotations.
        size: side of the square scenes, pixels, at least 32.
        seed: of the split of the digits and of the scenes.

    Returns:
        The root.

    Raises:
        UserError: for an impossible argument, a root with other contents or that cannot be written, or a package
            without its data files.
    """
    root = Path(root)
    arguments = {
        "num_train": num_train,
        "num_val": num_val,
        "num_unlabelled": num_unlabelled,
        "size": size,
        "seed": seed,
    }
    lowest = {"num_train": 1, "num_val": 1, "num_unlabelled": 0, "size": 32, "seed": 0}
    for key, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest[key]:
            raise UserError(f"write_scenes: {key}={value!r}: expected a whole number of at least {lowest[key]}.")
    if _is_written(root, arguments):
        return root
    temporary = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        _write_all(temporary, arguments)
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.replace(temporary, root)
    except OSError as error:
        # Another process may have written the same root meanwhile.
        if not _is_written(root, arguments):
            raise UserError(f"{root}: the scenes cannot be written ({error}). Choose another folder.") from None
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def _write_all(folder: Path, arguments: dict[str, int]) -> None:
    manifest: dict[str, Any] = {"version": VERSION, "arguments": arguments, "scenes": {}}
    for split, count in _scene_counts(arguments).items():
        labelled = split != "unlabelled"
        images = folder / "images" / split if labelled else folder / split
        images.mkdir(parents=True)
        if labelled:
            (folder / "annotations" / split).mkdir(parents=True)
        scenes = {}
        records = []
        for index, scene in enumerate(compose_scenes(count, split, arguments["size"], arguments["seed"])):
            stem = f"scene_{index:05d}"
            scenes[stem] = scene.sources
            Image.fromarray(scene.image).save(images / f"{stem}.jpg", quality=JPEG_QUALITY, subsampling=0)
            if labelled:
                Image.fromarray(scene.labels).save(folder / "annotations" / split / f"{stem}.png")
                records.append((f"{stem}.jpg", scene))
        manifest["scenes"][split] = scenes
        if labelled:
            _write_json(folder / f"instances_{split}.json", _coco(records))
    _write_json(folder / "classes.json", list(CLASSES))
    _write_json(folder / "scenes.json", manifest)


def _coco(records: list[tuple[str, Scene]]) -> dict[str, Any]:
    """The COCO dictionary of scenes with their file names; boxes are (x, y, width, height) in pixels."""
    coco_mask = require("pycocotools.mask", "requirements/mm.txt")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, scene) in enumerate(records, start=1):
        height, width = scene.instances.shape
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for number, digit in enumerate(scene.digits, start=1):
            rle = coco_mask.encode(np.asfortranarray(scene.instances == number, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": digit + 1,
                    "iscrowd": 0,
                    "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                    "area": float(coco_mask.area(rle)),
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                }
            )
    categories = [{"id": index, "name": name, "supercategory": "digit"} for index, name in enumerate(CLASSES) if index]
    info = {"description": "Digits of scikit-learn over photographs of scikit-image and scikit-learn"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _scene_counts(arguments: dict[str, int]) -> dict[str, int]:
    return {
        "training": arguments["num_train"],
        "validation": arguments["num_val"],
        "unlabelled": arguments["num_unlabelled"],
    }


def _is_written(root: Path, arguments: dict[str, int]) -> bool:
    """Whether `root` holds these scenes; False if there is nothing, UserError if there is something else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root}: found a file, expected a folder to write scenes to. Choose another folder.")
    if not any(root.iterdir()):
        return False
    try:
        manifest = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
        found = {"version": manifest["version"], **manifest["arguments"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{root}: not empty, and no scenes.json in it that says which scenes these are. "
            "Choose an empty folder, or name this one as your own data with DATA_ROOT."
        ) from None
    wanted = {"version": VERSION, **arguments}
    if found != wanted:
        raise UserError(
            f"{root} holds scenes of {_words(found)}; asked for {_words(wanted)}. "
            "Choose another folder, or delete this one."
        )
    for split, count in _scene_counts(arguments).items():
        labelled = split != "unlabelled"
        for name in [f"images/{split}", f"annotations/{split}"] if labelled else [split]:
            # An empty file is what a power cut may leave of one.
            present = sum(1 for path in (root / name).glob("scene_*") if path.stat().st_size)
            if present != count:
                raise UserError(
                    f"{root / name}: found {present} whole files, expected {count}. Delete {root} to have it rewritten."
                )
    return True


def _words(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
