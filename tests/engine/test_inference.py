"""Predictions on pictures without labels: equal to those of the test loop, one file each, bad input named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import ROOT

from adpe.data.scenes import write_scenes
from adpe.engine.inference import find_images, infer
from adpe.engine.launch import train_main
from adpe.errors import UserError
from tools import infer as tool

BATCH = ("effective_batch=4", "train_dataloader.batch_size=4")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, num_train=4, num_val=3, num_unlabelled=1, size=48)
    return root


def trained(config: str, folder: Path, *options: str) -> Path:
    path = str(ROOT / "configs" / config)
    assert train_main([path, "--work-dir", str(folder), "--cfg-options", "record.method=none", *options]) == 0
    return next(folder.glob("*.pth"))


def test_segmentation(scenes: Path, tmp_path: Path):
    """Masks give the confusion that the validation of the training found; a copy in another folder keeps its name."""
    options = {"data_root": str(scenes), "pretrained": None}
    checkpoint = trained("demo/segmentation.py", tmp_path / "run", f"data_root={scenes}", "max_iters=2", *BATCH)
    record = json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[-1])
    images = scenes / "images" / "validation"
    config = ROOT / "configs" / "demo" / "segmentation.py"
    found = infer(config, checkpoint, [images], tmp_path / "out", batch_size=2, options=options)
    assert (len(found.images), len(found.files), found.unreadable) == (3, 6, {})
    right = total = 0
    for path in found.images:
        mask = np.array(Image.open(tmp_path / "out" / f"{path.stem}_mask.png"))
        truth = np.array(Image.open(scenes / "annotations" / "validation" / f"{path.stem}.png")).astype(int) - 1
        right, total = right + int((mask == truth)[truth >= 0].sum()), total + int((truth >= 0).sum())
        assert Image.open(tmp_path / "out" / f"{path.stem}.png").size == mask.shape[::-1]
    assert 100 * right / total == pytest.approx(record["metrics"]["aAcc"], abs=1e-6)
    copy = tmp_path / "copies" / found.images[0].name
    copy.parent.mkdir()
    copy.write_bytes(found.images[0].read_bytes())
    both = infer(config, checkpoint, [found.images[0], copy], tmp_path / "both", options=options)
    assert len({*both.files}) == 4


def test_detection(scenes: Path, tmp_path: Path):
    checkpoint = trained("demo/detection.py", tmp_path / "run", f"data_root={scenes}", "max_iters=2", *BATCH)
    pattern = f"{scenes}/images/validation/*.*"
    config = str(ROOT / "configs" / "demo" / "detection.py")
    command = [config, str(checkpoint), pattern, "--out", str(tmp_path / "out"), "--score", "0.0"]
    assert tool.main([*command, "--cfg-options", f"data_root={scenes}"]) == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(content["images"]) == 3 and [one["id"] for one in content["categories"]] == [1, 2, 3]
    assert content["annotations"], "Mask R-CNN finds some boxes of low score after two iterations"
    from pycocotools.coco import COCO

    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    one = coco.loadAnns(coco.getAnnIds())[0]
    image = coco.loadImgs(one["image_id"])[0]
    assert coco.annToMask(one).shape == (image["height"], image["width"])
    assert 0 <= one["score"] <= 1 and min(one["bbox"]) >= 0


def test_classification_and_unreadable_pictures(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    small = [
        "num_classes=2",
        "model.embed_dim=24",
        "model.depth=1",
        "model.num_heads=2",
        f"data_root={tmp_path / 'data'}",
    ]
    extra = ["epochs=1", "warmup_epochs=0", "effective_batch=4", "train_dataloader.batch_size=4", "precision=float32"]
    checkpoint = trained("cifar10/finetune.py", tmp_path / "run", *small, *extra)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    config = str(ROOT / "configs" / "cifar10/finetune.py")
    command = [config, str(checkpoint), str(tmp_path / "data" / "test"), str(broken), "--out", str(tmp_path / "out")]
    assert tool.main([*command, "--cfg-options", *small]) == 1
    assert "broken.png" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(content) == 8 and {*content[0]["classes"]} == {"cat", "dog"}
    assert sum(content[0]["classes"].values()) == pytest.approx(1)
    assert tool.main([config, str(checkpoint), str(broken), "--cfg-options", *small]) == 2
    assert tool.main([config, str(checkpoint), str(tmp_path), "--cfg-options", *small, "model.embed_dim=48"]) == 2


def test_pictures_are_found_once_and_hidden_ones_left(tmp_path: Path):
    for name in ("b.png", "a.jpg", ".c.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_images([tmp_path / "b.png", tmp_path])
    assert [path.name for path in found] == ["b.png", "a.jpg"]
    with pytest.raises(UserError, match=r"none\*"):
        find_images([str(tmp_path / "none*")])
