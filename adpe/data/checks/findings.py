"""What a whole check of a data root reports: lines with a verdict, from images and label maps that are all opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adpe.data.checks.inspection import absent, first, read_label_map, sample, size_of
from adpe.data.checks.layout import IGNORE_LABEL
from adpe.data.sources.pixels import CorruptImageError, Size, decode_image
from adpe.errors import UserError, told

# Goes over the items of a check, showing how far it is.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """One line of the summary: what was checked, whether it is right, and what was found."""

    check: str
    right: bool
    found: str


def untracked(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    """The items as they are."""
    return items


def label_map_findings(
    pairs: Sequence[tuple[Path, Path]],
    spare: Iterable[Path] | None,
    split: str,
    largest: int,
    quick: bool,
    track: Track,
) -> tuple[list[Finding], list[Path]]:
    """Findings about the label maps of images, and the maps that were read and are right.

    Args:
        pairs: (image, label map) paths.
        spare: label maps that belong to none of the images, which is a fault; None where others may lie there.
        split: whose they are, for the findings' names.
        largest: label of a right map; 255 = ignored is right as well.
        quick: open 48 evenly spaced pairs instead of all.
        track: shows how far it is.
    """
    lacking = set(absent([label_map for _, label_map in pairs]))
    there = [pair for pair in pairs if pair[1] not in lacking]
    chosen = sample(there) if quick else there
    faulty: set[Path] = set()

    def fault(pair: tuple[Path, Path]) -> str | None:
        found = _label_map_fault(pair, largest)
        if found:
            faulty.add(pair[1])
        return found

    faults = each(fault, chosen, track, split)
    findings = [none(f"{split}: images without label map", [image.name for image, path in pairs if path in lacking])]
    if spare is not None:
        findings.append(none(f"{split}: label maps without image", [path.name for path in sorted(spare)]))
    findings.append(without_faults(f"{split}: images and label maps", faults, len(chosen)))
    return findings, [path for _, path in chosen if path not in faulty]


def image_fault(item: tuple[Path, Size]) -> str | None:
    """What a reader has against an image under annotations of a (width, height); None if it reads it."""
    path, annotated = item
    try:
        decode_image(path.read_bytes(), str(path), annotated)
    except (OSError, CorruptImageError) as error:
        return told(error)
    return None


def each(fault: Callable[[Any], str | None], items: Sequence[Any], track: Track, text: str) -> list[str]:
    """What `fault` finds in the items, in their order."""
    # Pillow decodes without holding the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for found in track(pool.map(fault, items), len(items), text) if found]


def count(check: str, found: int, expected: int) -> Finding:
    """That there are as many as there should be."""
    return Finding(check, found == expected, f"{found:,}" + ("" if found == expected else f", expected {expected:,}"))


def none(check: str, names: Sequence[str]) -> Finding:
    """That nothing has the fault of `check`."""
    return Finding(check, not names, f"{len(names)}: {first(names)}" if names else "none")


def without_faults(check: str, faults: Sequence[str], total: int) -> Finding:
    """That `total` files were read without faults."""
    if not faults:
        return Finding(check, True, f"all {total:,} that were read are right")
    return Finding(check, False, f"{len(faults)} of {total:,} are wrong: " + " ".join(faults[:3]))


def _label_map_fault(pair: tuple[Path, Path], largest: int) -> str | None:
    image, label_map = pair
    try:
        labels = read_label_map(label_map)
    except UserError as error:
        return str(error)
    fault = image_fault((image, size_of(labels)))
    if fault:
        return f"{fault} (label map {label_map})"
    wrong = labels[(labels > largest) & (labels != IGNORE_LABEL)]
    if wrong.size:
        return f"{label_map}: has label {int(np.max(wrong))}, expected 0..{largest}."
    return None
