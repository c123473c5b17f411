"""Multi-band images as a data set: views by (seed, epoch, index), a sensor dropped, files of another kind named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adpe.data.multiband.dataset import AdPEMultiBandDataset
from adpe.data.sources.bands import bands_of_rgb
from adpe.data.views.multiband import SENTINEL
from adpe.engine.resolved_protocol.data import data_description
from adpe.errors import UserError

GROUPS = {"depth": [3], "colour": [0, 1, 2]}
VIEWS = {"global_size": 16, "local_size": 8, "local_views": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a/1.npy", "a/2.npy", "b/3.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, generator.integers(1, 256, (20, 24, 4), dtype=np.uint8))
    return tmp_path


def test_views_follow_seed_epoch_and_index(folder: Path):
    data = AdPEMultiBandDataset(folder, GROUPS, views=VIEWS, seed=3)
    assert len(data) == 3
    groups = data[1]["inputs"]
    assert [tuple(group.shape) for group in groups] == [(2, 4, 16, 16), (2, 4, 8, 8)]
    assert groups[0].dtype == torch.float32 and groups[0].min() >= 0 and groups[0].max() <= 1
    assert all(map(torch.equal, groups, AdPEMultiBandDataset(folder, GROUPS, views=VIEWS, seed=3)[1]["inputs"]))
    other = AdPEMultiBandDataset(folder, GROUPS, views=VIEWS, seed=4)
    assert not torch.equal(groups[0], other[1]["inputs"][0])
    data.set_epoch(1)
    assert not torch.equal(groups[0], data[1]["inputs"][0])


def test_one_sensor_is_dropped_in_a_share_of_the_views(folder: Path):
    """Half of them here: depth in 0.8 of these, the colours in the others; never both."""
    data = AdPEMultiBandDataset(folder, GROUPS, {"p": 0.5, "probabilities": [0.8, 0.2]}, VIEWS)
    counts = np.zeros(3)
    for epoch in range(80):
        data.set_epoch(epoch)
        for group in data[0]["inputs"]:
            for view in group:
                depth, colour = bool(view[3].any()), bool(view[:3].any())
                assert depth or colour
                counts += (not depth, not colour, depth and colour)
    np.testing.assert_allclose(counts / counts.sum(), [0.4, 0.1, 0.5], atol=0.08)
    never = AdPEMultiBandDataset(folder, GROUPS, {"p": 0.0}, VIEWS)
    assert all(group.flatten(2).any(-1).all() for group in never[0]["inputs"])


def test_bands_of_colours():
    """Optical bands do not depend on the draw; speckle does; a flat image has no gradient."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    one, other = (bands_of_rgb(image, random.Random(seed)) for seed in (0, 1))
    assert one.shape == (16, 16, 14) and one.dtype == np.uint8
    assert np.array_equal(one[..., :12], other[..., :12])
    assert not np.array_equal(one[..., 12:], other[..., 12:])
    assert all(not np.array_equal(one[..., a], one[..., b]) for a in range(12) for b in range(a))
    flat = bands_of_rgb(np.full((32, 32, 3), 90, dtype=np.uint8), random.Random(0))
    assert flat[..., 12].max() == 0 and np.unique(flat[..., 0]).size == 1
    assert flat[..., 13].mean() == pytest.approx(90, rel=0.05)
    assert flat[..., 13].std() == pytest.approx(45, rel=0.15)  # 4 looks: half of the mean


def test_stand_in(tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    data = AdPEMultiBandDataset(tmp_path, SENTINEL, views=VIEWS, stand_in=True)
    assert [tuple(group.shape) for group in data[0]["inputs"]] == [(2, 14, 16, 16), (2, 14, 8, 8)]
    with pytest.raises(UserError, match="14 channels"):
        AdPEMultiBandDataset(tmp_path, GROUPS, stand_in=True)


@pytest.mark.parametrize(
    ("array", "shape"),
    [(np.zeros((4, 4, 3), np.uint8), "3"), (np.zeros((4, 4, 4), np.float32), "float32"), (np.zeros(3, object), "")],
)
def test_files_of_another_kind_are_named(tmp_path: Path, array: np.ndarray, shape: str):
    np.save(tmp_path / "wrong.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=rf"wrong\.npy.*{shape}"):
        AdPEMultiBandDataset(tmp_path, GROUPS)


def test_a_truncated_file_is_named(folder: Path):
    path = folder / "a" / "2.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"2\.npy"):
        AdPEMultiBandDataset(folder, GROUPS)[1]


def test_sources_that_cannot_be(tmp_path: Path, folder: Path):
    with pytest.raises(UserError, match=r"\.npy"):
        AdPEMultiBandDataset(tmp_path / "nothing", GROUPS)
    with pytest.raises(UserError, match="groups"):
        AdPEMultiBandDataset(folder, {"a": [0, 1], "b": [3]})


def test_a_constant_sensor_is_told(folder: Path, caplog: pytest.LogCaptureFixture):
    """Whatever its value; a sensor that differs between images alone is not constant."""
    AdPEMultiBandDataset(folder, GROUPS, views=VIEWS)
    assert not caplog.records
    for number, path in enumerate(sorted(folder.rglob("*.npy"))):
        image = np.load(path)
        image[..., 3] = 7
        image[..., :3] = number
        np.save(path, image)
    AdPEMultiBandDataset(folder, GROUPS, views=VIEWS)
    (record,) = caplog.records
    assert "depth is constant, [7]" in record.getMessage() and str(folder) in record.getMessage()


def test_what_a_record_says_of_the_files_does_not_depend_on_where_they_are(folder: Path, tmp_path_factory):
    copy = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.copytree(folder, copy)
    first, second = (data_description(AdPEMultiBandDataset(root, GROUPS, views=VIEWS)) for root in (folder, copy))
    assert first == second and first["images"] == 3
    np.save(copy / "a" / "1.npy", np.load(copy / "a" / "1.npy")[::-1])
    other = data_description(AdPEMultiBandDataset(copy, GROUPS, views=VIEWS))
    assert other["names"] == first["names"] and other["contents"] != first["contents"]
