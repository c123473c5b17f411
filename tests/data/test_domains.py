"""Domains of class folders, their parts, and the styles that stand in for a second domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from adpe.data.dataset import AdPEImageDataset
from adpe.data.domains import AdPEDomainDataset
from adpe.data.views.styles import STYLES, stylise
from adpe.errors import UserError

CLEAN = {"input_size": 16, "crop_pct": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{i}.png")
    return folder


def test_parts_are_disjoint_and_hold_every_class(root: Path) -> None:
    parts = [AdPEDomainDataset(root, "train", CLEAN, part={"of": 5, "take": take}) for take in ([0, 1, 2, 3], [4])]
    assert [len(part) for part in parts] == [16, 4] and not {*parts[0].paths()} & {*parts[1].paths()}
    assert [part.class_names() for part in parts] == [{"cat", "dog"}] * 2
    few = AdPEDomainDataset(root, "train", CLEAN, part={"of": 2, "take": [1]}, limit=4)
    assert [Path(path).name for path in few.paths()] == ["1.png", "5.png", "1.png", "5.png"]
    only = AdPEDomainDataset(root, "train", CLEAN, part={"of": 20, "take": [3]})
    assert only.class_names() == {"cat"} and only.classes == ("cat", "dog")


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_style_is_a_function_of_image_and_name(style: str, root: Path) -> None:
    image = Image.open(root / "train" / "cat" / "3.png")
    one = np.asarray(stylise(image, style, "/a/train/cat/3.png"))
    assert one.shape == (16, 16, 3) and one.dtype == np.uint8
    assert np.array_equal(one, np.asarray(stylise(image, style, "b.zip/train/cat/3.png")))
    other = np.asarray(stylise(image, style, "/a/train/cat/4.png"))
    assert np.array_equal(one, other) == (style != "noise")
    assert np.abs(one.astype(int) - np.asarray(image)).mean() > 30


def test_pretraining_pools_the_two_domains(root: Path) -> None:
    """Every second image is the target's, in the same style; the others are as they are."""
    crops = {"size": 16, "num_crops": 1, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    pooled = AdPEImageDataset(root, "train", crops, style="edges")
    target = AdPEDomainDataset(root, "train", CLEAN, part={"of": 2, "take": [1]}, style="edges")
    source = AdPEDomainDataset(root, "train", CLEAN, part={"of": 2, "take": [0]})
    for index in range(len(pooled)):
        own = (target if index % 2 else source)[index // 2]
        sample = pooled[index]
        assert sample["data_samples"]["img_path"] == own["data_samples"]["img_path"]
        torch.testing.assert_close(sample["inputs"][0], own["inputs"], rtol=0, atol=0.02)


def test_views_of_an_image(root: Path) -> None:
    augmentation = {"resize": 20, "crop": 16}
    pair = AdPEDomainDataset(root, "train", CLEAN, "pair", augmentation)
    clean = AdPEDomainDataset(root, "train", CLEAN)
    augmented = AdPEDomainDataset(root, "train", CLEAN, "augmented", augmentation)
    assert torch.equal(pair[3]["inputs"], clean[3]["inputs"])
    assert not torch.equal(pair[3]["augmented"], pair[3]["augmented"]) or not torch.equal(
        pair[4]["augmented"], pair[4]["augmented"]
    )
    torch.manual_seed(0)
    np.random.seed(0)
    one = augmented[3]["inputs"]
    assert one.shape == (3, 16, 16) and not torch.equal(one, clean[3]["inputs"])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"view": "pair"}, "augmentation"), ({"view": "all"}, "all"), ({"style": "oil"}, "oil"),
        ({"part": {"of": 2, "take": [2]}}, "part"), ({"part": {"of": 2}}, "part"),
        ({"part": {"of": 90, "take": [80]}}, "80"),
        ({"view": "pair", "augmentation": {"resize": 10, "crop": 16}}, "crop"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options: dict, key: str, root: Path) -> None:
    with pytest.raises(UserError, match=key):
        AdPEDomainDataset(root, "train", CLEAN, **options)
    with pytest.raises(UserError, match="oil"):
        AdPEImageDataset(root, "train", style="oil")
