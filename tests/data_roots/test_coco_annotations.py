"""The values of COCO annotations: each way of being wrong, and what each policy does about it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from adpe.data.checks import coco
from adpe.data.checks.coco import CheckedCoco, checked_coco
from adpe.data.checks.coco_masks import run_lengths
from adpe.errors import UserError

NAN = float("nan")
SQUARE = [2, 2, 10, 2, 10, 8, 2, 8]
FILLED = [[2, 2, 11, 2, 11, 9, 2, 9]]  # the box of the annotations below


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "annotations"


def annotation(number: int, **values: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, "bbox": [2, 2, 9, 7], "area": 48, "iscrowd": 0,
            "segmentation": [SQUARE], **values}  # fmt: skip


def write(
    folder: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("ball", "cat"), **more: Any
) -> Path:
    images = [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}]
    categories = [{"id": 7 + index, "name": name} for index, name in enumerate(names)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}))
    return path


def found(checked: CheckedCoco) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {(finding.kind, finding.action): finding.ids for finding in checked.findings}


def read(checked: CheckedCoco) -> list[dict[str, Any]]:
    return json.loads(checked.json.read_text())["annotations"]


def test_right_annotations_are_read_where_they_are(tmp_path, cache):
    lengths = {"size": [24, 32], "counts": [60, 8, 700]}
    compressed = coco_mask.encode(np.asfortranarray(np.tri(24, 32, dtype=np.uint8)))
    compressed = {"size": [24, 32], "counts": compressed["counts"].decode()}
    rows = [annotation(4), annotation(9, segmentation=lengths), annotation(2, segmentation=compressed, iscrowd=1)]
    path = write(tmp_path, rows)
    for policy in ("strict", "repair", "report"):
        checked = checked_coco(path, policy)
        assert checked.json == checked.source == path
        assert checked.findings == ()
    assert checked.objects == {"ball": 3, "cat": 0}
    assert checked.images == (("a.jpg", 32, 24),)
    assert not cache.exists()


LEFT_OUT, BY_MASK, IGNORED = coco.LEFT_OUT, "taken from the mask", coco.IGNORED
MASK_BOX = [2, 2, 8, 6]


@pytest.mark.parametrize(
    ("wrong", "kind", "action", "right"),
    [
        ({"bbox": None}, "box_unreadable", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [1, 2, 3]}, "box_unreadable", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": []}, "box_unreadable", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [1, 2, True, 4]}, "box_unreadable", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": ["1", "2", "9", "9"]}, "box_text", "read as numbers", {"bbox": [1, 2, 9, 9]}),
        ({"bbox": [NAN, 2, 9, 9]}, "box_not_finite", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [2, 2, 10**400, 9]}, "box_unreadable", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [5, 5, 0, 10]}, "box_flat", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [20, 20, -9, -9]}, "box_flat", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [-30, -30, 20, 20]}, "box_outside", BY_MASK, {"bbox": MASK_BOX}),
        ({"bbox": [-4, 2, 15, 30]}, "box_beyond", "cut at its edges", {"bbox": [0, 2, 11, 22]}),
        ({"bbox": [5, 5, 0, 10], "segmentation": None}, "box_flat", LEFT_OUT, None),
        ({"bbox": [5, 5, 0, 9], "segmentation": {"size": [24, 32], "counts": [48, 24, 696]}}, "box_flat", BY_MASK,
         {"bbox": [2, 0, 1, 24]}),
        ({"area": None}, "area_unreadable", BY_MASK, {"area": 48}),
        ({"area": "48"}, "area_unreadable", BY_MASK, {"area": 48}),
        ({"area": 0}, "area_not_positive", BY_MASK, {"area": 48}),
        ({"area": -5, "segmentation": []}, "area_not_positive", "taken from the box", {"area": 63}),
        ({"iscrowd": "yes"}, "crowd_value", "taken as 1", {"iscrowd": 1}),
        ({"iscrowd": None}, "crowd_value", "taken as 0", {"iscrowd": 0}),
        ({"iscrowd": 3}, "crowd_value", "taken as 1", {"iscrowd": 1}),
        ({"ignore": 1}, "ignore", IGNORED, {"iscrowd": 1, "ignore": 0}),
        ({"segmentation": []}, "mask_none", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [[]]}, "mask_none", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": None}, "mask_none", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": "a"}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [[1, 2, 3]]}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [[1, 1, 9, 9]]}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [[1, 1, NAN, 5, 9, 9]]}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [["a", 1, 2, 5, 9, 9]]}, "mask_malformed", IGNORED, {"iscrowd": 1, "segmentation": FILLED}),
        ({"segmentation": [SQUARE, [1, 2, 3]]}, "mask_part", "trained without that part", {"segmentation": [SQUARE]}),
        ({"segmentation": [[40, 40, 50, 40, 50, 50]]}, "mask_outside", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [32, 24], "counts": [0, 768]}}, "mask_size", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [24, 32], "counts": [0, 767]}}, "mask_counts", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [24, 32], "counts": [769, -1]}}, "mask_counts", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [24, 32], "counts": "0"}}, "mask_counts", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [24, 32], "counts": [768]}}, "mask_none", IGNORED, {"segmentation": FILLED}),
        ({"segmentation": {"size": [24, 32]}}, "mask_malformed", IGNORED, {"segmentation": FILLED}),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_repaired_or_reported(wrong, kind, action, right, tmp_path, caplog):
    path = write(tmp_path, [annotation(3), annotation(5, **wrong), annotation(6)])
    checked = checked_coco(path)
    assert found(checked)[kind, action] == (5,)
    others = [row for row in read(checked) if row["id"] != 5]
    assert others == [annotation(3), annotation(6)]
    mended = [row for row in read(checked) if row["id"] == 5]
    expected = {**json.loads(json.dumps(annotation(5, **wrong), default=str)), **(right or {})}
    assert len(mended) == (right is not None)
    if right is not None:
        assert {key: mended[0][key] for key in right} == {key: expected[key] for key in right}
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and str(path) in warned[0] and "ids 5)" in warned[0]
    with pytest.raises(UserError, match=r"instances\.json: 1 .*\(annotation ids 5\)"):
        checked_coco(path, "strict")
    if coco.KINDS[kind].level == "unreadable":
        with pytest.raises(UserError, match=r"annotation ids 5\)"):
            checked_coco(path, "report")
    elif not any(finding.level == "unreadable" for finding in checked.findings):
        assert checked_coco(path, "report").json == path
    # What was repaired has nothing left to find.
    assert checked_coco(checked.json, "strict").problems == ()


@pytest.mark.parametrize("policy", coco.POLICIES)
def test_other_forms_of_the_same_meaning_are_read_under_every_policy(policy, tmp_path, caplog):
    rows = [
        annotation(0),
        annotation(0, bbox=[2, 2, 9.5, 7]) if policy == "repair" else annotation(1),
        annotation(2, segmentation=SQUARE),
        annotation(3, segmentation=[[[2, 2], [10, 2], [10, 8], [2, 8]]]),
        annotation(4, segmentation=[[1, 1, 9, 9], SQUARE]),
        annotation(5, iscrowd=False),
        annotation(6),
    ]
    del rows[6]["iscrowd"]
    checked = checked_coco(write(tmp_path, rows), policy)
    assert found(checked)["mask_form", "rewritten"] == (2, 3, 4)
    assert found(checked)["iscrowd_absent", "taken as 0"] == (6,)
    assert found(checked)["id", "renumbered"] == ((0, 0) if policy == "repair" else (0,))
    assert read(checked) == [{**annotation(n + 1), "bbox": rows[n]["bbox"]} for n in range(7)]
    assert [record.levelname for record in caplog.records if policy != "repair"] == []


def test_ids_that_several_annotations_have(tmp_path):
    rows = [annotation(1), annotation(1), annotation(1, category_id=8), annotation(2)]
    checked = checked_coco(write(tmp_path, rows))
    assert found(checked)["repeated", LEFT_OUT] == (1,)
    assert found(checked)["id_repeated", "renumbered"] == (1, 1, 1)
    assert read(checked) == [annotation(1), annotation(3, category_id=8), annotation(4)]
    with pytest.raises(UserError, match=r"annotation ids 1\)"):
        checked_coco(checked.source, "strict")


def test_narrow_boxes_and_boxes_apart_from_their_masks_are_told_and_kept(tmp_path, caplog):
    rows = [annotation(1, bbox=[2, 2, 0.5, 7]), annotation(2, bbox=[2, 2, 26, 20]), annotation(3)]
    checked = checked_coco(write(tmp_path, rows), "report")
    assert found(checked) == {("narrow", "nothing changed"): (1,), ("apart", "nothing changed"): (1, 2)}
    assert checked.problems == () and checked.json == checked.source
    assert len(caplog.records) == 1
    checked_coco(checked.source, "strict")


def test_boxes_alone_need_no_masks(tmp_path):
    path = write(tmp_path, [annotation(1, segmentation=None), annotation(2, segmentation=[[1, 1, 9, 9]])])
    assert checked_coco(path, "strict", with_mask=False).findings == ()
    with pytest.raises(UserError, match=r"2 of 2 annotations .*ids 1\).*ids 2\).*with_mask=False"):
        checked_coco(path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"categories": [{"id": 7, "name": None}]}, r"1 categories \(ids 7\)"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, "called a"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, r"1 ids of 'categories' repeated \(7\)"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": "8", "name": "b"}]}, r"ids of 'categories' .*7 and '8'"),
        ({"categories": [{"id": 9, "name": "a"}]}, r"1 annotations \(ids 1\) whose category_id"),
        ({"images": [{"id": 2, "file_name": "a", "width": 9, "height": 9}]}, r"1 annotations \(ids 1\) whose image_id"),
        ({"images": [{"id": 1, "file_name": "a", "width": "9", "height": 9}]}, "image 1 .*width='9'"),
        ({"images": [{"id": 1, "file_name": "a", "width": 9, "height": 0}]}, "image 1 .*height=0"),
        ({"images": [{"id": 1, "file_name": None, "width": 9, "height": 9}]}, "image 1 has file_name=None"),
        ({"images": [3]}, "an item of 'images' has no id"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_under_every_policy(more, words, tmp_path):
    path = write(tmp_path, [annotation(1)], **more)
    for policy in coco.POLICIES:
        with pytest.raises(UserError, match=rf"instances\.json: .*{words}"):
            checked_coco(path, policy)
    with pytest.raises(UserError, match="label_policy='lenient'"):
        checked_coco(path, "lenient")


def test_categories_are_matched_by_name(tmp_path):
    path = write(tmp_path, [annotation(1), annotation(2, category_id=8)], names=("ball", "cat"))
    assert checked_coco(path, classes=("ball", "cat")).json == path
    assert checked_coco(path, classes=("cat",)).json == path
    checked = checked_coco(path, classes=("dog", "cat", "ball"))
    assert checked.classes == ("dog", "cat", "ball") and checked.categories == ("ball", "cat")
    categories = json.loads(checked.json.read_text())["categories"]
    assert [(c["id"], c["name"]) for c in categories] == [(9, "dog"), (8, "cat"), (7, "ball")]
    assert checked.objects == {"dog": 0, "cat": 1, "ball": 1}
    with pytest.raises(UserError, match=r"none of the classes dog, bird; its categories are ball, cat"):
        checked_coco(path, classes=("dog", "bird"))


def test_a_byte_order_mark_and_lists_that_may_be_absent(tmp_path):
    path = write(tmp_path, [annotation(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(checked_coco(path)) == [annotation(1)]
    path = write(tmp_path, [])
    path.write_text(path.read_text().replace('"annotations": [], ', ""))
    assert checked_coco(path, without_annotations=True).annotations == 0
    with pytest.raises(UserError, match="'annotations'"):
        checked_coco(path)


def test_large_files_are_checked_once_for_their_content(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(coco, "_LARGE", 0)
    path = write(tmp_path, [annotation(0), annotation(1, bbox=None)])
    first = checked_coco(path)
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    coco._checked.cache_clear()
    monkeypatch.setattr(coco, "_check", None)  # not to be called again
    again = checked_coco(copy)
    assert (again.json, again.findings, again.images) == (first.json, first.findings, first.images)
    monkeypatch.undo()
    monkeypatch.setenv("ADPE_CACHE_DIR", str(cache.parent))
    copy.write_text(copy.read_text().replace("a.jpg", "b.jpg"))
    assert checked_coco(copy).images == (("b.jpg", 32, 24),)


def test_a_cache_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "file"))
    assert checked_coco(write(tmp_path, [annotation(1)])).findings == ()
    with pytest.raises(UserError, match="ADPE_CACHE_DIR"):
        checked_coco(write(tmp_path, [annotation(0)]))


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them():
    generator = np.random.default_rng(0)
    masks = [np.kron(generator.random(generator.integers(2, 40, 2)) < 0.4, np.ones((7, 3))) for _ in range(40)]
    texts = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode() for mask in masks]
    totals, areas = run_lengths(texts)
    assert totals.tolist() == [mask.size for mask in masks]
    assert areas.tolist() == [int(mask.sum()) for mask in masks]
    assert run_lengths(["", "é", "漢字", "o", texts[0]])[0].tolist() == [-1, -1, -1, -1, masks[0].size]
