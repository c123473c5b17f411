"""A large tar's members are found once: its index is read again, never for another archive, never where damaged."""

from __future__ import annotations

import os
import tarfile

import numpy as np
import pytest
from image_files import cache, write_tar  # noqa: F401  fixture

from adpe.data.sources.images import ImageSource
from adpe.data.sources.tar_index import WORTH_KEEPING

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def large(tmp_path):
    files = {f"class{i % 7}/{i}.png": str(i).encode() for i in range(WORTH_KEEPING - 1)}
    return write_tar(tmp_path / "large.tar", {**files, "class0/süß \udcff.png": b"last"}), files


def everything(source):
    return [(path, source.read(i), source.label(i)) for i, path in enumerate(source.paths)]


def test_the_index_stands_for_the_headers(large, cache):
    path, _ = large
    first = everything(ImageSource(path))
    assert len(first) == WORTH_KEEPING
    (index,) = (cache / "indices").iterdir()
    status = path.stat()
    with open(path, "r+b") as file:  # no header of it can be read any more
        file.write(b"\xff" * 512)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert everything(ImageSource(path)) == first
    assert [*(cache / "indices").iterdir()] == [index]


def test_another_archive_is_indexed_anew(large, cache):
    path, files = large
    ImageSource(path)
    write_tar(path, {name: data[::-1] for name, data in files.items()})
    source = ImageSource(path)
    assert source.read(source.paths.index(f"{path}/class0/14.png")) == b"41"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 but no more", None])
def test_a_damaged_index_is_written_again(large, cache, damage):
    path, _ = large
    first = everything(ImageSource(path))
    (index,) = (cache / "indices").iterdir()
    whole = index.read_bytes()
    index.write_bytes(whole[:-30] if damage is None else damage)
    assert everything(ImageSource(path)) == first
    assert index.read_bytes() == whole


def test_small_archives_and_a_read_only_cache_keep_none(large, cache, tmp_path):
    ImageSource(write_tar(tmp_path / "small.tar", {"a.png": b"1"}))
    assert not (cache / "indices").exists()
    cache.mkdir(exist_ok=True)
    (cache / "indices").write_bytes(b"a file in the way")
    assert len(ImageSource(large[0])) == WORTH_KEEPING


def test_a_name_with_a_null_keeps_none(tmp_path, cache):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for i in range(WORTH_KEEPING):
            member = tarfile.TarInfo(f"{i}.png")
            if i == 5:
                member.pax_headers = {"path": "o\0dd.png"}
            archive.addfile(member)
    for _ in range(2):
        assert len(ImageSource(path)) == WORTH_KEEPING
    assert not (cache / "indices").exists()


def test_a_path_that_is_no_text(large, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    assert len(ImageSource(os.rename(large[0], folder / "a.tar") or folder / "a.tar")) == WORTH_KEEPING


def test_no_byte_of_an_index_can_change_what_is_read(large, cache):
    path, _ = large
    first = [*ImageSource(path).paths]
    (index,) = (cache / "indices").iterdir()
    whole = index.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 20).tolist()
    ends = [*range(len(whole) - 30, len(whole)), *range(10)]  # of the directory, and of the first header
    for place in [*places, *ends]:
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert ImageSource(path).paths == first
