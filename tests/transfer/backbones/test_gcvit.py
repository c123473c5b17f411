"""GC ViT as a backbone: published sizes, any image, batches that do not mix, the authors' names, both frameworks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config
from mmengine.registry import MODELS

import adpe.engine  # noqa: F401
from adpe.errors import UserError
from adpe.models.backbones.gcvit import VARIANTS, GCViT
from adpe.transfer.backbones.gcvit_backbone import AdPEGCViT

SMALL = {"variant": None, "dim": 16, "depths": (1, 2, 3, 1), "heads": (1, 2, 4, 8), "window_size": (4, 4, 8, 4)}


def test_parameters_are_as_many_as_published() -> None:
    """Counted by building the reference with 1,000 classes."""
    published = {
        "xxtiny": 11_995_428, "xtiny": 19_981_294, "tiny": 28_221_974, "tiny2": 34_535_654, "small": 51_092_173,
        "small2": 68_615_197, "base": 90_320_836, "large": 202_075_570,
    }  # fmt: skip
    with torch.device("meta"):
        counted = {name: sum(p.numel() for p in GCViT(name, num_classes=1000).parameters()) for name in VARIANTS}
    assert counted == published


@pytest.mark.parametrize("size", [(33, 33), (20, 24), (1, 1), (64, 96)])
def test_maps_of_any_size_and_images_that_do_not_mix(size: tuple[int, int]) -> None:
    """timm's tiles queries batch after batch, so that images of a batch change each other."""
    torch.manual_seed(0)
    model = AdPEGCViT(**SMALL).eval()
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        together = model(images)
        alone = [model(image[None]) for image in images]
    assert model.channels == (16, 32, 64, 128) and model.strides == (4, 8, 16, 32)
    for level, x in enumerate(together):
        sides = [-(-side // model.strides[level]) for side in size]
        assert x.shape == (3, model.channels[level], *sides) and x.is_contiguous()
        torch.testing.assert_close(x, torch.cat([one[level] for one in alone]), rtol=1e-4, atol=1e-5)


def test_a_classifiers_checkpoint_at_other_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {name: value for name, value in SMALL.items() if name != "window_size"}
    source = GCViT(**options, window_size=(7, 7, 14, 7), num_classes=5)
    state = {**source.state_dict(), "levels.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    torch.save({"state_dict": state}, tmp_path / "gcvit.pth")
    model = AdPEGCViT(
        **{**SMALL, "window_size": 6}, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "gcvit.pth")}
    )
    model.init_weights()
    table = model.net.levels[2].blocks[1].attn.relative_position_bias_table
    assert table.shape == (121, 4) and bool(table.any())
    torch.testing.assert_close(
        model.net.levels[0].blocks[0].attn.qkv.weight, source.levels[0].blocks[0].attn.qkv.weight
    )
    torch.save({"state_dict": {k: v for k, v in state.items() if "levels.1" not in k}}, tmp_path / "part.pth")
    model.init_cfg["checkpoint"] = str(tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth: .*levels\.1"):
        model.init_weights()
    with pytest.raises(UserError, match="heads"):
        AdPEGCViT(**{**SMALL, "heads": (3, 3, 3, 3)})
    with pytest.raises(UserError, match="variant='huge'"):
        AdPEGCViT("huge")


def test_depths_go_up_from_stem_to_head() -> None:
    model = AdPEGCViT(**SMALL, frozen_stages=1)
    depths = {name: model.layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert {depths["net.patch_embed.proj.weight"], depths["net.levels.0.blocks.0.norm1.weight"]} == {0, 1}
    assert depths["net.levels.0.downsample.reduction.weight"] == depths["net.levels.1.blocks.0.norm1.weight"] == 2
    assert max(depths.values()) == depths["net.norm3.weight"] == model.layer_depth("net.norm3.weight")[1] - 1 == 8
    assert not any(p.requires_grad for p in model.net.levels[0].parameters())
    assert all(p.requires_grad for p in model.net.levels[1].parameters())


@pytest.mark.parametrize("name", ["ade20k_upernet_gcvit_tiny", "coco_maskrcnn_gcvit_tiny"])
def test_configs_build(name: str) -> None:
    cfg = config(f"configs/backbones/{name}.py", {"pretrained": "gcvit.pth"})
    assert cfg.model.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "gcvit.pth"}
    backbone = MODELS.build({**cfg.model.backbone, "init_cfg": None})
    widths = cfg.model.decode_head.in_channels if "ade" in name else cfg.model.neck.in_channels
    assert backbone.channels == tuple(widths) and backbone.net.windows == (24,) * 4
