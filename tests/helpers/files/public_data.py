"""A few small images and label maps in the layouts of PASCAL VOC 2012, Cityscapes and COCO-Stuff 164k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)  # height and width
CLASSES = {"voc": 21, "cityscapes": 19, "coco-stuff": 171}


def labels(largest: int) -> np.ndarray:
    """Quarters of label 0, 1, `largest` and 255."""
    return np.kron(np.array([[0, 1], [largest, 255]], np.uint8), np.ones((SIZE[0] // 2, SIZE[1] // 2), np.uint8))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pair(image: Path, label_map: Path, largest: int, number: int) -> None:
    save(image, np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8))
    save(label_map, labels(largest))


def write_voc(root: Path) -> Path:
    """Two images of train, one of which SBD lacks, two more of trainaug, three of val."""
    splits = {"train": ["a1", "a2"], "trainaug": ["a1", "a2", "b1", "b2"], "val": ["c1", "c2", "c3"]}
    for split, names in splits.items():
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    for number, name in enumerate(["a1", "a2", "b1", "b2", "c1", "c2", "c3"]):
        folder = "SegmentationClassAug" if name.startswith("b") else "SegmentationClass"
        _pair(root / f"JPEGImages/{name}.jpg", root / folder / f"{name}.png", 20, number)
    save(root / "SegmentationClassAug/a2.png", np.full(SIZE, 7, np.uint8))  # VOC's own map goes before it
    return root


def write_cityscapes(root: Path) -> Path:
    """Three images of train in two cities, two of val; each with its map of ids beside that of train ids."""
    for number, name in enumerate(["train/aachen/a", "train/aachen/b", "train/ulm/c", "val/bonn/d", "val/bonn/e"]):
        _pair(
            root / f"leftImg8bit/{name}_leftImg8bit.png", root / f"gtFine/{name}_gtFine_labelTrainIds.png", 18, number
        )
        save(root / f"gtFine/{name}_gtFine_labelIds.png", np.full(SIZE, 33, np.uint8))
    return root


def write_coco_stuff(root: Path) -> Path:
    """Three images of train2017, two of val2017; each with its map of ids beside that of train ids."""
    for number, name in enumerate(["train2017/1", "train2017/2", "train2017/3", "val2017/4", "val2017/5"]):
        _pair(root / f"images/{name}.jpg", root / f"annotations/{name}_labelTrainIds.png", 170, number)
        save(root / f"annotations/{name}.png", np.full(SIZE, 181, np.uint8))
    return root


WRITERS = {"voc": write_voc, "cityscapes": write_cityscapes, "coco-stuff": write_coco_stuff}
