"""The whole chain through the demo's own code, on a few images in a few iterations: the last and longest test."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from adpe.demo.chain import Options, run_demo
from adpe.errors import UserError
from adpe.leaderboard.records import file_sha256, read_records

pytestmark = pytest.mark.slow


@pytest.mark.slow(90)
def test_the_chain(tmp_path):
    """One test, so that the chain runs once, in one process, whatever the number of test processes."""
    options = Options(tmp_path, epochs=2, iterations=2, scenes=(32, 4, 64))
    with open(tmp_path / "terminal.txt", "w") as terminal:
        console = Console(record=True, width=160, file=terminal)
        page = run_demo(options, console)
    every_link_leaves_a_record_with_its_metrics(options)
    the_pretrained_run_starts_from_the_exported_encoder_and_the_random_one_does_not(options)
    page_table_and_pictures(options, page, console.export_text())
    a_second_run_repeats_nothing(options)
    a_failed_training_is_reported_with_the_end_of_its_log(options, tmp_path / "broken")


def every_link_leaves_a_record_with_its_metrics(options):
    folder = options.work_dir / "seed0"
    records = {path.parent.name: read_records(path)[0][-1] for path in folder.glob("*/record.jsonl")}
    for path in folder.glob("*/record.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line)["schema"] == 1
    assert set(records) == {
        "pretrain", "segmentation-pretrained", "segmentation-random", "detection-pretrained", "detection-random",
    }  # fmt: skip
    for start in ("pretrained", "random"):
        assert 0 <= records[f"segmentation-{start}"]["metrics"]["mIoU"] <= 100
        detection = records[f"detection-{start}"]["metrics"]
        assert {"bbox_mAP", "segm_mAP"} <= detection.keys()
    protocols = [records[f"segmentation-{start}"]["task_fingerprint"] for start in ("pretrained", "random")]
    assert protocols[0] == protocols[1]


def the_pretrained_run_starts_from_the_exported_encoder_and_the_random_one_does_not(options):
    folder = options.work_dir / "seed0"
    exported = folder / "pretrain" / "encoder.safetensors"
    assert not any("mask_token" in name or "adversary" in name for name in load_file(exported))
    for task in ("segmentation", "detection"):
        record = read_records(folder / f"{task}-pretrained" / "record.jsonl")[0][-1]
        assert record["pretrained_sha256"] == file_sha256(exported)
        assert re.search(r"coverage +100.0%", (folder / f"{task}-pretrained" / "output.log").read_text())
        assert read_records(folder / f"{task}-random" / "record.jsonl")[0][-1]["pretrained_sha256"] is None
        assert "the encoder starts at random" in (folder / f"{task}-random" / "output.log").read_text()


def page_table_and_pictures(options, page, terminal):
    html = page.read_text()
    assert "AdPE" in html and "mIoU" in html and 'src="http' not in html
    table = (options.work_dir / "leaderboard.md").read_text()
    assert "pretrained" in table and "random" in table
    names = {path.name for path in (options.work_dir / "pictures").glob("*.png")}
    assert {"pretraining.png", "reconstructions.png", "segmentation.png", "detection.png"} <= names
    for name in names:
        with Image.open(options.work_dir / "pictures" / name) as image:
            low, high = image.convert("L").getextrema()
            assert image.width >= 600 and high - low > 100
    assert str(page.parent) in terminal.replace("\n", "")


def a_second_run_repeats_nothing(options):
    before = {path: path.stat().st_mtime_ns for path in options.work_dir.glob("seed0/*/record.jsonl")}
    run_demo(options, Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in options.work_dir.glob("seed0/*/record.jsonl")} == before


def a_failed_training_is_reported_with_the_end_of_its_log(options, folder):
    data = options.work_dir / "data"
    broken = folder / "data"
    broken.mkdir(parents=True)
    for name in ("images", "annotations", "instances_training.json", "instances_validation.json", "classes.json"):
        (broken / name).symlink_to(data / name)
    with pytest.raises(UserError, match=r"(?s)pretraining, seed 0 failed \(exit status 2\).*missing.zip"):
        run_demo(Options(folder / "work", data_root=broken, images=(str(folder / "missing.zip"),), epochs=2),
                 Console(quiet=True))  # fmt: skip


def test_a_missing_or_wrong_data_root_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "nowhere"), Console(quiet=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="images"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "empty"), Console(quiet=True))
    assert not list(tmp_path.glob("work/seed*"))
