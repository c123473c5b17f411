"""JPEGs as arrays: Pillow's pixels, the policy's refusals, and reductions that leave every crop its pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image

from adpe.data.dataset import AdPEImageDataset
from adpe.data.sources.jpeg import decode_jpeg
from adpe.data.sources.pixels import CorruptImageError, decode_image, decode_pixels
from adpe.data.views.multicrop import MultiCrop, crop_generator, reduced
from adpe.errors import UserError


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return photograph("chelsea.png", 451).crop((0, 0, 451, 299))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 20, "optimize": True}, {"restart_marker_rows": 1}]
)
def test_pixels_are_pillows(image, subsampling, options):
    data = jpeg(image, subsampling=subsampling, **options)
    pixels = decode_jpeg(data)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (299, 451, 3))
    assert np.array_equal(pixels, np.asarray(decode_image(data, "")))
    assert np.array_equal(decode_pixels(data, "")[0], pixels)


def test_other_jpegs_are_decoded_as_the_policy_says(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey, cmyk = image.convert("L"), image.convert("CMYK")
    kept_rgb = jpeg(image, keep_rgb=True)
    for data in (jpeg(grey), jpeg(cmyk), jpeg(image, exif=exif), kept_rgb, jpeg(image) + b"trailing"):
        expected = np.asarray(decode_image(data, ""))
        assert np.array_equal(decode_pixels(data, "")[0], expected)
    assert decode_pixels(jpeg(image, exif=exif), "", lambda *size: 2)[0].shape == (451, 299, 3)  # turned, and whole


@pytest.mark.parametrize("length", [0, 2, 300, -3, -1])
def test_truncated_jpegs_are_not_filled_up(image, length):
    data = jpeg(image)[:length]
    assert decode_jpeg(data) is None
    try:
        expected = np.asarray(decode_image(data, "x.jpg"))  # only the mark of the end is missing
    except CorruptImageError:
        with pytest.raises(CorruptImageError, match=r"x\.jpg"):
            decode_pixels(data, "x.jpg")
    else:
        assert length == -1 and np.array_equal(decode_pixels(data, "x.jpg")[0], expected)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_image_is_the_mean_of_its_blocks_nearly(image, factor):
    data = jpeg(image, quality=95)
    sizes = []
    pixels, by = decode_pixels(data, "", lambda *size: sizes.append(size) or factor)
    assert (by, sizes) == (factor, [(299, 451)])
    assert pixels.shape == (-(-299 // factor), -(-451 // factor), 3)
    whole = np.asarray(decode_image(data, "")).astype(float)
    h, w = 299 // factor, 451 // factor
    means = whole[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
    # Red and blue in their places, and no shift: a neighbour's mean is several times as far.
    distance = np.abs(pixels[:h, :w] - means).mean()
    assert distance < 2
    assert np.abs(pixels[:h, :w, ::-1] - means).mean() > 10 * distance
    assert np.abs(pixels[1:h, :w] - means[:-1]).mean() > 3 * distance


def test_reduction_leaves_every_crop_its_pixels():
    crops = MultiCrop(size=30, num_crops=4)
    seen = set()
    for index in range(300):
        boxes = crops.sample(151, 203, crop_generator(0, 0, index))
        factor = crops.reduction(boxes)
        seen.add(factor)
        for (top, left, h, w, flipped), (t, s, hs, ws, f) in zip(boxes, reduced(boxes, factor), strict=True):
            assert factor == 1 or min(hs, ws) >= 30
            assert t + hs <= -(-151 // factor) and s + ws <= -(-203 // factor) and f == flipped
            edges = np.array([t, s, t + hs, s + ws]) * factor - [top, left, top + h, left + w]
            assert np.abs(edges).max() <= factor / 2
        larger = 2 * factor
        assert factor == 8 or any(min(h, w) < 30 for _, _, h, w, _ in reduced(boxes, larger))
    assert seen == {1, 2, 4}


def test_scaled_decoding_of_a_data_set(tmp_path, image):
    photograph("coffee.png", 600).save(tmp_path / "a.jpg", quality=92)
    image.save(tmp_path / "b.png")
    crops = {"size": 32, "num_crops": 3, "scale": (0.2, 1.0), "normalize": "device"}
    full, scaled = (AdPEImageDataset(tmp_path, crops=crops, decode=how) for how in ("full", "scaled"))
    difference = []
    for epoch in range(10):
        for dataset in (full, scaled):
            dataset.set_epoch(epoch)
        difference.append((full[0]["inputs"].int() - scaled[0]["inputs"].int()).abs().float().mean())
        assert torch.equal(full[1]["inputs"], scaled[1]["inputs"])  # no JPEG
    assert 0 < np.mean(difference) < 4  # of 255
    groups = [crops, {**crops, "size": 16}]
    for options in ({"cache": True}, {"crops": groups}, {"decode": "half"}):
        with pytest.raises(UserError, match="decode="):
            AdPEImageDataset(tmp_path, **{"crops": crops, "decode": "scaled", **options})
