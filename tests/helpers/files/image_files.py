"""Small images as folders and archives, for the tests of what reads them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

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


def some_files() -> dict[str, bytes]:
    """Images in class folders, unsorted, among what must be left out: other files, and macOS's companions of images."""
    listed = {name: png(10 * i) for i, name in enumerate(MEMBERS)}
    return dict(reversed(listed.items())) | {"train/cat/._0.png": b"\0", "README.txt": b"text"}


def write_sources(folder: Path, files: dict[str, bytes]) -> dict[str, Path]:
    """The same files as a folder and as every kind of archive."""
    for name, data in files.items():
        (folder / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "folder" / name).write_bytes(data)
    return {
        "folder": folder / "folder",
        "tar": write_tar(folder / "a.tar", files),
        "tar.xz": write_tar(folder / "a.tar.xz", files, "w:xz"),
        "tar.gz": write_tar(folder / "a.TAR.GZ", files, "w:gz"),
        "zip": write_zip(folder / "a.zip", files),
        "stored zip": write_zip(folder / "b.zip", files, zipfile.ZIP_STORED),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that compressed tars are unpacked into."""
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files() -> dict[str, bytes]:
    return some_files()


@pytest.fixture
def sources(tmp_path: Path, files: dict[str, bytes]) -> dict[str, Path]:
    return write_sources(tmp_path, files)
