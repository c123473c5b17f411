"""Configs and checkpoints of mmsegmentation, mmdetection and mmengine as they come, through our tools and theirs."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_training
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from PIL import Image
from same_training import assert_same_training

from adpe.engine.config import read_config
from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.engine.hooks.defaults import GUARDS, complete_hooks, complete_visualizer
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main

SMALL_LOADERS = [
    f"{split}_dataloader.{option}"
    for split in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
]
DRAW = ["default_hooks.visualization.draw=True", "default_hooks.visualization.interval=1"]


class Framework(NamedTuple):
    """A config of a framework, the options that make it tiny, and its length in iterations."""

    name: str
    config: str
    options: list[str]
    checkpoint: str
    last: str
    metric: str


SEGMENTATION = Framework(
    "mmseg",
    "fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py",
    [
        "crop_size=(32,32)", "train_cfg.max_iters=12", "train_cfg.val_interval=12",
        "default_hooks.checkpoint.interval=4", "default_hooks.logger.interval=1", "train_dataloader.batch_size=2",
        "train_dataloader.dataset.pipeline.2.scale=(64,32)", "val_dataloader.dataset.pipeline.1.scale=(64,32)",
        "test_dataloader.dataset.pipeline.1.scale=(64,32)", "model.pretrained=None", "model.backbone.depth=18",
        "model.backbone.base_channels=8", "model.backbone.stem_channels=8", "model.decode_head.in_channels=64",
        "model.decode_head.channels=8", "model.auxiliary_head.in_channels=32",
        "model.auxiliary_head.channels=8",
    ],
    "iter_4.pth", "iter_12.pth", "mIoU",
)  # fmt: skip
DETECTION = Framework(
    "mmdet",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    [
        "train_cfg.max_epochs=4", "train_cfg.val_interval=4", "default_hooks.logger.interval=1",
        "train_dataloader.batch_size=2",
        "train_dataloader.dataset.pipeline.2.scale=(64,64)", "val_dataloader.dataset.pipeline.1.scale=(64,64)",
        "test_dataloader.dataset.pipeline.1.scale=(64,64)", "model.backbone.depth=18", "model.backbone.base_channels=8",
        "model.backbone.init_cfg=None",
        "model.neck.in_channels=[8,16,32,64]", "model.roi_head.bbox_head.fc_out_channels=16",
        "model.test_cfg.rcnn.score_thr=0.0", "model.test_cfg.rcnn.max_per_img=5", "model.test_cfg.rpn.max_per_img=20",
        "model.train_cfg.rpn_proposal.max_per_img=50",
    ],
    "epoch_1.pth", "epoch_4.pth", "coco/bbox_mAP",
)  # fmt: skip


def write_data(root: Path, coco: bool) -> Path:
    """Four training and two validation images with one rectangle each, in the layout of ADE20K or of COCO."""
    rng = np.random.default_rng(0)
    classes = importlib.import_module("mmdet.datasets").CocoDataset.METAINFO["classes"] if coco else ()
    for split, coco_split, count in (("training", "train2017", 4), ("validation", "val2017", 2)):
        images = root / coco_split if coco else root / "images" / split
        maps = root / "annotations" if coco else root / "annotations" / split
        for folder in (images, maps):
            folder.mkdir(parents=True, exist_ok=True)
        listed: dict[str, list[dict[str, Any]]] = {
            "images": [], "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        }  # fmt: skip
        for index in range(count):
            pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            pixels[16:48, 16:48] += 120
            Image.fromarray(pixels).save(images / f"{index}.jpg")
            if not coco:
                labels = np.ones((64, 64), np.uint8)
                labels[16:48, 16:48] = 2
                Image.fromarray(labels).save(maps / f"{index}.png")
            listed["images"].append({"id": index, "file_name": f"{index}.jpg", "width": 64, "height": 64})
            corners = [[16, 16, 48, 16, 48, 48, 16, 48]]
            listed["annotations"].append(
                {"id": index + 1, "image_id": index, "category_id": 1 + index % 2, "bbox": [16, 16, 32, 32],
                 "area": 1024, "iscrowd": 0, "segmentation": corners}
            )  # fmt: skip
        if coco:
            (maps / f"instances_{coco_split}.json").write_text(json.dumps(listed))
    return root


def arguments(framework: Framework, root: Path, work_dir: Path, *options: str) -> list[str]:
    package = pytest.importorskip(framework.name)
    path = Path(package.__file__).parent / ".mim" / "configs" / framework.config
    given = [f"data_root={root}/", *framework.options, *SMALL_LOADERS, *options]
    return [str(path), "--work-dir", str(work_dir), "--seed", "3", "--cfg-options", *given]


def pictures(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg")]


@pytest.mark.slow(15)
@pytest.mark.parametrize("framework", [SEGMENTATION, DETECTION], ids=lambda framework: framework.name)
def test_an_unmodified_config_trains_is_killed_resumes_and_is_evaluated(framework, tmp_path, capsys):
    root = write_data(tmp_path / "data", coco=framework.name == "mmdet")
    assert train_main(arguments(framework, root, tmp_path / "whole", *DRAW)) == 0
    assert pictures(tmp_path / "whole")

    killed = tmp_path / "killed"
    script = str(tiny_training.ROOT / "tools" / "train.py")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, script, *arguments(framework, root, killed)], stdout=log, stderr=log,
            env=tiny_training.environment(), start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 250
        while not (killed / framework.checkpoint).exists() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    command = arguments(framework, root, killed)
    assert train_main([*command[:3], "--resume", *command[3:]]) == 0
    assert_same_training(killed / framework.last, tmp_path / "whole" / framework.last)

    checkpoint, out = tmp_path / "whole" / framework.last, tmp_path / "metrics.json"
    dumped = tmp_path / "whole" / Path(framework.config).name
    command = [str(dumped), str(checkpoint), "--work-dir", str(tmp_path / "test"), "--out", str(out)]
    assert evaluate([*command, "--show-dir", str(tmp_path / "shown")]) == 0
    logged = [json.loads(line) for line in next((tmp_path / "whole").rglob("scalars.json")).read_text().splitlines()]
    trained = [line[framework.metric] for line in logged if framework.metric in line]
    assert json.loads(out.read_text())[framework.metric] == pytest.approx(trained[-1], abs=1e-4)
    assert len(pictures(tmp_path / "shown")) == 2

    image = str(next(root.rglob("*.jpg")))
    if framework.name == "mmseg":
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(model=str(dumped), weights=str(checkpoint), device="cpu")
    else:
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(model=str(dumped), weights=str(checkpoint), device="cpu")
    inferencer(image, out_dir=str(tmp_path / "inferred"))
    assert pictures(tmp_path / "inferred")

    capsys.readouterr()
    assert train_main(arguments(framework, root, tmp_path / "nan", "optim_wrapper.optimizer.lr=1e30")) == 2
    assert list((tmp_path / "nan").glob("nonfinite_iter_*.pt")) and "iter_" in capsys.readouterr().err


def test_guards_of_our_configs_are_those_of_every_training():
    ours = read_config(tiny_training.RUNTIME).default_hooks
    assert GUARDS.items() <= {name: hook.type for name, hook in ours.items()}.items()
    cfg = Config({"default_hooks": ours.to_dict(), "record": {"method": "a"}})
    complete_hooks(cfg)
    assert cfg.default_hooks.to_dict() == ours.to_dict()


def test_hooks_of_a_config_without_any():
    cfg = Config({})
    complete_hooks(cfg)
    assert {name: hook.type for name, hook in cfg.default_hooks.items()} == GUARDS | {
        "checkpoint": "AdPECheckpointHook"
    }
    cfg = Config({
        "default_hooks": {"label_guard": None, "checkpoint": {"type": "mmengine.CheckpointHook", "interval": 7}},
        "custom_hooks": [{"type": "CheckpointHook", "out_dir": "b"}, {"type": "AdPEFiniteLossHook"}],
        "record": {"method": "a"},
    })  # fmt: skip
    complete_hooks(cfg)
    assert cfg.default_hooks.checkpoint.to_dict() == {"type": "AdPECheckpointHook", "interval": 7}
    assert cfg.custom_hooks[0].type == "AdPECheckpointHook"
    assert cfg.default_hooks.label_guard is None and cfg.default_hooks.record.type == "AdPERecordHook"
    assert "finite_loss" not in cfg.default_hooks


@pytest.mark.parametrize(
    ("scope", "given", "expected"),
    [
        ("mmseg", None, "SegLocalVisualizer"),
        ("mmdet", {"type": "Visualizer"}, "DetLocalVisualizer"),
        ("mmdet", {"type": "mmengine.Visualizer"}, "DetLocalVisualizer"),
        ("mmseg", {"type": "MyVisualizer"}, "MyVisualizer"),
        ("mmengine", {"type": "Visualizer"}, "Visualizer"),
    ],
)
def test_predictions_are_drawn_by_the_visualizer_of_the_task(scope, given, expected):
    cfg = Config({"default_scope": scope, "visualizer": given})
    complete_visualizer(cfg)
    assert cfg.visualizer.type == expected


def test_a_checkpoint_of_mmengines_own_hook_is_read_and_resumed(tmp_path):
    path = tiny_training.config(tmp_path, iterations=8, extra="default_hooks['finite_loss'] = None")
    cfg = read_config(path)
    cfg.default_hooks = {"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 4}}
    cfg.update(work_dir=str(tmp_path / "theirs"), launcher="none", custom_hooks=[])
    runner = Runner.from_cfg(cfg)
    metainfo = ConfigDict(classes=("a", "b"), palette=np.eye(3, dtype=np.uint8), nested=ConfigDict(x=np.float16(0.5)))
    tiny_training.TinyDataset.METAINFO, before = metainfo, tiny_training.TinyDataset.METAINFO
    try:
        runner.train()
    finally:
        tiny_training.TinyDataset.METAINFO = before
    file = tmp_path / "theirs" / "iter_4.pth"
    assert "HistoryBuffer" in str(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    read = read_training_checkpoint(file)
    meta = read["meta"]["dataset_meta"]
    assert meta["classes"] == ("a", "b") and np.array_equal(meta["palette"], np.eye(3)) and meta["nested"]["x"] == 0.5
    losses, counts = read["message_hub"]["log_scalars"]["train/loss"].data
    assert losses.shape == counts.shape == (4,) and np.isfinite(losses).all()
    assert train_main([str(path), "--work-dir", str(tmp_path / "ours"), "--resume", str(file)]) == 0
    ours = read_training_checkpoint(tmp_path / "ours" / "iter_8.pth")
    assert ours["meta"]["iter"] == 8 and len(ours["message_hub"]["log_scalars"]["train/loss"].data[0]) == 8
