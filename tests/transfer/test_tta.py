"""Multi-scale and mirrored testing of ADE20K: the augmentations, their mean, and a checkpoint under the wrapper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("mmseg")
from built_configs import config
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope

from adpe.engine.hooks.multi_scale import record_multi_scale
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main
from adpe.engine.runner import AdPERunner
from adpe.errors import UserError
from adpe.leaderboard.protocol import changes
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import read_records
from adpe.transfer.tta import use_tta

ADE20K = "configs/ade20k_upernet_vitb.py"
CROP, STRIDE = 32, 21
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def dataset(folder: Path) -> Path:
    """Two images with their labels, in ADE20K's layout."""
    rng = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
    for index, (height, width) in enumerate([(30, 45), (50, 36)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/validation/{index}.jpg")
        labels = np.kron(rng.integers(0, 151, (2, 3)), np.ones((height // 2, width // 3))).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"annotations/validation/{index}.png")
    return folder


def small(root: Path, shrink: int = 16) -> Config:
    """The config with narrow layers, a window of 32 pixels, and scales so many times smaller."""
    cfg = config(ADE20K, {"data_root": str(root), "crop_size": (CROP, CROP)})
    cfg.model.test_cfg.stride = (STRIDE, STRIDE)
    cfg.model.backbone.update(patch_size=8, depth=2, embed_dim=24, num_heads=2, out_indices=(0, 1))
    cfg.model.neck = None
    head = {"in_channels": 24, "in_index": 1, "channels": 16, "norm_cfg": {"type": "BN"}}
    cfg.model.decode_head = {**cfg.model.auxiliary_head, **head}
    cfg.model.auxiliary_head = None
    for step, ratio in zip(cfg.tta_pipeline[1].transforms[0], RATIOS, strict=True):
        step.scale = int(512 * ratio) // shrink
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    return cfg


def build(registry: Any, cfg: Any) -> Any:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return registry.build(cfg)


def multi_scale_size(height: int, width: int, ratio: float) -> tuple[int, int]:
    """BEiT's SETR_Resize with ``setr_multi_scale=True``: the short side, at least the crop's, alone decides."""
    short = max(512, int(512 * ratio))
    scale = short / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


@pytest.mark.parametrize("size", [(30, 45), (45, 30), (20, 100)])
def test_short_sides_of_the_multi_scale_test(size: tuple[int, int]) -> None:
    """512, 512, 512, 640, 768, 896: never below the window, also of an image five times as wide as high."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        resized = [
            TRANSFORMS.build(step)({"img": np.zeros((*size, 3), dtype=np.uint8)})["img"].shape[:2]
            for step in config(ADE20K).tta_pipeline[1].transforms[0]
        ]
    assert resized == [multi_scale_size(*size, ratio) for ratio in RATIOS]
    assert [min(shape) for shape in resized] == [512, 512, 512, 640, 768, 896]


def test_twelve_augmentations(tmp_path: Path) -> None:
    """Every size as it is and mirrored; the label map keeps its size."""
    cfg = config(ADE20K, {"data_root": str(dataset(tmp_path))})
    use_tta(cfg)
    item = build(DATASETS, cfg.test_dataloader.dataset)[0]
    sizes = [tuple(image.shape[-2:]) for image in item["inputs"]]
    assert sizes == [(s, s * 3 // 2) for s in (512, 512, 512, 640, 768, 896) for _ in range(2)]
    for plain, mirrored in zip(item["inputs"][::2], item["inputs"][1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
    assert [sample.flip for sample in item["data_samples"]] == [False, True] * 6
    stored = np.array(Image.open(tmp_path / "annotations/validation/0.png")).astype(np.int64)
    expected = np.where(stored == 0, 255, stored - 1)
    for sample in item["data_samples"]:
        assert sample.ori_shape == (30, 45)
        np.testing.assert_array_equal(sample.gt_sem_seg.data[0].numpy(), expected)


def slide(model: Any, image: Tensor) -> Tensor:
    """Logits (1, C, H, W): mean over windows of 32 pixels every 21, the last one at the border."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, 150, height, width), torch.zeros(height, width)
    last = [max(side - CROP, 0) for side in (height, width)]
    starts = [[min(start, end) for start in range(0, end + STRIDE, STRIDE)] for end in last]
    for top in starts[0]:
        for left in starts[1]:
            window = image[..., top : top + CROP, left : left + CROP]
            logits = F.interpolate(model.decode_head(model.backbone(window)), window.shape[-2:], mode="bilinear")
            total[..., top : top + CROP, left : left + CROP] += logits
            count[top : top + CROP, left : left + CROP] += 1
    return total / count


def test_mean_of_probabilities(tmp_path: Path) -> None:
    """Against the definition: window by window, mirrored back, at the image's size, softmax, mean over twelve."""
    cfg = small(dataset(tmp_path))
    use_tta(cfg)
    model = build(MODELS, cfg.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    data = build(DATASETS, cfg.test_dataloader.dataset)
    batch = pseudo_collate([data[0]])
    mean, std = (torch.tensor(cfg.model.module.data_preprocessor[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        (sample,) = model.test_step(batch)
        probabilities = []
        for index, image in enumerate(data[0]["inputs"]):
            logits = slide(model.module, ((image.flip(0).float() - mean) / std)[None])
            logits = logits.flip(-1) if index % 2 else logits
            probabilities.append(F.interpolate(logits, (30, 45), mode="bilinear")[0].softmax(0))
    assert len({tuple(image.shape) for image in data[0]["inputs"]}) == 6
    expected = torch.stack(probabilities).mean(0)
    torch.testing.assert_close(sample.seg_logits.data, expected, rtol=1e-4, atol=1e-6)
    assert (sample.seg_logits.data - probabilities[0]).abs().max() > 1e-2
    assert torch.equal(sample.pred_sem_seg.data, expected.argmax(0, keepdim=True))
    assert torch.equal(sample.gt_sem_seg.data, data[0]["data_samples"][0].gt_sem_seg.data)
    assert sample.img_path.endswith("0.jpg")


def test_evaluation_of_a_checkpoint(tmp_path: Path) -> None:
    """A segmentor's checkpoint goes into the wrapped segmentor, strictly; mIoU is that of the merged predictions."""
    cfg = small(dataset(tmp_path / "data"), shrink=32)
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope("mmseg"):
        segmentor = MODELS.build(cfg.model)
    torch.save({"state_dict": segmentor.state_dict(), "meta": {}}, tmp_path / "model.pth")
    torch.save({"state_dict": {**segmentor.state_dict(), "other.weight": torch.ones(1)}}, tmp_path / "wrong.pth")
    use_tta(cfg)
    cfg.update(work_dir=str(tmp_path / "work"), load_from=str(tmp_path / "model.pth"), launcher="none")
    runner = AdPERunner.from_cfg(cfg)
    runner.strict_load = True
    metrics = runner.test()
    loaded = runner.model.module.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in segmentor.state_dict().items())
    inter, union = torch.zeros(150), torch.zeros(150)
    with torch.no_grad():
        for item in runner.test_dataloader.dataset:
            (sample,) = runner.model.test_step(pseudo_collate([item]))
            truth, found = sample.gt_sem_seg.data, sample.pred_sem_seg.data
            for label in range(150):
                one, other = (truth == label), (found == label) & (truth != 255)
                inter[label] += (one & other).sum()
                union[label] += (one | other).sum()
    assert metrics["mIoU"] == pytest.approx(100 * (inter / union).nanmean().item(), abs=0.006)
    with pytest.raises(UserError, match=r"1 unknown \(other\.weight\)"):
        runner.load_checkpoint(str(tmp_path / "wrong.pth"), strict=True)


def test_config_without_tta() -> None:
    cfg = config("configs/coco_maskrcnn_vitb.py")
    with pytest.raises(UserError, match=r"coco_maskrcnn_vitb.py has no tta_model and no tta_pipeline"):
        use_tta(cfg)


# Its record -----------------------------------------------------------------------------------------------------------

CONFIG = """
_base_ = {base!r}
tta_model = dict(type="AdPESegmentationTTA")
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="ResizeShortestEdge", scale=scale, max_size=10**6) for scale in {scales}],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
"""


def demo_dataset(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = np.kron(rng.integers(1, 5, (2, 2)), np.ones((24, 24))).astype(np.uint8)
            pixels = np.stack([labels * 50, labels * 20, 255 - labels * 50], axis=-1)
            Image.fromarray(pixels).save(folder / f"images/{split}/{index}.jpg")
            Image.fromarray(labels).save(folder / f"annotations/{split}/{index}.png")
    return folder


def test_the_record_of_a_run_gains_the_multi_scale_metric(tmp_path: Path) -> None:
    """Same run, both metrics; scales other than the run's config are another protocol; no record without a run's."""
    base = str(Path(__file__).resolve().parents[2] / "configs/demo/segmentation.py")
    for name, scales in (("own", (48, 64)), ("other", (48, 96))):
        (tmp_path / f"{name}.py").write_text(CONFIG.format(base=base, scales=scales))
    root, work, suite = str(demo_dataset(tmp_path / "data")), tmp_path / "suite" / "upernet" / "run", tmp_path / "suite"
    options = [
        "--cfg-options", f"data_root={root}", "max_iters=1", "effective_batch=2", "train_dataloader.batch_size=2",
        "num_classes=4", "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
        "val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False",
        "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False",
    ]  # fmt: skip
    records = ["record.suite=s", f"record_file={suite / 'records.jsonl'}"]
    train_main([str(tmp_path / "own.py"), "--work-dir", str(work), "--seed", "1", *options, *records])
    (trained,) = read_records(work / "record.jsonl")[0]
    assert set(trained["metrics"]) >= {"mIoU"}
    assert trained["protocol"]["config"]["tta_pipeline"][1]["transforms"][0][1]["scale"] == 64

    def tested(config: str, *more: str) -> float:
        out = tmp_path / "metrics.json"
        arguments = [str(tmp_path / config), str(work / "iter_1.pth"), "--work-dir", str(tmp_path / "test")]
        evaluate([*arguments, "--out", str(out), *more, *options])
        return float(json.loads(out.read_text())["mIoU"])

    tested("own.py")
    assert read_records(work / "record.jsonl")[0] == [trained]
    value = tested("own.py", "--tta")
    for file in (work / "record.jsonl", suite / "records.jsonl"):
        assert len([line for line in file.read_text().splitlines() if line]) == 2
        (both,) = read_records(file)[0]
        assert both["metrics"] == {**trained["metrics"], "mIoU_ms": pytest.approx(value, abs=1e-9)}
        assert {**both, "metrics": None} == {**trained, "metrics": None}
    (table,) = build_leaderboard(read_records(suite / "records.jsonl")[0]).tables
    assert table.metrics == ("mIoU", "mIoU_ms")
    assert table.rows[0].cells["mIoU_ms"].values == {1: pytest.approx(value)}

    tested("other.py", "--tta")
    both, other = read_records(work / "record.jsonl")[0]
    assert other["fingerprint"] != both["fingerprint"]
    assert [change.path for change in changes(both["protocol"], other["protocol"])] == [
        "config.tta_pipeline.TestTimeAug.transforms"
    ]

    (work / "record.jsonl").unlink()
    (suite / "records.jsonl").unlink()
    assert record_multi_scale(Config(), None, work / "iter_1.pth", {"mIoU": 1.0}) == ([], {"mIoU_ms": 1.0})
    assert not (work / "record.jsonl").exists()
