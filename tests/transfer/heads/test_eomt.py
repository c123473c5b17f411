"""EoMT under mmseg: the published recipe, what queries see, windows, schedules, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
from built_configs import ROOT, config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import adpe
from adpe.data.scenes import write_scenes
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.transfer.eomt.criterion import MaskCriterion, Target, sample
from adpe.transfer.eomt.inference import scaled_size, window_starts
from adpe.transfer.eomt.network import Prediction
from adpe.transfer.eomt.rates import annealed, check_annealing, two_stage
from adpe.transfer.eomt.segmentor import AdPEEoMT, targets_of
from adpe.transfer.eomt.transforms import AdPEEoMTCrop, AdPEEoMTFit, AdPEEoMTJitter

NARROW = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}


def model(**options: Any) -> AdPEEoMT:
    torch.manual_seed(0)
    backbone = {"type": "AdPEViT", "model": "adpe_vit_tiny_patch8", **NARROW, **options.pop("backbone", {})}
    given = {"num_queries": 5, "joined_blocks": 2, "window": (32, 32), "criterion": {"num_points": 40}, **options}
    return AdPEEoMT(backbone, num_classes=3, **given)


def sample_of(labels: torch.Tensor, **meta: Any) -> SegDataSample:
    found = SegDataSample(metainfo=meta)
    found.gt_sem_seg = PixelData(data=labels[None])
    return found


@pytest.mark.parametrize(("name", "depth", "width"), [("vitb", 12, 768), ("vitl", 24, 1024)])
def test_the_published_recipe(name: str, depth: int, width: int):
    """Number by number as the repository's DINOv2 config and its trainer's defaults have it."""
    cfg = config(f"configs/dense/ade20k_eomt_{name}.py")
    narrow = {"embed_dim": 32, "num_heads": 2, "img_size": 32}
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        full = MODELS.build({**cfg.model, "data_preprocessor": None})
    assert (len(full.backbone.blocks), full.backbone.embed_dim) == (depth, width)
    assert (full.decode_head.q.weight.shape, full.decode_head.joined_blocks) == ((100, width), 4)
    assert full.decode_head.class_head.out_features == 151 and len(full.decode_head.upscale) == 2
    assert full.window == (512, 512) and full.backbone.img_size == (512, 512)
    criterion = full.criterion
    assert (criterion.num_points, criterion.candidates, criterion.uncertain) == (12544, 37632, 9408)
    assert criterion.weights == {"mask": 5.0, "dice": 5.0, "classes": 2.0}
    assert cfg.model.criterion.no_object == 0.1
    cfg.model.backbone.update(narrow)
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build({**cfg.model, "window": (32, 32), "data_preprocessor": None})
        wrapper = build_optim_wrapper(built, cfg.optim_wrapper)
        scheduler = PARAM_SCHEDULERS.build(cfg.param_scheduler[0], default_args={"optimizer": wrapper})
    assert wrapper.clip_grad_kwargs == {"max_norm": 0.01} and cfg.effective_batch == 16
    groups = wrapper.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.05}
    assert {group["betas"] for group in groups} == {(0.9, 0.999)}
    peaks = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    blocks = built.backbone.blocks
    for i in range(depth):
        assert peaks[id(blocks[i].mlp.fc1.weight)] == pytest.approx(1e-4 * 0.8 ** (depth - 1 - i))
    assert peaks[id(built.backbone.cls_token)] == peaks[id(blocks[0].norm1.bias)]
    assert peaks[id(built.decode_head.q.weight)] == peaks[id(built.backbone.norm.weight)] == 1e-4
    assert (scheduler.total, scheduler.warmup, scheduler.power) == (39153, (500, 1000), 0.9)
    assert cfg.train_cfg.max_iters == 39153 == 31 * (20210 // 16)
    (hook,) = cfg.custom_hooks
    assert list(hook.starts) == [6520, 13040, 19560, 26080] and list(hook.ends) == [13040, 19560, 26080, 32600]
    crop = next(step for step in cfg.train_pipeline if step["type"] == "AdPEEoMTCrop")
    assert tuple(crop.ratio_range) == (0.5, 2.0) and tuple(crop.crop_size) == (512, 512)


def test_rates_of_a_training():
    """The encoder rests while what is new warms up; the scheduler gives the formula's rates."""
    built = model()
    constructor = {"constructor": "AdPEEoMTOptimWrapperConstructor", "paramwise_cfg": {"layer_decay_rate": 0.5}}
    wrapper = build_optim_wrapper(built, {"type": "OptimWrapper", **constructor, "optimizer": {"type": "SGD", "lr": 2}})
    scheduler = PARAM_SCHEDULERS.build(
        {"type": "AdPETwoStageScheduler", "total": 20, "warmup": 4, "encoder_warmup": 5, "by_epoch": False},
        default_args={"optimizer": wrapper},
    )
    block = built.backbone.blocks[1].norm1.weight
    for step in range(20):
        rates = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
        assert rates[id(built.decode_head.q.weight)] == pytest.approx(2 * two_stage(step, 20, (4, 5), False))
        assert rates[id(block)] == pytest.approx(2 * 0.25 * two_stage(step, 20, (4, 5), True))
        assert (rates[id(block)] == 0) == (step <= 4)
        wrapper.optimizer.step()
        scheduler.step()


def test_the_encoder_needs_groups_of_its_own(tmp_path: Path):
    """With another constructor it would warm up with the heads."""
    other = ["optim_wrapper.constructor=DefaultOptimWrapperConstructor", "optim_wrapper.paramwise_cfg=None"]
    assert start(tmp_path, "max_iters=2", *other) == 2


def test_a_query_attends_inside_of_its_mask_alone():
    head = model().decode_head
    masks = torch.full((1, 5, 4, 4), -1.0)
    masks[0, 0, 0, 0] = 1
    draws = torch.tensor([[0.0, 0.4, 0.6, 0.9, 0.1]])
    seen = head.visible(masks, (4, 4), 1.0, None)
    assert seen.sum(-1).tolist() == [[1, 0, 0, 0, 0]]
    assert head.visible(masks, (4, 4), 0.5, draws).sum(-1).tolist() == [[1, 0, 16, 16, 0]]


def test_a_finished_model_predicts_what_the_last_block_does():
    built, images = model().eval(), torch.randn(2, 3, 32, 32)
    built.decode_head.probabilities.zero_()
    with torch.no_grad():
        every = built.decode_head(built.backbone, images)
        last = built(images)
    assert len(every) == 3
    torch.testing.assert_close(every[-1], last)


def test_the_loss_of_images_without_a_class_is_finite():
    built = model()
    empty, full = torch.full((32, 32), 255), torch.zeros(32, 32, dtype=torch.long)
    for labels in ([empty, empty], [empty, full]):
        losses = built.loss(torch.randn(2, 3, 32, 32), [sample_of(one) for one in labels])
        assert len(losses) == 9
        sum(losses.values()).backward()
        assert all(torch.isfinite(value) for value in losses.values())
    assert [name for name, p in built.named_parameters() if p.grad is None] == []


def test_a_mask_for_every_class_that_is_there():
    labels = torch.tensor([[0, 2], [255, 2]])
    found = targets_of(labels, 3)
    assert found.labels.tolist() == [0, 2]
    assert found.masks.tolist() == [[[True, False], [False, False]], [[False, True], [False, True]]]


def test_the_right_masks_have_no_loss_and_are_matched():
    """Queries in another order than their targets; sure of masks and classes."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :4, 4:] = True, True
    target = Target(masks, torch.tensor([2, 0]))
    logits = torch.stack([masks[1], masks[0], masks[0] & False])[None].float() * 100 - 50
    classes = torch.full((1, 3, 4), -50.0)
    classes[0, [0, 1, 2], [0, 2, 3]] = 50.0
    criterion = MaskCriterion(3, num_points=400, importance_sample_ratio=0.0)
    torch.manual_seed(0)
    ((rows, columns),) = criterion.match([Prediction(logits, classes)], [target])[0]
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    (losses,) = criterion([Prediction(logits, classes)], [target])
    (wrong,) = criterion([Prediction(logits.flip(-1), classes)], [target])
    assert float(losses["classes"]) < 1e-6 and float(losses["dice"]) < 0.2 < 0.3 < float(wrong["dice"])


@pytest.mark.parametrize("drop_void", [False, True])
def test_unlabelled_pixels_are_outside_of_all_masks_or_do_not_count(drop_void: bool):
    labels = torch.zeros(8, 8, dtype=torch.long)
    labels[:, 3:] = 255
    target = targets_of(labels, 3, drop_void)
    criterion = MaskCriterion(3, num_points=100, importance_sample_ratio=0.0)
    torch.manual_seed(0)
    logits, classes = torch.randn(1, 2, 8, 8), torch.zeros(1, 2, 4)
    other = logits.clone()
    other[..., 5:] += 7  # beyond what bilinear points on labelled pixels see
    found = []
    for masks in (logits, other):
        torch.manual_seed(1)
        (losses,) = criterion([Prediction(masks, classes)], [target])
        found.append((float(losses["mask"]), float(losses["dice"])))
    assert (found[0] == pytest.approx(found[1])) == drop_void


def test_points_lie_at_the_centres_of_pixels():
    maps = torch.arange(6.0).view(1, 2, 3)
    points = torch.tensor([[[0.5 / 3, 0.25], [1.5 / 3, 0.25], [2.5 / 3, 0.75], [1 / 3, 0.25], [0.0, 0.25]]])
    torch.testing.assert_close(sample(maps, points)[0], torch.tensor([0.0, 1.0, 5.0, 0.5, 0.0]))


def test_windows_of_an_image():
    """One where the image is a window, else evenly along the longer side; overlaps are averaged."""
    assert (scaled_size((100, 300), (32, 32)), scaled_size((65, 64), (32, 32))) == ((32, 96), (32, 32))
    assert window_starts((32, 32), (32, 32)) == [(0, 0)]
    assert window_starts((32, 96), (32, 32)) == [(0, 0), (0, 32), (0, 64)]
    assert window_starts((70, 32), (32, 32)) == [(0, 0), (19, 0), (38, 0)]
    built = model().eval()
    square, wide = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        (found,) = built.predict(square, [SegDataSample(metainfo={"img_shape": (32, 32), "ori_shape": (32, 32)})])
        torch.testing.assert_close(found.seg_logits.data, built.encode_decode(square)[0])
        (found,) = built.predict(wide, [SegDataSample(metainfo={"img_shape": (32, 64), "ori_shape": (16, 32)})])
    assert found.pred_sem_seg.data.shape == (1, 16, 32) and found.seg_logits.data.shape == (3, 16, 32)


def test_an_image_at_another_size_is_refused():
    with pytest.raises(UserError, match="40 x 64"):
        model().eval().predict(torch.randn(1, 3, 40, 64))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"backbone": {"position": "relative"}}, "relative"), ({"backbone": {"use_rel_pos_bias": True}}, "use_rel_pos"),
        ({"joined_blocks": 5}, "joined_blocks = 5"), ({"num_queries": 0}, "num_queries = 0"),
        ({"window": (36, 32)}, "36"), ({"criterion": {"num_points": 0}}, "num_points = 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], key: str):
    with pytest.raises(UserError, match=key):
        model(**options)


def test_annealing():
    assert [annealed(step, 10, 20, 1.0) for step in (0, 9, 10, 15, 20, 99)] == [1, 1, 1, 0.5, 0, 0]
    for starts, ends in (([0], [5, 6]), ([5, 5], [6, 4])):
        with pytest.raises(UserError, match="2 joined blocks"):
            check_annealing(starts, ends, 2)


def test_training_crops():
    """An image of a ramp: every crop has its size, scaled pixels, 0 and 255 where it is padded, and a label."""
    image = np.full((40, 20, 3), 200, np.uint8)
    labels = np.full((40, 20), 255, np.uint8)
    labels[:5, :5] = 1
    crop = AdPEEoMTCrop((32, 32), (0.5, 2.0))
    np.random.seed(0)
    padded = 0
    for _ in range(30):
        found = crop.transform({"img": image, "gt_seg_map": labels})
        assert found is not None
        assert found["img"].shape == (32, 32, 3) and found["gt_seg_map"].shape == (32, 32)
        assert (found["gt_seg_map"] == 1).any() and set(np.unique(found["img"])) <= {0, 200}
        assert (found["gt_seg_map"][(found["img"] == 0).all(-1)] == 255).all()
        padded += (found["img"] == 0).any()
    assert padded > 0
    assert crop.transform({"img": image, "gt_seg_map": np.full((40, 20), 255, np.uint8)}) is None
    fit = AdPEEoMTFit((32, 32)).transform({"img": image})
    assert fit["img"].shape == (64, 32, 3) and fit["img_shape"] == (64, 32)


def test_jitter_changes_colours_within_its_spans():
    image = np.full((4, 4, 3), 100, np.uint8)
    np.random.seed(0)
    found = [AdPEEoMTJitter(contrast=0, saturation=0, hue=0).transform({"img": image})["img"] for _ in range(40)]
    values = {int(one[0, 0, 0]) for one in found}
    assert 100 in values and len(values) > 5 and 100 * (1 - 32 / 255) - 1 <= min(values) <= max(values) <= 113


def start(tmp_path: Path, *options: str) -> int:
    write_scenes(tmp_path / "data", num_train=48, num_val=16, num_unlabelled=2, size=48)
    torch.manual_seed(0)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    adpe.save_checkpoint(tensors, tmp_path / "encoder.safetensors")
    given = [f"data_root={tmp_path / 'data'}", f"pretrained={tmp_path / 'encoder.safetensors'}", "record.method=none"]
    work = ["--work-dir", str(tmp_path / "run"), "--cfg-options", *given, *options]
    return train_main([str(ROOT / "configs" / "demo" / "eomt.py"), *work])


def run(tmp_path: Path, *options: str) -> dict[str, Any]:
    assert start(tmp_path, *options) == 0
    return json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[-1])


def test_two_iterations(tmp_path: Path):
    """Through the launcher, with an accumulated step: the record names the model, the encoder has the file's start."""
    record = run(tmp_path, "max_iters=2", "train_dataloader.batch_size=4")
    assert record["protocol"]["facts"]["head"] == "AdPEEoMT" and record["metrics"]["mIoU"] >= 0
    state = torch.load(tmp_path / "run" / "iter_4.pth", weights_only=True)["state_dict"]
    # After one of two steps: the blocks are annealed from steps 0 and 1, to step 1.
    assert state["decode_head.probabilities"].tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    """The loss falls by a third, mIoU is above that of one class for all, and no mask is left at the end."""
    record = run(tmp_path, "max_iters=160")
    lines = [
        json.loads(line) for line in next((tmp_path / "run").rglob("vis_data/scalars.json")).read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 2 / 3 * losses[0]
    assert record["metrics"]["mIoU"] > 30
    state = torch.load(tmp_path / "run" / "iter_160.pth", weights_only=True)["state_dict"]
    assert state["decode_head.probabilities"].tolist() == [0.0, 0.0]
