"""Archives: usable in workers, unpacked whole or not at all, nothing unsafe is read, no damage passes silently."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from image_files import MEMBERS, cache, files, png, sources, write_tar, write_zip  # noqa: F401  fixtures

from adpe.data.sources import archives
from adpe.data.sources.images import CorruptImageError, ImageSource
from adpe.errors import UserError


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
    code = f"from adpe.data.sources.images import ImageSource; ImageSource({str(path)!r})"
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
