"""Whole checks of data roots: what is right passes, each way of being wrong is found, counted and named."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adpe.data.checks import verify
from adpe.data.checks.layout import check_segmentation_root, read_classes
from adpe.data.checks.verify import verify_ade20k, verify_coco, verify_coco_like
from adpe.errors import UserError

SCRIPT = Path(__file__).parents[2] / "tools" / "verify_data.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def failed(findings: list[verify.Finding]) -> dict[str, str]:
    return {finding.check: finding.found for finding in findings if not finding.right}


@pytest.fixture
def ade(tmp_path, monkeypatch) -> Path:
    """4 + 2 images of 8x6 pixels with labels 0..150."""
    monkeypatch.setattr(verify, "ADE20K_IMAGES", {"training": 4, "validation": 2})
    labels = np.array([[0, 1, 2, 150]] * 6, dtype=np.uint8).repeat(2, 1)
    for split, count in (("training", 4), ("validation", 2)):
        for index in range(count):
            save(tmp_path / "ade/ADEChallengeData2016/images" / split / f"{index}.jpg", np.zeros((6, 8, 3), np.uint8))
            save(tmp_path / "ade/ADEChallengeData2016/annotations" / split / f"{index}.png", labels)
    return tmp_path / "ade/ADEChallengeData2016"


@pytest.fixture
def coco(tmp_path, monkeypatch) -> Path:
    """3 + 1 images of 8x6 pixels, two boxes on each, 80 categories."""
    monkeypatch.setattr(verify, "COCO_IMAGES", {"train2017": 3, "val2017": 1})
    names = ["person", *(f"thing {i}" for i in range(78)), "toothbrush"]
    for split, count in (("train2017", 3), ("val2017", 1)):
        images, annotations = [], []
        for index in range(count):
            save(tmp_path / "coco" / split / f"{index}.jpg", np.zeros((6, 8, 3), np.uint8))
            images.append({"id": index, "file_name": f"{index}.jpg", "width": 8, "height": 6})
            for left in (1, 3):
                annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": 1, "area": 12,
                                    "iscrowd": 0, "bbox": [left, 0, 2, 6],
                                    "segmentation": [[left, 0, left + 2, 0, left + 2, 6]]})  # fmt: skip
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
        (tmp_path / "coco/annotations").mkdir(exist_ok=True)
        contents = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"coco/annotations/instances_{split}.json").write_text(json.dumps(contents))
    return tmp_path / "coco"


def change(root: Path, how, name: str = "annotations/instances_train2017.json") -> None:
    contents = json.loads((root / name).read_text())
    how(contents)
    (root / name).write_text(json.dumps(contents))


def test_counts_of_the_published_data_sets():
    assert verify.ADE20K_IMAGES == {"training": 20210, "validation": 2000}
    assert verify.COCO_IMAGES == {"train2017": 118287, "val2017": 5000}


def test_right_ade20k(ade):
    findings = verify_ade20k(ade)
    assert failed(findings) == {}
    right = "all {} that were read are right"
    expected = ["4", "none", "none", right.format(4), "2", "none", "none", right.format(2)]
    assert [finding.found for finding in findings] == expected
    assert verify_ade20k(ade.parent) == findings  # the folder that has it will do


def test_every_fault_of_ade20k_is_counted(ade):
    images, maps = ade / "images/training", ade / "annotations/training"
    (maps / "0.png").rename(maps / "9.png")
    save(maps / "1.png", np.full((6, 8), 151, np.uint8))
    save(maps / "2.png", np.zeros((8, 6), np.uint8))
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:-40])
    (ade / "images/validation/1.jpg").unlink()
    faults = failed(verify_ade20k(ade))
    pairs = faults.pop("training: images and label maps")
    assert faults == {
        "training: images without label map": "1: 0.jpg",
        "training: label maps without image": "1: 9.png",
        "validation: images": "1, expected 2",
        "validation: label maps without image": "1: 1.png",
    }
    assert pairs.startswith(f"3 of 3 are wrong: {maps / '1.png'}: has label 151, expected 0..150. ")
    assert re.search(rf"{images / '2.jpg'} is 8 x 6 pixels, .* for 6 x 8: .*{maps / '2.png'}", pairs)
    assert f"{images / '3.jpg'} cannot be read as an image" in pairs


def test_ignored_pixels_are_no_fault_and_quick_looks_at_a_sample(ade, monkeypatch):
    save(ade / "annotations/training/1.png", np.full((6, 8), 255, np.uint8))
    assert failed(verify_ade20k(ade)) == {}
    save(ade / "annotations/training/1.png", np.full((6, 8), 200, np.uint8))
    monkeypatch.setattr("adpe.data.checks.inspection.SAMPLE", 2)  # the first and the last
    assert failed(verify_ade20k(ade, quick=True)) == {}
    assert list(failed(verify_ade20k(ade))) == ["training: images and label maps"]


@pytest.mark.parametrize(
    "file",
    ["images/ADE/training/urban/street/ADE_train_00016869.jpg", "ADE20K_2021_17_01/index_ade20k.pkl",
     "index_ade20k.mat", "images/training/a/abbey/ADE_train_00000970_seg.png"],
)  # fmt: skip
def test_the_full_data_set_is_told_apart(file, tmp_path):
    """ADE20K_2021_17_01, and the full release of 2016, which has images/training as well."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    for check in (verify_ade20k, check_segmentation_root, read_classes):
        with pytest.raises(UserError, match=r"is the full ADE20K \(found .*not the 2016 scene parsing challenge"):
            check(tmp_path)


def test_right_coco(coco):
    findings = verify_coco(coco)
    assert failed(findings) == {}
    found = {finding.check: finding.found for finding in findings}
    assert found["train2017: annotations"] == "6 on 3 images, 0 of them without any"
    assert found["train2017: categories"] == "80, person to toothbrush"
    assert found["val2017: images"] == "all 1 that were read are right"


@pytest.mark.parametrize(
    ("how", "check", "words"),
    [
        (lambda c: c["annotations"][2].update(bbox=[5, 0, 5, 6]), "box_beyond", "(annotation ids 3)"),
        (lambda c: c.update(images=c["images"][:2], annotations=c["annotations"][:4]), "images in the JSON", "2, exp"),
        (lambda c: c["categories"].pop(), "categories", "79, person to thing 77; expected 80, person to toothbrush"),
        (lambda c: c["annotations"][0].update(image_id=99), "layout", "whose image_id is not among"),
        (lambda c: c["annotations"][0].update(category_id=99), "layout", "whose category_id is not among"),
        (lambda c: c["images"][1].update(file_name="no.jpg"), "layout", "1 of its 3 images are not in"),
    ],
)  # fmt: skip
def test_faults_of_cocos_json(coco, how, check, words):
    change(coco, how)
    faults = failed(verify_coco(coco))
    assert list(faults) == [f"train2017: {check}"]
    assert words in faults[f"train2017: {check}"]


def test_undecodable_images_and_what_is_no_fault(coco):
    path = coco / "train2017/1.jpg"
    save(path, np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-40])  # the header is whole, the pixels are not
    save(coco / "train2017/unlisted.jpg", np.zeros((6, 8, 3), np.uint8))
    change(coco, lambda c: c["annotations"][0].update(bbox=[1, 0, 2, 0]))  # as train2017 has two
    findings = verify_coco(coco)
    assert list(failed(findings)) == ["train2017: images"]
    assert f"1 of 3 are wrong: {path} cannot be read as an image" in failed(findings)["train2017: images"]
    found = {finding.check: finding.found for finding in findings}
    assert found["train2017: images that the JSON does not name"] == "unlisted.jpg"
    assert "(annotation ids 1)" in found["train2017: box_flat"]


def test_ones_own_data(coco):
    root = coco.parent / "own"
    for split, theirs in (("training", "train2017"), ("validation", "val2017")):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (coco / theirs).rename(root / "images" / split)
        (coco / f"annotations/instances_{theirs}.json").rename(root / f"instances_{split}.json")
    findings = verify_coco_like(root)
    assert failed(findings) == {}
    assert findings[-1].found.startswith("80: person, thing 0")
    name = "instances_validation.json"
    change(root, lambda c: c["categories"].reverse(), name)  # labels are matched by name
    assert failed(verify_coco_like(root)) == {}
    change(root, lambda c: c["annotations"][1].update(bbox=[1, 0, 2, 0]), name)
    assert "(annotation ids 2)" in failed(verify_coco_like(root))["validation: box_flat"]
    assert failed(verify_coco_like(root, policy="report")) == {}
    assert failed(verify_coco_like(root, policy="repair")) == {}
    change(root, lambda c: c["annotations"][0].update(bbox=None, segmentation=None), name)
    assert list(failed(verify_coco_like(root, policy="report"))) == [
        "validation: box_unreadable",
        "validation: mask_none",
    ]
    assert failed(verify_coco_like(root, policy="repair")) == {}
    change(root, lambda c: [item.update(bbox=None, segmentation=None) for item in c["annotations"]], name)
    assert list(failed(verify_coco_like(root, policy="repair"))) == ["validation: repaired"]
    change(root, lambda c: c["categories"].pop(0), name)
    assert "validation has 79" in failed(verify_coco_like(root))["categories of both splits"]


def test_the_script_says_it_in_a_table_and_its_status(ade, capsys):
    specification = importlib.util.spec_from_file_location("verify_data", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert script.main(["ade20k", str(ade)]) == 0
    output = capsys.readouterr().out
    assert "training: label maps without image" in output and f"{ade}: all checks passed." in output
    (ade / "images/training/0.jpg").unlink()
    assert script.main(["ade20k", str(ade), "--quick"]) == 1
    assert f"{ade}: 2 of 8 checks failed." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main(["ade20k", str(ade), "--label-policy", "repair"])
    assert script.main(["coco", str(ade / "nowhere"), "--label-policy", "report"]) == 1
    assert "nowhere: does not exist" in capsys.readouterr().err
