"""COCO JSON files: checked before they are trained or evaluated on, and repaired where that is asked for.

Every reader of annotations goes through `checked_coco`: the data set, the metric, the launcher for configs of mmdet,
and ``tools/verify_data.py``. What it found in a large file is kept in the cache folder under the file's content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json as jsonlib
import logging
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from adpe.data.archives import default_cache_dir
from adpe.data.checks.coco_file import apply, image_sizes, order_categories, read_coco, without_collection, write_coco
from adpe.data.checks.coco_values import IGNORED, KINDS, LEFT_OUT, examine
from adpe.data.checks.inspection import PathLike, first
from adpe.errors import UserError
from adpe.files import atomic_write, lock
from adpe.leaderboard.records import file_sha256

POLICIES = ("strict", "repair", "report")
_VERSION = 1  # of the checks: what another version found is not read from the cache
_LARGE = 20_000_000  # bytes of a JSON from which on its findings are cached

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoFinding:
    """Annotations of one kind.

    Attributes:
        kind: key of `adpe.data.checks.coco_values.KINDS`.
        action: what is done about them, by the policy "repair" if it is a problem.
        ids: of the annotations; "#3" for the third one if it has none.
    """

    kind: str
    action: str
    ids: tuple[Any, ...]

    @property
    def level(self) -> str:
        """See `adpe.data.checks.coco_values.Kind`."""
        return KINDS[self.kind].level

    def __str__(self) -> str:
        return f"{len(self.ids)} {KINDS[self.kind].words} (annotation ids {first(self.ids, 8)}): {self.action}"


@dataclass(frozen=True)
class CheckedCoco:
    """A COCO JSON that can be trained and evaluated on.

    Attributes:
        source: the file that was checked.
        json: the file to read: `source`, or one in the cache folder if something had to be changed.
        categories: all names in `source`, in its order.
        classes: names in the order of the labels, which is that of the categories in `json`.
        images: (file name, width, height) of each image.
        annotations: number of annotations in `source`.
        without_objects: number of images without an annotation.
        objects: number of annotations of each category in `json`.
        findings: what is unusual about the annotations.
    """

    source: Path
    json: Path
    categories: tuple[str, ...]
    classes: tuple[str, ...]
    images: tuple[tuple[str, int, int], ...]
    annotations: int
    without_objects: int
    objects: dict[str, int]
    findings: tuple[CocoFinding, ...]

    @property
    def problems(self) -> tuple[CocoFinding, ...]:
        """The findings that `strict` refuses."""
        return tuple(finding for finding in self.findings if finding.level in ("problem", "unreadable"))


@dataclass(frozen=True)
class _Key:
    content: str
    policy: str
    with_mask: bool
    classes: tuple[str, ...] | None


def checked_coco(
    path: PathLike,
    policy: str = "repair",
    with_mask: bool = True,
    classes: Sequence[str] | None = None,
    without_annotations: bool = False,
) -> CheckedCoco:
    """Check a COCO JSON of instances, and log what was found, once a process.

    Args:
        path: the JSON file.
        policy: ``"strict"`` refuses every problem; ``"repair"`` corrects what has one right value (a box from its
            mask, an area), ignores as a crowd an object whose mask cannot be read, and leaves out what has no place;
            ``"report"`` changes nothing, and refuses what the frameworks cannot read. Each names numbers and ids.
            Under all of them, annotations that have no ids of their own from 1 on are renumbered (pycocotools takes
            an id of 0 for "unmatched"), a missing iscrowd is 0, and polygons get COCO's form.
        with_mask: whether every annotation needs a mask (polygons or run lengths).
        classes: names in the order of the labels, e.g. those of the training JSON for the validation JSON. Categories
            are mapped onto them by name: the result has them in this order, those that the file lacks without objects.
        without_annotations: whether the JSON may have none, as those of test sets.

    Raises:
        UserError: if the file is no COCO JSON, its parts do not fit together, it has none of the classes, more than
            half of the annotations would be lost, or the policy refuses it.
    """
    if policy not in POLICIES:
        raise UserError(f"label_policy={policy!r}: expected one of {', '.join(POLICIES)}.")
    path = Path(path)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes or ()):
        raise UserError(f"classes={classes!r}: expected a list of names.")
    names = None if classes is None else tuple(classes)
    checked = _read(path, _Key(_content(path), policy, with_mask, None))
    if not checked.annotations and not without_annotations:
        raise UserError(f"{path}: the list 'annotations' is missing or empty.")
    if names is not None:
        if [name for name in checked.categories if name in set(names)] == list(names):
            checked = replace(checked, classes=names)
        else:
            _log_order(checked.source, tuple(name for name in checked.categories if name in names), names)
            checked = _read(path, _Key(_content(path), policy, with_mask, names))
    _log(checked.source, checked.json, checked.findings, policy)
    refused = {"strict": ("problem", "unreadable"), "report": ("unreadable",), "repair": ()}[policy]
    worst = [finding for finding in checked.findings if finding.level in refused]
    if worst:
        raise UserError(
            f"{path}: {'; '.join(map(str, worst))}. Correct the file, or let --cfg-options label_policy=repair do what "
            "stands after the colons."
        )
    if policy == "repair":
        _check_loss(checked)
    return checked


def inspected_coco(path: PathLike) -> CheckedCoco:
    """As `checked_coco`, of masks too, but all findings are returned and none is refused or logged."""
    path = Path(path)
    return _read(path, _Key(_content(path), "strict", True, None))


def objects_of_categories(path: PathLike, with_mask: bool = True) -> dict[str, int]:
    """Names of the categories of a COCO JSON, in its order, and how many annotations each has.

    Args:
        path: the JSON file.
        with_mask: as the data set has it, so that the file is checked once for both.

    Raises:
        UserError: if the file is no COCO JSON, or its parts do not fit together.
    """
    path = Path(path)
    return _read(path, _Key(_content(path), "repair", with_mask, None)).objects


def _read(path: Path, key: _Key) -> CheckedCoco:
    checked = _checked(path.absolute(), key, default_cache_dir() / "annotations")
    if not checked.json.is_file():  # somebody emptied the cache
        _checked.cache_clear()
        checked = _checked(path.absolute(), key, default_cache_dir() / "annotations")
    return checked


def _check_loss(checked: CheckedCoco) -> None:
    lost = [f for f in checked.problems if f.action in (LEFT_OUT, IGNORED) and f.kind not in ("repeated", "ignore")]
    number = len({str(identifier) for finding in lost for identifier in finding.ids})
    if number > checked.annotations / 2:
        raise UserError(
            f"{checked.source}: {number} of {checked.annotations} annotations cannot be used: "
            f"{'; '.join(map(str, lost))}. This is more than a few to leave out: correct the file"
            + ("; for boxes alone set with_mask=False." if all(f.kind.startswith("mask") for f in lost) else ".")
        )


@lru_cache(maxsize=16)
def _checked(path: Path, key: _Key, folder: Path) -> CheckedCoco:
    name = hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()[:32]
    entry, changed = folder / f"{name}.json", folder / f"{name}.annotations.json"
    large = path.stat().st_size >= _LARGE
    with lock(folder / f"{name}.lock") if large else contextlib.nullcontext():
        checked = _read_entry(entry, path) if large else None
        if checked is None:
            with without_collection():
                checked = _check(path, key, changed)
            if large:
                with contextlib.suppress(OSError), atomic_write(entry) as temporary:
                    values = {**vars(checked), "source": "", "json": changed.name if checked.json == changed else ""}
                    values["findings"] = [vars(finding) for finding in checked.findings]
                    temporary.write_text(jsonlib.dumps(values))
    return checked


def _check(path: Path, key: _Key, target: Path) -> CheckedCoco:
    contents = read_coco(path)
    annotations, categories = contents["annotations"], [category["name"] for category in contents["categories"]]
    ids = [annotation.get("id", f"#{row + 1}") for row, annotation in enumerate(annotations)]
    with open(path, "rb") as file:
        changed = file.read(3) == BOM_UTF8  # which pycocotools does not read
    if key.classes is not None:
        changed |= order_categories(path, contents, key.classes)
    found = examine(annotations, image_sizes(contents), key.with_mask)
    findings = tuple(
        CocoFinding(kind, action, tuple(ids[row] for row in rows)) for (kind, action), rows in found.found.items()
    )
    problems = any(KINDS[kind].level in ("problem", "unreadable") for kind, _ in found.found)
    changed |= apply(contents, found, repair=key.policy == "repair")
    if changed and not (problems and key.policy == "strict"):
        write_coco(contents, target)
    names = {category["id"]: category["name"] for category in contents["categories"]}
    counts = Counter(annotation["category_id"] for annotation in contents["annotations"])
    used = {annotation["image_id"] for annotation in contents["annotations"]}
    return CheckedCoco(
        source=path,
        json=target if changed else path,
        categories=tuple(categories),
        classes=tuple(categories) if key.classes is None else key.classes,
        images=tuple((image["file_name"], image["width"], image["height"]) for image in contents["images"]),
        annotations=len(annotations),
        without_objects=len(contents["images"]) - len(used),
        objects={name: counts[identifier] for identifier, name in names.items()},
        findings=findings,
    )


@lru_cache(maxsize=64)
def _log(source: Path, json: Path, findings: tuple[CocoFinding, ...], policy: str) -> None:
    said = [finding for finding in findings if finding.level != "normalised"]
    if said and policy != "strict":
        done = " (label_policy=report: nothing of this was done)" if policy == "report" else ""
        logger.warning("%s: %s%s. The file read is %s.", source, "; ".join(map(str, said)), done, json)
    quiet = [finding for finding in findings if finding.level == "normalised"]
    if quiet:
        logger.info("%s: %s", source, "; ".join(map(str, quiet)))


@lru_cache(maxsize=64)
def _log_order(source: Path, own: tuple[str, ...], classes: tuple[str, ...]) -> None:
    if own != tuple(name for name in classes if name in own):
        logger.warning(
            "%s: its categories (%s) stand in another order than the classes (%s): they are matched by name.",
            source, first(own, 8), first(classes, 8),
        )  # fmt: skip


def _read_entry(entry: Path, path: Path) -> CheckedCoco | None:
    try:
        values = jsonlib.loads(entry.read_text())
        json = entry.parent / values["json"] if values["json"] else path
        return (
            CheckedCoco(
                source=path,
                json=json,
                categories=tuple(values["categories"]),
                classes=tuple(values["classes"]),
                images=tuple((name, width, height) for name, width, height in values["images"]),
                annotations=values["annotations"],
                without_objects=values["without_objects"],
                objects=values["objects"],
                findings=tuple(CocoFinding(f["kind"], f["action"], tuple(f["ids"])) for f in values["findings"]),
            )
            if json.is_file()
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(path: Path) -> str:
    try:
        status = path.stat()
        if status.st_size < _LARGE:  # may have changed within the resolution of the clock
            return file_sha256(path)
        return _sha256(path.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Expected a JSON file there.") from None


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)
