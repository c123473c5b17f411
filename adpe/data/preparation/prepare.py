"""Getting ADE20K, COCO, ImageNet and CIFAR-10 into the layouts that the configs read.

Archives are downloaded from their official places, or taken from where the user has them; they are unpacked beside the
final place and renamed into it, so that a folder with its final name is whole. An interrupted run is taken up again by
the same command: downloads at the byte, unpacking at the file.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from PIL import Image
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from adpe.data.preparation.download import download, verify_checksum
from adpe.data.sources import archives
from adpe.errors import UserError, require
from adpe.files import atomic_write

Member = tuple[str, int, IO[bytes]]  # name, size in bytes, stream
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Archive:
    """One file of a data set.

    Attributes:
        name: of the official file.
        url: official place; None where an account is needed.
        checksum: ``"<algorithm>:<digest>"``.
        makes: path below the root that it is unpacked into.
        unpack: writes `makes`, given as a path that is not yet the final one, from the archive.
    """

    name: str
    url: str | None
    checksum: str
    makes: str
    unpack: Callable[[Path, Path, Progress], None]


def prepare(name: str, root: Path, given: Sequence[str] = (), keep: bool = False, checksums: bool = True) -> list[Path]:
    """Put a data set below `root`.

    Args:
        name: a key of `DATA_SETS`.
        root: folder, made if needed.
        given: local archives, folders with them, or addresses to download them from instead of the official ones. They
            are told apart by the official file names; for a data set of one archive any name will do.
        keep: keep downloaded archives (in ``<root>/downloads``) after unpacking.
        checksums: verify the archives.

    Returns:
        what is there now, for each archive.

    Raises:
        UserError: if an archive is missing, damaged, unsafe or cannot be had.
    """
    if name not in DATA_SETS:
        raise UserError(f"Unknown data set {name!r}: expected {', '.join(DATA_SETS)}.")
    wanted = DATA_SETS[name]
    sources = _match(wanted, given)
    pending = [archive for archive in wanted if not (root / archive.makes).exists()]
    lacking = [archive.name for archive in pending if archive.url is None and archive.name not in sources]
    if lacking:
        raise UserError(
            f"{name} needs an account (image-net.org, ILSVRC2012): download {', '.join(lacking)} there and give the "
            "files, or the folder that has them, with --archive."
        )
    root.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for archive in pending:
            source = sources.get(archive.name, archive.url or "")
            checksum = archive.checksum if checksums else None
            path = Path(source)
            if source.startswith(("http://", "https://")):
                path = root / "downloads" / archive.name
                task = progress.add_task(archive.name, total=None)
                download(source, path, checksum, partial(_show, progress, task))
            else:
                verify_checksum(path, checksum)
            staging = root / f".{archive.makes}.unpacking"
            _unpack(archive, path, staging, progress)
            os.replace(staging, root / archive.makes)
            if not keep and path.parent == root / "downloads":
                path.unlink()
    if not keep and (root / "downloads").is_dir() and not any((root / "downloads").iterdir()):
        (root / "downloads").rmdir()
    return [root / archive.makes for archive in wanted]


def _show(progress: Progress, task: TaskID, done: int, total: int | None) -> None:
    progress.update(task, completed=done, total=total)


def _unpack(archive: Archive, path: Path, staging: Path, progress: Progress) -> None:
    """Unpack, or leave nothing of a damaged archive and say what is wrong."""
    try:
        archive.unpack(path, staging, progress)
    except archives.DAMAGE as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the decompressor
            raise UserError(f"cannot unpack {path}: {error}. Free some space, or choose another root.") from None
        shutil.rmtree(staging, ignore_errors=True)
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise UserError(f"{path} cannot be read as an archive: {reason}. Download or copy it again.") from None


def _match(wanted: Sequence[Archive], given: Sequence[str]) -> dict[str, str]:
    sources: dict[str, str] = {}
    names = [archive.name for archive in wanted]
    for item in given:
        remote = item.startswith(("http://", "https://"))
        if not remote and Path(item).is_dir():
            sources |= {name: str(Path(item) / name) for name in names if (Path(item) / name).is_file()}
            continue
        if not remote and not Path(item).is_file():
            raise UserError(f"--archive {item}: no such file or folder.")
        name = item.rpartition("/")[2]
        if name not in names and len(names) > 1:
            raise UserError(f"--archive {item}: expected a file called {', '.join(names)}.")
        sources[name if name in names else names[0]] = item
    return sources


# Unpacking ------------------------------------------------------------------------------------------------------------


def members(path: Path) -> Iterator[Member]:
    """Every file of a zip or tar archive, in its order.

    Raises:
        UserError: if it has a link, a special file or a name that leads out of it. Damage raises `archives.DAMAGE`.
    """
    yield from _of_zip(path) if zipfile.is_zipfile(path) else _of_tar(path)


def _of_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = archives.safe_name(entry.filename, path)
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{path}: refused, because its member {name!r} is a link or a special file.")
            if not entry.is_dir():
                with archive.open(entry) as stream:
                    yield name, entry.file_size, stream


def _of_tar(path: Path, stream: IO[bytes] | None = None) -> Iterator[Member]:
    with tarfile.open(path, fileobj=stream) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
            name = archives.safe_name(member.name, path)
            if not (member.isreg() or member.isdir()):
                raise UserError(f"{path}: refused, because its member {name!r} is a link or a special file.")
            contents = archive.extractfile(member)
            if contents is not None:
                yield name, member.size, contents
        # tarfile takes a damaged header for the end of the archive.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {archive.offset}")


def _of_tar_of_tars(path: Path) -> Iterator[Member]:
    for name, _, stream in _of_tar(path):
        if name.endswith(".tar"):
            yield from ((f"{name[:-4]}/{inner}", size, contents) for inner, size, contents in _of_tar(path, stream))


def unpack_into(
    path: Path,
    folder: Path,
    progress: Progress,
    place: Callable[[str], str | None] = lambda name: name,
    read: Callable[[Path], Iterator[Member]] = members,
) -> None:
    """Write the files of an archive; one that is there in full size is left as it is.

    Args:
        path: zip or tar.
        folder: where to.
        progress: shows the bytes written.
        place: member's name to path below `folder`, None for members that are left out.
        read: the archive's members.

    Raises:
        UserError: see `members`; also if nothing is left, or it grows beyond the limit of `adpe.data.sources.archives`.
    """
    task = progress.add_task(f"unpacking {path.name}", total=None)
    limit = max(archives.MIN_UNPACK_BYTES, archives.MAX_UNPACK_RATIO * path.stat().st_size)
    total = 0
    for name, size, stream in read(path):
        relative = place(name)
        if relative is None:
            continue
        total += size
        if total > limit:
            raise UserError(f"{path} unpacks to more than {limit} bytes: refused as a decompression bomb.")
        file = folder / relative
        if not (file.is_file() and file.stat().st_size == size):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as out:
                shutil.copyfileobj(stream, out, 2**20)
            if file.stat().st_size != size:
                raise EOFError(f"member {name!r} ends early")
        progress.advance(task, size)
    if not folder.exists():
        raise UserError(f"{path} has none of the files expected in it: is it another archive?")
    progress.update(task, total=total, completed=total)


def _below(folder: str) -> Callable[[Path, Path, Progress], None]:
    """Takes the files below one folder of the archive."""

    def place(name: str) -> str | None:
        return name.removeprefix(f"{folder}/") if name.startswith(f"{folder}/") else None

    return lambda path, target, progress: unpack_into(path, target, progress, place)


def _imagenet_train(path: Path, target: Path, progress: Progress) -> None:
    """A tar with one tar for each class."""
    unpack_into(path, target, progress, read=_of_tar_of_tars)


def _imagenet_val(path: Path, target: Path, progress: Progress) -> None:
    """Validation images into class folders, by the development kit that lies beside the archive."""
    kit = path.with_name("ILSVRC2012_devkit_t12.tar.gz")
    if not kit.is_file():
        raise UserError(f"{kit}: needed for the classes of the validation images. Put it beside {path.name}.")
    require("scipy", "requirements/runtime.txt")
    from scipy.io import loadmat

    files = {name.rpartition("/")[2]: stream.read() for name, _, stream in members(kit) if "/data/" in name}
    table = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)["synsets"]
    synset = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    truth = [synset[int(line)] for line in files["ILSVRC2012_validation_ground_truth.txt"].split()]

    def place(name: str) -> str:
        file = name.rpartition("/")[2]
        return f"{truth[int(file.removesuffix('.JPEG').rpartition('_')[2]) - 1]}/{file}"

    unpack_into(path, target, progress, place)


def _cifar10(path: Path, target: Path, progress: Progress) -> None:
    """Binary version (a label byte, 3 x 32 x 32 pixels) to a zip of PNGs: ``{train,test}/<class>/<number>.png``."""
    with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as out:
        number = 0
        files = sorted((name, size, stream.read()) for name, size, stream in members(path) if name.endswith(".bin"))
        for name, size, data in files:
            split = "test" if "test" in name else "train"
            if size % 3073:
                raise UserError(f"{path}: {name} is of {size} bytes, expected records of 3073. Download it again.")
            task = progress.add_task(name.rpartition("/")[2], total=size)
            for start in range(0, size, 3073):
                planes = [Image.frombytes("L", (32, 32), data[start + 1 + 1024 * c :][:1024]) for c in range(3)]
                png = io.BytesIO()
                Image.merge("RGB", planes).save(png, "PNG", compress_level=1)
                out.writestr(f"{split}/{CIFAR10_CLASSES[data[start]]}/{number:05}.png", png.getvalue())
                number += 1
                progress.advance(task, 3073)
        if not number:
            raise UserError(f"{path} has no *.bin: expected the binary version of CIFAR-10.")


# ImageNet's and CIFAR-10's sums are published with the archives (image-net.org; Krizhevsky's page). ADE20K's and COCO's
# places publish none: these are the ones that GluonCV's scripts verify.
_COCO = "http://images.cocodataset.org"
DATA_SETS: dict[str, tuple[Archive, ...]] = {
    "ade20k": (
        Archive("ADEChallengeData2016.zip", "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7", "ADEChallengeData2016",
                _below("ADEChallengeData2016")),
    ),
    "coco": (
        Archive("annotations_trainval2017.zip", f"{_COCO}/annotations/annotations_trainval2017.zip",
                "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3", "annotations", _below("annotations")),
        Archive("val2017.zip", f"{_COCO}/zips/val2017.zip", "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41", "val2017",
                _below("val2017")),
        Archive("train2017.zip", f"{_COCO}/zips/train2017.zip", "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
                "train2017", _below("train2017")),
    ),
    "imagenet": (
        Archive("ILSVRC2012_img_val.tar", None, "md5:29b22e2961454d5413ddabcf34fc5622", "val", _imagenet_val),
        Archive("ILSVRC2012_img_train.tar", None, "md5:1d675b47d978889d74fa0da5fadfb00e", "train", _imagenet_train),
    ),
    "cifar10": (
        Archive("cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530", "cifar10.zip", _cifar10),
    ),
}  # fmt: skip
