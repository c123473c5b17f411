"""Semantic segmentation data in ADE20K's layout, with any classes, for mmseg's configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from adpe.data.checks.class_names import find_class_file, read_class_file
from adpe.data.checks.inspection import PathLike, existing_folder, list_images
from adpe.data.checks.layout import (
    check_label_maps,
    check_not_full_ade20k,
    check_two_labels,
    read_classes,
    with_label_maps,
)
from adpe.data.loading import NamesFiles
from adpe.errors import UserError, require

require("mmseg", "requirements/mm.txt")
from mmseg.datasets import ADE20KDataset, BaseSegDataset  # noqa: E402


@DATASETS.register_module()
class AdPESegmentationDataset(NamesFiles, BaseSegDataset):
    """`BaseSegDataset` that takes its classes from the data root and checks the layout when it is built.

    Items are mmseg's. With `reduce_zero_label` (as ADE20K has it) label 0 of a map becomes 255 = ignored and label
    i + 1 becomes class i. The palette is that of the file of classes if it has colours, else mmseg's own for unknown
    classes, the same in every run.

    Args:
        data_root: folder with ``images/`` and ``annotations/``.
        data_prefix: folders of the images and the label maps below the root.
        classes: the classes' names, or a file of them (absolute or below the root); by default from the root, see
            `adpe.data.checks.layout.read_classes`. `metainfo["classes"]` goes before it.
        reduce_zero_label: whether label 0 means unlabelled.
        metainfo: as in `BaseSegDataset`.
        img_suffix: end of the images' names; by default any of `adpe.data.sources.names.EXTENSIONS`. Other files in
            the folder are counted in a warning.
        kwargs: as in `BaseSegDataset`. With `backend_args` the data may lie elsewhere than on a disk: the layout is
            not checked then.

    Raises:
        UserError: if the root's layout, classes or label maps are not as expected.
    """

    def __init__(
        self,
        data_root: PathLike,
        data_prefix: dict[str, str] | None = None,
        classes: Sequence[str] | PathLike | None = None,
        reduce_zero_label: bool = True,
        metainfo: dict[str, Any] | None = None,
        img_suffix: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._any_suffix = img_suffix is None and kwargs.get("backend_args") is None
        if data_prefix is None:
            data_prefix = {"img_path": "images/training", "seg_map_path": "annotations/training"}
        metainfo = dict(metainfo or {})
        if "classes" not in metainfo:
            # The folder above training and validation, so that both have the same classes.
            annotations = Path(data_prefix.get("seg_map_path") or "annotations")
            metainfo["classes"] = read_classes(
                data_root,
                classes,
                annotations=annotations if annotations.is_absolute() else annotations.parts[0],
                seg_map_suffix=kwargs.get("seg_map_suffix", ".png"),
                reduce_zero_label=reduce_zero_label,
            )
            file = find_class_file(Path(data_root), classes)
            palette = read_class_file(file).palette if file else ()
            if palette:
                metainfo.setdefault("palette", [list(colour) for colour in palette])
        super().__init__(
            data_root=str(data_root),
            data_prefix=data_prefix,
            reduce_zero_label=reduce_zero_label,
            metainfo=metainfo,
            img_suffix=img_suffix or ".jpg",
            **kwargs,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """As in `BaseSegDataset`, after a check of the folders and of a sample of the label maps."""
        return checked_data_list(self, self._list_images if self._any_suffix else super().load_data_list)

    def _list_images(self) -> list[dict[str, Any]]:
        """mmseg's items, for images of any suffix; those of `ann_file` if there is one, which names them without."""
        folder, maps = Path(self.data_prefix["img_path"]), self.data_prefix.get("seg_map_path")
        images = list_images(folder)
        if self.ann_file and Path(self.ann_file).is_file():
            known = {str(path.relative_to(folder))[: -len(path.suffix)]: path for path in images}
            names = Path(self.ann_file).read_text(encoding="utf-8").split("\n")
            wanted = [name.strip() for name in names if name.strip()]
            lost = [name for name in wanted if name not in known]
            if lost:
                raise UserError(
                    f"{self.ann_file}: {len(lost)} of {len(wanted)} images are not in {folder} ({lost[0]})."
                )
            images = [known[name] for name in wanted]
        items: list[dict[str, Any]] = [{"img_path": str(path)} for path in images]
        if maps:
            for item, (_, label_map) in zip(
                items, with_label_maps(images, folder, Path(maps), None, self.seg_map_suffix), strict=True
            ):
                item["seg_map_path"] = str(label_map)
        shared = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
        return [{**item, **shared, "seg_fields": []} for item in items]


@DATASETS.register_module()
class AdPEADE20KDataset(NamesFiles, ADE20KDataset):
    """mmseg's `ADE20KDataset`, with its classes and palette, that checks the layout and labels when it is built.

    Raises:
        UserError: for the full data set instead of the 2016 challenge, missing files, or labels beyond 150.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """As in `ADE20KDataset`, after the checks."""
        check_not_full_ade20k(self.data_root)
        return checked_data_list(self, super().load_data_list)


def checked_data_list(dataset: BaseSegDataset, load: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The items that `load` gives, with the folders and a sample of the label maps checked if they lie on a disk."""
    if dataset.backend_args is not None:
        return load()
    folder = existing_folder(dataset.data_prefix["img_path"])
    if not getattr(dataset, "_any_suffix", False):
        list_images(folder, dataset.img_suffix)  # tells what is left out
    if dataset.data_prefix.get("seg_map_path"):
        existing_folder(dataset.data_prefix["seg_map_path"])
    items = load()
    pairs = [(Path(item["img_path"]), Path(item["seg_map_path"])) for item in items if "seg_map_path" in item]
    on_corrupt = "error" if dataset.test_mode else "skip"
    classes = dataset.metainfo["classes"]
    seen = check_label_maps(pairs, len(classes), dataset.reduce_zero_label, on_corrupt)
    if not dataset.test_mode:
        check_two_labels([label_map for _, label_map in pairs], seen, classes, dataset.reduce_zero_label)
    return items
