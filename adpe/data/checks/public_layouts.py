"""Where PASCAL VOC 2012, Cityscapes and COCO-Stuff 164k keep images and label maps, as mmsegmentation reads them.

All three have a class at label 0, and 255 = ignored. What is missing is said with the script or archive that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adpe.data.checks.inspection import PathLike, absent, existing_root, files_below, first, list_images
from adpe.data.checks.layout import label_map_name
from adpe.errors import UserError

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class PublicLayout:
    """Images and label maps of every split in folders of their own, perhaps with folders in them.

    Attributes:
        name: of the data set.
        num_classes: labels are 0 .. num_classes - 1.
        counts: images of each official split.
        images: folder of the images below the root, with ``{split}``.
        maps: folder of the label maps, likewise.
        img_suffix: end of the images' names.
        seg_map_suffix: end of the label maps' names, in the place of `img_suffix`.
        archives: what has the images and the maps as they are published.
        converter: what makes the label maps with `seg_map_suffix`, with ``{root}``.
    """

    name: str
    num_classes: int
    counts: Mapping[str, int]
    images: str
    maps: str
    img_suffix: str
    seg_map_suffix: str
    archives: str
    converter: str

    def folders(self, root: PathLike, split: str) -> Pair:
        """Folders of the images and of the label maps.

        Raises:
            UserError: if the split is unknown, or one of them is missing.
        """
        if split not in self.counts:
            raise UserError(f"{self.name}: split={split!r} is none of {', '.join(self.counts)}.")
        root = existing_root(root)
        images, maps = (root / name.format(split=split) for name in (self.images, self.maps))
        for folder in (images, maps):
            if not folder.is_dir():
                found = first(sorted(path.name for path in root.iterdir()), 8) or "nothing"
                raise UserError(
                    f"{folder}: no such folder ({root} has: {found}). Expected {self.name} with "
                    f"{self.images.format(split=split)}/ and {self.maps.format(split=split)}/ below the data root, "
                    f"from {self.archives}."
                )
        return images, maps

    def pairs(self, root: PathLike, split: str) -> list[Pair]:
        """(image, label map) paths of a split; single maps, not all, may be missing.

        Raises:
            UserError: if a folder is missing or has no image, or there is no label map with `seg_map_suffix`.
        """
        images, maps = self.folders(root, split)
        found = [
            (image, maps / label_map_name(image, images, self.img_suffix, self.seg_map_suffix))
            for image in list_images(images, self.img_suffix)
        ]
        if not self.label_maps(maps):
            others = first([path.name for path in files_below(maps)]) or "no files"
            raise UserError(
                f"{maps}: no label maps *{self.seg_map_suffix} (it has: {others}). "
                f"{self.converter.format(root=root)} makes them."
            )
        return found

    def label_maps(self, folder: Path) -> list[Path]:
        """The files in a folder that are named as label maps."""
        return [path for path in files_below(folder) if path.name.endswith(self.seg_map_suffix)]


@dataclass(frozen=True)
class VOCLayout(PublicLayout):
    """PASCAL VOC 2012: one folder of images, and a list of names for each split.

    "trainaug" has VOC's own label maps for the images of "train", and SBD's for the others, as mmsegmentation's
    pascal_voc12_aug.py. SBD has none for some images of "train".
    """

    sbd_maps: str = "SegmentationClassAug"
    lists: str = "ImageSets/Segmentation"

    def folders(self, root: PathLike, split: str) -> Pair:
        """As `PublicLayout.folders`; for "trainaug" SBD's maps have to be there, too."""
        found = super().folders(root, split)
        sbd = Path(root) / self.sbd_maps
        if split == "trainaug" and not sbd.is_dir():
            raise UserError(f"{sbd}: no such folder. Expected the label maps of SBD. {self._without_sbd(root)}")
        return found

    def names(self, root: PathLike, split: str) -> list[str]:
        """Names of the images of a split, without suffix. Raises UserError if there is no list of them."""
        path = Path(root) / self.lists / f"{split}.txt"
        if not path.is_file():
            missing = self._without_sbd(root) if split == "trainaug" else f"It is in {self.archives}."
            raise UserError(f"{path}: no such file. Expected the names of {self.counts[split]:,} images. {missing}")
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"{path}: is empty. Expected the names of {self.counts[split]:,} images.")
        return found

    def pairs(self, root: PathLike, split: str) -> list[Pair]:
        """(image, label map) paths of a split in the order of its list; single files may be missing."""
        images, own = self.folders(root, split)
        names = self.names(root, split)
        annotated = set(self.names(root, "train")) if split == "trainaug" else set(names)
        sbd = Path(root) / self.sbd_maps
        return [
            (images / (name + self.img_suffix), (own if name in annotated else sbd) / (name + self.seg_map_suffix))
            for name in names
        ]

    def _without_sbd(self, root: PathLike) -> str:
        return (
            f"{self.converter.format(root=Path(root).parent)} writes {self.sbd_maps}/ and "
            f"{self.lists}/trainaug.txt from SBD's benchmark.tgz; without SBD, split=train has "
            f"{self.counts['train']:,} images."
        )


VOC = VOCLayout(
    name="PASCAL VOC 2012",
    num_classes=21,
    counts={"train": 1464, "trainaug": 10582, "val": 1449},
    images="JPEGImages",
    maps="SegmentationClass",
    img_suffix=".jpg",
    seg_map_suffix=".png",
    archives="VOCtrainval_11-May-2012.tar (data root VOCdevkit/VOC2012)",
    converter="mmsegmentation's `python tools/dataset_converters/voc_aug.py {root} benchmark_RELEASE`",
)
CITYSCAPES = PublicLayout(
    name="Cityscapes",
    num_classes=19,
    counts={"train": 2975, "val": 500},
    images="leftImg8bit/{split}",
    maps="gtFine/{split}",
    img_suffix="_leftImg8bit.png",
    seg_map_suffix="_gtFine_labelTrainIds.png",
    archives="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    converter="`CITYSCAPES_DATASET={root} csCreateTrainIdLabelImgs` (of the package cityscapesscripts)",
)
COCO_STUFF = PublicLayout(
    name="COCO-Stuff 164k",
    num_classes=171,
    counts={"train2017": 118287, "val2017": 5000},
    images="images/{split}",
    maps="annotations/{split}",
    img_suffix=".jpg",
    seg_map_suffix="_labelTrainIds.png",
    archives="train2017.zip, val2017.zip (images/) and stuffthingmaps_trainval2017.zip (annotations/)",
    converter="mmsegmentation's `python tools/dataset_converters/coco_stuff164k.py {root}`",
)


def check_images_there(pairs: list[Pair], layout: PublicLayout) -> None:
    """Raise UserError if images that a list names are missing."""
    lacking = absent([image for image, _ in pairs])
    if lacking:
        raise UserError(
            f"{lacking[0].parent}: {len(lacking)} of {len(pairs)} images are missing "
            f"({first([path.name for path in lacking])}). They are in {layout.archives}."
        )
