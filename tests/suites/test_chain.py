"""The whole demo through its own code, on a few images in a few iterations: the last and longest test."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from adpe.demo.chain import Data, Options, demo_runs, run_demo
from adpe.errors import UserError
from adpe.leaderboard.records import file_sha256, read_records
from adpe.suites.suite_file import read_suite

pytestmark = pytest.mark.slow


@pytest.mark.slow(80)
def test_the_chain(tmp_path):
    """One test, so that the chain runs once, in one process, whatever the number of test processes."""
    options = Options(tmp_path, epochs=2, iterations=2, scenes=(104, 4, 64), seeds=(3,))
    with open(tmp_path / "terminal.txt", "w") as terminal:
        console = Console(record=True, width=160, file=terminal)
        page = run_demo(options, console)
    every_link_leaves_a_record_with_its_metrics(options)
    the_pretrained_run_starts_from_the_exported_encoder_and_the_random_one_does_not(options)
    page_table_and_pictures(options, page, console.export_text())
    a_second_run_repeats_nothing(options)
    links_run_with_one_seed(options)
    a_failed_training_is_reported_with_the_end_of_its_log(options, tmp_path / "broken")


METHODS = ("random-start", "mae", "adpe-ape-embedding")
# What each task starts from.
TASKS = {
    "linear-segmentation": METHODS, "linear-detection": METHODS,
    "upernet": METHODS[2:], "mask-r-cnn": METHODS[2:],
}  # fmt: skip


def last_record(options, name):
    return read_records(options.work_dir / name / "seed3" / "record.jsonl")[0][-1]


def every_link_leaves_a_record_with_its_metrics(options):
    for path in options.work_dir.glob("*/*/seed3/record.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line)["schema"] == 1
    names = {
        str(path.parent.parent.relative_to(options.work_dir))
        for path in options.work_dir.glob("*/*/seed3/record.jsonl")
    }
    links = {f"{method}/{task}" for task, methods in TASKS.items() for method in methods}
    assert names == links | {f"{method}/pretraining" for method in METHODS[1:]}
    for method in TASKS["upernet"]:
        assert 0 <= last_record(options, f"{method}/upernet")["metrics"]["mIoU"] <= 100
        assert {"bbox_mAP", "segm_mAP"} <= last_record(options, f"{method}/mask-r-cnn")["metrics"].keys()
    for task, methods in TASKS.items():
        assert len({last_record(options, f"{method}/{task}")["fingerprint"] for method in methods}) == 1


def the_pretrained_run_starts_from_the_exported_encoder_and_the_random_one_does_not(options):
    for method in METHODS[1:]:
        exported = options.work_dir / method / "pretraining/seed3/encoder.safetensors"
        assert not any("mask_token" in name or "adversary" in name for name in load_file(exported))
        for task in [task for task, methods in TASKS.items() if method in methods]:
            assert last_record(options, f"{method}/{task}")["pretrained_sha256"] == file_sha256(exported)
            log = (options.work_dir / method / task / "seed3/output.log").read_text()
            assert re.search(r"coverage +100.0%", log)
            if "random-start" not in TASKS[task]:
                continue
            assert last_record(options, f"random-start/{task}")["pretrained_sha256"] is None
            log = (options.work_dir / "random-start" / task / "seed3/output.log").read_text()
            assert "the encoder starts at random" in log


def page_table_and_pictures(options, page, terminal):
    html = page.read_text()
    assert "AdPE" in html and "mIoU" in html and 'src="http' not in html
    table = (options.work_dir / "leaderboard.md").read_text()
    assert "pretrained" in table and "random" in table
    names = {path.name for path in (options.work_dir / "pictures").glob("*.png")}
    assert {
        "pretraining.png",
        "reconstructions.png",
        *(f"{task}.png" for task in TASKS if task != "linear-detection"),
    } <= names
    for name in names:
        with Image.open(options.work_dir / "pictures" / name) as image:
            low, high = image.convert("L").getextrema()
            assert image.width >= 600 and high - low > 100
    assert str(page.parent) in terminal.replace("\n", "")


def a_second_run_repeats_nothing(options):
    before = {path: path.stat().st_mtime_ns for path in options.work_dir.glob("*/*/seed3/record.jsonl")}
    run_demo(options, Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in options.work_dir.glob("*/*/seed3/record.jsonl")} == before


def links_run_with_one_seed(options):
    data = Data(options.work_dir / "data", [], "embedded_scenes", "")
    for seeds, links in (((), "seed0"), ((3, 4), "seed3")):
        runs = demo_runs(Options(options.work_dir, seeds=seeds), read_suite("demo"), data, options.work_dir)
        expected = len(seeds or (0, 1, 2))
        assert [run.name for run in runs if "upernet" in run.name] == [f"adpe-ape-embedding/upernet/{links}"]
        assert sum("linear-segmentation" in run.name for run in runs) == 3 * expected


def a_failed_training_is_reported_with_the_end_of_its_log(options, folder):
    data = options.work_dir / "data"
    broken = folder / "data"
    broken.mkdir(parents=True)
    for name in ("images", "annotations", "instances_training.json", "instances_validation.json", "classes.json"):
        (broken / name).symlink_to(data / name)
    # What does not depend on it has run.
    shutil.copytree(options.work_dir / "random-start", folder / "work/random-start")
    with pytest.raises(UserError, match=r"mae/pretraining/seed3/output.log"):
        options = Options(folder / "work", broken, (str(folder / "missing.zip"),), seeds=(3,), epochs=2, iterations=2)
        run_demo(options, console := Console(record=True, file=io.StringIO(), width=400))
    assert "missing.zip" in console.export_text()


def test_a_missing_or_wrong_data_root_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "nowhere"), Console(quiet=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="images"):
        run_demo(Options(tmp_path / "work", data_root=tmp_path / "empty"), Console(quiet=True))
    assert not list(tmp_path.glob("work/*"))
