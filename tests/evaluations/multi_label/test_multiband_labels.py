"""Labelled multi-band images: labels of JSON, CSV and COCO, crops, one sensor alone, and wrong data named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from adpe.data.multi_label import AdPEMultiLabelCoco
from adpe.data.multiband.labels import AdPEMultiBandLabels
from adpe.data.scenes import write_scenes
from adpe.data.views.band_crops import BandCrops
from adpe.data.views.multiband import SENTINEL
from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.errors import UserError

GROUPS = {"radar": [3], "optical": [0, 1, 2]}
LABELS = {"a/1": ["Pastures", "Moors, heathland"], "a/2.npy": [], "3": ["Pastures"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/1", "a/2", "3"):
        np.save(tmp_path / "images" / f"{name}.npy", rng.integers(1, 256, (20, 24, 4), dtype=np.uint8))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    return tmp_path


def read(root: Path, name: str = "labels.json", **options: Any) -> AdPEMultiBandLabels:
    return AdPEMultiBandLabels(root, name, {"img": "images"}, **{"groups": GROUPS, "transform": SMALL, **options})


SMALL = {"input_size": 16, "resize": 18}


def test_labels_of_json_and_csv_agree(root: Path):
    (root / "labels.csv").write_text('a/1,Pastures,"Moors, heathland"\na/2,\n\n3.npy,Pastures\n')
    for name in ("labels.json", "labels.csv"):
        data = read(root, name)
        assert data.classes == ("Moors, heathland", "Pastures")
        assert data.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
        assert [Path(path).name for path in data.paths()] == ["1.npy", "2.npy", "3.npy"]
    ordered = read(root, classes=["Urban fabric", "Pastures", "Moors, heathland"], limit=1)
    assert ordered.targets.tolist() == [[0, 1, 1]] and len(ordered) == 1
    sample = data[2]
    assert sample["inputs"].shape == (4, 16, 16) and sample["inputs"].dtype == torch.float32
    assert sample["inputs"].min() > 0 and sample["inputs"].max() <= 1
    assert sample["data_samples"]["label"].tolist() == [0, 1] and sample["data_samples"]["index"] == 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", {**LABELS, "4": ["Pastures"]}, r"a\.json: 1 of its 4 images.*4\.npy"),
        ("a.json", {"3": "Pastures"}, r"a\.json: 3 has 'Pastures'"),
        ("a.json", {"3": ["Pastures", 5]}, r"a\.json: 3 has \['Pastures', 5\]"),
        ("a.json", {"3": ["Meadow"]}, r"a\.json: 3 has the label 'Meadow'"),
        ("a.json", {"3": ["Pastures"], "3.npy": []}, r"a\.json: 3\.npy repeated"),
        ("a.json", ["3"], r"a\.json: a JSON list"),
        ("a.csv", "3,Pastures\n3,Pastures\n", r"a\.csv: 3\.npy repeated"),
        ("a.csv", "3,Pastures\n,Pastures\n", r"a\.csv: row 2 has no name, but Pastures"),
        ("a.csv", "name,labels\n3,Pastures\n", r"a\.csv: name has the label 'labels'"),
        ("none.csv", None, r"none\.csv: cannot be read"),
        ("none.json", None, r"none\.json: cannot be read"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named(root: Path, name: str, content: Any, told: str):
    if content is not None:
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=told):
        read(root, name, classes=["Pastures", "Moors, heathland"])


def test_wrong_images_and_options_are_named(root: Path):
    for options, told in (
        ({"sensors": "lidar"}, "sensors='lidar'.*radar, optical"), ({"groups": {"a": [0], "b": [2]}}, "groups"),
        ({"groups": {"a": [0], "b": [1]}}, r"\.npy is uint8 \(20, 24, 4\).*2\)"), ({"limit": 0}, "limit"),
        ({"transform": {"input_size": 20, "resize": 18}}, "input_size = 20"),
        ({"transform": {"scale": (0, 1)}}, "scale"),
        ({"transform": {"is_training": True, "resize": 120}}, "resize = 120"), ({"stand_in": True}, "14 channels"),
        ({"classes": ["Pastures", "Pastures"]}, "Pastures repeated"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            read(root, **options)
    np.save(root / "images" / "a" / "2.npy", np.zeros((4, 4, 4), np.float32))
    with pytest.raises(UserError, match=r"2\.npy is float32"):
        read(root)


def test_images_without_labels_are_told(root: Path, caplog: pytest.LogCaptureFixture):
    (root / "one.json").write_text(json.dumps({"3": ["Pastures"]}))
    assert len(read(root, "one.json")) == 1
    assert "nothing of 2 of the 3 images" in caplog.text


def test_one_sensor_alone(root: Path):
    """The other one's channels are zero, and its own as they were; in crops of training too."""
    whole, optical, radar = (read(root, sensors=word)[0]["inputs"] for word in ("both", "optical", "radar"))
    assert whole.flatten(1).any(1).all()
    assert torch.equal(optical[:3], whole[:3]) and not optical[3].any()
    assert torch.equal(radar[3], whole[3]) and not radar[:3].any()
    drawn = read(root, sensors="radar", transform={"input_size": 16, "is_training": True})[0]["inputs"]
    assert drawn[3].any() and not drawn[:3].any()


def test_central_crop():
    """The shorter side resized, both axes by the same factor; nothing but bytes is changed at its own size."""
    image = np.random.default_rng(0).integers(0, 256, (128, 256, 14), dtype=np.uint8)
    view = BandCrops(112, resize=128)(image)
    assert np.array_equal(view, image[8:120, 72:184].transpose(2, 0, 1).astype(np.float32) / 255)
    halved = BandCrops(56, resize=64)(image[..., :3])
    wanted = cv2.resize(image[..., :3], (128, 64), interpolation=cv2.INTER_LINEAR)[4:60, 36:92]
    assert np.array_equal(halved, wanted.transpose(2, 0, 1).astype(np.float32) / 255)


def test_random_crops_follow_the_seed_of_the_item(root: Path):
    transform = {"input_size": 16, "is_training": True}
    data = AdPESeededDataset(read(root, transform=transform), seed=3)
    assert torch.equal(data[0]["inputs"], data[0]["inputs"])
    assert not torch.equal(data[0]["inputs"], data[3]["inputs"])  # another pass
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None].repeat(2, axis=2)
    random.seed(0)
    views = [BandCrops(16, is_training=True, scale=(0.08, 1.0), hflip=0.5)(ramp)[0] * 255 for _ in range(400)]
    spans = np.array([(view[:, -1] - view[:, 0]).mean() for view in views])
    assert np.mean(spans < 0) == pytest.approx(0.5, abs=0.08)
    # Share of the width: the root of an area uniform in 0.08..1, but for the aspect.
    assert np.abs(spans).mean() / 60 == pytest.approx(0.72, abs=0.06)
    still = [BandCrops(16, is_training=True, hflip=0.0)(ramp)[0] for _ in range(20)]
    assert all(view[0, -1] > view[0, 0] for view in still)


def test_bands_of_scenes_and_their_digits(tmp_path: Path):
    """Labels as of the COCO JSON; an image's speckle is always the same, and not that of another split."""
    write_scenes(tmp_path, num_train=8, num_val=4, num_unlabelled=0, size=48)
    options = {"groups": SENTINEL, "stand_in": True, "transform": {"input_size": 48}}
    train, val = (
        AdPEMultiBandLabels(tmp_path, f"instances_{split}.json", {"img": f"images/{split}"}, **options)
        for split in ("training", "validation")
    )
    rows = AdPEMultiLabelCoco(tmp_path, "instances_training.json", {"img": "images/training"})
    assert train.classes == rows.classes == ("0", "1", "2") and np.array_equal(train.targets, rows.targets)
    assert train[0]["inputs"].shape == (14, 48, 48) and torch.equal(train[0]["inputs"], train[0]["inputs"])
    speckle = [data[0]["inputs"][13] / data[0]["inputs"][:12].mean(0).clamp(min=0.05) for data in (train, val)]
    assert np.corrcoef(speckle[0].ravel(), speckle[1].ravel())[0, 1] < 0.3
    with pytest.raises(UserError, match="COCO"):
        AdPEMultiBandLabels(tmp_path, "instances_training.json", {"img": "images/training"}, classes=["0"], **options)
