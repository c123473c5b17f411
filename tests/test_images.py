"""Image sources: folders and archives agree, nothing unsafe is read, nothing damaged passes silently."""

from __future__ import annotations

import gzip
import io
import logging
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adpe.data import archives
from adpe.data.images import CorruptImageError, ImageSource
from adpe.errors import UserError

MEMBERS = [f"{split}/{name}/{i}.png" for split in ("test", "train") for name in ("cat", "dog") for i in range(3)]


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 255 - value)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files() -> dict[str, bytes]:
    # Not sorted, and with what must be left out: other files, and macOS's companions of images.
    listed = {name: png(10 * i) for i, name in enumerate(MEMBERS)}
    return dict(reversed(listed.items())) | {"train/cat/._0.png": b"\0", "README.txt": b"text"}


@pytest.fixture
def sources(tmp_path, files) -> dict[str, Path]:
    for name, data in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    return {
        "folder": tmp_path / "folder",
        "tar": write_tar(tmp_path / "a.tar", files),
        "tar.xz": write_tar(tmp_path / "a.tar.xz", files, "w:xz"),
        "tar.gz": write_tar(tmp_path / "a.TAR.GZ", files, "w:gz"),
        "zip": write_zip(tmp_path / "a.zip", files),
        "stored zip": write_zip(tmp_path / "b.zip", files, zipfile.ZIP_STORED),
    }


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


def _read_all(source: ImageSource) -> list[bytes]:
    return [source.read(i) for _ in range(20) for i in range(len(source))]


@pytest.mark.parametrize("kind", ["tar.xz", "zip"])
def test_spawned_process(sources, files, kind):
    source = ImageSource(sources[kind])
    source.read(0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_read_all, [source]) == [[files[name] for name in MEMBERS] * 20]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_forked_process(tmp_path, compression):
    generator = np.random.default_rng(0)
    files = {name: generator.bytes(50_000) for name in MEMBERS}  # beyond what a file object buffers
    source = ImageSource(write_zip(tmp_path / "a.zip", files, compression))
    source.read(0)  # opens the archive: parent and child share its descriptor
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, b"1" if _read_all(source) == list(files.values()) * 20 else b"0")
        finally:
            os._exit(0)
    os.close(write_end)
    assert _read_all(source) == list(files.values()) * 20
    assert os.read(read_end, 1) == b"1"
    os.waitpid(child, 0)


def test_cache_is_reused_and_follows_the_archive(sources, cache, files):
    path = sources["tar.xz"]
    ImageSource(path)
    (unpacked,) = cache.iterdir()
    before = unpacked.stat().st_mtime_ns
    ImageSource(path)
    assert [(p, p.stat().st_mtime_ns) for p in cache.iterdir()] == [(unpacked, before)]
    write_tar(path, {"new/only.png": png(1)}, "w:xz")
    assert ImageSource(path).paths == [str(path / "new/only.png")]


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz"])
def test_torn_archive_leaves_no_cache(sources, cache, kind):
    path = sources[kind]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{path.name} cannot be read as an archive"):
        ImageSource(path)
    assert list(cache.iterdir()) == []


def test_killed_while_unpacking(tmp_path, cache):
    path = tmp_path / "big.tar.gz"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)
    code = f"from adpe.data.images import ImageSource; ImageSource({str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    os.write(pipe, gzip.compress(bytes(20 * 2**20))[:15_000])  # the rest never comes
    while not any(p.stat().st_size for p in cache.glob("*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    os.close(pipe)
    (abandoned,) = cache.iterdir()
    os.utime(abandoned, (0, 0))
    path.unlink()
    write_tar(path, {"a.png": png(1)}, "w:gz")
    assert ImageSource(path).open(0).getpixel((0, 0)) == (1, 2, 254)
    assert [p.suffix for p in cache.iterdir()] == [".tar"]  # the abandoned one is swept away


def test_decompression_bomb(tmp_path, cache):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(70):
            out.write(bytes(2**20))
    with pytest.raises(UserError, match=r"bomb.tar.gz unpacks to more than 67108864 bytes"):
        ImageSource(path)
    assert list(cache.iterdir()) == []


def test_image_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 50)
    files = {"a.png": png(1)}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(files["a.png"])
    for path in (tmp_path / "folder", write_tar(tmp_path / "a.tar", files), write_zip(tmp_path / "a.zip", files)):
        with pytest.raises(CorruptImageError, match=r"a\.png .* more than the limit of 50"):
            ImageSource(path).read(0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_bounded_before_decoding(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(CorruptImageError, match=r"huge\.png .*10000 x 9000 pixels, more than the limit of 89478485"):
        ImageSource(tmp_path, on_corrupt="error").open(0)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_path_escapes_are_refused(tmp_path, name, write):
    path = write(tmp_path / ("a." + write.__name__[-3:]), {"fine.png": png(1), name: png(2)})
    with pytest.raises(UserError, match=r"refused, because its member .*out\.png' points outside the archive"):
        ImageSource(path)


def test_links_in_archives_are_left_out(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(200))
    write_tar(tmp_path / "a.tar", {"a.png": png(1)})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    write_zip(tmp_path / "a.zip", {"a.png": png(1)})
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(secret))
    for path in (tmp_path / "a.tar", tmp_path / "a.zip"):
        assert ImageSource(path).paths == [str(path / "a.png")]


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
    assert len(caplog.records) == 3


def test_last_images_corrupt_wraps_around(tmp_path):
    for name, data in {"a.png": png(1), "b.png": b"", "c.png": b""}.items():
        (tmp_path / name).write_bytes(data)
    assert ImageSource(tmp_path).load(1)[1] == 0
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 images from .*b\.png on cannot be read"):
        ImageSource(tmp_path).load(1)


def test_damaged_zip_member(tmp_path, files):
    path = write_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    position = data.index(files["test/cat/1.png"])
    data[position + 45] ^= 1
    path.write_bytes(data)
    source = ImageSource(path, on_corrupt="error")
    assert source.read(0) == files["test/cat/0.png"]
    with pytest.raises(CorruptImageError, match=r"a\.zip/test/cat/1\.png .*Bad CRC-32"):
        source.read(1)
    with pytest.raises(CorruptImageError, match="compression method 12, expected stored or deflated"):
        ImageSource(write_zip(path, files, zipfile.ZIP_BZIP2)).read(0)


def test_damaged_tar_is_not_a_shorter_one(sources, files):
    data = bytearray(sources["tar"].read_bytes())
    position = data.index(b"train/cat/1.png")
    data[position + 150] ^= 255  # in the header's checksum: tarfile alone would stop here without a word
    sources["tar"].write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.tar cannot be read as an archive: damaged header at byte {position}"):
        ImageSource(sources["tar"])
    for cut, words in ((700, "damaged header"), (500, "unexpected end of data")):  # in a header, in an image
        sources["tar"].write_bytes(data[: position - cut])
        with pytest.raises(UserError, match=rf"a\.tar cannot be read as an archive: {words}"):
            ImageSource(sources["tar"])


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


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored zip"])
def test_damage_anywhere_gives_the_documented_errors(sources, files, kind):
    original = sources[kind].read_bytes()
    generator = np.random.default_rng(0)
    refused = corrupt = 0
    for _ in range(150):
        data = bytearray(original)
        for position in generator.integers(0, len(data), generator.integers(1, 8)):
            data[position] = generator.integers(256)
        if generator.random() < 0.2:
            data = data[: generator.integers(1, len(data))]
        sources[kind].write_bytes(data)
        try:
            source = ImageSource(sources[kind], on_corrupt="error")
        except UserError:
            refused += 1
            continue
        for index in range(len(source)):
            try:
                source.open(index)
            except CorruptImageError:
                corrupt += 1
    assert refused > 0
    assert corrupt > 0 or kind == "tar.gz"  # gzip's checksum leaves nothing damaged to be read


def test_needs_only_torch_numpy_pillow():
    code = (
        "import sys, adpe.data.images, adpe.data.multicrop\n"
        "print(sorted({'mmengine', 'mmcv', 'torchvision', 'timm', 'scipy', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
