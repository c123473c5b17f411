"""Colours of crops: Pillow's and torchvision's own pixels, drawn by the sample's generator alone, with their odds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from adpe.data.views.color import ColorAugmentation
from adpe.data.views.multicrop import MultiCrop, crop_generator, first_group
from adpe.errors import UserError

OFF = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0, "solarize_p": 0.0}


@pytest.fixture
def crop() -> torch.Tensor:
    return torch.randint(0, 256, (3, 24, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_each_change_alone(crop: torch.Tensor):
    image = Image.fromarray(crop.permute(1, 2, 0).numpy())
    blur = ImageFilter.GaussianBlur(1.5)
    for options, expected in (
        ({}, image),
        ({"grey_p": 1.0}, F.to_grayscale(image, 3)),
        ({"blur_p": 1.0, "radius": (1.5, 1.5)}, image.filter(blur)),
        ({"solarize_p": 1.0}, F.solarize(image, 128)),
        ({"grey_p": 1.0, "blur_p": 1.0, "radius": (1.5, 1.5), "solarize_p": 1.0},
         F.solarize(F.to_grayscale(image, 3).filter(blur), 128)),
    ):  # fmt: skip
        assert torch.equal(ColorAugmentation(**{**OFF, **options})(crop, random.Random(0)), pixels(expected))


@pytest.mark.parametrize(("index", "change"), enumerate(["brightness", "contrast", "saturation"]))
def test_range_of_a_factor(crop: torch.Tensor, index: int, change: str):
    """One of the four moved, the others at rest: each result is that of a factor between 0.6 and 1.4."""
    jitter = [0.0] * 4
    jitter[index] = 0.4
    color = ColorAugmentation(**{**OFF, "jitter_p": 1.0, "jitter": jitter})
    image = Image.fromarray(crop.permute(1, 2, 0).numpy())
    ends = [pixels(getattr(F, f"adjust_{change}")(image, factor)).int() for factor in (0.6, 1.4)]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    drawn = [color(crop, random.Random(i)).int() for i in range(20)]
    # The hue's own change of 0 goes through HSV, which rounds.
    assert all(((one >= low - 6) & (one <= high + 6)).float().mean() > 0.98 for one in drawn)
    assert len({one.sum().item() for one in drawn}) > 15


def test_odds():
    color = ColorAugmentation(solarize_p=0.2)
    counts = [len(color.draw(random.Random(i))) for i in range(4000)]
    assert np.mean(counts) == pytest.approx(4 * 0.8 + 0.2 + 0.5 + 0.2, abs=0.1)
    assert np.mean([count >= 4 for count in counts]) == pytest.approx(0.8, abs=0.03)


def test_orders_of_the_jitter_differ(crop: torch.Tensor):
    names = {
        tuple(change.__code__.co_names[-1] for change in ColorAugmentation(**{**OFF, "jitter_p": 1.0}).draw(
            random.Random(i)
        ))
        for i in range(300)
    }  # fmt: skip
    assert len(names) == 24


def test_crops_have_colours_of_their_own_from_one_generator():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    plain = MultiCrop(size=16, num_crops=2, normalize="device")
    colored = MultiCrop(size=16, num_crops=2, normalize="device", color=[OFF, {**OFF, "grey_p": 1.0}])
    first, second = colored(image, crop_generator(0, 0, 1))
    one, two = plain(image, crop_generator(0, 0, 1))  # boxes are those without colours
    assert torch.equal(first, one) and not torch.equal(second, two)
    assert torch.equal(second[0], second[1]) and torch.equal(second[1], second[2])
    strong = MultiCrop(size=16, num_crops=2, normalize="device", color={})
    again = [strong(image, crop_generator(3, 0, 1)) for _ in range(2)]
    assert torch.equal(*again) and not torch.equal(again[0], strong(image, crop_generator(4, 0, 1)))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"jitter": (0.4, 0.4, 0.2)}, "jitter"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "jitter"),
        ({"blur_p": 1.1}, "blur_p"),
        ({"radius": (2.0, 0.1)}, "radius"),
    ],
)
def test_impossible_colours(options: dict, key: str):
    with pytest.raises(UserError, match=key):
        ColorAugmentation(**options)


def test_colours_for_another_number_of_crops():
    with pytest.raises(UserError, match="color"):
        MultiCrop(num_crops=3, color=[{}, {}])


def test_first_group():
    assert first_group({"size": 3}) == first_group([{"size": 3}, {"size": 1}]) == {"size": 3}
    assert first_group(None) == first_group([]) == first_group("x") == {}
