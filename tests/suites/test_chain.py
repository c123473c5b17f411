"""The whole chain through the demo's own code, on a few images in a few iterations: the last and longest test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from adpe.demo.chain import Options, run_demo
from adpe.errors import UserError
from adpe.leaderboard.records import file_sha256, read_records

# One process runs the chain once for all tests.
pytestmark = [pytest.mark.slow(90), pytest.mark.xdist_group("chain")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("demo")
    options = Options(work_dir, epochs=2, iterations=2, scenes=(32, 4, 64))
    console = Console(record=True, width=160, file=open(work_dir / "terminal.txt", "w"))  # noqa: SIM115
    page = run_demo(options, console)
    return options, page, console.export_text()


def test_every_link_leaves_a_record_with_its_metrics(finished):
    options, _, _ = finished
    folder = options.work_dir / "seed0"
    records = {path.parent.name: read_records(path)[0][-1] for path in folder.glob("*/record.jsonl")}
    assert set(records) == {
        "pretrain", "segmentation-pretrained", "segmentation-random", "detection-pretrained", "detection-random",
    }  # fmt: skip
    for start in ("pretrained", "random"):
        assert 0 <= records[f"segmentation-{start}"]["metrics"]["mIoU"] <= 100
        detection = records[f"detection-{start}"]["metrics"]
        assert {"bbox_mAP", "segm_mAP"} <= detection.keys()
    protocols = [records[f"segmentation-{start}"]["task_fingerprint"] for start in ("pretrained", "random")]
    assert protocols[0] == protocols[1]


def test_the_pretrained_start_is_the_exported_encoder_and_the_random_start_is_not(finished):
    options, _, _ = finished
    folder = options.work_dir / "seed0"
    exported = folder / "pretrain" / "encoder.safetensors"
    assert not any("mask_token" in name or "adversary" in name for name in load_file(exported))
    for task in ("segmentation", "detection"):
        record = read_records(folder / f"{task}-pretrained" / "record.jsonl")[0][-1]
        assert record["pretrained_sha256"] == file_sha256(exported)
        assert re.search(r"coverage +100.0%", (folder / f"{task}-pretrained" / "output.log").read_text())
        assert read_records(folder / f"{task}-random" / "record.jsonl")[0][-1]["pretrained_sha256"] is None
        assert "the encoder starts at random" in (folder / f"{task}-random" / "output.log").read_text()


def test_page_table_and_pictures(finished):
    options, page, terminal = finished
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


def test_a_second_run_repeats_nothing(finished):
    options, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in options.work_dir.glob("seed0/*/record.jsonl")}
    run_demo(options, Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in options.work_dir.glob("seed0/*/record.jsonl")} == before


def test_a_failed_training_is_reported_with_the_end_of_its_log(finished, tmp_path):
    options, _, _ = finished
    data = options.work_dir / "data"
    broken = tmp_path / "data"
    broken.mkdir()
    for name in ("images", "annotations", "instances_training.json", "instances_validation.json", "classes.json"):
        (broken / name).symlink_to(data / name)
    with pytest.raises(UserError, match=r"(?s)pretraining, seed 0 failed \(exit status 2\).*missing.zip"):
        run_demo(Options(tmp_path / "work", data_root=broken, images=(str(tmp_path / "missing.zip"),), epochs=2),
                 Console(quiet=True))  # fmt: skip


def test_a_missing_or_wrong_data_root_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "nowhere"), Console(quiet=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="images"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "empty"), Console(quiet=True))
    assert not list(tmp_path.glob("work/seed*"))


def test_records_are_plain_json_lines(finished):
    options, _, _ = finished
    for path in Path(options.work_dir).glob("seed0/*/record.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line)["schema"] == 1
