"""The commands and configs of the pages about one's own data, run as they stand on small data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_files import encoder_file
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from safetensors.torch import load_file
from typed_commands import blocks, typed

from adpe.data.scenes import write_scenes
from adpe.engine.config import read_config
from adpe.leaderboard.records import read_records
from adpe.suites.own_inputs import with_encoder
from adpe.suites.suite import expand
from adpe.suites.suite_file import read_suite

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which commands find the tools and configs, and write nowhere else."""
    for name in ("tools", "configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def shortened(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def own_config(checkout: Path, page: str, base: str) -> Path:
    """The page's config of one's own, as a file that finds its base."""
    (text,) = [block for block in blocks(page, "python") if "_base_" in block]
    file = checkout / "mine.py"
    file.write_text(shortened(text, (f'"./{base}.py"', repr(str(ROOT / "configs" / f"{base}.py")))))
    return file


@pytest.mark.slow(15)
def test_own_masks(checkout: Path):
    """From painted masks of three classes to a record and pictures, with the page's own lines."""
    page = "own_masks.md"
    root = write_scenes(checkout / "data/mine", num_train=32, num_val=4, num_unlabelled=0, size=48)
    (root / "classes.json").unlink()
    named = next(text for text in blocks(page, "text") if text.startswith("road #"))
    (root / "classes.txt").write_text(named)
    colours = np.zeros((256, 3), np.uint8)
    for label, line in enumerate(named.splitlines(), start=1):
        colours[label] = list(bytes.fromhex(line.rpartition("#")[2]))
    wanted = {}
    for path in sorted(root.glob("annotations/*/*.png")):
        labels = np.asarray(Image.open(path)) % 4  # the fourth class becomes unlabelled
        target = root / "painted" / path.relative_to(root / "annotations")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[labels]).save(target)
        wanted[path] = labels
    shutil.rmtree(root / "annotations")
    (converting,) = [block for block in blocks(page, "python") if "_base_" not in block]
    (checkout / "convert.py").write_text(converting)
    verify, train, from_zero = blocks(page, "bash")
    short = ("max_iters=400", "max_iters=2"), ("iter_400.pth", "iter_2.pth")
    typed(f"python convert.py\n{verify}{shortened(train, *short)}")
    for path, labels in wanted.items():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), labels)
    (record,), _ = read_records(checkout / "work_dirs/mine/record.jsonl")
    assert (record["dataset"], record["task"]) == ("mine", "segmentation")
    assert len(list((checkout / "work_dirs/mine_pictures").rglob("*.png"))) == 4

    # Full size: the config reads, and its data is this.
    cfg = read_config(own_config(checkout, page, "ade20k_upernet_vitb"))
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3
    with DefaultScope.overwrite_default_scope("mmseg"):
        for loader, count in (("train_dataloader", 32), ("val_dataloader", 4), ("test_dataloader", 4)):
            data = DATASETS.build(cfg[loader].dataset)
            assert (len(data), data.metainfo["classes"]) == (count, ("road", "building", "tree"))
            assert tuple(map(tuple, data.metainfo["palette"])) == tuple(map(tuple, colours[1:4].tolist()))

    (root / "classes_from_zero.txt").write_text("nothing\nroad\nbuilding\ntree\n")
    (root / "classes.txt").unlink()
    typed(shortened(from_zero, short[0]))
    assert read_records(checkout / "work_dirs/mine_zero/record.jsonl")[0][0]["metrics"]["mIoU"] >= 0


@pytest.mark.slow(15)
def test_own_coco(checkout: Path):
    """Two categories under ids of any kind, in another order for validation; the page's JSON is one that is read."""
    page = "own_coco.md"
    root = write_scenes(checkout / "data/mine", num_train=32, num_val=4, num_unlabelled=0, size=48)
    example = json.loads(blocks(page, "json")[0])
    ids = {category["name"]: category["id"] for category in example["categories"]}
    kept = {1: "car", 2: "sign"}
    for split, names in (("training", ["car", "sign"]), ("validation", ["sign", "car"])):
        file = root / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": ids[name], "name": name} for name in names]
        content["annotations"] = [item for item in content["annotations"] if item["category_id"] in kept]
        for item in content["annotations"]:
            item.update(id=item["id"] * 13 + 5, image_id=item["image_id"] + 9000)
            item["category_id"] = ids[kept[item["category_id"]]]
        for image in content["images"]:
            image["id"] += 9000
        file.write_text(json.dumps(content))
    verify, train = blocks(page, "bash")
    commands = shortened(train, ("max_iters=300", "max_iters=2"), ("iter_300.pth", "iter_2.pth"))
    assert "categories of both splits" in typed(f"{verify}{commands}")
    (record,), _ = read_records(checkout / "work_dirs/mine/record.jsonl")
    assert (record["dataset"], record["task"]) == ("mine", "detection")
    assert len(list((checkout / "work_dirs/mine_pictures").rglob("*.jpg"))) == 4

    cfg = read_config(own_config(checkout, page, "coco_maskrcnn_vitb"))
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == "data/mine/instances_validation.json"
    with DefaultScope.overwrite_default_scope("mmdet"):
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            assert DATASETS.build(cfg[loader].dataset).metainfo["classes"] == ("car", "sign")

    # The JSON that the page shows, over an image of its size.
    shown = checkout / "shown"
    for split in ("training", "validation"):
        (shown / "images" / split).mkdir(parents=True)
        Image.new("RGB", (640, 480)).save(shown / "images" / split / "street_01.jpg")
        (shown / f"instances_{split}.json").write_text(json.dumps(example))
    typed(verify.replace("data/mine", "shown"))


@pytest.mark.slow(20)
def test_real_weights(checkout: Path):
    """The file of DINOv2's names through all four tasks, on scenes and class folders; the other lines as plans.

    The random start runs in tests/suites/test_own_inputs.py.
    """
    file = checkout / "vits14.pth"
    torch.save(load_file(encoder_file(checkout, "dinov2")), file)
    root = write_scenes(checkout / "data/mine", num_train=24, num_val=4, num_unlabelled=0, size=48)
    for split, names in (("train", "ab"), ("test", "ab")):
        for index, image in enumerate(sorted((root / "images/training").iterdir())):
            target = checkout / "data/mine_folders" / split / names[index % 2] / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    quick, full, table, own, larger = blocks("real_weights.md", "bash")
    for plan, runs in ((quick, 8), (full, 24), (larger, 24)):
        assert typed(f"{plan.rstrip()} --dry-run").count("tools/train.py") == runs
    # Suites run in the root of the repository, from where a relative path of --task-options is read.
    folders = ("k-nn:data_root=data/", f"k-nn:data_root={checkout}/data/"), ("num_classes=20", "num_classes=2")
    few = " linear-segmentation:max_iters=2 upernet:max_iters=2 mask-r-cnn:max_iters=2 --budget quick"
    plan = typed(f"{shortened(own, *folders).rstrip()}{few} --dry-run")
    runs = [
        line for line in plan.splitlines() if line.startswith("python tools/train.py") and "start=pretrained" in line
    ]
    typed("\n".join(runs))
    records, faults = read_records(checkout / "work_dirs/mine/real_weights_quick/records.jsonl")
    assert not faults
    assert [(one["start"], one["dataset"]) for one in records] == [
        ("pretrained", "mine_folders" if index == 0 else "mine") for index in range(4)
    ]
    assert {one["method"] for one in records} == {file.stem}
    printed = typed(shortened(table, ("work_dirs/suites/real_weights", "work_dirs/mine")))
    assert all(metric in printed for metric in ("top-1", "mIoU", "box AP"))


@pytest.mark.slow
def test_suites(checkout: Path):
    """The page's suite has the runs that it declares."""
    text, with_room = blocks("suites.md", "yaml")
    (checkout / "my_suite.yaml").write_text(text)
    runs = expand(read_suite(checkout / "my_suite.yaml"), checkout / "work_dirs/suites/my_suite")
    assert len(runs) == 2 + 2 * 3  # pretrainings; both points with seed 0 and the reported one with seed 1, for each
    (checkout / "room.yaml").write_text(f"title: Mine\nseeds: [0]\n{with_room}")
    room = with_encoder(read_suite(checkout / "room.yaml"), encoder_file(checkout))
    assert expand(room, checkout)[1].options["encoder.patch_size"] == 14
    dry, table = blocks("suites.md", "bash")
    printed = typed(dry)
    for run in runs:
        assert str(Path("work_dirs/suites/my_suite") / run.name) in printed
    record = {**json.loads((ROOT / "benchmarks/records/small_cifar10.jsonl").read_text().splitlines()[-1])}
    folder = checkout / "work_dirs/suites/my_suite"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    assert record["method"] in typed(table)
