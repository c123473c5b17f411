"""Pictures of predictions by `tools/test.py --show-dir`: the truth on the left, what the model says on the right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import ROOT, build, config

from adpe.data.scenes import write_scenes
from adpe.engine.launch import test_main as evaluate

pytestmark = pytest.mark.slow
CLASS = 3


def draw(task: str, folder: Path, change) -> tuple[list[Path], list[np.ndarray]]:
    """Pictures and images of two validation scenes under a model that starts at random and is changed by `change`."""
    data = write_scenes(folder / "data", num_train=2, num_val=2, num_unlabelled=1, size=192)
    name = f"configs/demo/{task}.py"
    torch.manual_seed(0)
    model = build(config(name))
    change(model)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "weights.pth")
    options = [f"data_root={data}", "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]
    arguments = [str(ROOT / name), str(folder / "weights.pth"), "--work-dir", str(folder / "work")]
    assert evaluate([*arguments, "--show-dir", str(folder / "pictures"), "--cfg-options", *options]) == 0
    images = [np.asarray(Image.open(path)) for path in sorted((data / "images" / "validation").iterdir())]
    pictures = sorted(path for path in (folder / "pictures").rglob("*") if path.suffix in (".png", ".jpg"))
    return pictures, images


def test_segmentation(tmp_path: Path) -> None:
    """A model that says one class everywhere: its colour lies over the whole right half, and not over the left."""

    def say_one_class(model) -> None:
        with torch.no_grad():
            model.decode_head.conv_seg.weight.zero_()
            model.decode_head.conv_seg.bias.copy_(torch.nn.functional.one_hot(torch.tensor(CLASS), 4).float())

    pictures, images = draw("segmentation", tmp_path, say_one_class)
    assert len(pictures) == 2
    for path, image in zip(pictures, images, strict=True):
        picture = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        height, width = image.shape[:2]
        assert picture.shape == (height, 2 * width, 3)
        left, right = picture[:, :width], picture[:, width:]
        colour = np.median((right - 0.2 * image) / 0.8, axis=(0, 1))
        expected = 0.2 * image + 0.8 * colour
        # Apart from the class's name.
        assert np.median(np.abs(right - expected)) < 3
        assert np.median(np.abs(left - expected)) > 10


def test_detection(tmp_path: Path) -> None:
    """Boxes of the truth on the left; on the right a model that finds nothing leaves the image as it is."""

    def find_nothing(model) -> None:
        with torch.no_grad():
            model.roi_head.bbox_head.fc_cls.weight.zero_()
            model.roi_head.bbox_head.fc_cls.bias.zero_()
            model.roi_head.bbox_head.fc_cls.bias[-1] = 20.0  # background

    pictures, images = draw("detection", tmp_path, find_nothing)
    assert len(pictures) == 2
    for path, image in zip(pictures, images, strict=True):
        # In grey: JPEG smears colours.
        picture = np.asarray(Image.open(path).convert("L"), dtype=float)
        grey = np.asarray(Image.fromarray(image).convert("L"), dtype=float)
        height, width = grey.shape
        assert picture.shape == (height, 2 * width)
        left, right = (np.abs(half - grey).mean() for half in np.split(picture, 2, axis=1))
        assert right < 6 and left > 3 * right
