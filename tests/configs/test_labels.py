"""Labels mean the same in training, validation and test data, checkpoints and heads; numbers of classes fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from adpe.data.checks.layout import check_two_labels
from adpe.data.classification import AdPEClassificationDataset
from adpe.engine.hooks.label_guard import AdPELabelGuard, classes_of_checkpoint
from adpe.engine.labels.annotations import match_annotations
from adpe.engine.labels.outputs import check_outputs
from adpe.errors import UserError


def write_coco(path: Path, names: list[str], used: list[str]) -> Path:
    """One image with one box for each of `used`; ids of the categories count from 1 in the order of `names`."""
    numbers = {name: i + 1 for i, name in enumerate(names)}
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": numbers[name], "bbox": [4 * i, 2, 3, 3], "area": 9, "iscrowd": 0}
        for i, name in enumerate(used)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    images = [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def loaders(root: Path, kind: str, classes: tuple[str, ...] | None, **files: str) -> Config:
    meta = {"metainfo": {"classes": classes}} if classes else {}
    return Config(
        {
            f"{split}_dataloader": {"dataset": {"type": kind, "data_root": str(root), "ann_file": file, **meta}}
            for split, file in files.items()
        }
    )


def read_names(path: str) -> list[str]:
    return [category["name"] for category in json.loads(Path(path).read_text())["categories"]]


def test_categories_of_mmdets_data_sets_are_matched_by_name(tmp_path: Path) -> None:
    """mmdet takes the order of the file, whatever `classes` says: the file that it reads has the order of `classes`."""
    write_coco(tmp_path / "train.json", ["cat", "dog"], ["cat", "dog"])
    write_coco(tmp_path / "val.json", ["dog", "cat"], ["dog"])
    cfg = loaders(tmp_path, "CocoDataset", ("cat", "dog"), train="train.json", val="val.json")
    match_annotations(cfg, ["train_dataloader", "val_dataloader"])
    assert read_names(cfg.val_dataloader.dataset.ann_file) == ["cat", "dog"]
    from mmdet.datasets import CocoDataset

    node = {key: value for key, value in cfg.val_dataloader.dataset.items() if key != "type"}
    dataset = CocoDataset(**node, data_prefix={"img": ""}, test_mode=True)
    assert [item["bbox_label"] for item in dataset.get_data_info(0)["instances"]] == [1]


def test_data_sets_of_ours_are_given_the_classes_of_training(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", ["cat", "dog"], ["cat", "dog"])
    write_coco(tmp_path / "val.json", ["dog", "cat"], ["dog"])
    cfg = loaders(tmp_path, "AdPECocoDataset", None, train="train.json", val="val.json")
    match_annotations(cfg, ["train_dataloader", "val_dataloader"])
    assert list(cfg.val_dataloader.dataset.classes) == ["cat", "dog"]
    cfg = loaders(tmp_path, "AdPECocoDataset", None, test="val.json")
    match_annotations(cfg, ["test_dataloader"], ("cat", "dog"))
    assert list(cfg.test_dataloader.dataset.classes) == ["cat", "dog"]


def test_objects_of_categories_that_mmdet_would_drop_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", ["kite-shaped thing", "dog"], ["kite-shaped thing"])
    cfg = loaders(tmp_path, "CocoDataset", None, train="train.json")
    with pytest.raises(UserError, match="kite-shaped thing"):
        match_annotations(cfg, ["train_dataloader"])


# Numbers of classes ---------------------------------------------------------------------------------------------------


def segmentor(classes: int, **options: Any) -> nn.Module:
    pytest.importorskip("mmseg.models")
    head = {"type": "mmseg.FCNHead", "in_channels": 4, "channels": 4, "num_convs": 1, "norm_cfg": {"type": "BN"}}
    # Named with its framework, as other tests of the process may have left mmengine without a default scope.
    loss = {"loss_decode": {"type": "mmseg.CrossEntropyLoss"}}
    model = nn.Module()
    model.decode_head = MODELS.build({**head, **loss, "num_classes": classes, **options})
    return model


def test_as_many_outputs_as_classes() -> None:
    check_outputs(segmentor(3), {"classes": ("a", "b", "c")}, "train")
    for classes in (("a", "b"), ("a", "b", "c", "d")):
        with pytest.raises(UserError, match=rf"num_classes={len(classes)}"):
            check_outputs(segmentor(3), {"classes": classes}, "train")
    check_outputs(segmentor(3), {}, "train")
    check_outputs(segmentor(3), {"classes": ("a",) * 5, "thing_classes": ("a",)}, "train")


def test_a_softmax_over_one_class_learns_nothing() -> None:
    with pytest.raises(UserError, match="num_classes = 1"):
        check_outputs(segmentor(1), {"classes": ("a",)}, "train")
    with pytest.raises(UserError, match="out_channels = 1"):
        check_outputs(segmentor(2, out_channels=1, threshold=0.3), {"classes": ("a", "b")}, "train")
    sigmoid = {"type": "mmseg.CrossEntropyLoss", "use_sigmoid": True}
    check_outputs(segmentor(2, out_channels=1, threshold=0.3, loss_decode=sigmoid), {"classes": ("a", "b")}, "train")


@pytest.mark.parametrize(("number", "right"), [(2, False), (3, True), (4, True), (5, False)])
def test_as_many_class_weights_as_classes(number: int, right: bool) -> None:
    loss = {"type": "mmseg.CrossEntropyLoss", "class_weight": [1.0] * number}
    model = segmentor(3, loss_decode=loss)
    if right:
        check_outputs(model, {"classes": ("a", "b", "c")}, "train")
    else:
        with pytest.raises(UserError, match=rf"{number} values of class_weight"):
            check_outputs(model, {"classes": ("a", "b", "c")}, "train")


# Class folders, masks, checkpoints ------------------------------------------------------------------------------------


def class_folders(root: Path, names: list[str]) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name / "a.png")
    return str(root)


def test_class_folders_are_numbered_as_in_training(tmp_path: Path) -> None:
    folders = class_folders(tmp_path / "val", ["dog", "zebra"])
    dataset = AdPEClassificationDataset(folders, transform={"input_size": 8})
    assert dataset.metainfo["classes"] == ("dog", "zebra")
    dataset.match_classes(["cat", "dog", "zebra"])
    assert [dataset[i]["data_samples"]["label"] for i in range(2)] == [1, 2]
    assert dataset.metainfo["classes"] == ("cat", "dog", "zebra")
    with pytest.raises(UserError, match="zebra"):
        dataset.match_classes(["cat", "dog"])


@pytest.mark.parametrize(
    ("labels", "reduce_zero_label", "refused"),
    [([0, 255], True, True), ([0, 255], False, True), ([0, 1, 255], False, False), ([1, 2, 255], True, False),
     ([0, 1], False, False)],
)  # fmt: skip
def test_masks_of_0_and_255(labels: list[int], reduce_zero_label: bool, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.resize(np.asarray(labels, np.uint8), (8, 8))).save(path)
    if refused:
        with pytest.raises(UserError, match=r"\[0, 255\]"):
            check_two_labels([path], set(labels), ("background", "thing"), reduce_zero_label)
    else:
        check_two_labels([path], set(labels), ("background", "thing"), reduce_zero_label)


def test_a_label_beyond_the_classes_stops_before_the_loss() -> None:
    guard = AdPELabelGuard()
    guard.classes, guard.begin, guard.one_pass = ["a", "b"], 0, 4
    sample = SimpleNamespace(img_path="images/7.jpg", gt_sem_seg=SimpleNamespace(data=torch.tensor([[0, 1, 2, 255]])))
    with pytest.raises(UserError, match=r"images/7\.jpg: has label 2, expected 0\.\.1"):
        guard.before_train_iter(SimpleNamespace(iter=0), 0, {"data_samples": [sample]})
    guard.before_train_iter(SimpleNamespace(iter=4), 0, {"data_samples": [sample]})  # looked at in the first pass alone


def test_classes_of_checkpoints() -> None:
    assert classes_of_checkpoint({"meta": {"dataset_meta": {"classes": ["a", "b"]}}}) == ("a", "b")
    assert classes_of_checkpoint({"meta": {"CLASSES": ("a", "b")}}) == ("a", "b")
    assert classes_of_checkpoint({"state_dict": {}}) == ()
