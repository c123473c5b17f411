"""The data sets of segmentation and detection, built as the configs build them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mmdet.registry
import mmseg.registry
import numpy as np
import pytest
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask

from adpe.data.detection import AdPECocoDataset, AdPECocoMetric
from adpe.data.scenes import write_scenes
from adpe.data.segmentation import AdPESegmentationDataset
from adpe.errors import UserError

SEGMENTATION_PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]
DETECTION_PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "PackDetInputs"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", num_train=5, num_val=4, num_unlabelled=0, size=64)


def segmentation(root: Path, split: str = "training", **kwargs) -> AdPESegmentationDataset:
    config = {
        "type": "AdPESegmentationDataset",
        "data_root": str(root),
        "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
        "pipeline": SEGMENTATION_PIPELINE,
    }
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build({**config, **kwargs})


def detection(root: Path, split: str = "training", **kwargs) -> AdPECocoDataset:
    config = {
        "type": "AdPECocoDataset",
        "data_root": str(root),
        "ann_file": f"instances_{split}.json",
        "data_prefix": {"img": f"images/{split}"},
        "pipeline": DETECTION_PIPELINE,
    }
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build({**config, **kwargs})


def write_root(root: Path, labels: np.ndarray, names: list[str] | None = None, splits=("training",)) -> Path:
    """A root of one image per split, with these labels."""
    for split in splits:
        for folder, array, suffix in (("images", np.zeros((*labels.shape, 3), np.uint8), "jpg"),
                                      ("annotations", labels, "png")):  # fmt: skip
            (root / folder / split).mkdir(parents=True)
            Image.fromarray(array).save(root / folder / split / f"0.{suffix}")
    if names is not None:
        (root / "classes.json").write_text(json.dumps(names))
    return root


@pytest.mark.parametrize(
    "registry", [DATASETS, mmseg.registry.DATASETS, mmdet.registry.DATASETS], ids=["mmengine", "mmseg", "mmdet"]
)
def test_found_from_every_scope(registry):
    assert registry.get("AdPESegmentationDataset") is AdPESegmentationDataset
    assert registry.get("AdPECocoDataset") is AdPECocoDataset


@pytest.mark.parametrize(("split", "count"), [("training", 5), ("validation", 4)])
def test_items_have_the_label_map_less_one(scenes, split, count):
    dataset = segmentation(scenes, split)
    assert len(dataset) == count
    assert dataset.metainfo["classes"] == ("background", *"012")
    for index in range(count):
        item = dataset[index]
        stem = f"scene_{index:05d}"
        assert item["data_samples"].img_path == str(scenes / "images" / split / f"{stem}.jpg")
        image = np.array(Image.open(item["data_samples"].img_path))[..., ::-1]  # mmseg reads BGR
        difference = item["inputs"].numpy().astype(int) - image.transpose(2, 0, 1)
        assert np.abs(difference).max() <= 4  # two decoders of JPEG
        labels = np.array(Image.open(scenes / "annotations" / split / f"{stem}.png"))
        np.testing.assert_array_equal(item["data_samples"].gt_sem_seg.data[0].numpy(), labels - 1)


def test_label_zero_and_255_are_ignored(tmp_path):
    labels = np.array([[0, 1, 2, 255]] * 4, dtype=np.uint8)
    write_root(tmp_path, labels, ["sky", "sea"])
    item = segmentation(tmp_path)[0]
    assert item["data_samples"].gt_sem_seg.data[0, 0].tolist() == [255, 0, 1, 255]
    item = segmentation(tmp_path, reduce_zero_label=False, classes=["land", "sky", "sea"])[0]
    assert item["data_samples"].gt_sem_seg.data[0, 0].tolist() == [0, 1, 2, 255]


def test_classes_by_argument_file_metainfo_and_labels(tmp_path, capsys):
    root = write_root(tmp_path / "root", np.array([[1, 2]] * 2, dtype=np.uint8), splits=("training", "validation"))
    Image.fromarray(np.array([[1, 3]] * 2, dtype=np.uint8)).save(root / "annotations/validation/0.png")
    # The classes of both splits are counted whichever is built.
    assert segmentation(root).metainfo["classes"] == ("class_1", "class_2", "class_3")
    assert "2 label maps have labels up to 3: 3 classes" in capsys.readouterr().out
    assert segmentation(root, classes=["a", "b", "c"]).metainfo["classes"] == ("a", "b", "c")
    (root / "classes133.json").write_text('["x", "y", "z"]')
    assert segmentation(root).metainfo["classes"] == ("x", "y", "z")
    assert segmentation(root, classes="classes133.json").metainfo["classes"] == ("x", "y", "z")
    assert segmentation(root, metainfo={"classes": ("m", "n", "o")}).metainfo["classes"] == ("m", "n", "o")
    assert capsys.readouterr().out == ""


def test_folders_without_splits(tmp_path):
    root = write_root(tmp_path, np.array([[1, 2]] * 2, dtype=np.uint8), ["a", "b"], splits=(".",))
    dataset = segmentation(root, data_prefix={"img_path": "images", "seg_map_path": "annotations"})
    assert len(dataset) == 1
    assert dataset[0]["data_samples"].gt_sem_seg.data[0].tolist() == [[0, 1], [0, 1]]


def test_images_alone_for_prediction(scenes):
    dataset = segmentation(
        scenes, "validation", data_prefix={"img_path": "images/validation"}, test_mode=True, pipeline=[]
    )
    assert len(dataset) == 4
    assert dataset.metainfo["classes"][0] == "background"
    assert "seg_map_path" not in dataset.get_data_info(0)


def test_palette_is_the_same_in_every_run_with_a_colour_for_each_class(scenes):
    np.random.seed(1)
    palette = segmentation(scenes).metainfo["palette"]
    np.random.seed(2)
    assert segmentation(scenes, "validation").metainfo["palette"] == palette
    assert len({tuple(colour) for colour in palette}) == len(palette) == 4


def test_segmentation_mistakes_appear_when_the_dataset_is_built(scenes, tmp_path):
    with pytest.raises(UserError, match=r"Data root .*nowhere: does not exist"):
        segmentation(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"images/test: no such folder \(.* has: training, validation\)"):
        segmentation(scenes, "test")
    with pytest.raises(UserError, match=r"annotations/test: no such folder"):
        segmentation(scenes, data_prefix={"img_path": "images/training", "seg_map_path": "annotations/test"})
    with pytest.raises(UserError, match=r"images/training: no images; .*\.png .* 5 \.jpg"):
        segmentation(scenes, img_suffix=".png")
    with pytest.raises(UserError, match=r"has label \d+, expected 0 = unlabelled, 1\.\.2 for 2 classes"):
        segmentation(scenes, classes=["a", "b"])
    root = write_root(tmp_path / "root", np.ones((2, 2), dtype=np.uint8), ["a"])
    (root / "annotations/training/0.png").rename(root / "annotations/training/1.png")
    with pytest.raises(UserError, match=r"1 of 1 images in .* have no label map in .* \(0\.jpg\)"):
        segmentation(root)


@pytest.mark.parametrize(("split", "count"), [("training", 5), ("validation", 4)])
def test_detection_items_have_the_jsons_instances(scenes, split, count):
    dataset = detection(scenes, split)
    assert len(dataset) == count
    assert dataset.metainfo["classes"] == tuple("012")
    contents = json.loads((scenes / f"instances_{split}.json").read_text())
    for index in range(count):
        sample = dataset[index]["data_samples"]
        instances = sample.gt_instances
        expected = [a for a in contents["annotations"] if a["image_id"] == sample.img_id]
        assert len(instances) == len(expected) > 0
        labels = np.array(Image.open(scenes / "annotations" / split / f"{Path(sample.img_path).stem}.png"))
        for number, annotation in enumerate(expected):
            left, top, width, height = annotation["bbox"]
            assert instances.bboxes[number].tensor.tolist() == [[left, top, left + width, top + height]]
            assert instances.labels[number].item() == annotation["category_id"] - 1
            mask = instances.masks.masks[number].astype(bool)
            np.testing.assert_array_equal(mask, coco_mask.decode(annotation["segmentation"]))
            assert set(labels[mask]) == {annotation["category_id"] + 1}
        assert instances.masks.masks.sum() == (labels > 1).sum()


def perfect_predictions(dataset: AdPECocoDataset, shift: int = 0) -> list[dict]:
    """The annotations as predictions of score 1, labels shifted by `shift`."""
    predictions = []
    for item in dataset:
        sample = item["data_samples"]
        instances = sample.gt_instances
        pred = {
            "bboxes": instances.bboxes.tensor,
            "scores": torch.ones(len(instances)),
            "labels": (instances.labels + shift) % len(dataset.metainfo["classes"]),
            "masks": encode_mask_results(instances.masks.masks.astype(bool)),
        }
        predictions.append({"img_id": sample.img_id, "ori_shape": sample.ori_shape, "pred_instances": pred})
    return predictions


def evaluate(dataset: AdPECocoDataset, json_path: Path, shift: int = 0) -> dict[str, float]:
    metric = AdPECocoMetric(ann_file=str(json_path), metric=["bbox", "segm"])
    metric.dataset_meta = dataset.metainfo
    metric.process({}, perfect_predictions(dataset, shift))
    return metric.evaluate(size=len(dataset))


def test_the_truth_evaluated_against_itself_has_ap_1(scenes):
    dataset = detection(scenes, "validation", test_mode=True)
    scores = evaluate(dataset, scenes / "instances_validation.json")
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)
    assert evaluate(dataset, scenes / "instances_validation.json", shift=1)["coco/segm_mAP"] < 0.1


@pytest.fixture
def polygons(tmp_path) -> Path:
    """Ids with gaps and out of order, a polygon, an uncompressed RLE, and a crowd."""
    root = write_root(tmp_path / "polygons", np.ones((8, 8), dtype=np.uint8))
    common = {"image_id": 7, "iscrowd": 0}
    annotations = [
        {"id": 1, "category_id": 30, "bbox": [1, 1, 4, 3], "area": 12, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
        {"id": 5, "category_id": 10, "bbox": [0, 6, 2, 2], "area": 4,
         "segmentation": {"size": [8, 8], "counts": [6, 2, 6, 2, 48]}},
        {"id": 9, "category_id": 10, "bbox": [6, 0, 2, 8], "area": 16, "iscrowd": 1,
         "segmentation": {"size": [8, 8], "counts": [48, 16]}},
    ]  # fmt: skip
    contents = {
        "images": [{"id": 7, "file_name": "0.jpg", "width": 8, "height": 8}],
        "annotations": [{**common, **annotation} for annotation in annotations],
        "categories": [{"id": 30, "name": "kite"}, {"id": 10, "name": "ball"}, {"id": 20, "name": "dog"}],
    }
    (root / "instances_training.json").write_text(json.dumps(contents))
    return root


def test_any_categories_polygons_and_rle(polygons):
    dataset = detection(polygons)
    assert dataset.metainfo["classes"] == ("kite", "ball", "dog")
    sample = dataset[0]["data_samples"]
    assert sample.gt_instances.labels.tolist() == [0, 1]
    masks = sample.gt_instances.masks.masks
    expected = np.zeros((2, 8, 8), dtype=int)
    expected[0, 1:4, 1:5] = 1
    expected[1, 6:8, 0:2] = 1
    np.testing.assert_array_equal(masks, expected)
    assert sample.ignored_instances.bboxes.tensor.tolist() == [[6, 0, 8, 8]]
    scores = evaluate(dataset, polygons / "instances_training.json")
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)


def test_some_of_the_classes(polygons):
    dataset = detection(polygons, metainfo={"classes": ("ball", "dog")})
    assert dataset.metainfo["classes"] == ("ball", "dog")
    assert dataset[0]["data_samples"].gt_instances.labels.tolist() == [0]
    dataset = detection(polygons, metainfo={"classes": ("dog", "kite", "ball")})  # in an order of its own
    assert dataset[0]["data_samples"].gt_instances.labels.tolist() == [1, 2]
    scores = evaluate(dataset, polygons / "instances_training.json")
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)


def edit(path: Path, change) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_validation_is_matched_with_training_by_name(scenes, tmp_path, caplog):
    root = shutil.copytree(scenes, tmp_path / "root")
    file = root / "instances_validation.json"
    before = [item["data_samples"].gt_instances.labels.tolist() for item in detection(root, "validation")]

    def other_ids(contents: dict) -> None:
        contents["categories"].reverse()
        for item in contents["annotations"]:
            item["category_id"] = 50 - item["category_id"]
        for category in contents["categories"]:
            category["id"] = 50 - category["id"]

    edit(file, other_ids)
    dataset = detection(root, "validation", classes="instances_training.json", test_mode=True)
    assert dataset.metainfo["classes"] == detection(root).metainfo["classes"] == tuple("012")
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(file) in warned and "2, 1, 0" in warned and "0, 1, 2" in warned
    assert [item["data_samples"].gt_instances.labels.tolist() for item in dataset] == before
    scores = evaluate(dataset, file)
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)
    edit(file, lambda c: c["categories"][0].update(name="new"))
    with pytest.raises(UserError, match=r"instances_validation.json: has objects of new, which .*instances_training"):
        detection(root, "validation", classes="instances_training.json", test_mode=True)


def test_a_class_that_the_validation_lacks_keeps_its_label(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "root")
    file = root / "instances_validation.json"

    def without_the_first(contents: dict) -> None:
        first = contents["categories"].pop(0)["id"]
        contents["annotations"] = [item for item in contents["annotations"] if item["category_id"] != first]

    edit(file, without_the_first)
    dataset = detection(root, "validation", classes="instances_training.json", test_mode=True)
    assert dataset.metainfo["classes"] == tuple("012")
    assert {label for item in dataset for label in item["data_samples"].gt_instances.labels.tolist()} == {1, 2}
    scores = evaluate(dataset, file)
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize("first", [0, -3])
def test_annotation_ids_that_begin_before_one(first, scenes, tmp_path):
    """pycocotools takes the id 0 for "unmatched": a perfect detector would have an AP of 0.63 in a small file."""
    root = shutil.copytree(scenes, tmp_path / "root")
    file = root / "instances_validation.json"
    edit(file, lambda c: [item.update(id=first + row) for row, item in enumerate(c["annotations"])])
    dataset = detection(root, "validation", test_mode=True)
    scores = evaluate(dataset, file)
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)


def test_wrong_annotations_are_trained_and_evaluated_alike(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "root")
    file = root / "instances_validation.json"

    def spoil(contents: dict) -> None:
        for item in contents["annotations"]:
            item.pop("iscrowd", None)
        contents["annotations"][0].update(bbox=[5, 5, 0, 9])  # has a mask
        contents["annotations"][1].update(segmentation=[[1, 1, 9, 9]])
        contents["annotations"][2].update(bbox=[float("nan"), 5, 9, 9], segmentation=None)

    edit(file, spoil)
    whole = sum(len(item["data_samples"].gt_instances) for item in detection(scenes, "validation"))
    dataset = detection(root, "validation", test_mode=True)
    assert sum(len(item["data_samples"].gt_instances) for item in dataset) == whole - 2
    assert sum(len(item["data_samples"].ignored_instances) for item in dataset) == 1
    scores = evaluate(dataset, file)
    assert pytest.approx(scores["coco/bbox_mAP"]) == scores["coco/segm_mAP"] == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"instances_validation\.json: 1 .*annotation ids"):
        detection(root, "validation", label_policy="strict")


def test_a_test_json_without_annotations(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "root")
    edit(root / "instances_validation.json", lambda c: c.pop("annotations"))
    assert len(detection(root, "validation", test_mode=True)) == 4
    AdPECocoMetric(ann_file=str(root / "instances_validation.json"), format_only=True, outfile_prefix=str(root / "out"))
    with pytest.raises(UserError, match="'annotations'"):
        detection(root, "validation")
    with pytest.raises(UserError, match="'annotations'"):
        AdPECocoMetric(ann_file=str(root / "instances_validation.json"))


def test_detection_mistakes_appear_when_the_dataset_is_built(polygons, tmp_path):
    with pytest.raises(UserError, match=r"Data root .*nowhere: does not exist"):
        detection(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"instances_test\.json: cannot be read"):
        detection(polygons, ann_file="instances_test.json")
    with pytest.raises(UserError, match=r"has no category cat; it has kite, ball, dog"):
        detection(polygons, metainfo={"classes": ["cat"]})
    os.remove(polygons / "images/training/0.jpg")
    with pytest.raises(UserError, match=r"1 of its 1 images are not in .*images/training \(0\.jpg\)"):
        detection(polygons)


def test_ade20k_takes_150_classes_and_refuses_a_label_beyond_them(tmp_path):
    for folder in ("images/training", "annotations/training"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images/training/ADE_train_00000001.jpg")
    label_map = tmp_path / "annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.full((8, 8), 150, np.uint8)).save(label_map)
    options = {"type": "AdPEADE20KDataset"}
    item = segmentation(tmp_path, **options)[0]
    assert item["data_samples"].gt_sem_seg.data.unique().tolist() == [149]
    Image.fromarray(np.full((8, 8), 151, np.uint8)).save(label_map)
    with pytest.raises(UserError, match=r"ADE_train_00000001.png: has label 151, expected 0 = unlabelled, 1..150"):
        segmentation(tmp_path, **options)
