"""COCO JSON files of a config, checked and matched with each other before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from adpe.data.checks.coco import checked_coco, objects_of_categories
from adpe.data.checks.inspection import first
from adpe.engine.config import dicts
from adpe.engine.hooks.defaults import type_name
from adpe.errors import UserError


def match_annotations(cfg: Config, loaders: Iterable[str], classes: Sequence[str] | None = None) -> None:
    """Let the COCO data sets of a config, ours and mmdet's own, number their classes alike.

    `AdPECocoDataset` is given the classes and checks its file when it is built. The file of mmdet's `CocoDataset` is
    checked here, under the config's ``label_policy`` ("repair" without one), and replaced by the corrected one if
    something was wrong. Data sets that do not lie on a disk are left alone.

    Args:
        cfg: changed in place.
        loaders: names of the dataloaders, training first.
        classes: names in the order of the labels; by default those of the first data set.

    Raises:
        UserError: what `checked_coco` raises; objects of classes that are not among `classes`.
    """
    for loader in loaders:
        for key, node in dicts((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"):
            kind = type_name(node)
            if kind not in ("AdPECocoDataset", "CocoDataset") or node.get("backend_args") is not None:
                continue
            path = Path(node.get("data_root") or "", node.get("ann_file") or "")
            if not path.is_file():
                continue
            own = (node.get("metainfo") or {}).get("classes")
            own = (own,) if isinstance(own, str) and kind == "CocoDataset" else own
            if kind == "CocoDataset":
                names = _check_foreign(cfg, key, node, path, own)
            else:
                names = tuple(own or classes or objects_of_categories(path, node.get("with_mask", True)))
                if own is None and classes is not None:
                    node["classes"] = list(classes)
            classes = classes or names


def _check_foreign(cfg: Config, key: str, node: Any, path: Path, own: Sequence[str] | None) -> tuple[str, ...]:
    """Check the file of mmdet's `CocoDataset`. Returns the names in the order of the labels."""
    from mmdet.datasets import CocoDataset

    names = tuple(own or CocoDataset.METAINFO["classes"])
    with_mask = any(step.get("with_mask") for _, step in dicts(node, key))
    objects = objects_of_categories(path, with_mask)
    foreign = [name for name, count in objects.items() if count and name not in names]
    if foreign and own is None:
        raise UserError(
            f"{key}: {path} has objects of {first(foreign, 8)}, which are not among the {len(names)} classes of "
            f"CocoDataset. Name the file's in {key}.metainfo.classes: {first(objects, 8)}."
        )
    checked = checked_coco(
        path,
        cfg.get("label_policy") or "repair",
        with_mask=with_mask,
        classes=names,
        without_annotations=bool(node.get("test_mode")),
    )
    if checked.json != checked.source:
        node["ann_file"] = str(checked.json)
    return names
