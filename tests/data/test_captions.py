"""Captions as numbers of words, from files of captions and of boxes, and which are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from adpe.data.captions import Captions, caption_of_boxes, encode, numbers_of, read_captions
from adpe.data.dataset import AdPEImageDataset
from adpe.data.scenes import write_scenes
from adpe.errors import UserError

WORDS = ("a", "0", "2", "left", "of", "above")
CROPS = {"size": 16, "num_crops": 1, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "normalize": "device"}


def coco(folder: Path, annotations: list[dict[str, Any]]) -> str:
    images = [{"id": 7, "file_name": "one.png"}, {"id": 9, "file_name": "sub/two.png"}]
    categories = [{"id": 1, "name": "0"}, {"id": 3, "name": "2"}]
    path = folder / "file.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


def test_captions_of_a_file_and_of_boxes(tmp_path: Path):
    said = [
        {"image_id": 7, "caption": "A 2, above a 0."},
        {"image_id": 7, "caption": "a 0"},
        {"image_id": 9, "category_id": 3, "bbox": [10, 2, 4, 4]},
        {"image_id": 9, "category_id": 1, "bbox": [0, 4, 4, 4]},
    ]
    file = coco(tmp_path, said)
    assert read_captions(file) == {"one.png": ["A 2, above a 0.", "a 0"], "two.png": ["a 0 left of a 2"]}
    captions = Captions(file, WORDS, 6, ["x/two.png", "y/one.png"])
    assert captions.draw(0, random.Random(0)).tolist() == [1, 2, 4, 5, 1, 3]
    drawn = {tuple(captions.draw(1, random.Random(seed)).tolist()) for seed in range(20)}
    assert drawn == {(1, 3, 6, 1, 2, 0), (1, 2, 0, 0, 0, 0)}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ((0, 20), "a 0 above a 2"),
        ((0, -20), "a 2 above a 0"),
        ((9, 3), "a 0 left of a 2"),
        ((-9, 3), "a 2 left of a 0"),
    ],
)
def test_boxes_are_put_into_words(second: tuple[int, int], said: str):
    """By their centres, whatever their sizes."""
    big = [second[0] - 8, second[1] - 8, 20, 20]
    assert caption_of_boxes([("0", [0, 0, 4, 4]), ("2", big)]) == said
    assert caption_of_boxes([("2", [3, 3, 1, 1])]) == "a 2"


@pytest.mark.parametrize(
    ("caption", "key"), [("a cat", "cat"), ("", "0"), ("a 2 left of a 0 above a 2", "9 words"), ("...", r"\.\.\.")]
)
def test_captions_that_do_not_fit_are_refused(caption: str, key: str):
    with pytest.raises(UserError, match=key):
        encode(caption, numbers_of(WORDS), 6)


@pytest.mark.parametrize("words", [(), ("a", "a"), ("A",), ("left of",), (3,)])
def test_words_that_cannot_be_are_refused(words: tuple):
    with pytest.raises(UserError, match="words"):
        numbers_of(words)


@pytest.mark.parametrize("fault", ["missing", "text", "no category", "no image"])
def test_files_that_do_not_fit_are_refused(fault: str, tmp_path: Path):
    file = coco(tmp_path, [{"image_id": 7, "caption": "a 0"}])
    if fault == "missing":
        file = str(tmp_path / "none.json")
    elif fault == "text":
        Path(file).write_text("captions")
    elif fault == "no category":
        file = coco(tmp_path, [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(UserError, match=r"two\.png" if fault == "no image" else Path(file).name.replace(".", r"\.")):
        Captions(file, WORDS, 6, ["one.png", *(["two.png"] if fault == "no image" else [])])


def test_the_data_set_gives_words_or_classes_with_the_crops(tmp_path: Path):
    write_scenes(tmp_path / "scenes", 6, 1, 0, 32)
    words = ("a", "left", "of", "above", "0", "1", "2")
    captions = {"file": str(tmp_path / "scenes" / "instances_training.json"), "words": words, "length": 6}
    data = AdPEImageDataset(tmp_path / "scenes" / "images", "training", CROPS, captions=captions)
    by_name = read_captions(captions["file"])
    for item in (data[index] for index in range(len(data))):
        crops, ids = item["inputs"]
        assert crops.shape == (1, 3, 16, 16) and ids.dtype == torch.int64
        said = " ".join(words[i - 1] for i in ids.tolist() if i)
        assert [said] == by_name[Path(item["data_samples"]["img_path"]).name]
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "classes" / name / "one.png")
    labelled = AdPEImageDataset(tmp_path / "classes", None, CROPS, labels=True)
    assert [labelled[index]["inputs"][1].tolist() for index in range(2)] == [[1], [2]]
    with pytest.raises(UserError, match="hflip"):
        AdPEImageDataset(tmp_path / "scenes" / "images", "training", {**CROPS, "hflip": 0.5}, captions=captions)
    with pytest.raises(UserError, match="labels"):
        AdPEImageDataset(tmp_path / "scenes" / "images", "training", CROPS, captions=captions, labels=True)
    with pytest.raises(UserError, match="folders of classes"):
        AdPEImageDataset(tmp_path / "classes" / "cat", None, CROPS, labels=True)
