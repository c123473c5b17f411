"""Quick checks of data roots before a model is built: ADE20K's folders for segmentation, COCO's JSON for detection.

Every check raises `UserError` with what was found, what was expected and what to do. Needs neither mmseg nor mmdet.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adpe.data.checks.inspection import (
    PathLike,
    absent,
    check_fit,
    check_orientations,
    existing_folder,
    existing_root,
    files_below,
    first,
    list_images,
    read_json,
    read_label_map,
    sample,
)
from adpe.errors import UserError

SPLITS = ("training", "validation")
IGNORE_LABEL = 255


@dataclass(frozen=True)
class SegmentationLayout:
    """A data root in ADE20K's layout: the number of images of each split, and the classes' names."""

    root: Path
    num_images: dict[str, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class CocoLayout:
    """A COCO JSON and its images: their numbers, and the classes' names in the order of the JSON's categories."""

    json: Path
    images: Path
    num_images: int
    num_annotations: int
    classes: tuple[str, ...]


def check_segmentation_root(
    root: PathLike,
    num_classes: int | None = None,
    classes: Sequence[str] | PathLike | None = None,
    img_suffix: str | None = None,
    seg_map_suffix: str = ".png",
    reduce_zero_label: bool = True,
) -> SegmentationLayout:
    """Check ``images/{training,validation}`` and ``annotations/{training,validation}`` below `root`.

    Args:
        root: the data root.
        num_classes: what the model predicts; None takes it from the classes.
        classes: see `read_classes`.
        img_suffix: end of the images' names; by default any of `adpe.data.names.EXTENSIONS`.
        seg_map_suffix: end of the label maps' names.
        reduce_zero_label: whether label 0 means unlabelled, so that class i has label i + 1.

    Raises:
        UserError: if anything is missing or does not fit.
    """
    root = existing_root(root)
    check_not_full_ade20k(root)
    pairs = {}
    for split in SPLITS:
        folder, maps = root / "images" / split, root / "annotations" / split
        images = list_images(folder, img_suffix)
        existing_folder(maps)
        pairs[split] = with_label_maps(images, folder, maps, img_suffix, seg_map_suffix)
    names = read_classes(root, classes, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label)
    if num_classes is not None and num_classes != len(names):
        raise UserError(
            f"{root}: has {len(names)} classes ({first(names)}), but the model num_classes={num_classes}. "
            f"Set num_classes={len(names)}, or name the classes with classes=[...]."
        )
    for split, of_split in pairs.items():
        check_label_maps(of_split, len(names), reduce_zero_label, "skip" if split == "training" else "error")
    return SegmentationLayout(root, {split: len(of_split) for split, of_split in pairs.items()}, names)


def check_not_full_ade20k(root: PathLike) -> None:
    """Tell ADE20K's full data set apart from its 2016 scene parsing challenge, whose 150 classes the configs mean.

    Raises:
        UserError: if `root` has the layout of the full data set.
    """
    root = Path(root)
    full = next((path for path in (root / "images/ADE", root / "ADE20K_2021_17_01") if path.is_dir()), None)
    if full is None:
        full = next((path for path in root.glob("*index_ade20k*")), None)
    if full is None and (root / "images/training").is_dir() and not (root / "annotations").exists():
        full = next((root / "images/training").glob("*/*/*_seg.png"), None)
    if full is not None:
        raise UserError(
            f"{root}: is the full ADE20K (found {full.relative_to(root)}), with thousands of names in *_seg.png, "
            "not the 2016 scene parsing challenge, whose label maps have 150 classes. Get ADEChallengeData2016 with "
            "tools/prepare_data.py ade20k."
        )


def check_label_maps(
    pairs: Sequence[tuple[Path, Path]], num_classes: int, reduce_zero_label: bool = True, on_corrupt: str = "error"
) -> None:
    """Check that each image has its label map; open up to 48 pairs for the maps' type, size and largest label.

    The orientation of every image is looked at: see `adpe.data.pixels.orientation_to_apply`.

    Args:
        pairs: (image, label map) paths.
        num_classes: labels above it (or equal to it without `reduce_zero_label`) are errors; 255 is never one.
        reduce_zero_label: whether label 0 means unlabelled, so that class i has label i + 1.
        on_corrupt: what the reader does with an image that is none, ``"skip"`` or ``"error"``.

    Raises:
        UserError: naming the file.
    """
    _check_present(pairs)
    check_orientations([image for image, _ in pairs], lambda index: read_label_map(pairs[index][1]).shape[::-1])
    largest = num_classes if reduce_zero_label else num_classes - 1
    for image, label_map in sample(pairs):
        labels = read_label_map(label_map)
        check_fit(image, labels.shape[::-1], label_map, on_corrupt)
        found = np.unique(labels)
        wrong = found[(found > largest) & (found != IGNORE_LABEL)]
        if wrong.size:
            meaning = "0 = unlabelled, 1" if reduce_zero_label else "0"
            raise UserError(
                f"{label_map}: has label {wrong[-1]}, expected {meaning}..{largest} for {num_classes} classes "
                f"(or {IGNORE_LABEL} = ignored). Correct the classes or num_classes, or the label maps."
            )


def read_classes(
    root: PathLike,
    classes: Sequence[str] | PathLike | None = None,
    annotations: PathLike = "annotations",
    seg_map_suffix: str = ".png",
    reduce_zero_label: bool = True,
) -> tuple[str, ...]:
    """Names of the semantic classes of a data root; class i has label i + 1 (label i without `reduce_zero_label`).

    Args:
        root: the data root.
        classes: the names, or a JSON file (absolute, or below the root) with a list of them. By default the only file
            ``classes*.json`` in the root. Without one, all label maps are read, the largest label gives the number,
            and the classes are called ``class_1``, ``class_2`` ... after their labels, which is said in a printed line.
        annotations: folder of the label maps (absolute, or below the root), with any folders in it.
        seg_map_suffix: end of the label maps' names.
        reduce_zero_label: whether label 0 means unlabelled.

    Raises:
        UserError: for a missing or wrong file.
    """
    root = existing_root(root)
    check_not_full_ade20k(root)
    if classes is None:
        files = sorted(root.glob("classes*.json"))
        if len(files) > 1:
            raise UserError(
                f"{root}: found {', '.join(path.name for path in files)}, expected one. Name it with classes=..."
            )
        if not files:
            return _infer_classes(root, existing_folder(root / annotations), seg_map_suffix, reduce_zero_label)
        classes = files[0].name
    where = "classes"
    names: Any = classes
    if isinstance(classes, str | os.PathLike):
        path = root / classes
        where, names = str(path), read_json(path)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'{where}: expected a list of the classes\' names, such as ["wall", "building"].')
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {first(repeated)} repeated. Give each class its own name.")
    return tuple(names)


def check_coco_root(
    root: PathLike,
    json: PathLike = "instances_training.json",
    images: PathLike = "images/training",
    classes: Sequence[str] | None = None,
    with_mask: bool = True,
    on_corrupt: str = "error",
) -> CocoLayout:
    """Check a COCO JSON of instances and the images that it names.

    Args:
        root: the data root.
        json: the JSON file, absolute or below the root.
        images: folder of the images, absolute or below the root.
        classes: names of the categories to use, in the JSON's order, e.g. those of the training JSON when the
            validation JSON is checked. By default all.
        with_mask: whether every annotation needs a mask (polygons or RLE).
        on_corrupt: what the reader does with an image that is none, ``"skip"`` or ``"error"``.

    Raises:
        UserError: if anything is missing or does not fit.
    """
    root = existing_root(root)
    path, folder = root / json, root / images
    contents = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(contents, dict) or not isinstance(contents.get(key), list):
            raise UserError(f"{path}: has no list {key!r}, expected COCO's instances: images, annotations, categories.")
        if not contents[key]:
            raise UserError(f"{path}: the list {key!r} is empty.")
    for key, needed in {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"id", "image_id", "category_id", "bbox", "area"} | ({"segmentation"} if with_mask else set()),
        "categories": {"id", "name"},
    }.items():
        for item in contents[key]:
            missing = needed - set(item) if isinstance(item, dict) else needed
            if missing:
                raise UserError(f"{path}: an item of {key!r} has no {first(sorted(missing))}: {str(item)[:100]}")
        repeated = [value for value, count in Counter(item["id"] for item in contents[key]).items() if count > 1]
        if repeated:
            raise UserError(f"{path}: {len(repeated)} ids of {key!r} repeated ({first(repeated)}). They must differ.")
    for key, known in (("image_id", "images"), ("category_id", "categories")):
        ids = {item["id"] for item in contents[known]}
        lost = [item["id"] for item in contents["annotations"] if item[key] not in ids]
        if lost:
            raise UserError(f"{path}: {len(lost)} annotations (ids {first(lost)}) whose {key} is not among {known!r}.")
    sizes = {image["id"]: [image["height"], image["width"]] for image in contents["images"]}
    for item in contents["annotations"]:
        mask = item.get("segmentation")
        if isinstance(mask, dict) and mask.get("size") != sizes[item["image_id"]]:
            raise UserError(
                f"{path}: the mask of annotation {item['id']} is of size {mask.get('size')}, but its image "
                f"{item['image_id']} is {sizes[item['image_id']]} (height, width). Correct the one or the other."
            )
    names = _coco_classes(path, contents["categories"], classes)
    _check_coco_images(path, existing_folder(folder), contents["images"], on_corrupt)
    return CocoLayout(path, folder, len(contents["images"]), len(contents["annotations"]), names)


def _coco_classes(path: Path, categories: list[dict[str, Any]], classes: Sequence[str] | None) -> tuple[str, ...]:
    found = [category["name"] for category in categories]
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: several categories are called {first(repeated)}. Give each its own name.")
    if classes is None:
        return tuple(found)
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r}: expected a list of names.")
    unknown = [name for name in classes if name not in found]
    if unknown:
        raise UserError(f"{path}: has no category {first(unknown)}; it has {first(found, 10)}. Correct the classes.")
    # mmdet and pycocotools number the classes in the JSON's order whatever the order asked for.
    ordered = tuple(name for name in found if name in set(classes))
    if ordered != tuple(classes):
        raise UserError(
            f"{path}: its categories come in the order {first(ordered, 10)}, the classes in the order "
            f"{first(classes, 10)}. Give the classes in the JSON's order, the same in training and validation."
        )
    return ordered


def _check_coco_images(path: Path, folder: Path, images: list[dict[str, Any]], on_corrupt: str) -> None:
    files = [folder / image["file_name"] for image in images]
    lacking = absent(files)
    if lacking:
        raise UserError(
            f"{path}: {len(lacking)} of its {len(files)} images are not in {folder} "
            f"({first([os.path.relpath(file, folder) for file in lacking])}). Correct the folder or the JSON."
        )
    check_orientations(files, lambda index: (images[index]["width"], images[index]["height"]))
    for file, image in sample(list(zip(files, images, strict=True))):
        check_fit(file, (image["width"], image["height"]), path, on_corrupt)


def label_map_name(image: Path, folder: Path, img_suffix: str | None, seg_map_suffix: str) -> str:
    """Path of an image's label map relative to the folder of the label maps."""
    name = str(image.relative_to(folder))
    return name[: -len(img_suffix or image.suffix)] + seg_map_suffix


def with_label_maps(
    images: Sequence[Path], folder: Path, maps: Path, img_suffix: str | None, seg_map_suffix: str
) -> list[tuple[Path, Path]]:
    """(image, label map) of the images in `folder`. Raises UserError if two share a label map."""
    pairs = [(image, maps / label_map_name(image, folder, img_suffix, seg_map_suffix)) for image in images]
    owners: dict[Path, Path] = {}
    for image, label_map in pairs:
        if label_map in owners:
            raise UserError(f"{owners[label_map]} and {image.name} share the label map {label_map}: remove one image.")
        owners[label_map] = image
    return pairs


def _infer_classes(root: Path, folder: Path, suffix: str, reduce_zero_label: bool) -> tuple[str, ...]:
    label_maps = [path for path in files_below(folder) if path.name.endswith(suffix)]
    largest = -1
    for path in label_maps:
        labels = read_label_map(path)
        used = labels[labels != IGNORE_LABEL]
        if used.size:
            largest = max(largest, int(used.max()))
    lowest = int(reduce_zero_label)
    if largest < lowest:
        raise UserError(
            f"{folder}: no labels in {len(label_maps)} label maps *{suffix}. Correct the folder or the maps."
        )
    names = tuple(f"class_{label}" for label in range(lowest, largest + 1))
    print(f"{root}: no classes.json; {len(label_maps)} label maps have labels up to {largest}: {len(names)} classes.")
    return names


def _check_present(pairs: Sequence[tuple[Path, Path]]) -> None:
    lacking = set(absent([label_map for _, label_map in pairs]))
    images = [image for image, label_map in pairs if label_map in lacking]
    if images:
        raise UserError(
            f"{len(images)} of {len(pairs)} images in {pairs[0][0].parent} have no label map in {pairs[0][1].parent} "
            f"({first([image.name for image in images])}). Add the label maps, or remove the images."
        )
