"""Borders that tell the class: what is drawn, and that a probe follows them where they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT

from adpe.data.bordered import AdPEBorderedDataset, class_colour
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.leaderboard.records import read_records

TRANSFORM = {"input_size": 48, "interpolation": "bicubic", "crop_pct": 1.0}
SMALL = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "num_classes=3", "evaluation.batch_size=32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise, which nothing but a border tells apart."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


def borders(images: Path, **options) -> tuple[AdPEBorderedDataset, list[int]]:
    """A data set, and the class of each image's border."""
    dataset = AdPEBorderedDataset(images, "train", TRANSFORM, **options)
    colours = [class_colour(label, 3) for label in range(3)]
    found = []
    for index in range(len(dataset)):
        canvas = dataset.shown(dataset.images.load(index)[0], index, int(dataset.images.labels[index]))
        assert canvas.size == (48, 48)
        corners = {canvas.getpixel(at) for at in ((0, 0), (47, 0), (0, 47), (47, 47))}
        found.append(next((colours.index(c) for c in corners if c in colours), -1))
    return dataset, found


def test_borders(images: Path):
    dataset, told = borders(images)
    labels = dataset.images.labels
    assert 0.9 < float(np.mean(told == labels)) < 1
    assert borders(images)[1] == told != borders(images, seed=1)[1]
    assert np.array_equal(borders(images, agreement=1.0)[1], labels)
    assert not np.any(borders(images, agreement=0.0)[1] == labels)
    drawn = borders(images, border="random")[1]
    assert 0.2 < float(np.mean(drawn == labels)) < 0.5 and {*drawn} == {0, 1, 2}
    assert {*borders(images, border="none")[1]} == {-1}


def test_places(images: Path):
    centred, anywhere = (
        AdPEBorderedDataset(images, "train", TRANSFORM, border="none", place=p) for p in ("centre", "random")
    )
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    boxes = []
    for dataset in (centred, anywhere):
        red = [np.asarray(dataset.shown(image, i, 0))[..., 1] == 0 for i in range(20)]
        assert all(mask.sum() == 24 * 24 for mask in red)
        boxes.append({tuple(np.argwhere(mask).min(axis=0)) for mask in red})
    assert boxes[0] == {(12, 12)} and len(boxes[1]) > 10


@pytest.mark.parametrize("options", [{"border": "colour"}, {"place": "left"}, {"agreement": 1.5}, {"inner": 49}])
def test_options_that_cannot_be_are_refused(images: Path, options: dict):
    with pytest.raises(UserError, match=next(iter(options))):
        AdPEBorderedDataset(images, "train", TRANSFORM, **options)


def test_a_probe_follows_the_border(images: Path, tmp_path: Path):
    def run(name: str, *options: str) -> dict:
        command = [str(ROOT / "configs/cifar10/shortcut.py"), "--work-dir", str(tmp_path / name), "--cfg-options"]
        assert train_main([*command, f"data_root={images}", *SMALL, *options]) == 0
        return read_records(tmp_path / name / "record.jsonl")[0][-1]

    record = run("a")
    found = record["metrics"]
    assert record["task"] == "shortcut"
    assert found["top1_cue"] > 85 and found["top1_no_cue"] < 55 and found["top1_no_border"] < 55
    assert found["shortcut"] == found["top1_cue"] - found["top1_no_cue"]
    assert (tmp_path / "a" / "borders.png").stat().st_size > 5000
    # Features of the same weights and images, but of fewer patches: not those that were kept.
    masked = run("a", "model.saliency.type=centre", "model.saliency.ratio=0.25")
    assert masked["metrics"] != found
    assert masked["fingerprint"] != record["fingerprint"]


def test_a_border_that_is_not_the_tests_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    command = [str(ROOT / "configs/cifar10/shortcut.py"), "--work-dir", str(tmp_path), "--cfg-options"]
    assert train_main([*command, f"data_root={images}", *SMALL, "plain_dataloader.dataset.border=class"]) == 2
    assert "plain_dataloader" in capsys.readouterr().err
