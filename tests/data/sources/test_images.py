"""Image sources: folders and archives agree, corrupt images are skipped or fatal, mistakes are named."""

from __future__ import annotations

import gzip
import io
import logging
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from image_files import MEMBERS, cache, files, png, sources, write_tar, write_zip  # noqa: F401  fixtures
from PIL import Image

from adpe.data.sources.images import CorruptImageError, ImageSource
from adpe.errors import UserError


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz", "tar.gz", "zip", "stored zip"])
def test_kinds_agree(sources, files, kind):
    source = ImageSource(sources[kind])
    assert source.paths == [str(sources[kind] / name) for name in MEMBERS]
    assert [source.read(i) for i in range(len(source))] == [files[name] for name in MEMBERS]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert source.open(3).mode == "RGB"
    assert source.open(3).getpixel((0, 0)) == (30, 60, 225)
    with pytest.raises(IndexError, match="12"):
        source.read(12)


@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_split(sources, kind):
    source = ImageSource(sources[kind], split="train/")
    assert source.paths == [str(sources[kind] / name) for name in MEMBERS[6:]]
    assert source.open(0).getpixel((0, 0)) == (60, 120, 195)
    flat = ImageSource(sources[kind], split="train/dog")
    assert (flat.classes, flat.labels.tolist(), flat.label(0)) == ([], [-1, -1, -1], -1)
    with pytest.raises(UserError, match=r"'tr' .* expected a split among test, train"):
        ImageSource(sources[kind], split="tr")


def test_concatenation(sources, tmp_path, files):
    (tmp_path / "ant").mkdir()
    (tmp_path / "single.png").write_bytes(png(77))
    extra = write_tar(tmp_path / "extra.tar", {"./ant/x.png": png(99)})
    source = ImageSource([sources["zip"], str(extra), tmp_path / "single.png", sources["tar.xz"]])
    assert len(source) == 26
    assert source.classes == ["ant", "cat", "dog"]
    assert source.labels.tolist() == [1, 1, 1, 2, 2, 2] * 2 + [0, -1] + [1, 1, 1, 2, 2, 2] * 2
    assert source.path(12) == str(extra / "ant/x.png")
    assert source.path(13) == str(tmp_path / "single.png")
    assert [source.open(i).getpixel((0, 0))[0] for i in (0, 11, 12, 13, 14, 25)] == [0, 110, 99, 77, 0, 110]


def test_tar_of_tars(tmp_path):
    def inner(values):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for value in values:
                info = tarfile.TarInfo(f"{value}.png")
                info.size = len(png(value))
                archive.addfile(info, io.BytesIO(png(value)))
        return buffer.getvalue()

    source = ImageSource(write_tar(tmp_path / "outer.tar", {"n02.tar": inner([7, 8]), "n01.tar": inner([5])}))
    assert source.classes == ["n01", "n02"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.path(2) == str(tmp_path / "outer.tar" / "n02" / "8.png")
    assert [source.open(i).getpixel((0, 0))[0] for i in range(3)] == [5, 7, 8]


def test_modes_become_rgb(tmp_path):
    for mode in ("L", "1", "P", "RGBA", "LA"):
        (tmp_path / f"{mode}.png").write_bytes(png(0, mode))
    Image.new("CMYK", (3, 3)).save(tmp_path / "cmyk.JPEG")
    source = ImageSource(tmp_path)
    assert len(source) == 6
    assert {source.open(i).mode for i in range(6)} == {"RGB"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_bounded_before_decoding(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(CorruptImageError, match=r"huge\.png .*10000 x 9000 pixels, more than the limit of 89478485"):
        ImageSource(tmp_path, on_corrupt="error").open(0)


def test_links_in_folders(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(png(1))
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    source = ImageSource(tmp_path / "data", on_corrupt="error")
    assert source.paths == [str(tmp_path / "data" / name) for name in ("cat/gone.png", "dog/1.png")]
    with pytest.raises(CorruptImageError, match=r"gone\.png"):
        source.open(0)


def test_corrupt_images(tmp_path, files, caplog):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    bad = {"train/cat/1.png": b"no image", "train/cat/2.png": whole.getvalue()[:-300], "train/dog/0.png": b""}
    path = write_tar(tmp_path / "bad.tar.xz", files | bad, "w:xz")
    source = ImageSource(path, split="train", on_corrupt="error")
    assert source.open(0).size == (5, 4)
    for index, name in enumerate(bad, start=1):
        with pytest.raises(CorruptImageError, match=rf"bad\.tar\.xz/{name} cannot be read as an image"):
            source.open(index)
    with pytest.raises(CorruptImageError, match="truncated"):
        source.decode(2)

    source = ImageSource(path, split="train", on_corrupt="skip")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            image, delivered = source.load(1)
            assert (delivered, image.getpixel((0, 0))) == (4, (100, 200, 155))
            assert source.load(3)[1] == 4
    assert sorted(bad) == [name for name in sorted(bad) if caplog.text.count(f"bad.tar.xz/{name}") == 1]
    assert sum("skipped" in record.getMessage() for record in caplog.records) == 3


def test_last_images_corrupt_wraps_around(tmp_path):
    for name, data in {"a.png": png(1), "b.png": b"", "c.png": b""}.items():
        (tmp_path / name).write_bytes(data)
    assert ImageSource(tmp_path).load(1)[1] == 0
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 images from .*b\.png on cannot be read"):
        ImageSource(tmp_path).load(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.tar", r"none\.tar does not exist: expected a folder of images, an archive \(\.tar,"),
        (lambda p: p, "no images in .*: expected files ending in .jpg"),
        (lambda p: write_tar(p / "a.tar", {"a.txt": b""}), r"no images in .*a\.tar"),
        (lambda p: write_zip(p / "a.zip", {}), r"no images in .*a\.zip"),
        (lambda p: _write(p / "a.rar", b""), r"a\.rar has an unknown extension: expected .*\.tar\.xz"),
        (lambda p: _write(p / "a.tar", b""), r"a\.tar cannot be read as an archive"),
        (lambda p: _write(p / "a.tar", b"x" * 2000), r"a\.tar cannot be read as an archive"),
        (lambda p: _write(p / "a.tar.xz", b"x" * 2000), r"a\.tar\.xz cannot be read as an archive"),
        (lambda p: _write(p / "a.tgz", b"x" * 2000), r"a\.tgz cannot be read as an archive"),
        (lambda p: _write(p / "a.tgz", gzip.compress(b"x" * 2000)), r"a\.tgz cannot be read as an archive"),
        (lambda p: _write(p / "a.zip", b"x" * 2000), r"a\.zip cannot be read as an archive"),
        (lambda p: "", "images source '': expected the path"),
        (lambda p: [], r"images source \[\]: expected the path"),
    ],
)
def test_mistakes(tmp_path, make, words):
    with pytest.raises(UserError, match=words):
        ImageSource(make(tmp_path))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_unusable_cache_and_option(sources, tmp_path):
    blocked = _write(tmp_path / "file", b"")
    with pytest.raises(UserError, match=r"cannot unpack .*a\.tar\.xz into the cache .*file.*ADPE_CACHE_DIR"):
        ImageSource(sources["tar.xz"], cache_dir=blocked)
    with pytest.raises(UserError, match="on_corrupt='ignore': expected 'skip' or 'error'"):
        ImageSource(sources["folder"], on_corrupt="ignore")


def test_needs_only_torch_numpy_pillow():
    code = (
        "import sys, adpe.data.sources.images, adpe.data.views.multicrop\n"
        "print(sorted({'mmengine', 'mmcv', 'torchvision', 'timm', 'scipy', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
