"""The embedded data: exact masks, disjoint splits, the same bytes every time, whole or absent."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from sklearn.datasets import load_digits

from adpe.data import composition, scenes
from adpe.data.scenes import CLASSES, write_scenes
from adpe.errors import UserError

SMALL = {"num_train": 6, "num_val": 3, "num_unlabelled": 2, "size": 64, "seed": 0}
# SHA-256 of the label maps of `SMALL`, training then validation, row by row.
LABELS_SHA256 = "f1acce16a2fee665a1217b2cb17bbc7467da0360c07f66ebf3d0004d48d510da"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", **SMALL)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def label_map(root: Path, split: str, stem: str) -> np.ndarray:
    return np.array(Image.open(root / "annotations" / split / f"{stem}.png"))


def test_files_and_formats(root):
    expected = {"classes.json", "instances_training.json", "instances_validation.json", "scenes.json"}
    for split, count in (("training", 6), ("validation", 3)):
        expected |= {f"images/{split}/scene_{index:05d}.jpg" for index in range(count)}
        expected |= {f"annotations/{split}/scene_{index:05d}.png" for index in range(count)}
    expected |= {"unlabelled/scene_00000.jpg", "unlabelled/scene_00001.jpg"}
    assert set(hashes(root)) == expected
    assert json.loads((root / "classes.json").read_text()) == ["background", "0", "1", "2"]
    for path in root.rglob("*.jpg"):
        image = Image.open(path)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert np.asarray(image).std() > 5, path
    for path in root.rglob("*.png"):
        image = Image.open(path)
        assert (image.mode, image.size) == ("L", (64, 64))
        labels = np.unique(image)
        assert labels[0] == 1 and 2 <= labels[-1] <= 4, path


def test_same_arguments_give_the_same_bytes_and_the_seed_others(root, tmp_path):
    again = write_scenes(tmp_path / "again", **SMALL)
    assert hashes(again) == hashes(root)
    other = write_scenes(tmp_path / "other", **{**SMALL, "seed": 1})
    for path in (root / "annotations").rglob("*.png"):
        assert (other / path.relative_to(root)).read_bytes() != path.read_bytes()


def test_label_maps_are_those_of_every_machine(root):
    digest = hashlib.sha256()
    for split in ("training", "validation"):
        for path in sorted((root / "annotations" / split).iterdir()):
            digest.update(np.array(Image.open(path)).tobytes())
    assert digest.hexdigest() == LABELS_SHA256


def test_more_scenes_keep_the_first_ones(root, tmp_path):
    more = hashes(write_scenes(tmp_path / "more", **{**SMALL, "num_train": 7, "num_unlabelled": 0}))
    few = hashes(root)
    shared = [name for name in few if name.endswith((".jpg", ".png")) and not name.startswith("unlabelled")]
    assert len(shared) == 18 and all(more[name] == few[name] for name in shared)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_coco_masks_boxes_and_areas_recompose_the_label_maps(root, split):
    coco = json.loads((root / f"instances_{split}.json").read_text())
    assert [(c["id"], c["name"]) for c in coco["categories"]] == [(k + 1, str(k)) for k in range(3)]
    assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for image in coco["images"]:
        labels = label_map(root, split, Path(image["file_name"]).stem)
        assert labels.shape == (image["height"], image["width"])
        composed = np.ones_like(labels)
        covered = np.zeros(labels.shape, dtype=int)
        for annotation in coco["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert annotation["bbox"] == [float(value) for value in box]
            assert annotation["area"] == mask.sum() >= 12
            assert annotation["iscrowd"] == 0
            composed[mask] = annotation["category_id"] + 1
            covered += mask
        assert covered.max() == 1
        np.testing.assert_array_equal(composed, labels)


def test_masks_are_the_visible_pixels_of_the_recorded_digits(root):
    """Draw the recorded scans at the recorded places by other means, SciPy's cubic splines."""
    scans = load_digits()
    manifest = json.loads((root / "scenes.json").read_text())["scenes"]["training"]
    coco = json.loads((root / "instances_training.json").read_text())
    for image in coco["images"]:
        records = manifest[Path(image["file_name"]).stem]["digits"]
        annotations = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert [record["digit"] + 1 for record in records] == [a["category_id"] for a in annotations]
        expected = np.zeros((64, 64), dtype=int)
        areas = []
        for number, record in enumerate(records, start=1):
            assert record["digit"] == scans.target[record["sample"]]
            angle, scale = np.deg2rad(record["angle"]), record["scale"]
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale  # rows y, x
            centre = np.array(record["centre"][::-1]) - 0.5
            scan = np.pad(scans.images[record["sample"]] / 16, 2)
            drawn = ndimage.affine_transform(scan, turn, offset=5.5 - turn @ centre, output_shape=(64, 64), order=3)
            areas.append((drawn >= 0.375).sum())
            expected[drawn >= 0.375] = number
        for number, annotation in enumerate(annotations, start=1):
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            union = (mask | (expected == number)).sum()
            assert (mask & (expected == number)).sum() / union > 0.85
            assert mask.sum() >= 0.7 * areas[number - 1]


def test_validation_shares_no_digit_and_no_photograph(tmp_path):
    root = write_scenes(tmp_path / "data", num_train=80, num_val=60, num_unlabelled=60, size=32)
    manifest = json.loads((root / "scenes.json").read_text())
    assert manifest["arguments"] == {"num_train": 80, "num_val": 60, "num_unlabelled": 60, "size": 32, "seed": 0}
    used = {}
    for split, count in (("training", 80), ("validation", 60), ("unlabelled", 60)):
        records = manifest["scenes"][split]
        assert list(records) == [f"scene_{index:05d}" for index in range(count)]
        samples = {digit["sample"] for record in records.values() for digit in record["digits"]}
        used[split] = (samples, {record["photograph"] for record in records.values()})
        assert {digit["digit"] for record in records.values() for digit in record["digits"]} == {0, 1, 2}
        assert all(1 <= len(record["digits"]) <= 2 for record in records.values())
    assert used["training"][1] | used["unlabelled"][1] == set(composition.TRAINING_PHOTOGRAPHS)
    assert used["validation"][1] == set(composition.VALIDATION_PHOTOGRAPHS)
    assert not set(composition.TRAINING_PHOTOGRAPHS) & set(composition.VALIDATION_PHOTOGRAPHS)
    assert not (used["training"][0] | used["unlabelled"][0]) & used["validation"][0]
    assert len(used["validation"][0]) > 40 and len(used["training"][0]) > 60
    unlabelled, training = (hashes(root / name) for name in ("unlabelled", "images/training"))
    assert not set(unlabelled.values()) & set(training.values())


def test_digits_stand_out_from_what_is_around_them():
    contrasts = []
    for scene in composition.compose_scenes(60, "training"):
        luminance = scene.image @ composition.LUMINANCE / 255
        for number in range(1, len(scene.digits) + 1):
            mask = scene.instances == number
            ring = ndimage.binary_dilation(mask, iterations=3) & (scene.instances == 0)
            contrasts.append(abs(luminance[mask].mean() - luminance[ring].mean()))
    assert len(contrasts) > 60
    assert np.median(contrasts) > 0.2
    assert np.mean(np.array(contrasts) < 0.08) < 0.05


def test_second_call_leaves_the_files_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_scenes(str(root), **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_arguments_in_the_same_root_are_an_error_that_names_both(root):
    with pytest.raises(UserError, match=r"num_train=6, .*size=64, seed=0; asked for .*size=32, seed=0.*another folder"):
        write_scenes(root, **{**SMALL, "size": 32})


def test_a_root_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"not empty, and no scenes\.json"):
        write_scenes(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(UserError, match="found a file, expected a folder"):
        write_scenes(tmp_path / "holiday.jpg", **SMALL)
    with pytest.raises(UserError, match=r"scenes cannot be written \(.*holiday\.jpg"):
        write_scenes(tmp_path / "holiday.jpg" / "data", **SMALL)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_lost_file_is_found(tmp_path, damage):
    root = write_scenes(tmp_path / "data", **SMALL)
    lost = root / "annotations" / "training" / "scene_00002.png"
    if damage == "missing":
        lost.unlink()
    else:
        lost.write_bytes(b"")
    with pytest.raises(UserError, match=r"annotations/training: found 5 whole files, expected 6\. Delete .*data"):
        write_scenes(root, **SMALL)


@pytest.mark.parametrize(
    ("key", "value", "lowest"), [("num_train", 0, 1), ("num_val", -1, 1), ("size", 31, 32), ("seed", 0.5, 0)]
)
def test_impossible_arguments(tmp_path, key, value, lowest):
    with pytest.raises(UserError, match=rf"{key}={value}: expected a whole number of at least {lowest}"):
        write_scenes(tmp_path / "data", **{**SMALL, key: value})
    assert not any(tmp_path.iterdir())


def test_interruption_leaves_nothing_and_an_empty_folder_is_filled(tmp_path, monkeypatch):
    root = tmp_path / "data"
    root.mkdir()

    def interrupted(*args):
        yield next(composition.compose_scenes(1, "training", 64))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "compose_scenes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(root, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["data"] and not any(root.iterdir())
    write_scenes(root, **SMALL)
    assert len(list(root.rglob("*.jpg"))) == 11


def test_two_writers_of_one_root_agree(root, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda _: write_scenes(tmp_path / "data", **SMALL), range(2)))
    assert written == [tmp_path / "data"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert hashes(tmp_path / "data") == hashes(root)


def test_a_package_without_its_photographs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(composition, "TRAINING_PHOTOGRAPHS", ("absent.png",))
    with pytest.raises(UserError, match=r"absent\.png is neither in .*skimage.*nor in .*sklearn.*requirements/runtime"):
        write_scenes(tmp_path / "data", **SMALL)


def test_class_of_a_label():
    scene = next(composition.compose_scenes(1, "validation", 48, seed=3))
    for number, digit in enumerate(scene.digits, start=1):
        labels = np.unique(scene.labels[scene.instances == number])
        assert [CLASSES[label - 1] for label in labels] == [str(digit)]
