"""A user's encoder and data in a suite: the real_weights suite on tiny files in the names of other libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoder_files import LIBRARIES, encoder_file

from adpe.data.scenes import write_scenes
from adpe.errors import UserError
from adpe.leaderboard.records import read_records
from adpe.suites.commands import main
from adpe.suites.own_inputs import check_sizes, with_data, with_encoder
from adpe.suites.suite import expand
from adpe.suites.suite_file import read_suite

TASKS = ["k-nn", "linear-segmentation", "upernet", "mask-r-cnn"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_architecture_of_a_file_reaches_every_task(library: str, tmp_path: Path) -> None:
    file = encoder_file(tmp_path, library)
    runs = expand(with_encoder(read_suite("real_weights"), file), tmp_path, seeds=[0])
    check_sizes(runs)
    assert [run.name for run in runs] == [
        f"{method}/{task}/seed0" for method in ("random-start", file.stem.replace("_", "-")) for task in TASKS
    ]
    architecture = {"patch_size": 14, "embed_dim": 128, "depth": 4, "num_heads": 2, **LIBRARIES[library]}
    if "init_values" in architecture:
        architecture["init_values"] = 1.0  # LayerScale of a random start leaves the blocks as they are
    pretraining = [224, 224] if "mae" in library else [56, 56]  # a fixed table is written as MAE has it
    expected = {"model": "adpe_vit_tiny_patch14", **architecture, "img_size": 112, "pretrain_img_size": pretraining}
    for run in runs:
        prefix = "model" if run.task == "k-NN" else "encoder"
        own = {key.partition(".")[2]: value for key, value in run.options.items() if key.partition(".")[0] == prefix}
        assert {key: own.get(key) for key in expected} == expected
        assert run.options.get("pretrained") == (None if run.method == "random start" else str(file))
        assert "{" not in " ".join(run.command(tmp_path))
    by_task = {run.task: run.options for run in runs}
    assert by_task["linear segmentation"]["embed_dim"] == by_task["UperNet"]["width"] == 128
    assert (by_task["Mask R-CNN"]["patch_size"], by_task["Mask R-CNN"]["model.neck.in_channels"]) == (14, 128)
    assert by_task["Mask R-CNN"]["max_iters"] >= 1000


def test_an_encoder_is_called_by_its_file_or_folder_or_as_said(tmp_path: Path) -> None:
    suite = read_suite("real_weights")
    folder = tmp_path / "vit (small)"
    folder.mkdir()
    file = encoder_file(folder).rename(folder / "model.safetensors")
    assert [method.name for method in with_encoder(suite, file).methods] == ["random start", "vit -small"]
    assert with_encoder(suite, file, "DINOv2 ViT-S").methods[1].name == "DINOv2 ViT-S"
    with pytest.raises(UserError, match="random start"):
        with_encoder(suite, file, "random start")


def test_what_is_no_encoder_for_a_suite_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite("real_weights")
    with pytest.raises(UserError, match=r"missing\.pth"):
        with_encoder(suite, tmp_path / "missing.pth")
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.weight": torch.zeros(10, 8)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"resnet\.pth"):
        with_encoder(suite, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="4 channels"):
        with_encoder(suite, encoder_file(tmp_path, in_chans=4))
    with pytest.raises(UserError, match=r"patches of 10 pixels.* 112.*k-nn:image_size=110.* upernet:crop_size=110"):
        check_sizes(expand(with_encoder(suite, encoder_file(tmp_path, patch=10)), tmp_path))
    with pytest.raises(UserError, match="--encoder"):
        with_encoder(read_suite("demo"), encoder_file(tmp_path))
    assert main(["run", "real_weights", "--dry-run"]) == 2
    assert "--encoder" in capsys.readouterr().err


def test_options_for_one_task(tmp_path: Path) -> None:
    suite = with_encoder(read_suite("real_weights"), encoder_file(tmp_path))
    given = {"precision": "float32", "mask-r-cnn:max_iters": 5, "mask-r-cnn:precision": "bfloat16"}
    by_task = {run.task: run.options for run in expand(suite, tmp_path, task_options=given)}
    assert (by_task["Mask R-CNN"]["max_iters"], by_task["Mask R-CNN"]["precision"]) == (5, "bfloat16")
    assert (by_task["UperNet"]["max_iters"] > 5, by_task["UperNet"]["precision"]) == (True, "float32")
    assert not any(":" in key for options in by_task.values() for key in options)
    with pytest.raises(UserError, match=r"mask-rcnn.*mask-r-cnn"):
        expand(suite, tmp_path, task_options={"mask-rcnn:max_iters": 5})


def test_data_of_ones_own(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "mine", num_train=8, num_val=4, num_unlabelled=0, size=48)
    suite = with_data(read_suite("real_weights"), root)
    assert suite.data is None
    by_name = {task.name: task.options for task in suite.tasks}
    assert "record.dataset" not in by_name["k-NN"]
    for name, classes in (("linear segmentation", 4), ("UperNet", 4), ("Mask R-CNN", 3)):
        told = {key: by_name[name][key] for key in ("data_root", "num_classes", "record.dataset")}
        assert told == {"data_root": str(root), "num_classes": classes, "record.dataset": "mine"}
    pretrained = with_data(read_suite("scenes_frozen"), root).methods[1]
    assert pretrained.options["sources"] == str(root / "images/training")
    (root / "instances_validation.json").unlink()
    with pytest.raises(UserError, match=r"instances_validation\.json"):
        with_data(read_suite("real_weights"), root)
    with pytest.raises(UserError, match="nowhere"):
        with_data(read_suite("real_weights"), tmp_path / "nowhere")
    with pytest.raises(UserError, match="data"):
        with_data(replace(suite, data=None), root)


@pytest.mark.slow(60)
def test_both_starts_run_and_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Linear segmentation of scenes from DINOv2's names and a random start: one protocol, the weights are loaded."""
    root = write_scenes(tmp_path / "mine", num_train=16, num_val=4, num_unlabelled=0, size=48)
    suite = {
        "title": "One task",
        "seeds": [0],
        "data": {"scenes": {"train": 8, "val": 4, "unlabelled": 1, "size": 48}},
        "methods": [{"name": "random start"}, {"name": "mine", "checkpoint": "{encoder}"}],
        "tasks": [
            {"name": task.name, "config": task.config, "options": {**task.options, "max_iters": 2}}
            for task in read_suite("real_weights").tasks
            if task.name == "linear segmentation"
        ],
    }
    (tmp_path / "one.yaml").write_text(json.dumps(suite))
    arguments = ["run", str(tmp_path / "one.yaml"), "--data-root", str(root), "--work-dir", str(tmp_path / "work")]
    file = str(encoder_file(tmp_path, "dinov2"))
    assert main([*arguments, "--encoder", file, "--name", "tiny"]) == 0
    records, faults = read_records(tmp_path / "work/one/records.jsonl")
    assert not faults
    assert {(one["method"], one["start"], one["dataset"]) for one in records} == {
        ("random start", "random", "mine"), ("tiny", "pretrained", "mine"),
    }  # fmt: skip
    assert len({one["fingerprint"] for one in records}) == 1
    assert "100.0%" in (tmp_path / "work/one/tiny/linear-segmentation/seed0/output.log").read_text()
    capsys.readouterr()
    other = str(encoder_file(tmp_path, "timm"))
    assert main([*arguments, "--encoder", other, "--name", "tiny", "--dry-run"]) == 2
    assert "--work-dir" in capsys.readouterr().err
