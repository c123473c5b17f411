"""What makes two runs comparable: every pair that once had one fingerprint, what is free, and what a sweep sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
from PIL import Image

from adpe.data.scenes import write_scenes
from adpe.engine.launch import train_main
from adpe.engine.resolved_protocol import protocol_without_data, resolve
from adpe.files import ROOT
from adpe.leaderboard.protocol import SWEPT, changes, fingerprint, words
from adpe.leaderboard.records import read_records
from adpe.suites.commands import main

SEGMENTATION, DETECTION = "configs/demo/segmentation.py", "configs/demo/detection.py"
FINETUNE = "configs/cifar10/finetune.py"
ENCODER = {"model.embed_dim": 64, "model.depth": 2, "model.num_heads": 2}
_known: dict[str, dict[str, Any]] = {}


@pytest.fixture(scope="module", autouse=True)
def _root() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", 20, 4, 1, 48)


def described(config: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    key = json.dumps([config, options])
    if key not in _known:
        _known[key] = protocol_without_data(config, dict(options or {}))
    return _known[key]


# Of each pair: config, the options of one run, those of the other, a path in which they must be told apart.
PAIRS = {
    "slide or whole test": (
        SEGMENTATION, {}, {"model.test_cfg.mode": "slide", "model.test_cfg.crop_size": [48, 48],
                           "model.test_cfg.stride": [32, 32]}, "model.whole.test_cfg.mode"),
    "frozen or trained encoder": (
        SEGMENTATION, {}, {"model.backbone.frozen_stages": 4}, "model.backbone.patch_embed.proj.weight"),
    "recomputed or resampled positions": (
        SEGMENTATION, {"model.backbone.pos_embed_resize": "recompute"},
        {"model.backbone.pos_embed_resize": "bicubic", "model.backbone.pretrain_img_size": 24},
        "model.backbone.pos_embed_resize"),
    "fixed or learned positions": (
        SEGMENTATION, {}, {"model.backbone.learned_pos_embed": True}, "model.backbone.pos_embed"),
    "LayerScale or none": (SEGMENTATION, {}, {"model.backbone.init_values": 0.1}, "model.backbone.blocks.*.ls1.gamma"),
    "LayerScale's start": (
        SEGMENTATION, {"model.backbone.init_values": 0.1}, {"model.backbone.init_values": 1.0},
        "config.model.backbone.init_values"),
    "out_indices": (SEGMENTATION, {}, {"model.backbone.out_indices": [0, 1, 3, 3]}, "model.backbone.out_indices"),
    "score threshold": (DETECTION, {}, {"model.test_cfg.rcnn.score_thr": 0.01}, "model.roi_head.test_cfg.score_thr"),
    "soft-NMS": (DETECTION, {}, {"model.test_cfg.rcnn.nms.type": "soft_nms"}, "model.roi_head.test_cfg.nms.type"),
    "levels of the neck": (DETECTION, {}, {"model.neck.num_outs": 4}, "model.neck.num_outs"),
    "test interpolation": (
        SEGMENTATION, {}, {"val_dataloader.dataset.pipeline.1.interpolation": "nearest"},
        "config.val_dataloader.dataset.pipeline.Resize.interpolation"),
    "batch": (SEGMENTATION, {"effective_batch": 16}, {"effective_batch": 64}, "facts.batch"),
    "batch without an effective one": (
        SEGMENTATION, {"effective_batch": None, "train_dataloader.batch_size": 16},
        {"effective_batch": None, "train_dataloader.batch_size": 64}, "facts.batch"),
    "share of the training list": (
        SEGMENTATION, {}, {"train_dataloader.dataset.indices": 2}, "config.train_dataloader.dataset.indices"),
    "images at most": (
        FINETUNE, {**ENCODER}, {**ENCODER, "train_limit": 5000}, "config.train_dataloader.dataset.limit"),
    "learning rate": (SEGMENTATION, {}, {"lr": 1e-3}, "config.optim_wrapper.optimizer.lr"),
    "learning rate of the heads": (SEGMENTATION, {}, {"head_lr_mult": 1.0}, "optimizer.groups.0.weight_decay"),
    "weight decay": (
        SEGMENTATION, {}, {"optim_wrapper.optimizer.weight_decay": 0.1}, "config.optim_wrapper.optimizer.weight_decay"),
    "decay of the learning rate": (
        SEGMENTATION, {}, {"param_scheduler.1.power": 2.0}, "config.param_scheduler.PolyLR.power"),
    "decay over layers": (
        FINETUNE, ENCODER, {**ENCODER, "optim_wrapper.paramwise_cfg.layer_decay_rate": 0.9}, "optimizer.groups.0.lr"),
    "pretrain_img_size": (
        SEGMENTATION, {"model.backbone.pos_embed_resize": "bicubic", "model.backbone.pretrain_img_size": 48},
        {"model.backbone.pos_embed_resize": "bicubic", "model.backbone.pretrain_img_size": 24},
        "model.backbone.pretrain_img_size"),
    "training crop": (
        SEGMENTATION, {}, {"train_dataloader.dataset.pipeline.3.crop_size": [32, 32]},
        "config.train_dataloader.dataset.pipeline.RandomCrop.crop_size"),
    "mixup or none": (FINETUNE, ENCODER, {**ENCODER, "model.mixup": None}, "config.model.mixup.mixup_alpha"),
    "length": (SEGMENTATION, {}, {"max_iters": 100}, "config.train_cfg.max_iters"),
    "precision": (
        SEGMENTATION, {}, {"optim_wrapper.type": "AdPEAutocastOptimWrapper"}, "optimizer.wrapper"),
    "windows of the encoder": (
        DETECTION, {"model.backbone.class_token": False},
        {"model.backbone.class_token": False, "model.backbone.window_size": 2}, "config.model.backbone.window_size"),
    "float32 or bfloat16": (SEGMENTATION, {}, {"precision": "bfloat16"}, "config.optim_wrapper.type"),
    "clipping": (DETECTION, {}, {"optim_wrapper.clip_grad.max_norm": 1.0}, "config.optim_wrapper.clip_grad.max_norm"),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_that_is_not_one_protocol(pair: str) -> None:
    config, one, other, path = PAIRS[pair]
    first, second = described(config, one), described(config, other)
    assert fingerprint(first) != fingerprint(second)
    found = [change.path for change in changes(first, second)]
    assert path in found
    assert path.rpartition(".")[2] in words(changes(first, second), 50)
    # Nothing beside the config, what is built from it and the heading of a table.
    assert {name.partition(".")[0] for name in found} <= {"facts", "config", "model", "optimizer"}


FREE = {
    "seed": {"seed": 7},
    "workers": {"train_dataloader.num_workers": 0, "train_dataloader.persistent_workers": False},
    "images that a process holds at once": {"train_dataloader.batch_size": 4},
    "images of a validation step": {"val_dataloader.batch_size": 2},
    "folders": {"work_dir": "elsewhere", "data_root": "elsewhere"},
    "logging": {"default_hooks.logger.interval": 1, "default_hooks.checkpoint.interval": 7},
    "visualisation": {"visualizer.vis_backends": []},
    "how often it is validated": {"train_cfg.val_interval": 10},
    "who": {"record.method": "MAE", "record.suite": "mine"},
    "a precision by name": {"precision": "float32"},
    "recomputation": {"activation_checkpointing": ["backbone"]},
    "distribution": {"env_cfg.dist_cfg.timeout": 5},
}


def test_the_precision_that_a_machine_decides(tmp_path: Path) -> None:
    """A run that measured its precision has the protocol of one that was told it."""
    path = tiny_training.config(tmp_path, iterations=2, extra="precision = 'auto'")
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    (record,) = read_records(tmp_path / "run" / "record.jsonl")[0]
    kind = {"float32": "OptimWrapper", "bfloat16": "AdPEAutocastOptimWrapper"}[record["precision"]]
    assert record["protocol"]["config"]["optim_wrapper"]["type"] == kind
    told = resolve(path, {"precision": record["precision"]})
    assert changes(told["protocol"], record["protocol"]) == []
    assert resolve(path)["fingerprint"] in {
        resolve(path, {"precision": p})["fingerprint"] for p in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("what", FREE)
def test_what_is_free(what: str) -> None:
    assert changes(described(SEGMENTATION), described(SEGMENTATION, FREE[what])) == []


def test_a_sweep_is_told_by_the_row_and_everything_else_by_the_protocol() -> None:
    def at(lr: float, **options: Any) -> dict[str, Any]:
        return described(SEGMENTATION, {"lr": lr, "record.sweep": f"lr {lr:g}", **options})

    assert fingerprint(at(1e-3)) == fingerprint(at(2e-3)) != fingerprint(described(SEGMENTATION))
    assert at(1e-3)["config"]["optim_wrapper"]["optimizer"]["lr"] == SWEPT
    decayed = at(1e-3, **{"optim_wrapper.optimizer.weight_decay": 0.1})
    assert [change.path for change in changes(at(2e-3), decayed)] == ["config.optim_wrapper.optimizer.weight_decay"]
    # ImageNet's base rate goes into the rate and the share that the schedule ends with.
    options = {"blr": 1e-3, "record.sweep": "blr 0.001", "model.embed_dim": 64, "model.depth": 2, "model.num_heads": 2}
    swept = described("configs/imagenet/finetune_vitb.py", options)["config"]
    assert swept["optim_wrapper"]["optimizer"]["lr"] == SWEPT == swept["param_scheduler"][1]["eta_min_ratio"]


def test_what_a_method_brings_is_told_apart_from_the_protocol_of_the_task(tmp_path: Path) -> None:
    own = {
        "effective_batch": 64,
        "model.backbone.position": "relative",
        "record.own": ["effective_batch", "model.backbone.position"],
    }
    resolved = [resolve(SEGMENTATION, options) for options in ({}, own, {**own, "record.own": []})]
    plain, marked, unmarked = ((one["task_fingerprint"], one["fingerprint"]) for one in resolved)
    assert plain[0] == plain[1] == marked[0] != marked[1] == unmarked[0] == unmarked[1]
    assert resolved[0]["own"] is None and resolved[2]["own"] is None
    assert ["facts.batch", 64, 32] in resolved[1]["own"]["changes"]


def test_the_images_that_were_read_are_part_of_it(scenes: Path, tmp_path: Path) -> None:
    def data(**options: Any) -> dict[str, Any]:
        return resolve(SEGMENTATION, options)["protocol"]["data"]

    here = data(data_root=str(scenes))
    assert (here["train"]["images"], here["val"]["images"], here["train"]["classes"]) == (20, 4, 4)
    copied = shutil.copytree(scenes, tmp_path / "copied")
    assert data(data_root=str(copied)) == here
    tenth = data(data_root=str(scenes), **{"train_dataloader.dataset.indices": 2})
    assert tenth["train"]["images"] == 2 and tenth["train"]["names"] != here["train"]["names"]
    # Another folder with files of the same names.
    image = next((copied / "images" / "training").iterdir())
    with Image.open(image) as opened:
        changed = np.asarray(opened)[::-1]
    Image.fromarray(changed).save(image)
    other = data(data_root=str(copied))
    assert other["train"]["names"] == here["train"]["names"]
    assert other["train"]["contents"] != here["train"]["contents"] and other["val"] == here["val"]
    # Detection tells its objects too, and nothing there is None.
    boxes = resolve(DETECTION, {"data_root": str(scenes)})["protocol"]["data"]
    assert boxes["val"]["images"] == 4 and boxes["val"]["contents"] != here["val"]["contents"]
    assert data(data_root=str(tmp_path / "nothing")) == {"train": None, "val": None}


def test_resolving_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    protocol_without_data(SEGMENTATION, {"lr": 0.123})
    assert torch.equal(torch.rand(2), expected)


def test_a_run_records_what_the_command_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tiny_training.config(tmp_path, iterations=4, effective_batch=8)
    options = ["--cfg-options", "record.sweep=iterations 4"]
    assert train_main([str(path), "--work-dir", str(tmp_path / "run"), "--seed", "4", *options]) == 0
    (record,) = read_records(tmp_path / "run" / "record.jsonl")[0]
    capfd.readouterr()
    assert main(["protocol", str(path), *options]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == {name: record[name] for name in ("protocol", "fingerprint", "task_fingerprint", "own")}
    assert printed["fingerprint"] == fingerprint(printed["protocol"])
    assert printed["protocol"]["config"]["train_cfg"]["max_iters"] == SWEPT
    assert printed["protocol"]["data"]["train"]["images"] == 24


@pytest.mark.slow
def test_the_number_of_processes_is_free(tmp_path: Path) -> None:
    path = tiny_training.config(
        tmp_path, iterations=2, effective_batch=8, extra="model['norm_cfg'] = dict(type='SyncBN')"
    )
    answer = tiny_training.run("dist_train.sh", path, 2, "--work-dir", tmp_path / "two", "--seed", 2)
    assert answer.returncode == 0, answer.stderr
    (record,) = read_records(tmp_path / "two" / "record.jsonl")[0]
    assert record["hardware"]["processes"] == 2
    alone = resolve(path)
    assert changes(alone["protocol"], record["protocol"]) == []
    assert alone["fingerprint"] == record["fingerprint"]
