"""One's own masks: the file of class names with colours, and the verification of the whole folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

import adpe.data.segmentation  # noqa: F401  registers the data set
from adpe.data.checks.class_names import ClassFile, read_class_file
from adpe.data.checks.layout import read_classes
from adpe.data.checks.verify import Finding, verify_masks
from adpe.errors import UserError

TEXT = "road #804080\nstreet light #0a0B0c\n\ntree #6b8e23\n"
PALETTE = ((128, 64, 128), (10, 11, 12), (107, 142, 35))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """3 + 2 images of 8 x 6 pixels; a sixth of the pixels unlabelled, the others of three classes."""
    labels = np.array([[0, 1, 2, 2, 3, 3]] * 8, np.uint8).T
    for split, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / f"images/{split}/{index}.jpg")
            mask = Image.fromarray(labels).convert("P")
            # The colours of a palette are not the labels.
            mask.putpalette([200, 100, 50] * 256)
            mask.save(tmp_path / f"annotations/{split}/{index}.png")
    (tmp_path / "classes.txt").write_text(TEXT)
    return tmp_path


def found(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.found for finding in findings}


def wrong(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if not finding.right}


@pytest.mark.parametrize(
    ("text", "names", "palette"),
    [
        (TEXT, ("road", "street light", "tree"), PALETTE),
        ("\ufeffroad\r\n street light \r\n", ("road", "street light"), ()),
        ("#1\n#2 of 3\n", ("#1", "#2 of 3"), ()),
    ],
)
def test_class_files(tmp_path: Path, text: str, names: tuple[str, ...], palette: tuple):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_class_file(tmp_path / "classes.txt") == ClassFile(names, palette)
    assert read_classes(tmp_path) == read_classes(tmp_path, "classes.txt") == names


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"a #112233\nb\n", r"classes\.txt: no colour for b"),
        (b"a\na\n", r"classes\.txt: a repeated"),
        (b"\n", r"classes\.txt: expected a list"),
        (b"\xff\xfe\x00", r"classes\.txt: not a text file"),
    ],
)
def test_wrong_class_files(tmp_path: Path, contents: bytes, words: str):
    (tmp_path / "classes.txt").write_bytes(contents)
    with pytest.raises(UserError, match=words):
        read_classes(tmp_path)


def test_missing_and_several_class_files(root: Path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_classes(root, "none.txt")
    (root / "classes.json").write_text('["a"]')
    with pytest.raises(UserError, match=r"found classes\.json, classes\.txt, expected one"):
        read_classes(root)


def test_colours_are_the_palette_and_masks_are_read_by_index(root: Path):
    config = {
        "type": "AdPESegmentationDataset",
        "data_root": str(root),
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}],
    }
    with DefaultScope.overwrite_default_scope("mmseg"):
        data = DATASETS.build(config)
        assert tuple(map(tuple, data.metainfo["palette"])) == PALETTE
        assert data.metainfo["classes"] == ("road", "street light", "tree")
        np.testing.assert_array_equal(data[0]["gt_seg_map"][:, 0], [255, 0, 1, 1, 2, 2])
        own = {**config, "metainfo": {"classes": ("a", "b", "c"), "palette": [[1, 2, 3]] * 3}}
        assert DATASETS.build(own).metainfo["palette"] == [[1, 2, 3]] * 3


def test_right_masks(root: Path):
    findings = verify_masks(root)
    assert wrong(findings) == set()
    told = found(findings)
    assert told["classes"] == "3: road, street light, tree"
    assert (told["training: images"], told["validation: images"]) == ("3", "2")
    shares = "road 16.67%, street light 33.33%, tree 33.33%; ignored 16.67%"
    assert told["training: pixels of the classes"] == told["validation: pixels of the classes"] == shares


def test_every_fault_is_named(root: Path):
    maps = root / "annotations/training"
    Image.fromarray(np.full((6, 8), 4, np.uint8)).save(maps / "0.png")
    (maps / "1.png").rename(maps / "7.png")
    Image.fromarray(np.full((6, 8), 1, np.uint8)).save(maps / "2.png")
    for index in (0, 1):
        Image.fromarray(np.full((6, 8), 1, np.uint8)).save(root / f"annotations/validation/{index}.png")
    findings = verify_masks(root)
    assert wrong(findings) == {
        "training: images without label map", "training: label maps without image",
        "training: images and label maps", "training: pixels of the classes", "training: classes without a pixel",
    }  # fmt: skip
    told = found(findings)
    assert told["training: images and label maps"] == f"1 of 2 are wrong: {maps / '0.png'}: has label 4, expected 0..3."
    assert told["training: classes without a pixel"] == "street light, tree"
    assert told["validation: classes without a pixel"] == "street light, tree"


def test_zero_as_a_class(root: Path):
    assert wrong(verify_masks(root, reduce_zero_label=False)) == {
        f"{split}: images and label maps" for split in ("training", "validation")
    } | {"training: pixels of the classes", "training: classes without a pixel"}
    (root / "classes.txt").write_text("void\nroad\nlight\ntree\n")
    findings = verify_masks(root, reduce_zero_label=False)
    assert wrong(findings) == set()
    shares = "void 16.67%, road 16.67%, light 33.33%, tree 33.33%; ignored 0.00%"
    assert found(findings)["training: pixels of the classes"] == shares


def test_masks_of_0_and_255(root: Path):
    for path in root.glob("annotations/*/*.png"):
        Image.fromarray(np.array([[0, 255] * 4] * 6, np.uint8)).save(path)
    findings = verify_masks(root)
    assert "training: classes without a pixel" in wrong(findings)
