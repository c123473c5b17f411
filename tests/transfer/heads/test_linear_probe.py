"""The frozen linear probes of segmentation and boxes: what is trained, what stays, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import adpe
from adpe.checkpoints.loading import save_checkpoint
from adpe.data.scenes import write_scenes
from adpe.engine.config import read_config
from adpe.engine.launch import train_main
from adpe.evaluations.heads.linear_head import probed_blocks

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ["configs/demo/linear_segmentation.py", "configs/demo/linear_detection.py"]


def test_blocks_that_are_probed():
    """DINOv3's choice of blocks, counted from 0."""
    assert probed_blocks(12, "last") == [11]
    assert probed_blocks(12, "four_last") == [8, 9, 10, 11]
    assert probed_blocks(12, "four_even") == [2, 5, 8, 11]
    assert probed_blocks(24, "four_even") == [4, 11, 17, 23]
    with pytest.raises(ValueError, match="four_even"):
        probed_blocks(3, "four_even")


@pytest.mark.parametrize("name", [*CONFIGS, "configs/dense/ade20k_linear_vitb.py"])
def test_the_head_alone_is_trained(name: str):
    cfg = read_config(ROOT / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if "ade20k" in name:
            cfg.model.backbone.update(embed_dim=48, depth=2, num_heads=2, img_size=64)
            cfg.model.decode_head.update(in_channels=48, norm_cfg={"type": "BN"})
        model = MODELS.build(cfg.model)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    head = getattr(model, "decode_head", None) or model.bbox_head
    trained = {id(parameter) for group in wrapper.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in head.parameters()}
    assert {group["weight_decay"] for group in wrapper.optimizer.param_groups} == {1e-3}
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


@pytest.mark.parametrize("blocks", ["last", "four_last"])
def test_every_map_is_normed(blocks: str):
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}
    backbone = MODELS.build(
        {"type": "AdPEViT", "model": "adpe_vit_tiny_patch8", "out_indices": blocks, "final_norm": "every", **options}
    )
    torch.nn.init.normal_(backbone.norm.weight)
    images = torch.randn(2, 3, 32, 32)
    maps = backbone(images)
    wanted = probed_blocks(4, blocks)
    expected = backbone.forward_intermediates(images, wanted, norm=True, intermediates_only=True)
    assert len(maps) == len(wanted)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_probe_learns_and_leaves_the_encoder_as_it_was(name: str, tmp_path: Path):
    """From colours that a random encoder passes on: far above what one class, or no box, gives."""
    write_scenes(tmp_path / "data", num_train=48, num_val=16, num_unlabelled=2, size=48)
    encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
    save_checkpoint({f"encoder.{n}": t for n, t in encoder.state_dict().items()}, tmp_path / "encoder.safetensors")
    options = [
        f"data_root={tmp_path / 'data'}", f"pretrained={tmp_path / 'encoder.safetensors'}", "max_iters=60",
        "effective_batch=16", "train_dataloader.batch_size=16", "record.method=random weights",
    ]  # fmt: skip
    run = tmp_path / "run"
    assert train_main([str(ROOT / name), "--work-dir", str(run), "--cfg-options", *options]) == 0
    metrics = json.loads((run / "record.jsonl").read_text().splitlines()[-1])["metrics"]
    assert metrics.get("mIoU", 100) > 25 and metrics.get("bbox_mAP_50", 1) > 0.02
    state = torch.load(run / "iter_60.pth", weights_only=True)["state_dict"]
    for parameter, tensor in encoder.state_dict().items():
        assert torch.equal(state[f"backbone.{parameter}"], tensor), parameter
