"""PASCAL VOC 2012, Cityscapes and COCO-Stuff 164k: what is right passes, each way of being wrong is found and named."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from public_data import CLASSES, SIZE, WRITERS, save

from adpe.data.checks.findings import Finding
from adpe.data.checks.inspection import SAMPLE
from adpe.data.checks.public_layouts import CITYSCAPES, COCO_STUFF, VOC
from adpe.data.checks.verify import VERIFIERS
from adpe.errors import UserError

SCRIPT = Path(__file__).parents[2] / "tools" / "verify_data.py"
LAYOUTS = {"voc": VOC, "cityscapes": CITYSCAPES, "coco-stuff": COCO_STUFF}
COUNTS = {
    "voc": {"train": 2, "trainaug": 4, "val": 3},
    "cityscapes": {"train": 3, "val": 2},
    "coco-stuff": {"train2017": 3, "val2017": 2},
}
# Of the split that is trained on: an image, and its label map.
FILES = {
    "voc": ("JPEGImages/b1.jpg", "SegmentationClassAug/b1.png"),
    "cityscapes": ("leftImg8bit/train/ulm/c_leftImg8bit.png", "gtFine/train/ulm/c_gtFine_labelTrainIds.png"),
    "coco-stuff": ("images/train2017/2.jpg", "annotations/train2017/2_labelTrainIds.png"),
}
TRAIN = {"voc": "trainaug", "cityscapes": "train", "coco-stuff": "train2017"}


@pytest.fixture(params=sorted(WRITERS))
def name(request) -> str:
    return request.param


@pytest.fixture
def root(name: str, tmp_path: Path) -> Path:
    return WRITERS[name](tmp_path / "VOC2012")


def wrong(findings: list[Finding]) -> dict[str, str]:
    """What is wrong beside the official counts, which a few images do not have."""
    return {f.check: f.found for f in findings if not f.right and not f.check.endswith(": images")}


def test_official_counts() -> None:
    assert VOC.counts == {"train": 1464, "trainaug": 10582, "val": 1449}
    assert CITYSCAPES.counts == {"train": 2975, "val": 500}
    assert COCO_STUFF.counts == {"train2017": 118287, "val2017": 5000}
    assert {name: layout.num_classes for name, layout in LAYOUTS.items()} == CLASSES


@pytest.mark.parametrize("quick", [False, True])
def test_right_data_have_all_but_the_official_counts(name: str, root: Path, quick: bool) -> None:
    findings = VERIFIERS[name](root, quick)
    assert wrong(findings) == {}
    counts = {f.check: f.found for f in findings if f.check.endswith(": images")}
    official = LAYOUTS[name].counts
    assert counts == {f"{s}: images": f"{n}, expected {official[s]:,}" for s, n in COUNTS[name].items()}
    if name == "voc":
        assert VERIFIERS[name](root.parent, quick) == findings  # the folder that has it will do


def test_the_counts_are_those_of_the_official_splits(tmp_path: Path) -> None:
    """500 images that are one file, as links: the split has its count."""
    root = WRITERS["cityscapes"](tmp_path)
    for folder, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        for number in range(498):
            (root / folder / f"val/bonn/{number}_{end}.png").hardlink_to(root / folder / f"val/bonn/d_{end}.png")
    found = {f.check: f for f in VERIFIERS["cityscapes"](root, quick=True)}
    assert found["val: images"].right and found["val: images"].found == "500"
    assert f" {SAMPLE} " in found["val: images and label maps"].found


@pytest.mark.parametrize("fault", ["label", "size", "mode", "image"])
def test_faults_of_a_pair(name: str, root: Path, fault: str) -> None:
    image, label_map = (root / file for file in FILES[name])
    if fault == "label":
        save(label_map, np.full(SIZE, CLASSES[name], np.uint8))
    elif fault == "size":
        save(label_map, np.zeros((SIZE[1], SIZE[0]), np.uint8))
    elif fault == "mode":
        save(label_map, np.zeros((*SIZE, 3), np.uint8))
    else:
        image.write_bytes(image.read_bytes()[:-60])
    found = wrong(VERIFIERS[name](root))
    assert list(found) == [f"{TRAIN[name]}: images and label maps"]
    (text,) = found.values()
    assert str(image if fault == "image" else label_map) in text
    if fault == "label":
        assert f"label {CLASSES[name]}" in text and f"0..{CLASSES[name] - 1}" in text


def test_missing_label_maps_and_images(name: str, root: Path) -> None:
    image, label_map = (root / file for file in FILES[name])
    label_map.rename(label_map.with_name("other" + label_map.name))
    found = wrong(VERIFIERS[name](root))
    assert found.pop(f"{TRAIN[name]}: images without label map") == f"1: {image.name}"
    # The folders of VOC have the maps of several splits.
    spare = {} if name == "voc" else {f"{TRAIN[name]}: label maps without image": f"1: other{label_map.name}"}
    assert found == spare
    if name == "voc":
        image.unlink()
        assert f"{TRAIN[name]}: images that are missing" in wrong(VERIFIERS[name](root))


@pytest.mark.parametrize(
    ("name", "gone", "split", "named"),
    [
        ("voc", "SegmentationClassAug", "trainaug", ["SegmentationClassAug", "voc_aug.py", "split=train "]),
        ("voc", "ImageSets/Segmentation/trainaug.txt", "trainaug", ["trainaug.txt", "10,582", "voc_aug.py"]),
        ("voc", "ImageSets/Segmentation/val.txt", "val", ["val.txt", "1,449", "VOCtrainval_11-May-2012.tar"]),
        ("voc", "SegmentationClass", "val", ["SegmentationClass", "VOCtrainval_11-May-2012.tar"]),
        ("cityscapes", "gtFine/*/*/*_labelTrainIds.png", "train", ["_labelTrainIds.png", "csCreateTrainIdLabelImgs"]),
        ("cityscapes", "leftImg8bit", "val", ["leftImg8bit/val", "leftImg8bit_trainvaltest.zip"]),
        ("coco-stuff", "annotations/*/*_labelTrainIds.png", "val2017", ["_labelTrainIds.png", "coco_stuff164k.py"]),
        ("coco-stuff", "annotations", "train2017", ["annotations/train2017", "stuffthingmaps_trainval2017.zip"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_with_where_it_comes_from(
    name: str, gone: str, split: str, named: list[str], tmp_path: Path
) -> None:
    root = WRITERS[name](tmp_path)
    for path in list(root.glob(gone)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as error:
        LAYOUTS[name].pairs(root, split)
    assert all(word in str(error.value) for word in [str(root), *named]), error.value
    assert wrong(VERIFIERS[name](root))[f"{split}: layout"] == str(error.value)


def test_an_empty_list_and_an_unknown_split(tmp_path: Path) -> None:
    root = WRITERS["voc"](tmp_path)
    (root / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt.*1,449"):
        VOC.pairs(root, "val")
    with pytest.raises(UserError, match="train, trainaug, val"):
        VOC.pairs(root, "test")


def test_vocs_own_label_maps_go_before_sbds(tmp_path: Path) -> None:
    pairs = VOC.pairs(WRITERS["voc"](tmp_path), "trainaug")
    assert [(image.stem, label_map.parent.name) for image, label_map in pairs] == [
        ("a1", "SegmentationClass"), ("a2", "SegmentationClass"),
        ("b1", "SegmentationClassAug"), ("b2", "SegmentationClassAug"),
    ]  # fmt: skip


def test_the_script_says_what_failed(name: str, root: Path, capsys) -> None:
    specification = importlib.util.spec_from_file_location("verify_data", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert script.main([name, str(root), "--quick"]) == 1
    assert f"{root}: {len(COUNTS[name])} of " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([name, str(root), "--label-policy", "repair"])
