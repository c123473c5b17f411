"""Linear segmentation on VOC, Cityscapes and COCO-Stuff, and by Pixio's protocol: shipped configs on a few images."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
from built_configs import ROOT, config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from PIL import Image
from public_data import CLASSES, SIZE, WRITERS, labels, save

from adpe.engine.config import read_config
from adpe.engine.launch import train_main
from adpe.engine.resolved_protocol import protocol_without_data
from adpe.errors import UserError
from adpe.evaluations.heads.linear_head import LinearHead
from adpe.leaderboard.protocol import fingerprint, protocol_key
from adpe.models.vit import VisionTransformer

CONFIGS = {
    "voc": "configs/dense/voc_linear_vitb.py",
    "cityscapes": "configs/dense/cityscapes_linear_vitb.py",
    "coco-stuff": "configs/dense/coco_stuff_linear_vitb.py",
}
LENGTHS = {"voc": (4, 3), "cityscapes": (3, 2), "coco-stuff": (3, 2)}
PIXIO = "configs/dense/ade20k_linear256_vitb.py"
NARROW = {"embed_dim": 16, "depth": 2, "num_heads": 2}
BACKBONE = {f"model.backbone.{key}": value for key, value in NARROW.items()}


def built(name: str, root: Path, *which: str) -> list[Any]:
    """The data sets of some loaders of a config."""
    cfg = read_config(ROOT / name, {"data_root": str(root)})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return [DATASETS.build(cfg[loader].dataset) for loader in which]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_lengths_classes_and_label_0(name: str, tmp_path: Path) -> None:
    """Every label of a file is the class that is learned and measured: 0 is not dropped, nor shifted."""
    root = WRITERS[name](tmp_path)
    train, val = built(CONFIGS[name], root, "train_dataloader", "val_dataloader")
    assert (len(train), len(val)) == LENGTHS[name]
    for dataset in (train, val):
        assert len(dataset.metainfo["classes"]) == CLASSES[name]
        assert dataset.metainfo["reduce_zero_label"] is False
    assert config(CONFIGS[name]).model.decode_head.num_classes == CLASSES[name]
    expected = labels(CLASSES[name] - 1)
    for item in val:
        assert np.array_equal(item["data_samples"].gt_sem_seg.data[0].numpy(), expected)
    seen = np.unique(np.concatenate([train[index]["data_samples"].gt_sem_seg.data.flatten() for index in range(3)]))
    assert set(seen) <= {0, 1, CLASSES[name] - 1, 255} and 0 in seen


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_label_0_cannot_be_dropped(name: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path)
    cfg = read_config(ROOT / CONFIGS[name], {"data_root": str(root), "reduce_zero_label": True})
    with DefaultScope.overwrite_default_scope("mmseg"), pytest.raises(UserError, match="reduce_zero_label"):
        DATASETS.build(cfg.val_dataloader.dataset)


def test_sizes_of_images(tmp_path: Path) -> None:
    """Cityscapes is read at its own size, the others at 512 pixels; Pixio's protocol at the size of any image."""
    shorter = {}
    for name, path in {**CONFIGS, "pixio": PIXIO}.items():
        root = WRITERS.get(name, WRITERS["voc"])(tmp_path / name)
        cfg = read_config(ROOT / path, {"data_root": str(root)})
        steps = [step for step in cfg.val_dataloader.dataset.pipeline if "Resize" in step["type"]]
        results = {"img": np.zeros((100, 200, 3), np.uint8)}
        for step in steps:
            results = TRANSFORMS.build(step)(results)
        shorter[name] = min(results["img"].shape[:2])
    assert shorter == {"voc": 512, "cityscapes": 1024, "coco-stuff": 512, "pixio": 100}


def test_what_a_stranger_lacks_is_said_before_training(tmp_path: Path) -> None:
    root = WRITERS["cityscapes"](tmp_path)
    label_map = root / "gtFine/train/ulm/c_gtFine_labelTrainIds.png"
    label_map.unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .*c_leftImg8bit\.png"):
        built(CONFIGS["cityscapes"], root, "train_dataloader")
    save(label_map, np.full(SIZE, 33, np.uint8))
    with pytest.raises(UserError, match=r"c_gtFine_labelTrainIds\.png: has label 33, .* 0\.\.18"):
        built(CONFIGS["cityscapes"], root, "train_dataloader")
    root = WRITERS["voc"](tmp_path / "voc")
    (root / "JPEGImages/c2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images are missing \(c2\.jpg\)"):
        built(CONFIGS["voc"], root, "val_dataloader")
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    with pytest.raises(UserError, match=r"trainaug\.txt.*voc_aug\.py"):
        built(CONFIGS["voc"], root, "train_dataloader")


def write_ade20k(root: Path) -> Path:
    for split in ("training", "validation"):
        for number in range(3):
            image = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
            save(root / f"images/{split}/{number}.jpg", image)
            save(root / f"annotations/{split}/{number}.png", np.minimum(labels(150), 150))
    return root


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("name", ["voc", "pixio"])
def test_trains_through_the_launcher(name: str, tmp_path: Path) -> None:
    path = ROOT / {**CONFIGS, "pixio": PIXIO}[name]
    root = {**WRITERS, "pixio": write_ade20k}[name](tmp_path / "data")
    given = BACKBONE | {
        "data_root": root, "crop_size": (32, 32), "model.test_cfg.stride": (21, 21), "max_iters": 2,
        "effective_batch": 2, "train_dataloader.batch_size": 2, "model.decode_head.norm_cfg.type": "BN",
        "record.method": "random weights", "embed_dim": 32 if name == "pixio" else 16,
    }  # fmt: skip
    given |= {} if name == "pixio" else {"warmup_iters": 1, "short_side": 48}
    for loader in ("train_dataloader", "val_dataloader"):
        given |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
    words = [f"{key}={value}" for key, value in given.items()]
    run = tmp_path / "run"
    assert train_main([str(path), "--work-dir", str(run), "--cfg-options", *words]) == 0
    record = json.loads((run / "record.jsonl").read_text().splitlines()[-1])
    assert record["dataset"] == {"voc": "PASCAL VOC 2012", "pixio": "ADE20K"}[name]
    assert 0 <= record["metrics"]["mIoU"] <= 100
    data = record["protocol"]["data"]
    assert (data["train"]["images"], data["val"]["images"]) == {"voc": (4, 3), "pixio": (3, 3)}[name]
    assert data["val"]["classes"] == {"voc": 21, "pixio": 150}[name]


def test_three_protocols_on_ade20k_are_never_one() -> None:
    """DINOv3's at 512 pixels, Pixio's at 256 and CAPI's at 224: other fingerprints, so other groups of a ranking."""
    encoder = {f"model.{key}": value for key, value in NARROW.items()}
    protocols = [
        protocol_without_data(ROOT / "configs/dense/ade20k_linear_vitb.py", {**BACKBONE, "embed_dim": 16}),
        protocol_without_data(ROOT / PIXIO, {**BACKBONE, "embed_dim": 32}),
        protocol_without_data(ROOT / "configs/dense/ade20k_knn_vitb.py", encoder),
    ]
    facts = [protocol["facts"] for protocol in protocols]
    assert [one.get("crop") for one in facts[:2]] == [[512, 512], [256, 256]]
    assert [one.get("stride") for one in facts[:2]] == [[341, 341], [170, 170]]
    assert facts[2]["head"] != facts[0]["head"]
    keys = [
        protocol_key({"fingerprint": fingerprint(protocol), "task": "segmentation", "dataset": "ADE20K"})
        for protocol in protocols
    ]
    assert all(a != b for a, b in itertools.combinations(keys, 2))


@pytest.mark.parametrize("class_tokens", [1, 3])
def test_the_class_token_stands_beside_every_patch(class_tokens: int) -> None:
    """As in the head that takes it apart; of several class tokens their mean, each through the norm."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"model": "adpe_vit_tiny_patch8", "embed_dim": 32, "depth": 2, "num_heads": 2}
    size |= {"img_size": 32, "num_class_tokens": class_tokens, "learned_pos_embed": True, "final_norm": "every"}
    joined = MODELS.build({"type": "AdPEViT", "out_type": "featmap_cls", **size}).eval()
    torch.nn.init.normal_(joined.norm.weight)
    torch.nn.init.normal_(joined.cls_token)
    plain = MODELS.build({"type": "AdPEViT", **size}).eval()
    plain.load_state_dict(joined.state_dict())
    images = torch.randn(2, 3, 24, 32)
    (found,) = joined(images)
    assert found.shape == (2, 64, 3, 4)
    tokens = VisionTransformer.forward_features(plain, images)[:, :class_tokens].mean(1)
    head = LinearHead(32, 5, class_token=True).eval()
    torch.testing.assert_close(head.classify(found), head(plain(images), [tokens]))


def test_pixios_head_and_schedule() -> None:
    cfg = read_config(ROOT / PIXIO, {**BACKBONE, "embed_dim": 32, "model.decode_head.norm_cfg.type": "BN"})
    assert cfg.train_cfg.max_iters == 60 * 1263
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (2e-4, 0.01)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model)
    assert model.decode_head.conv_seg.dropout.p == 0.0
    assert model.decode_head.conv_seg.conv.weight.shape == (150, 2 * 16, 1, 1)
    with torch.no_grad():
        assert model.eval().encode_decode(torch.zeros(1, 3, 256, 256), [{"img_shape": (256, 256)}]).shape[2:] == (
            256,
            256,
        )
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_pixios_crops_are_filled_up_with_black(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path)
    Image.new("RGB", (SIZE[1], SIZE[0]), (255, 255, 255)).save(root / "images/training/0.jpg")
    cfg = read_config(ROOT / PIXIO, {"data_root": str(root)})
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    item = dataset[0]
    assert item["inputs"].shape == (3, 256, 256)
    white = item["inputs"] == 255
    assert white.any() and (item["inputs"][~white] == 0).all()
    assert (item["data_samples"].gt_sem_seg.data[0][~white[0]] == 255).all()
