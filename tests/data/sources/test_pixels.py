"""One policy for pixels: every kind of file gives the same array in every reader, or the same refusal."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixel_kinds import COLOURS, DEEP, HEIGHT, UPRIGHT, WIDTH, encode, kinds, refused

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
import cv2
import mmdet.registry
import mmengine.registry
import mmseg.registry
from mmengine.registry import DefaultScope

import adpe.data.detection
import adpe.data.segmentation  # noqa: F401  its readers replace mmcv's
from adpe.data.classification import AdPEClassificationDataset
from adpe.data.sources.images import ImageSource
from adpe.data.sources.pixels import (
    CorruptImageError,
    Header,
    RefusedImage,
    decode_image,
    orientation_to_apply,
    read_header,
)
from adpe.demo.demo_report import original
from adpe.errors import UserError

KINDS, REFUSED = kinds(), refused()
SCOPES = {"mmengine": mmengine.registry, "mmseg": mmseg.registry, "mmdet": mmdet.registry}


def from_folder(path: Path) -> np.ndarray:
    return np.asarray(ImageSource(path, on_corrupt="error").open(0))


def from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path, path.name)
    return np.asarray(ImageSource(path.with_suffix(".zip"), on_corrupt="error").open(0))


def for_classification(path: Path) -> np.ndarray:
    dataset = AdPEClassificationDataset(path.parents[1], transform={"input_size": 8}, on_corrupt="error")
    dataset.transform = np.asarray
    return dataset[0]["inputs"]


def in_pipeline(scope: str, kind: str = "LoadImageFromFile", **options) -> Callable[[Path], np.ndarray]:
    def read(path: Path) -> np.ndarray:
        with DefaultScope.overwrite_default_scope(scope):
            transform = SCOPES[scope].TRANSFORMS.build({"type": kind, **options})
        results = transform(str(path) if kind == "InferencerLoader" else {"img_path": str(path)})
        assert results["img"].shape[:2] == results["img_shape"] == results["ori_shape"]
        return results["img"][..., ::-1]

    return read


def in_report(path: Path) -> np.ndarray:
    from mmseg.structures import SegDataSample

    return original(SegDataSample(metainfo={"img_path": str(path)}))


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "pretraining": from_folder,
    "archive": from_archive,
    "classification": for_classification,
    "mmengine": in_pipeline("mmengine"),
    "mmseg": in_pipeline("mmseg"),
    "mmdet": in_pipeline("mmdet"),
    "mmseg's pillow": in_pipeline("mmseg", imdecode_backend="pillow"),
    "mmseg's inferencer": in_pipeline("mmseg", "InferencerLoader"),
    "mmdet's inferencer": in_pipeline("mmdet", "InferencerLoader"),
    "demo": in_report,
}


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / "class" / name
    path.parent.mkdir()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_reader_gives_the_same_pixels(tmp_path, name):
    data, expected = KINDS[name]
    path = write(tmp_path, name, data)
    for reader, read in READERS.items():
        found = read(path)
        assert found.dtype == np.uint8, reader
        np.testing.assert_array_equal(found, expected, err_msg=reader)


@pytest.mark.parametrize("name", REFUSED)
def test_every_reader_refuses_with_the_path(tmp_path, name):
    path = write(tmp_path, name, REFUSED[name])
    for read in READERS.values():
        with pytest.raises(CorruptImageError, match=name):
            read(path)


def test_jpegs_have_the_values_of_opencv(tmp_path):
    data, expected = KINDS["photograph.JPG"]
    np.testing.assert_array_equal(expected, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def test_options_of_mmcv(tmp_path):
    path = write(tmp_path, "a.png", encode(COLOURS, orientation=6))
    floats = in_pipeline("mmseg", to_float32=True)(path)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, UPRIGHT[6](COLOURS))
    stored = in_pipeline("mmseg", color_type="color_ignore_orientation")(path)
    np.testing.assert_array_equal(stored, COLOURS)
    deep = write(tmp_path / "class", "b.png", encode(DEEP))
    unchanged = SCOPES["mmseg"].TRANSFORMS.build({"type": "LoadImageFromFile", "color_type": "unchanged"})
    np.testing.assert_array_equal(unchanged({"img_path": str(deep)})["img"], DEEP)
    with pytest.raises(UserError, match="on_corrupt='ignore'"):
        in_pipeline("mmseg", on_corrupt="ignore")(path)


def test_dark_16_bit_images_are_named_once_a_folder(tmp_path, caplog):
    for folder in ("a", "b"):
        for name in ("0.png", "1.png"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(encode(DEEP >> 4))
    source = ImageSource(tmp_path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(np.asarray(source.open(0))[..., 0], DEEP >> 12)
        for index in range(4):
            source.open(index)
    assert [str(tmp_path / folder / "0.png") in caplog.text for folder in "ab"] == [True, True]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_annotations_tell_which_pixels_they_were_drawn_on(orientation):
    header = Header((WIDTH, HEIGHT), orientation)
    turned = orientation >= 5
    assert header.upright == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert orientation_to_apply(header, None) == orientation
    with pytest.raises(RefusedImage, match="9 x 5"):
        orientation_to_apply(header, (9, 5))
    if turned:
        assert orientation_to_apply(header, (HEIGHT, WIDTH)) == orientation
        assert orientation_to_apply(header, (WIDTH, HEIGHT)) == 1
    elif orientation == 1:
        assert orientation_to_apply(header, (WIDTH, HEIGHT)) == 1
    else:
        with pytest.raises(RefusedImage, match=f"orientation {orientation}"):
            orientation_to_apply(header, (WIDTH, HEIGHT))
    if orientation != 1:
        with pytest.raises(RefusedImage, match=f"orientation {orientation}"):
            orientation_to_apply(Header((8, 8), orientation), (8, 8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_headers_and_stored_pixels_under_annotations(tmp_path, form, orientation):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    data = encode(COLOURS, form, orientation, **options)
    (tmp_path / "a").write_bytes(data)
    assert read_header(tmp_path / "a") == Header((WIDTH, HEIGHT), orientation)
    plain = np.asarray(decode_image(encode(COLOURS, form, **options), "plain"))
    np.testing.assert_array_equal(np.asarray(decode_image(data, "a", (WIDTH, HEIGHT))), plain)
    np.testing.assert_array_equal(np.asarray(decode_image(data, "a", (HEIGHT, WIDTH))), UPRIGHT[orientation](plain))
    with pytest.raises(CorruptImageError, match=r"a is 8 x 5 \(5 x 8 upright\) pixels.* 7 x 7:"):
        decode_image(data, "a", (7, 7))


def test_damaged_metadata_of_a_whole_image_is_passed_over():
    data = encode(COLOURS, "PNG", exif=b"Exif\0\0no tiff")
    np.testing.assert_array_equal(np.asarray(decode_image(data, "a")), COLOURS)


def test_several_frames_give_the_first(tmp_path):
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (WIDTH, HEIGHT))]
    for form in ("TIFF", "PNG"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(np.asarray(decode_image(data, form)), COLOURS)
