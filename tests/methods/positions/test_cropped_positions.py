"""MAE+ on cropped positions: which positions patches get, when, and that it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.methods.positions.cropped_positions import CroppedPositions, crop_positions
from adpe.models.pos_embed import grid_coordinates

TINY = {
    "img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 1,
    "decoder_num_heads": 3,
}  # fmt: skip


def cropped(**options) -> CroppedPositions:
    torch.manual_seed(0)
    return adpe.create_method("cropped_positions", "adpe_vit_tiny_patch4", **{**TINY, **options})


def test_a_region_of_a_linear_table_is_where_it_says():
    """A table that holds (column, row) itself: patches of the left half have columns from its left to its middle."""
    grid = (14, 14)
    table = grid_coordinates(*grid, torch.float32).unsqueeze(0)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.25]])
    places = crop_positions(table, boxes, grid).view(2, 14, 14, 2)
    inner = places[0, 1:-1, 1:-1]
    torch.testing.assert_close(inner, table.view(14, 14, 2)[1:-1, 1:-1], rtol=0, atol=0.05)
    # Centres of 14 cells on [0.25, 0.75] of the width and [0.5, 0.75] of the height, in units of patches.
    centres = (torch.arange(14) + 0.5) / 14
    torch.testing.assert_close(places[1, 7, :, 0], (0.25 + 0.5 * centres) * 14 - 0.5, rtol=0, atol=0.05)
    torch.testing.assert_close(places[1, :, 7, 1], (0.5 + 0.25 * centres) * 14 - 0.5, rtol=0, atol=0.05)


def test_columns_and_rows_of_a_grid_that_is_not_square():
    table = grid_coordinates(4, 8, torch.float32).unsqueeze(0)
    places = crop_positions(table, torch.tensor([[0.25, 0.25, 0.5, 0.5]]), (4, 8)).view(4, 8, 2)
    assert (places[:, 1:, 0] > places[:, :-1, 0]).all() and (places[1:, :, 1] > places[:-1, :, 1]).all()
    assert places[..., 0].min() > 1.5 and places[..., 0].max() < 5.6


def test_regions_have_the_areas_and_ratios_that_are_asked_for():
    boxes = cropped(crop_scale=(0.1, 0.4)).draw_boxes(4000, torch.device("cpu"))
    left, top, width, height = boxes.unbind(1)
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 1.0001).all() and (top + height <= 1.0001).all()
    assert (width * height).min() + 1e-6 >= 0.1 and (width * height).max() < 0.401
    assert (width * height).mean().item() == pytest.approx(0.25, abs=0.01)
    ratio = width / height
    assert ratio.min() + 1e-4 >= 0.5 and ratio.max() <= 2.001
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.03)


def test_positions_are_cropped_in_training_alone():
    """Every image has a region of its own; in evaluation the loss is that of MAE+."""
    model, images, noise = cropped(), torch.rand(3, 3, 24, 24), torch.rand(3, 36)
    plain = adpe.create_method("mae_plus", "adpe_vit_tiny_patch4", **TINY)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images, noise), plain.eval()(images, noise))
    mask = model.random_mask(images, noise)
    table = model.encoder.position_table((6, 6), model.encoder.cls_token)[:, 1:]
    positions = model.train().patch_positions(table, mask, (6, 6))
    assert positions.shape == (3, 36, 48) and not torch.equal(positions[0], positions[1])
    assert model.patch_positions(table, mask, (6, 6)).dtype == table.dtype


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"position": "relative"}, "position='absolute'"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (2.0, 0.5)}, "crop_ratio"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        cropped(**options)


def test_a_resumed_step_is_equal_and_bfloat16_trains():
    assert resumes_exactly(cropped(), torch.rand(2, 3, 24, 24))
    assert trains_in_bfloat16(cropped(), torch.randn(2, 3, 24, 24))


def test_it_trains(tmp_path: Path):
    cfg, other = (config(f"configs/pretrain/cifar10_{name}.py") for name in ("cropped_positions", "mae_plus"))
    assert cfg.train_dataloader == other.train_dataloader
    assert train_small("positions/cifar10_cropped_positions", tmp_path, {"model.decoder_depth": 1}).iter == 2
    images = torch.randn(16, 3, 1, 1).expand(16, 3, 24, 24)
    logged = steps(cropped(norm_pix_loss=False), images, 40, lr=3e-3)
    assert logged[-1]["loss"] < 0.3 * logged[0]["loss"]
