"""Data sets from archives to the layouts that the configs read; unsafe and damaged archives leave nothing behind."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from file_server import serving
from image_files import png, write_tar, write_zip

from adpe.data.preparation import prepare
from adpe.data.preparation.prepare import DATA_SETS
from adpe.data.sources import archives
from adpe.data.sources.images import ImageSource
from adpe.errors import UserError

SCRIPT = Path(__file__).parents[2] / "tools" / "prepare_data.py"
ADE_NAMES = ["images/training/1.jpg", "images/validation/2.jpg", "annotations/training/1.png",
             "annotations/validation/2.png", "sceneCategories.txt"]  # fmt: skip
ADE = {f"ADEChallengeData2016/{name}": png(i) for i, name in enumerate(ADE_NAMES)}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run(name: str, root: Path, *given: object, **options):
    return prepare.prepare(name, root, [str(item) for item in given], checksums=False, **options)


def tar_bytes(contents: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_ade20k_from_a_server_and_from_a_file(tmp_path):
    archive = write_zip(tmp_path / "my-ade.zip", ADE)
    with serving({"/ADEChallengeData2016.zip": archive.read_bytes()}) as server:
        server.break_after = [400, None]
        made = run("ade20k", tmp_path / "a", f"{server.url}/ADEChallengeData2016.zip")
    assert made == [tmp_path / "a/ADEChallengeData2016"]
    assert files(tmp_path / "a") == ADE  # the download is gone once unpacked
    run("ade20k", tmp_path / "b", archive)
    assert files(tmp_path / "b") == ADE and archive.exists()
    archive.unlink()
    run("ade20k", tmp_path / "b")  # what is there is left alone


def test_coco_needs_its_three_archives_whatever_their_place(tmp_path):
    contents = {
        "annotations": {"annotations/instances_train2017.json": b"{}", "annotations/instances_val2017.json": b"{}"},
        "train2017": {"train2017/1.jpg": png(1)}, "val2017": {"val2017/2.jpg": png(2)},
    }  # fmt: skip
    (tmp_path / "have").mkdir()
    write_zip(tmp_path / "have" / "annotations_trainval2017.zip", contents["annotations"])
    train = write_zip(tmp_path / "train2017.zip", contents["train2017"])
    val = write_zip(tmp_path / "other.zip", contents["val2017"])
    with serving({"/mirror/val2017.zip": val.read_bytes()}) as server:
        run("coco", tmp_path / "coco", tmp_path / "have", train, f"{server.url}/mirror/val2017.zip", keep=True)
    expected = contents["annotations"] | contents["train2017"] | contents["val2017"]
    assert files(tmp_path / "coco") == expected | {"downloads/val2017.zip": val.read_bytes()}
    with pytest.raises(UserError, match=r"other\.zip: expected a file called annotations_trainval2017\.zip, val2017"):
        run("coco", tmp_path / "again", val)


def test_imagenet_into_class_folders(tmp_path):
    dogs, cats = tar_bytes({"n02_1.JPEG": png(1), "n02_2.JPEG": png(2)}), tar_bytes({"n01_9.JPEG": png(3)})
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {"n02.tar": dogs, "n01.tar": cats})
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_0000000{i}.JPEG": png(i) for i in (1, 2, 3)})
    with pytest.raises(UserError, match=r"devkit_t12\.tar\.gz: needed for the classes"):
        run("imagenet", tmp_path / "imagenet", tmp_path)
    table = np.array([(2, "n02"), (1, "n01")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": table})
    kit = {"ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
           "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n"}  # fmt: skip
    write_tar(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")
    run("imagenet", tmp_path / "imagenet", tmp_path)
    assert files(tmp_path / "imagenet") == {
        "train/n01/n01_9.JPEG": png(3), "train/n02/n02_1.JPEG": png(1), "train/n02/n02_2.JPEG": png(2),
        "val/n02/ILSVRC2012_val_00000001.JPEG": png(1), "val/n01/ILSVRC2012_val_00000002.JPEG": png(2),
        "val/n02/ILSVRC2012_val_00000003.JPEG": png(3),
    }  # fmt: skip


def test_imagenet_is_not_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"an account.*download ILSVRC2012_img_val\.tar, ILSVRC2012_img_train\.tar"):
        prepare.prepare("imagenet", tmp_path / "imagenet")


def test_cifar10_becomes_an_archive_that_image_sources_read(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    records = [bytes([label]) + image.tobytes() for label, image in zip((9, 0, 9), pixels, strict=True)]
    contents = {"cifar-10-batches-bin/data_batch_1.bin": records[0] + records[1],
                "cifar-10-batches-bin/test_batch.bin": records[2], "cifar-10-batches-bin/a.html": b"x"}  # fmt: skip
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", contents, "w:gz")
    assert run("cifar10", tmp_path / "cifar10", archive) == [tmp_path / "cifar10/cifar10.zip"]
    train = ImageSource(tmp_path / "cifar10/cifar10.zip", split="train")
    assert train.classes == ["airplane", "truck"]
    assert np.array_equal(np.asarray(train.open(0)).transpose(2, 0, 1), pixels[1])
    assert np.array_equal(np.asarray(train.open(1)).transpose(2, 0, 1), pixels[0])
    assert len(ImageSource(tmp_path / "cifar10/cifar10.zip", split="test")) == 1


@pytest.mark.parametrize("name", ["../out.jpg", "/tmp/out.jpg", "ADEChallengeData2016/../../out.jpg"])
def test_names_that_lead_out_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"refused, because its member .* points outside the archive"):
        run("ade20k", tmp_path / "root", write_zip(tmp_path / "a.zip", {**ADE, name: b"x"}))
    assert not (tmp_path / "root/ADEChallengeData2016").exists() and not list(tmp_path.rglob("out.jpg"))


def test_links_are_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", ADE)
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo("ADEChallengeData2016/link")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=r"refused, because its member 'ADEChallengeData2016/link' is a link"):
        run("ade20k", tmp_path / "root", archive)
    tar = write_tar(tmp_path / "a.tar", ADE)
    with tarfile.open(tar, "a") as file:
        info = tarfile.TarInfo("ADEChallengeData2016/link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(UserError, match=r"refused, because its member 'ADEChallengeData2016/link' is a link"):
        run("ade20k", tmp_path / "root", tar)


def test_damaged_archives_leave_nothing(tmp_path):
    archive = write_zip(tmp_path / "a.zip", ADE, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.index(ADE["ADEChallengeData2016/images/validation/2.jpg"]) + 30] ^= 1
    (tmp_path / "flipped.zip").write_bytes(data)
    tar = write_tar(tmp_path / "a.tar", ADE).read_bytes()
    (tmp_path / "torn.tar").write_bytes(tar[: tar.index(b"ADEChallengeData2016/annotations/training") + 200])
    (tmp_path / "text.zip").write_text("<html>404</html>")
    for name in ("flipped.zip", "torn.tar", "text.zip"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as an archive: .*Download or copy it again"):
            run("ade20k", tmp_path / "root", tmp_path / name)
        assert list((tmp_path / "root").iterdir()) == []
    with pytest.raises(UserError, match=r"has none of the files expected in it"):
        run("ade20k", tmp_path / "root", write_zip(tmp_path / "other.zip", {"a/b.jpg": b"x"}))


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MIN_UNPACK_BYTES", 1000)
    bomb = write_zip(tmp_path / "bomb.zip", {"ADEChallengeData2016/zeros": bytes(10**6)})
    with pytest.raises(UserError, match="refused as a decompression bomb"):
        run("ade20k", tmp_path / "root", bomb)


def test_an_interrupted_unpacking_goes_on_at_the_file(tmp_path):
    archive = write_zip(tmp_path / "a.zip", ADE)
    staging = tmp_path / "root/.ADEChallengeData2016.unpacking/images"
    first = ADE["ADEChallengeData2016/images/training/1.jpg"]
    for name, data in (("training/1.jpg", first), ("validation/2.jpg", b"torn")):
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)
    whole = (staging / "training/1.jpg").stat().st_mtime_ns
    run("ade20k", tmp_path / "root", archive)
    assert files(tmp_path / "root") == ADE
    assert (tmp_path / "root/ADEChallengeData2016/images/training/1.jpg").stat().st_mtime_ns == whole


def test_the_script_verifies_checksums_and_tells_mistakes_in_a_line(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    archive = write_zip(tmp_path / "ADEChallengeData2016.zip", ADE)
    arguments = ["ade20k", str(tmp_path / "root"), "--archive", str(archive)]
    assert script.main(arguments) == 2
    assert f"{archive}: sha1 " in capsys.readouterr().err
    assert script.main([*arguments, "--no-checksum"]) == 0
    assert f"ready: {tmp_path / 'root/ADEChallengeData2016'}" in capsys.readouterr().out
    assert script.main(["ade20k", str(tmp_path / "new"), "--archive", str(tmp_path / "nowhere.zip")]) == 2
    assert "nowhere.zip: no such file or folder" in capsys.readouterr().err


def test_every_archive_has_a_checksum_and_all_but_imagenets_a_place():
    for name, wanted in DATA_SETS.items():
        for archive in wanted:
            algorithm, _, digest = archive.checksum.partition(":")
            assert len(digest) == {"md5": 32, "sha1": 40}[algorithm]
            assert (archive.url is None) == (name == "imagenet")
            assert archive.url is None or archive.url.endswith(f"/{archive.name}")
