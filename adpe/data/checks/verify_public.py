"""Whole checks of PASCAL VOC 2012, Cityscapes and COCO-Stuff 164k: official counts, pairs, decoding, sizes, labels."""

from __future__ import annotations

from pathlib import Path

from adpe.data.checks.findings import Finding, Track, count, label_map_findings, none, untracked
from adpe.data.checks.inspection import PathLike, absent, existing_root
from adpe.data.checks.public_layouts import CITYSCAPES, COCO_STUFF, VOC, PublicLayout
from adpe.errors import UserError


def verify_voc(root: PathLike, quick: bool = False, track: Track = untracked) -> list[Finding]:
    """Check train, SBD's trainaug and val of PASCAL VOC 2012; labels 0..20, where 0 is the background.

    Args:
        root: VOCdevkit/VOC2012, or a folder above it.
        quick: look at 48 evenly spaced images of each split instead of all.
        track: shows how far it is.

    Raises:
        UserError: if there is no such folder.
    """
    root = existing_root(root)
    inner = [folder for folder in (root / "VOCdevkit/VOC2012", root / "VOC2012") if folder.is_dir()]
    return _verify(VOC, inner[0] if inner else root, quick, track)


def verify_cityscapes(root: PathLike, quick: bool = False, track: Track = untracked) -> list[Finding]:
    """Check the fine annotations of Cityscapes; train ids 0..18. Arguments and errors: `verify_voc`."""
    return _verify(CITYSCAPES, existing_root(root), quick, track)


def verify_coco_stuff(root: PathLike, quick: bool = False, track: Track = untracked) -> list[Finding]:
    """Check COCO-Stuff 164k; train ids 0..170. Arguments and errors: `verify_voc`."""
    return _verify(COCO_STUFF, existing_root(root), quick, track)


def _verify(layout: PublicLayout, root: Path, quick: bool, track: Track) -> list[Finding]:
    findings = []
    for split, expected in layout.counts.items():
        try:
            pairs = layout.pairs(root, split)
        except UserError as error:
            findings.append(Finding(f"{split}: layout", False, str(error)))
            continue
        findings.append(count(f"{split}: images", len(pairs), expected))
        lacking = set(absent([image for image, _ in pairs]))
        if layout is VOC:
            findings.append(none(f"{split}: images that are missing", sorted(path.name for path in lacking)))
            spare = None  # the folders have the label maps of other splits, too
        else:
            maps = layout.folders(root, split)[1]
            spare = set(layout.label_maps(maps)) - {label_map for _, label_map in pairs}
        there = [pair for pair in pairs if pair[0] not in lacking]
        findings += label_map_findings(there, spare, split, layout.num_classes - 1, quick, track)[0]
    return findings
