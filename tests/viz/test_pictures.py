"""Scalars that mmengine logged, and the pixels of the pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.visualization import LocalVisBackend
from PIL import Image

from adpe.errors import UserError
from adpe.viz.predictions import as_images, detections, loss_curves, read_scalars, segmentations

RED, GREEN, BLUE = (214, 39, 40), (44, 160, 44), (31, 119, 180)  # three of matplotlib's tab10


def log(work_dir: Path, timestamp: str, lines: list[dict[str, Any]]) -> Path:
    """Write lines through mmengine's own backend, in its own place."""
    backend = LocalVisBackend(save_dir=str(work_dir / timestamp / "vis_data"))
    for line in lines:
        backend.add_scalars(line, step=line["step"])
    return work_dir / timestamp / "vis_data" / "scalars.json"


def train(step: int, loss: float) -> dict[str, Any]:
    return {"lr": 1e-4, "data_time": 0.1, "loss": loss, "time": 0.2, "iter": step, "memory": 100, "step": step}


def validate(step: int, miou: float) -> dict[str, Any]:
    return {"mIoU": miou, "data_time": 0.1, "time": 0.3, "step": step}


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(Image.open(path).convert("RGB")) == colour).all(axis=2).sum())


def test_scalars_of_one_run(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", [train(10, 2.0), validate(10, 30.0), train(20, math.nan), validate(20, 35.0)])
    scalars = read_scalars(tmp_path)
    assert sorted(scalars) == ["loss", "lr", "mIoU"]
    assert scalars["mIoU"] == [(10, 30.0), (20, 35.0)]
    assert scalars["loss"][0] == (10, 2.0) and math.isnan(scalars["loss"][1][1])


def test_scalars_of_a_resumed_run_are_joined(tmp_path: Path) -> None:
    first = [train(10, 4.0), validate(10, 30.0), train(20, 3.0), validate(20, 32.0), train(30, 9.0)]
    log(tmp_path, "20260101_000000", first)
    log(tmp_path, "20260101_010000", [train(30, 2.5), train(40, 2.0), validate(40, 40.0)])
    log(tmp_path, "20260101_020000", [validate(0, 99.0)])
    scalars = read_scalars(tmp_path)
    assert scalars["loss"] == [(10, 4.0), (20, 3.0), (30, 2.5), (40, 2.0)]
    assert scalars["mIoU"] == [(10, 30.0), (20, 32.0), (40, 40.0)]


def test_a_run_from_the_beginning_replaces_the_earlier_one(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", [train(10, 4.0), validate(10, 30.0), train(20, 3.0)])
    log(tmp_path, "20260101_010000", [train(10, 5.0)])
    assert read_scalars(tmp_path) == {"loss": [(10, 5.0)], "lr": [(10, 1e-4)]}


def test_a_torn_last_line_is_passed_over_and_others_are_named(tmp_path: Path) -> None:
    path = log(tmp_path, "20260101_000000", [train(10, 4.0)])
    with open(path, "a") as file:
        file.write('{"loss": 3.')
    assert read_scalars(tmp_path)["loss"] == [(10, 4.0)]
    with open(path, "a") as file:
        file.write('\n{"loss": 2.0, "iter": 20, "step": 20}\n')
    with pytest.raises(UserError, match=r"scalars\.json, line 2: not JSON"):
        read_scalars(tmp_path)


def test_no_scalars(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the work_dir of a run"):
        read_scalars(tmp_path)


def test_images_of_every_layout_become_the_same() -> None:
    images = torch.rand(2, 3, 4, 5)
    images[0, 0, 0, 0], images[0, 1, 0, 0], images[0, 2, 0, 0] = 1.7, -0.2, math.nan
    expected = np.rint(images.clamp(0, 1).nan_to_num(0.0).numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert (as_images(images) == expected).all() and as_images(images)[0, 0, 0].tolist() == [255, 0, 0]
    assert (as_images(images.permute(0, 2, 3, 1).double()) == expected).all()
    assert as_images(expected) is expected
    with pytest.raises(UserError, match=r"\(2, 4, 5\)"):
        as_images(images[:, 0])


def test_loss_curves_draw_every_run_and_leave_gaps(tmp_path: Path) -> None:
    whole = [(float(step), 1.0) for step in range(0, 400, 10)]
    holes = [(step, math.nan if 100 < step < 300 else value) for step, value in whole]
    path = loss_curves({"one": whole}, tmp_path / "whole.png")
    assert Image.open(path).width == 1200
    line = pixels(path, BLUE)
    gap = pixels(loss_curves({"one": holes}, tmp_path / "holes.png"), BLUE)
    assert line > 1000 and 0.3 * line < gap < 0.7 * line
    both = loss_curves({"one": whole, "two": whole, "three": [(0.0, 2.0), (390.0, 2.0)]}, tmp_path / "both.png")
    assert pixels(both, GREEN) > 1000


def test_segmentations_colour_classes_by_the_palette(tmp_path: Path) -> None:
    images = torch.ones(1, 3, 8, 8)
    truth = torch.zeros(1, 8, 8, dtype=torch.long)
    truth[:, :4] = 1
    truth[:, 6:] = 255
    prediction = torch.full((1, 8, 8), 1)
    names, palette = ["ground", "thing", "absent"], [RED, GREEN, BLUE]
    path = segmentations(images, prediction, truth, names, palette, tmp_path / "a.png")
    red, green, black = (pixels(path, colour) for colour in (RED, GREEN, (0, 0, 0)))
    # Truth is a quarter red, half green and a quarter without truth; the prediction is all green: 1 : 6 : 1 in all.
    assert 5.7 < green / red < 6.3 and 0.9 < black / red < 1.1
    assert pixels(path, BLUE) == 0
    two = segmentations(images, {"random": prediction * 0, "pretrained": prediction}, truth, names, palette, path)
    assert pixels(two, RED) > 0.7 * pixels(two, GREEN)
    with pytest.raises(UserError, match=r"\[3\] are outside the 3 class names"):
        segmentations(images, prediction * 3, truth, names, palette, path)
    with pytest.raises(UserError, match="2 colours for 3 classes"):
        segmentations(images, prediction, truth, names, palette[:2], path)


def test_a_legend_of_many_long_names_stays_in_the_picture(tmp_path: Path) -> None:
    names = [f"class-of-some-length-{i}" for i in range(40)]
    truths = np.arange(40).reshape(1, 5, 8)
    palette = [(5 * i, 0, 0) for i in range(40)]
    path = segmentations(np.zeros((1, 3, 5, 8)), truths, truths, names, palette, tmp_path / "many.png")
    pixels = np.asarray(Image.open(path).convert("L"))
    # The names' ink keeps off both borders, below the images too.
    assert pixels[:, :4].min() == pixels[:, -4:].min() == 255
    assert pixels[-pixels.shape[0] // 3 :].min() < 128


def test_detections_draw_truth_and_confident_predictions(tmp_path: Path) -> None:
    images = torch.ones(1, 3, 40, 40)
    box = torch.tensor([[5.0, 5.0, 25.0, 25.0]])
    truth = [{"boxes": box, "labels": torch.tensor([0])}]
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, 10:20, 10:20] = True

    def draw(score: float, **more: Any) -> Path:
        found = {"boxes": box, "labels": torch.tensor([3]), "scores": torch.tensor([score]), **more}
        return detections(images, [found], truth, ["a", "b", "c", "d"], tmp_path / "a.png")

    assert pixels(draw(0.2), RED) == 0 and pixels(draw(0.2), BLUE) > 500
    assert pixels(draw(0.9), RED) > 500
    # Half of red over white, on a quarter of the box, which itself is a quarter of the image 600 pixels wide.
    tint = (234, 147, 147)
    assert pixels(draw(0.9), tint) == 0
    assert 0.9 < pixels(draw(0.9, masks=mask), tint) / (600 * 600 / 16) < 1.02
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    assert pixels(detections(images, [empty], truth, ["a"], tmp_path / "b.png"), BLUE) > 500
    with pytest.raises(UserError, match=r"labels \[7\] are not all among the 4 class names"):
        draw(0.9, labels=torch.tensor([7]))
