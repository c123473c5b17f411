"""Whole checks of data roots: every image decoded, every label map and annotation compared with its image.

Beside `adpe.data.checks.layout`, whose quick checks run before every training and stop at the first fault, this reads
everything and counts all faults of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adpe.data.checks.coco import CheckedCoco, checked_coco, inspected_coco
from adpe.data.checks.findings import (
    Finding,
    Track,
    count,
    each,
    image_fault,
    label_map_findings,
    untracked,
    without_faults,
)
from adpe.data.checks.inspection import (
    PathLike,
    existing_folder,
    existing_root,
    files_below,
    first,
    list_images,
    read_label_map,
    sample,
)
from adpe.data.checks.layout import (
    IGNORE_LABEL,
    SPLITS,
    check_coco_images,
    check_not_full_ade20k,
    label_map_name,
    read_classes,
)
from adpe.data.checks.verify_public import verify_cityscapes, verify_coco_stuff, verify_voc
from adpe.errors import UserError

ADE20K_IMAGES = {"training": 20210, "validation": 2000}
ADE20K_CLASSES = 150
COCO_IMAGES = {"train2017": 118287, "val2017": 5000}
COCO_CATEGORIES = 80
# train2017 has two boxes of no width or height itself.
COCO_KNOWN = ("box_flat", "area_not_positive")


def verify_ade20k(root: PathLike, quick: bool = False, track: Track = untracked) -> list[Finding]:
    """Check the 2016 scene parsing challenge: counts, pairs, decoding, sizes, labels 0..150.

    Args:
        root: ADEChallengeData2016, or the folder that has it.
        quick: look at 48 evenly spaced images of each split instead of all.
        track: shows how far it is.

    Raises:
        UserError: if there is nothing to check: no such folder, or the full data set instead.
    """
    root = existing_root(root)
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    check_not_full_ade20k(root)
    findings = []
    for split in SPLITS:
        images = list_images(root / "images" / split, ".jpg")
        findings.append(count(f"{split}: images", len(images), ADE20K_IMAGES[split]))
        findings += _label_maps(root, split, images, ADE20K_CLASSES, quick, track)[0]
    return findings


def verify_masks(
    root: PathLike,
    quick: bool = False,
    track: Track = untracked,
    classes: PathLike | None = None,
    reduce_zero_label: bool = True,
) -> list[Finding]:
    """Check one's own masks: ``images/`` and ``annotations/`` of both splits, and the classes' names.

    Args:
        root: folder with the four folders and, perhaps, the file of classes.
        quick: see `verify_ade20k`, as `track`.
        track: shows how far it is.
        classes: the file of classes; see `adpe.data.checks.layout.read_classes`.
        reduce_zero_label: whether label 0 means unlabelled, so that class i has label i + 1.

    Raises:
        UserError: if there is nothing to check: no such folder, or no classes.
    """
    root = existing_root(root)
    names = read_classes(root, classes, reduce_zero_label=reduce_zero_label)
    lowest = int(reduce_zero_label)
    findings = [Finding("classes", True, f"{len(names)}: {first(names, 8)}")]
    for split in SPLITS:
        images = list_images(root / "images" / split)
        findings.append(Finding(f"{split}: images", True, f"{len(images):,}"))
        found, maps = _label_maps(root, split, images, len(names) - 1 + lowest, quick, track)
        pixels = sum((_pixels(path) for path in maps), np.zeros(256, np.int64))
        total = max(int(pixels.sum()), 1)
        shares = [f"{name} {pixels[label] / total:.2%}" for label, name in enumerate(names, start=lowest)]
        ignored = int(pixels[IGNORE_LABEL] + (pixels[0] if reduce_zero_label else 0))
        lost = [name for label, name in enumerate(names, start=lowest) if not pixels[label]]
        findings += found
        said = f"{', '.join(shares)}; ignored {ignored / total:.2%}"
        # What is not in training cannot be learned; validation may lack a class.
        findings.append(Finding(f"{split}: pixels of the classes", not lost or split != "training", said))
        if lost:
            findings.append(Finding(f"{split}: classes without a pixel", split != "training", first(lost, 8)))
    return findings


def verify_coco(root: PathLike, quick: bool = False, track: Track = untracked, policy: str = "strict") -> list[Finding]:
    """Check COCO 2017: counts, the 80 categories, annotations against images, decoding.

    Args:
        root: folder with annotations/, train2017/ and val2017/.
        quick: see `verify_ade20k`, as `track`.
        track: shows how far it is.
        policy: what counts as wrong in annotations: with ``"strict"`` every problem, with ``"repair"`` what training
            could not repair, with ``"report"`` what training could not read; see `adpe.data.checks.coco.checked_coco`.

    Raises:
        UserError: if there is no such folder.
    """
    root = existing_root(root)
    findings = []
    for split, expected in COCO_IMAGES.items():
        path = root / "annotations" / f"instances_{split}.json"
        found, checked = _instances(root, path, root / split, split, quick, track, policy, COCO_KNOWN)
        findings += found
        if checked is None:
            continue
        findings.append(count(f"{split}: images in the JSON", len(checked.images), expected))
        names = checked.categories
        right = len(names) == COCO_CATEGORIES and names[0] == "person" and names[-1] == "toothbrush"
        said = f"{len(names)}, {names[0]} to {names[-1]}" + ("" if right else "; expected 80, person to toothbrush")
        findings.append(Finding(f"{split}: categories", right, said))
    return findings


def verify_coco_like(
    root: PathLike, quick: bool = False, track: Track = untracked, policy: str = "strict"
) -> list[Finding]:
    """Check one's own data: `instances_{training,validation}.json` over `images/`. Arguments: `verify_coco`."""
    root = existing_root(root)
    findings = []
    categories = {}
    for split in SPLITS:
        path = root / f"instances_{split}.json"
        found, checked = _instances(root, path, root / "images" / split, split, quick, track, policy, ())
        findings += found
        if checked is not None:
            categories[split] = checked.categories
    if len(categories) == len(SPLITS):
        # Labels are matched by name, in whatever order.
        same = set(categories["training"]) == set(categories["validation"])
        said = f"{len(categories['training'])}: {first(categories['training'], 6)}"
        validation = f"validation has {len(categories['validation'])}: {first(categories['validation'], 6)}"
        findings.append(Finding("categories of both splits", same, said if same else f"{said}; {validation}"))
    return findings


VERIFIERS: dict[str, Callable[..., list[Finding]]] = {
    "ade20k": verify_ade20k,
    "voc": verify_voc,
    "cityscapes": verify_cityscapes,
    "coco-stuff": verify_coco_stuff,
    "masks": verify_masks,
    "coco": verify_coco,
    "coco-like": verify_coco_like,
}


def _label_maps(
    root: Path, split: str, images: Sequence[Path], largest: int, quick: bool, track: Track
) -> tuple[list[Finding], list[Path]]:
    """`label_map_findings` of a split in ADE20K's layout."""
    folder, maps = root / "images" / split, root / "annotations" / split
    pairs = [(image, maps / label_map_name(image, folder, None, ".png")) for image in images]
    spare = set(files_below(maps)) - {label_map for _, label_map in pairs}
    return label_map_findings(pairs, spare, split, largest, quick, track)


def _pixels(path: Path) -> np.ndarray:
    """(256,) numbers of pixels of each label."""
    return np.bincount(read_label_map(path).ravel(), minlength=256)


def _instances(
    root: Path, path: Path, folder: Path, split: str, quick: bool, track: Track, policy: str, known: Sequence[str]
) -> tuple[list[Finding], CheckedCoco | None]:
    """Findings about one JSON and its images; only one, and no JSON, if it cannot be looked into."""
    try:
        checked = inspected_coco(path)
        check_coco_images(checked, existing_folder(folder))
    except UserError as error:
        return [Finding(f"{split}: layout", False, str(error))], None
    counts = f"{checked.annotations} on {len(checked.images)} images, {checked.without_objects} of them without any"
    findings = [Finding(f"{split}: annotations", checked.annotations > 0, counts)]
    levels = {"strict": ("problem", "unreadable"), "repair": (), "report": ("unreadable",)}[policy]
    for found in checked.findings:
        right = found.level not in levels or found.kind in known
        findings.append(Finding(f"{split}: {found.kind}", right, str(found)))
    if checked.problems and policy == "repair":
        try:
            findings.append(Finding(f"{split}: repaired", True, str(checked_coco(path, policy).json)))
        except UserError as error:
            findings.append(Finding(f"{split}: repaired", False, str(error)))
    listed = {folder / name for name, _, _ in checked.images}
    spare = [file for file in files_below(folder) if file not in listed]
    images = [(folder / name, (width, height)) for name, width, height in checked.images]
    chosen = sample(images) if quick else images
    return [
        *findings,
        # No error: these are not read.
        Finding(f"{split}: images that the JSON does not name", True, first([file.name for file in spare]) or "none"),
        without_faults(f"{split}: images", each(image_fault, chosen, track, split), len(chosen)),
    ], checked
