"""Rows of labels out of COCO JSON and label maps: matched by name, crowds, small and ignored areas, wrong data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from adpe.data.multi_label import AdPEMultiLabelCoco, AdPEMultiLabelMasks
from adpe.data.scenes import write_scenes
from adpe.data.views.cutout import Cutout
from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.errors import UserError

TRANSFORM = {"input_size": 16, "crop_mode": "squash", "crop_pct": 1.0}


def annotation(image: int, category: int, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, **more}


def coco(root: Path, name: str, categories: dict[int, str], annotations: list[dict[str, Any]]) -> Path:
    """A JSON over the images 0.png, 1.png and 2.png."""
    (root / "images").mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (12, 20, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 20, "height": 12} for i in range(3)]
    numbered = [{"id": i, **one} for i, one in enumerate(annotations, start=1)]
    told = [{"id": number, "name": word} for number, word in categories.items()]
    (root / name).write_text(json.dumps({"images": images, "annotations": numbered, "categories": told}))
    return root


def read(root: Path, name: str, **options: Any) -> AdPEMultiLabelCoco:
    return AdPEMultiLabelCoco(root, name, {"img": "images"}, transform=TRANSFORM, **options)


def test_labels_follow_the_names_of_categories(tmp_path: Path) -> None:
    """Whatever their ids and order; a class that a file does not know is unknown in it, not absent."""
    annotations = [annotation(10, 7), annotation(10, 7), annotation(11, 3), annotation(12, 7), annotation(12, 3)]
    train = read(coco(tmp_path, "train.json", {7: "cat", 3: "dog", 5: "owl"}, annotations), "train.json")
    assert train.classes == ("cat", "dog", "owl")
    assert train.targets.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    other = read(coco(tmp_path, "val.json", {3: "cat", 7: "dog"}, annotations), "val.json")
    other.match_classes(train.classes)
    assert other.targets.tolist() == [[0, 1, -1], [1, 0, -1], [1, 1, -1]]
    sample = train[1]
    assert sample["inputs"].shape == (3, 16, 16) and sample["inputs"].dtype == torch.float32
    assert sample["data_samples"]["label"].tolist() == [0, 1, 0] and sample["data_samples"]["index"] == 1
    assert Path(sample["data_samples"]["img_path"]).name == "1.png"
    assert [Path(path).name for path in read(tmp_path, "train.json", limit=2).paths()] == ["0.png", "1.png"]


def test_crowds(tmp_path: Path) -> None:
    """Present as in the reference, or unknown where no object of the class stands by itself."""
    crowd = {"iscrowd": 1}
    annotations = [annotation(10, 1, **crowd), annotation(11, 1, **crowd), annotation(11, 1), annotation(12, 2)]
    coco(tmp_path, "a.json", {1: "cat", 2: "dog"}, annotations)
    assert read(tmp_path, "a.json").targets.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert read(tmp_path, "a.json", crowds="unknown").targets.tolist() == [[-1, 0], [1, 0], [0, 1]]
    with pytest.raises(UserError, match="crowds"):
        read(tmp_path, "a.json", crowds="absent")


def test_wrong_annotations_are_named(tmp_path: Path) -> None:
    coco(tmp_path, "a.json", {1: "cat"}, [annotation(10, 1)])
    known = read(tmp_path, "a.json")
    foreign = read(coco(tmp_path, "b.json", {1: "cat", 2: "hen"}, [annotation(11, 2)]), "b.json")
    with pytest.raises(UserError, match=r"b\.json.*hen"):
        foreign.match_classes(known.classes)
    with pytest.raises(UserError, match=r"c\.json"):
        read(coco(tmp_path, "c.json", {1: "cat"}, []), "c.json")
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        read(tmp_path, "a.json")
    for options, key in (({"limit": 0}, "limit"), ({"cutout": 1.5}, "cutout"), ({"label_policy": "x"}, "label_policy")):
        with pytest.raises(UserError, match=key):
            read(coco(tmp_path, "a.json", {1: "cat"}, [annotation(10, 1)]), "a.json", **options)


def test_masks_and_json_of_the_scenes_agree(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=30, num_val=5, num_unlabelled=0, size=48)
    boxes = AdPEMultiLabelCoco(tmp_path, "instances_training.json", {"img": "images/training"})
    folders = {"img_path": "images/training", "seg_map_path": "annotations/training"}
    masks = AdPEMultiLabelMasks(tmp_path, folders, without=["background"])
    assert masks.classes == boxes.classes == ("0", "1", "2")
    assert [Path(path).name for path in masks.paths()] == [Path(path).name for path in boxes.paths()]
    assert np.array_equal(masks.targets, boxes.targets) and 0 < boxes.targets.mean() < 1
    assert AdPEMultiLabelMasks(tmp_path, folders).targets[:, 0].all()
    with pytest.raises(UserError, match="sky"):
        AdPEMultiLabelMasks(tmp_path, folders, without=["sky"])


def maps(root: Path, labels: list[list[int]]) -> dict[str, str]:
    for folder in ("images/a", "annotations/a"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(labels):
        Image.fromarray(np.zeros((1, len(row), 3), np.uint8)).save(root / "images/a" / f"{number}.png")
        Image.fromarray(np.asarray([row], np.uint8)).save(root / "annotations/a" / f"{number}.png")
    return {"img_path": "images/a", "seg_map_path": "annotations/a"}


def test_small_and_ignored_areas_are_no_classes(tmp_path: Path) -> None:
    folders = maps(tmp_path, [[0, 1, 1, 1], [2, 255, 255, 1], [0, 0, 3, 3]])
    names = ["a", "b", "c"]
    assert AdPEMultiLabelMasks(tmp_path, folders, names).targets.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    large = AdPEMultiLabelMasks(tmp_path, folders, names, min_area=2)
    assert large.targets.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    other = AdPEMultiLabelMasks(tmp_path, folders, names, ignore_labels=(3, 255))
    assert other.targets.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    plain = AdPEMultiLabelMasks(tmp_path, folders, [*names, "d"], reduce_zero_label=False)
    assert plain.targets.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    with pytest.raises(UserError, match=r"2\.png: has label 3"):
        AdPEMultiLabelMasks(tmp_path, folders, names[:2])
    with pytest.raises(UserError, match="min_area"):
        AdPEMultiLabelMasks(tmp_path, folders, names, min_area=0)
    (tmp_path / "annotations/a/1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png"):
        AdPEMultiLabelMasks(tmp_path, folders, names)


def test_a_quarter_is_painted_over() -> None:
    image = Image.new("RGB", (40, 40), (1, 2, 3))
    painted = []
    for seed in range(200):
        random.seed(seed)
        changed = (np.asarray(Cutout(0.5)(image)) != (1, 2, 3)).any(axis=-1)
        rows, columns = changed.any(axis=1), changed.any(axis=0)
        assert changed.sum() == rows.sum() * columns.sum() and rows.sum() <= 20 and columns.sum() <= 20
        painted.append(changed.sum())
    assert max(painted) == 400 and min(painted) < 250


def test_augmentation_follows_the_seed_of_the_item(tmp_path: Path) -> None:
    coco(tmp_path, "a.json", {1: "cat"}, [annotation(10, 1)])
    data = AdPESeededDataset(read(tmp_path, "a.json", cutout=0.5, rand_augment=True), seed=3)
    plain = read(tmp_path, "a.json")
    assert torch.equal(data[0]["inputs"], data[0]["inputs"])
    assert not torch.equal(data[0]["inputs"], data[3]["inputs"])  # another pass
    assert torch.equal(plain[0]["inputs"], plain[0]["inputs"])
    assert data[0]["inputs"].shape == plain[0]["inputs"].shape
