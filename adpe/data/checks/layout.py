"""Quick checks of data roots before a model is built: ADE20K's folders for segmentation, COCO's JSON for detection.

Every check raises `UserError` with what was found, what was expected and what to do. Needs neither mmseg nor mmdet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adpe.data.checks.class_names import checked_names, find_class_file, read_class_file
from adpe.data.checks.coco import CheckedCoco, checked_coco
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
    read_label_map,
    sample,
    size_of,
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
    """A COCO JSON and its images: the file to read, numbers, and the classes' names in the order of the labels."""

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
        img_suffix: end of the images' names; by default any of `adpe.data.sources.names.EXTENSIONS`.
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
) -> set[int]:
    """Check that each image has its label map; open up to 48 pairs for the maps' type, size and largest label.

    The orientation of every image is looked at: see `adpe.data.sources.pixels.orientation_to_apply`.

    Args:
        pairs: (image, label map) paths.
        num_classes: labels above it (or equal to it without `reduce_zero_label`) are errors; 255 is never one.
        reduce_zero_label: whether label 0 means unlabelled, so that class i has label i + 1.
        on_corrupt: what the reader does with an image that is none, ``"skip"`` or ``"error"``.

    Returns:
        the labels of the maps that were opened.

    Raises:
        UserError: naming the file.
    """
    _check_present(pairs)
    seen: set[int] = set()
    check_orientations([image for image, _ in pairs], lambda index: size_of(read_label_map(pairs[index][1])))
    largest = num_classes if reduce_zero_label else num_classes - 1
    for image, label_map in sample(pairs):
        labels = read_label_map(label_map)
        check_fit(image, size_of(labels), label_map, on_corrupt)
        found = np.unique(labels)
        seen.update(found.tolist())
        wrong = found[(found > largest) & (found != IGNORE_LABEL)]
        if wrong.size:
            meaning = "0 = unlabelled, 1" if reduce_zero_label else "0"
            raise UserError(
                f"{label_map}: has label {wrong[-1]}, expected {meaning}..{largest} for {num_classes} classes "
                f"(or {IGNORE_LABEL} = ignored). Correct the classes or num_classes, or the label maps."
            )
    return seen


def check_two_labels(
    label_maps: Sequence[Path], seen: set[int], classes: Sequence[str], reduce_zero_label: bool = True
) -> None:
    """Refuse label maps of training that have one label beside 255 = ignored, as binary masks of 0 and 255 have.

    Args:
        label_maps: their paths.
        seen: the labels of those that were opened; the others are opened only if these have one label beside 255.
        classes: the classes' names.
        reduce_zero_label: whether label 0 means unlabelled.

    Raises:
        UserError: if there is nothing to tell apart.
    """
    ignored = {IGNORE_LABEL, 0} if reduce_zero_label else {IGNORE_LABEL}
    labels = set(seen)
    if IGNORE_LABEL not in labels or len(classes) < 2:
        return
    for path in label_maps:
        if len(labels - ignored) > 1:
            return
        labels.update(np.unique(read_label_map(path)).tolist())
    if len(labels - ignored) < 2:
        raise UserError(
            f"{label_maps[0].parent}: the {len(label_maps)} label maps have the labels {sorted(labels)}, of which "
            f"{sorted(labels & ignored)} are ignored: {'no class' if labels <= ignored else 'one class alone'} of "
            f"{len(classes)} ({first(classes, 8)}) is left. Write masks of 0 and 255 as labels of classes: 0 and 1 "
            "with reduce_zero_label=False."
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
        classes: the names, or a file of them (absolute, or below the root): a JSON list, or text with a name a line;
            see `adpe.data.checks.class_names`. By default the only ``classes*.json`` or ``classes*.txt`` in the root.
            Without one, all label maps are read, the largest label gives the number, and the classes are called
            ``class_1``, ``class_2`` ... after their labels, which is said in a printed line.
        annotations: folder of the label maps (absolute, or below the root), with any folders in it.
        seg_map_suffix: end of the label maps' names.
        reduce_zero_label: whether label 0 means unlabelled.

    Raises:
        UserError: for a missing or wrong file.
    """
    root = existing_root(root)
    check_not_full_ade20k(root)
    if classes is not None and not isinstance(classes, str | os.PathLike):
        return checked_names(classes, "classes")
    file = find_class_file(root, classes)
    if file is None:
        return _infer_classes(root, existing_folder(root / annotations), seg_map_suffix, reduce_zero_label)
    return read_class_file(file).names


def check_coco_root(
    root: PathLike,
    json: PathLike = "instances_training.json",
    images: PathLike = "images/training",
    classes: Sequence[str] | None = None,
    with_mask: bool = True,
    policy: str = "repair",
    without_annotations: bool = False,
    on_corrupt: str = "error",
) -> CocoLayout:
    """Check a COCO JSON of instances and the images that it names.

    Args:
        root: the data root.
        json: the JSON file, absolute or below the root.
        images: folder of the images, absolute or below the root.
        classes: names in the order of the labels; see `adpe.data.checks.coco.checked_coco`, as for the next three.
        with_mask: whether every annotation needs a mask.
        policy: what is done about wrong annotations.
        without_annotations: whether there may be none.
        on_corrupt: what the reader does with an image that is none, ``"skip"`` or ``"error"``.

    Raises:
        UserError: if anything is missing or does not fit.
    """
    root = existing_root(root)
    checked = checked_coco(root / json, policy, with_mask, classes, without_annotations)
    folder = existing_folder(root / images)
    check_coco_images(checked, folder, on_corrupt)
    return CocoLayout(checked.json, folder, len(checked.images), checked.annotations, checked.classes)


def check_coco_images(checked: CheckedCoco, folder: Path, on_corrupt: str = "error") -> None:
    """Check that the images of a COCO JSON are in a folder, their orientation, and the sizes of up to 48.

    Raises:
        UserError: if one is missing, or does not fit the JSON.
    """
    files = [folder / name for name, _, _ in checked.images]
    lacking = absent(files)
    if lacking:
        raise UserError(
            f"{checked.source}: {len(lacking)} of its {len(files)} images are not in {folder} "
            f"({first([os.path.relpath(file, folder) for file in lacking])}). Correct the folder or the JSON."
        )
    check_orientations(files, lambda index: (checked.images[index][1], checked.images[index][2]))
    for file, (_, width, height) in sample(list(zip(files, checked.images, strict=True))):
        check_fit(file, (width, height), checked.source, on_corrupt)


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
