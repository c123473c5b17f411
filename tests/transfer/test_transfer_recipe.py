"""The transfer protocols number by number, against what the configs build: UperNet on ADE20K, ViTDet on COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import ADE20K, CASCADE, COCO, config, meta_model, schedule
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn
from trainable import batch, trainable

from adpe.engine.settings.effective_batch import apply_effective_batch


@pytest.mark.parametrize("name", [*ADE20K, *COCO])
def test_norms_and_mixed_precision(name: str) -> None:
    """LayerNorm eps 1e-6 in backbone, pyramid and heads; BatchNorms as in the recipes; bfloat16 for real."""
    model = meta_model(name)
    layer_norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__ == "AdPELayerNorm2d"]
    assert {norm.eps for norm in layer_norms} == {1e-6}
    # pyramid: 2 a level and one in the finest; 4 in the mask head and in each box head
    channel_norms = len([norm for norm in layer_norms if not isinstance(norm, nn.LayerNorm)])
    assert channel_norms == (0 if name in ADE20K else 9 + 4 + 4 * (3 if name in CASCADE else 1))
    assert "fp16" not in config(name)
    assert config(name).optim_wrapper.type == "AdPEAutocastOptimWrapper"
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if name in COCO:
        assert not batch_norms
        return
    assert all(isinstance(m, nn.SyncBatchNorm) for m in batch_norms)
    assert len(batch_norms) == 1 + 4 + 1 + 3 + 3 + 1 + 1  # pyramid, pooling, bottleneck, laterals, outputs, fusion, aux


@pytest.mark.parametrize(("name", "options", "backbone"), [
    ("configs/ade20k_upernet_vitb.py", {"crop_size": (64, 64)}, {"depth": 12, "out_indices": (3, 5, 7, 11)}),
    ("configs/coco_maskrcnn_vitb.py", {"image_size": (64, 64)},
     {"depth": 2, "out_indices": (-1,), "global_attn_indexes": (1,)}),
])  # fmt: skip
def test_dtypes_that_the_matrix_products_see(name: str, options: dict, backbone: dict) -> None:
    cfg = config(name, options)
    cfg.model.backbone.update(embed_dim=48, num_heads=4, **backbone)
    if "ade20k" in name:
        cfg.model.neck.embed_dim = 48
        cfg.model.decode_head.update(in_channels=[48] * 4, channels=16)
        cfg.model.auxiliary_head.update(in_channels=48, channels=16)
    else:
        cfg.model.neck.update(in_channels=48, out_channels=16)
        cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
        roi_head = cfg.model.roi_head
        for head in (roi_head.bbox_head, roi_head.mask_head):
            head.update(in_channels=16, conv_out_channels=16)
        roi_head.bbox_head.fc_out_channels = 32
        roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = 16
    model, wrapper = trainable(cfg)
    seen: dict[str, torch.dtype] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda _, inputs, output, path=path: seen.__setitem__(path, output.dtype))
    losses = model.train_step(batch(cfg, 64), wrapper)
    assert torch.isfinite(losses["loss"])
    assert len(seen) > 30
    assert set(seen.values()) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [
    ("configs/ade20k_upernet_vitb.py", {"crop_size": (64, 64)}),
    ("configs/coco_maskrcnn_vitb.py", {"image_size": (64, 64)}),
    ("configs/coco_cascade_maskrcnn_vitb.py", {"image_size": (64, 64)}),
])  # fmt: skip
def test_full_size_step(name: str, options: dict) -> None:
    """ViT-B, a training step and a prediction on images of 64 pixels: finite losses, a gradient for every parameter."""
    cfg = config(name, options)
    cfg.optim_wrapper.type = "OptimWrapper"  # bfloat16 is slow on many CPUs
    model, wrapper = trainable(cfg)
    data = batch(cfg, 64)
    inputs = model.data_preprocessor(data, training=True)
    losses = model(**inputs, mode="loss")
    loss, values = model.parse_losses(losses)
    assert all(torch.isfinite(value).all() for value in values.values())
    assert loss > 0
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    before = model.backbone.blocks[0].attn.qkv.weight.detach().clone()
    wrapper.step()
    assert not torch.equal(before, model.backbone.blocks[0].attn.qkv.weight)
    with torch.no_grad():
        predictions = model.eval().test_step(data)
    if cfg.default_scope == "mmseg":
        assert predictions[0].pred_sem_seg.data.shape == (1, 64, 64)
        assert predictions[0].seg_logits.data.shape == (150, 64, 64)
    else:
        assert predictions[0].pred_instances.masks.shape[1:] == (64, 64)
        assert len(predictions[0].pred_instances.bboxes) <= 100
    if "cascade" in name:
        assert {key for key in values if "loss_mask" in key} == {"s0.loss_mask"}
        assert {key for key in values if "loss_bbox" in key} == {f"s{i}.loss_bbox" for i in range(3)}


# ADE20K ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width", "depth", "heads", "out", "drop_path", "lr"), [
    (ADE20K[0], 768, 12, 12, [3, 5, 7, 11], 0.1, 2e-4), (ADE20K[1], 1024, 24, 16, [7, 11, 15, 23], 0.2, 4e-4),
])  # fmt: skip
def test_upernet(name: str, width: int, depth: int, heads: int, out: list, drop_path: float, lr: float) -> None:
    cfg, model = config(name), meta_model(name)
    backbone = model.backbone
    assert (backbone.embed_dim, len(backbone.blocks), backbone.num_heads) == (width, depth, heads)
    assert backbone.patch_size == 16
    assert backbone.out_indices == out
    rates = [block.drop_path.rate for block in backbone.blocks]
    assert rates == pytest.approx(np.linspace(0, drop_path, depth).tolist())
    assert isinstance(backbone.norm, nn.Identity)
    assert model.neck.rescales == [4, 2, 1, 0.5]
    head, aux = model.decode_head, model.auxiliary_head
    assert (type(head).__name__, type(aux).__name__) == ("UPerHead", "FCNHead")
    assert (head.channels, aux.channels) == (width, 256)
    assert (head.in_channels, aux.in_channels, aux.in_index) == ([width] * 4, width, 2)
    assert (head.num_classes, aux.num_classes) == (150, 150)
    assert (head.loss_decode.loss_weight, aux.loss_decode.loss_weight) == (1.0, 0.4)
    assert head.dropout_ratio == aux.dropout_ratio == 0.1
    assert [module[0].output_size for module in head.psp_modules] == [1, 2, 3, 6]
    test_cfg = model.test_cfg
    assert (test_cfg.mode, test_cfg.crop_size, test_cfg.stride) == ("slide", (512, 512), (341, 341))
    assert (cfg.train_cfg.max_iters, cfg.effective_batch) == (160000, 16)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("AdamW", lr, (0.9, 0.999), 0.05)
    assert cfg.optim_wrapper.constructor == "AdPELayerDecayOptimWrapperConstructor"
    assert cfg.optim_wrapper.paramwise_cfg == {"layer_decay_rate": 0.65, "compat": "clean"}


def test_mmsegs_own_encoder_by_options() -> None:
    """LayerScale at mmseg's value for MAE (1.0, not its class's 0.1) and a relative bias of zeros, in every block."""
    import mmseg

    (file,) = Path(mmseg.__file__).parent.glob(".mim/configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py")
    theirs = Config.fromfile(str(file)).model.backbone
    options = {"crop_size": (64, 64), "model.backbone.init_values": theirs.init_values}
    options |= {"model.backbone.use_rel_pos_bias": True, "model.backbone.embed_dim": 48, "model.backbone.num_heads": 4}
    with DefaultScope.overwrite_default_scope("mmseg"):
        encoder = MODELS.build(config(ADE20K[0], options).model.backbone)
    assert theirs.init_values == 1.0
    for block in encoder.blocks:
        assert (block.ls1.gamma == 1.0).all() and (block.ls2.gamma == 1.0).all()
        assert not block.attn.relative_position_bias_table.any()


def test_upernet_schedule() -> None:
    """1,500 iterations of warm-up from 1e-6, then linear (power 1.0) to 0 at the last of 160,000."""
    rates = schedule(json.dumps(config(ADE20K[0]).param_scheduler), 160000)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[750] == pytest.approx(750 / 1499, rel=1e-4)
    assert rates[1500] == pytest.approx(1.0)
    for step in (10000, 80000, 159999):
        assert rates[step] == pytest.approx((159999 - step) / (159999 - 1500), rel=1e-4)


def test_upernet_batch_on_8_gpus_and_on_1() -> None:
    assert apply_effective_batch(config(ADE20K[0]), 8) == (16, 8, 2, 1)
    one = config(ADE20K[0])
    assert apply_effective_batch(one, 1) == (16, 1, 4, 4)
    assert one.train_cfg.max_iters == 640000
    assert [scheduler.end for scheduler in one.param_scheduler] == [6000, 640000]


def test_ade20k_pipelines(tmp_path: Path) -> None:
    """Training: crops of 512 from images of 0.5-2 x 512; testing: short side 512, labels at their own size."""
    for split in ("training", "validation"):
        for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
            (tmp_path / kind / split).mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 151, (300, 450, 3) if kind == "images" else (300, 450))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / kind / split / f"a{suffix}")
    cfg = config(ADE20K[0], {"data_root": str(tmp_path)})
    with DefaultScope.overwrite_default_scope("mmseg"):
        item = DATASETS.build(cfg.train_dataloader.dataset)[0]
        model_input = MODELS.build(cfg.model.data_preprocessor)(
            {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}, training=True
        )
        tested = DATASETS.build(cfg.val_dataloader.dataset)[0]
    assert model_input["inputs"].shape == (1, 3, 512, 512)
    assert model_input["data_samples"][0].gt_sem_seg.data.shape == (1, 512, 512)
    assert tested["inputs"].shape == (3, 512, 768)
    labels = tested["data_samples"].gt_sem_seg.data
    assert labels.shape == (1, 300, 450)
    assert set(labels.unique().tolist()) == {*range(150), 255}  # label 0 is ignored, 1 is class 0
    assert cfg.test_dataloader.dataset.data_prefix.img_path == "images/validation"


# COCO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COCO)
def test_vitdet_model(name: str) -> None:
    cfg, model = config(name), meta_model(name)
    large = "vitl" in name
    backbone = model.backbone
    width, depth, heads = (1024, 24, 16) if large else (768, 12, 12)
    assert (backbone.embed_dim, len(backbone.blocks), backbone.num_heads) == (width, depth, heads)
    assert backbone.patch_size == 16
    assert backbone.out_indices == [depth - 1]
    assert backbone.blocks[-1].drop_path.rate == pytest.approx(0.4 if large else 0.1)
    whole = (5, 11, 17, 23) if large else (2, 5, 8, 11)
    attentions = [block.attn for block in backbone.blocks]
    assert [attention.window_size for attention in attentions] == [0 if i in whole else 14 for i in range(depth)]
    for i, attention in enumerate(attentions):  # 64 x 64 patches, or the window's
        length = 2 * (64 if i in whole else 14) - 1
        assert attention.rel_pos_h.shape == attention.rel_pos_w.shape == (length, 64)
    assert backbone.cls_token is None
    assert backbone.pos_embed.shape == (1, 1 + 14 * 14, width)  # trained at the grid of pretraining
    assert (backbone.pos_embed_resize, backbone.table_size) == ("bicubic", (224, 224))
    assert isinstance(backbone.norm, nn.Identity)
    rpn = model.rpn_head
    assert (rpn.num_convs, rpn.prior_generator.strides) == (2, [(s, s) for s in (4, 8, 16, 32, 64)])
    assert rpn.prior_generator.scales.tolist() == [8.0]
    roi = model.roi_head
    box_heads, mask_heads = (roi.bbox_head, roi.mask_head) if name in CASCADE else ([roi.bbox_head], [roi.mask_head])
    assert (len(box_heads), len(mask_heads)) == (3 if name in CASCADE else 1, 1)
    for head in box_heads:
        assert [type(conv.norm).__name__ for conv in head.shared_convs] == ["AdPELayerNorm2d"] * 4
        assert [conv.conv.bias for conv in head.shared_convs] == [None] * 4
        assert [fc.out_features for fc in head.shared_fcs] == [1024]
        assert (head.num_classes, head.reg_class_agnostic) == (80, name in CASCADE)
        assert type(head.loss_bbox).__name__ == "L1Loss"
    assert [type(conv.norm).__name__ for conv in mask_heads[0].convs] == ["AdPELayerNorm2d"] * 4
    assert (model.data_preprocessor.pad_size_divisor, model.data_preprocessor.pad_value) == (1024, 0)
    assert cfg.val_evaluator.metric == ["bbox", "segm"]


def test_vitdet_starts_with_zero_relative_positions() -> None:
    """Detectron2: decomposed tables are zero at the start, and decayed with the depth of their block."""
    cfg = config("configs/coco_maskrcnn_vitb.py", {"image_size": (64, 64)})
    cfg.model.backbone.update(depth=2, embed_dim=48, num_heads=4, global_attn_indexes=(1,))
    cfg.model.neck.in_channels = 48
    model, wrapper = trainable(cfg)
    tables = {n: p for n, p in model.backbone.named_parameters() if "rel_pos" in n}
    assert {name: tuple(table.shape) for name, table in tables.items()} == {
        f"blocks.{i}.attn.rel_pos_{axis}": (27 if i == 0 else 7, 12) for i in range(2) for axis in "hw"
    }
    assert not any(table.any() for table in tables.values())
    for name, table in tables.items():
        group = next(g for g in wrapper.optimizer.param_groups if any(p is table for p in g["params"]))
        depth = 1 + int(name.split(".")[1])
        assert (group["lr_scale"], group["weight_decay"]) == (pytest.approx(0.7 ** (3 - depth)), 0.1)


@pytest.mark.parametrize(
    ("name", "millions"), [("configs/coco_maskrcnn_vitb.py", 111), ("configs/coco_cascade_maskrcnn_vitb.py", 141)]
)
def test_vitdet_parameters_are_as_many_as_published(name: str, millions: int) -> None:
    """ViTDet's paper: 111M and 141M with ViT-B."""
    assert sum(p.numel() for p in meta_model(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize("name", CASCADE)
def test_cascade_stages(name: str) -> None:
    """IoU 0.5, 0.6, 0.7 with detectron2's box weights 10/5, 20/10, 30/15; sampling in the first stage alone."""
    cfg, roi = config(name), meta_model(name).roi_head
    for stage, (iou, weights) in enumerate([(0.5, (10, 10, 5, 5)), (0.6, (20, 20, 10, 10)), (0.7, (30, 30, 15, 15))]):
        assigner = roi.bbox_assigner[stage]
        assert (assigner.pos_iou_thr, assigner.neg_iou_thr, assigner.match_low_quality) == (iou, iou, False)
        assert 1 / np.array(roi.bbox_head[stage].bbox_coder.stds) == pytest.approx(weights)
        assert type(roi.bbox_sampler[stage]).__name__ == ("RandomSampler" if stage == 0 else "PseudoSampler")
    assert (roi.bbox_sampler[0].num, roi.bbox_sampler[0].pos_fraction) == (512, 0.25)
    assert list(cfg.model.roi_head.stage_loss_weights) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", COCO)
def test_vitdet_optimizer_and_schedule(name: str) -> None:
    """100 epochs of batch 64 and lr 1e-4, or the AdPE repository's 400k of batch 32 and 5e-5; steps at 8/9, 26/27."""
    cfg = config(name)
    own = name.endswith("_adpe.py")
    assert (cfg.train_cfg.max_iters, cfg.effective_batch) == ((400000, 32) if own else (184375, 64))
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas, optimizer.weight_decay) == ("AdamW", (0.9, 0.999), 0.1)
    assert optimizer.lr == (5e-5 if own else 1e-4)
    rate = 0.8 if "vitl" in name else 0.7
    assert cfg.optim_wrapper.paramwise_cfg == {"layer_decay_rate": rate, "compat": "detectron2"}
    rates = schedule(json.dumps(cfg.param_scheduler), cfg.train_cfg.max_iters)
    first, second, warmup = (355556, 385185, 542) if own else (163889, 177546, 250)
    assert rates[0] == pytest.approx(0.001)
    assert rates[warmup // 2] == pytest.approx(0.5, abs=0.01)
    assert (rates[warmup - 2] < 1.0, rates[warmup]) == (True, pytest.approx(1.0))
    for step, expected in ((first - 1, 1.0), (first, 0.1), (second - 1, 0.1), (second, 0.01), (-1, 0.01)):
        assert rates[step] == pytest.approx(expected), step
    assert apply_effective_batch(config(name), 8).images == cfg.effective_batch


def test_large_scale_jitter(tmp_path: Path) -> None:
    """Training images of 0.1-2 x 1024, cropped and padded to 1024 x 1024 with the mean; testing: long side 1024."""
    rng = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(tmp_path / split / "a.jpg")
        truth = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 320, "height": 240}],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "bbox": [20, 30, 200, 150], "area": 30000, "iscrowd": 0,
                 "segmentation": [[20, 30, 220, 30, 220, 180, 20, 180]]},
            ],
        }  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    cfg = config("configs/coco_maskrcnn_vitb.py", {"data_root": str(tmp_path)})
    assert cfg.val_evaluator.ann_file == f"{tmp_path}/annotations/instances_val2017.json"
    np.random.seed(1)
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        preprocess = MODELS.build(cfg.model.data_preprocessor)
        sizes = []
        for _ in range(12):
            item = dataset[0]
            sizes.append(item["inputs"].shape[-2:])
            data = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
            ready = preprocess(data, training=True)
            height, width = sizes[-1]
            assert ready["inputs"].shape == (1, 3, 1024, 1024)
            assert ready["inputs"][0, :, height:].abs().sum() == ready["inputs"][0, :, :, width:].abs().sum() == 0
            masks = ready["data_samples"][0].gt_instances.masks
            assert (masks.height, masks.width) == (1024, 1024)
        tested = DATASETS.build(cfg.val_dataloader.dataset)[0]
        assert preprocess({"inputs": [tested["inputs"]], "data_samples": [tested["data_samples"]]})["inputs"].shape == (
            1, 3, 1024, 1024,
        )  # fmt: skip
    assert max(max(size) for size in sizes) == 1024
    assert min(max(size) for size in sizes) < 512
    assert tested["inputs"].shape == (3, 768, 1024)
