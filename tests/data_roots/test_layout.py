"""Data roots that are right, and the words about each way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adpe.data.checks.layout import check_coco_root, check_label_maps, check_segmentation_root, read_classes
from adpe.errors import UserError

NAMES = ["sky", "sea", "sand"]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """4 + 2 images of 8x6 pixels; labels 0 (unlabelled), 1, 2, 3 and 255; masks of sky and sand."""
    root = tmp_path / "beach"
    labels = np.array([[0, 1, 2, 3, 3, 2, 1, 255]] * 6, dtype=np.uint8)
    for split, count in (("training", 4), ("validation", 2)):
        images, annotations = [], []
        for index in range(count):
            save(root / "images" / split / f"{index}.jpg", np.full((6, 8, 3), 40 * index, dtype=np.uint8))
            save(root / "annotations" / split / f"{index}.png", labels)
            images.append({"id": index, "file_name": f"{index}.jpg", "width": 8, "height": 6})
            for category_id, left in ((30, 1), (10, 3)):
                box = [left, 0, 2, 6]
                polygon = [left, 0, left + 2, 0, left + 2, 6, left, 6]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": category_id,
                        "bbox": box,
                        "area": 12,
                        "iscrowd": 0,
                        "segmentation": [polygon],
                    }
                )
        categories = [{"id": 30, "name": "sky"}, {"id": 10, "name": "sand"}]
        contents = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(contents))
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


def change_json(root: Path, change) -> None:
    path = root / "instances_training.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_right_segmentation_root(root):
    layout = check_segmentation_root(str(root), num_classes=3)
    assert layout.root == root
    assert layout.num_images == {"training": 4, "validation": 2}
    assert layout.classes == ("sky", "sea", "sand")


def test_images_in_folders_hidden_files_and_palette_maps(root):
    image, label_map = root / "images/training/3.jpg", root / "annotations/training/3.png"
    for path in (image, label_map):
        (path.parent / "north").mkdir()
        path.rename(path.parent / "north" / path.name)
    palette = Image.open(root / "annotations/training/north/3.png").convert("P")
    palette.putdata([1] * 48)
    palette.save(root / "annotations/training/north/3.png")
    (root / "images/training/._0.jpg").write_bytes(b"")
    assert check_segmentation_root(root).num_images["training"] == 4


def test_right_coco_root(root):
    layout = check_coco_root(root)
    assert layout.json == root / "instances_training.json" and layout.images == root / "images/training"
    assert (layout.num_images, layout.num_annotations, layout.classes) == (4, 8, ("sky", "sand"))
    layout = check_coco_root(root, "instances_validation.json", "images/validation", classes=["sand"])
    assert (layout.num_images, layout.num_annotations, layout.classes) == (2, 4, ("sand",))


def test_classes_below_a_relative_root(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for classes in (None, "classes.json", root / "classes.json"):
        assert read_classes(root.name, classes) == ("sky", "sea", "sand")


def test_classes_by_name_by_file_and_by_label(root, capsys):
    assert read_classes(root, ["a", "b"]) == ("a", "b")
    (root / "classes.json").rename(root / "classes3.json")
    assert read_classes(root) == ("sky", "sea", "sand")
    assert read_classes(root, "classes3.json") == ("sky", "sea", "sand")
    assert read_classes(root, root / "classes3.json") == ("sky", "sea", "sand")
    assert capsys.readouterr().out == ""
    (root / "classes3.json").unlink()
    assert read_classes(root) == ("class_1", "class_2", "class_3")
    assert "no classes.json; 6 label maps have labels up to 3: 3 classes." in capsys.readouterr().out
    assert read_classes(root, reduce_zero_label=False) == ("class_0", "class_1", "class_2", "class_3")
    # The number comes from all the label maps, validation's as well.
    save(root / "annotations/validation/1.png", np.full((6, 8), 5, dtype=np.uint8))
    assert len(read_classes(root)) == 5


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ("{", r"classes\.json: not a JSON file"),
        ('{"0": "sky"}', "expected a list of the classes' names"),
        ('["sky", 3]', "expected a list of the classes' names"),
        ("[]", "expected a list of the classes' names"),
        ('["sky", "sea", "sky"]', "sky repeated"),
    ],
)
def test_wrong_classes_file(root, contents, words):
    (root / "classes.json").write_text(contents)
    with pytest.raises(UserError, match=words):
        check_segmentation_root(root)


def test_no_and_several_classes_files(root):
    with pytest.raises(UserError, match=r"names\.json: cannot be read \(No such file"):
        read_classes(root, "names.json")
    (root / "classes133.json").write_text("[]")
    with pytest.raises(UserError, match=r"found classes\.json, classes133\.json, expected one.*classes="):
        read_classes(root)


def test_no_labels_to_infer_classes_from(root):
    (root / "classes.json").unlink()
    for path in (root / "annotations").rglob("*.png"):
        save(path, np.zeros((6, 8), dtype=np.uint8))
    with pytest.raises(UserError, match=r"no labels in 6 label maps \*\.png"):
        read_classes(root)


@pytest.mark.parametrize("check", [check_segmentation_root, check_coco_root, read_classes])
def test_no_root(tmp_path, check):
    with pytest.raises(UserError, match=r"Data root .*nowhere: does not exist\. Correct data_root"):
        check(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"Data root .*file: not a folder"):
        check(tmp_path / "file")


@pytest.mark.parametrize("folder", ["images/training", "images/validation", "annotations/validation"])
def test_missing_folder_tells_what_is_there(root, folder):
    path = root / folder
    path.rename(path.parent / "elsewhere")
    with pytest.raises(UserError, match=rf"{folder}: no such folder \(.* has: .*elsewhere.*\)\. Expected images/"):
        check_segmentation_root(root)


def test_no_images_tells_what_is_there(root):
    for path in (root / "images/training").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"training: no images; .* 4 \.heic \(0\.heic\).*set img_suffix"):
        check_segmentation_root(root)
    for path in (root / "images/training").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"training: no images; it has no files"):
        check_segmentation_root(root)


def test_images_without_label_maps_are_counted_and_three_named(root):
    for index in range(4):
        (root / f"annotations/training/{index}.png").unlink()
    with pytest.raises(UserError, match=r"4 of 4 images .* have no label map .* \(0\.jpg, 1\.jpg, 2\.jpg, \.\.\."):
        check_segmentation_root(root)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((6, 8), dtype=np.uint16), r"2\.png: a label map of mode I;16, expected one 8-bit channel"),
        (np.ones((6, 8, 3), dtype=np.uint8), r"2\.png: a label map of mode RGB, expected one 8-bit channel"),
        (np.ones((8, 6), dtype=np.uint8), r"2\.jpg is 8 x 6 pixels, .* for 6 x 8: .*2\.png"),
        (np.full((6, 8), 4, dtype=np.uint8), r"2\.png: has label 4, expected 0 = unlabelled, 1\.\.3 for 3 classes"),
    ],
)
def test_wrong_label_map(root, array, words):
    save(root / "annotations/training/2.png", array)
    with pytest.raises(UserError, match=words):
        check_segmentation_root(root)


@pytest.mark.parametrize("name", ["images/validation/1.jpg", "annotations/validation/1.png"])
def test_damaged_file(root, name):
    path = root / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=rf"{name}: not a readable"):
        check_segmentation_root(root)


def test_labels_without_reduction_start_at_zero(root):
    pairs = [(root / "images/training/0.jpg", root / "annotations/training/0.png")]
    check_label_maps(pairs, 4, reduce_zero_label=False)
    with pytest.raises(UserError, match=r"has label 3, expected 0\.\.2 for 3 classes"):
        check_label_maps(pairs, 3, reduce_zero_label=False)


def test_number_of_classes_of_the_model(root):
    with pytest.raises(UserError, match=r"has 3 classes \(sky, sea, sand\), but the model num_classes=150\."):
        check_segmentation_root(root, num_classes=150)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("categories"), "has no list 'categories'"),
        (lambda c: c.update(images={}), "has no list 'images'"),
        (lambda c: c.update(annotations=[]), "the list 'annotations' is missing or empty"),
        (lambda c: c["images"][1].pop("width"), "an item of 'images' has no width"),
        (
            lambda c: c["annotations"][1].update(image_id=99),
            r"1 annotations \(ids 2\) whose image_id is not among",
        ),
        (lambda c: c["annotations"][4].update(category_id=3), r"\(ids 5\) whose category_id is not among"),
        (lambda c: c["categories"][1].update(name="sky"), "several categories are called sky"),
        (lambda c: c["images"][2].update(width=9), r"2\.jpg is 8 x 6 pixels, .* for 9 x 6: .*instances_training\.json"),
        (
            lambda c: [image.update(file_name="no" + image["file_name"]) for image in c["images"]],
            r"4 of its 4 images are not in .*images/training \(no0\.jpg, no1\.jpg, no2\.jpg, \.\.\.\)",
        ),
    ],
)
def test_wrong_coco_json(root, change, words):
    change_json(root, change)
    with pytest.raises(UserError, match=words):
        check_coco_root(root)


def test_boxes_alone_when_masks_are_not_needed(root):
    change_json(root, lambda c: [annotation.pop("segmentation") for annotation in c["annotations"]])
    assert check_coco_root(root, with_mask=False).num_annotations == 8


def test_coco_classes_that_are_not_the_jsons(root):
    with pytest.raises(UserError, match=r"has none of the classes sea; its categories are sky, sand"):
        check_coco_root(root, classes=["sea"])
    assert check_coco_root(root, classes=["sand", "sky"]).classes == ("sand", "sky")
    with pytest.raises(UserError, match=r"classes='sky': expected a list"):
        check_coco_root(root, classes="sky")


def test_no_json_and_no_folder(root):
    with pytest.raises(UserError, match=r"instances\.json: cannot be read \(No such file"):
        check_coco_root(root, "instances.json")
    with pytest.raises(UserError, match=r"train2017: no such folder"):
        check_coco_root(root, images="train2017")
    (root / "instances_training.json").write_text("not json")
    with pytest.raises(UserError, match="not a JSON file"):
        check_coco_root(root)
