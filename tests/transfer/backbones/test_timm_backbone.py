"""Models of timm as backbones: their features, the depth of every parameter, and one line in our two configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import build, config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import adpe.engine  # noqa: F401  registers
from adpe.errors import UserError
from adpe.models.layer_decay import layer_decay_groups
from adpe.transfer.backbones.timm_backbone import AdPETimmBackbone

TINY: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 4, "num_heads": 3},
    "vgg11": {},  # has no forward_intermediates
}


def backbone(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return MODELS.build({"type": "AdPETimmBackbone", "name": name, **TINY[name], **options}).eval()


@pytest.mark.parametrize(("name", "channels", "strides"), [
    ("convnext_atto", (8, 16, 24, 32), (4, 8, 16, 32)),
    ("swin_tiny_patch4_window7_224", (8, 16, 32, 64), (4, 8, 16, 32)),
    ("vit_tiny_patch16_224", (24, 24, 24, 24), (16, 16, 16, 16)),
])  # fmt: skip
def test_features_are_timm_s(name: str, channels: tuple, strides: tuple) -> None:
    """Against ``forward_intermediates`` of the whole model with the same weights; no parameter is without gradient."""
    ours = backbone(name)
    assert (ours.channels, ours.strides) == (channels, strides)
    sizes = {"vit": {"dynamic_img_size": True}, "swin": {"strict_img_size": False}}.get(name.split("_")[0], {})
    whole = timm.create_model(name, **TINY[name], **sizes).eval()
    state = {key.removeprefix("net.model."): value for key, value in ours.state_dict().items()}
    absent = whole.load_state_dict(state, strict=False)
    assert not absent.unexpected_keys
    assert {key.split(".")[0] for key in absent.missing_keys} <= {"head", "norm"}
    images = torch.randn(2, 3, 96, 64)
    expected = whole.forward_intermediates(images, indices=4, intermediates_only=True)
    found = ours(images)
    assert [tuple(y.shape) for y in found] == [(2, c, 96 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    sum(y.square().sum() for y in found).backward()
    assert [n for n, p in ours.named_parameters() if p.grad is None] == []


def test_model_without_forward_intermediates() -> None:
    ours = backbone("vgg11", out_indices=(1, 2))
    theirs = timm.create_model("vgg11", features_only=True, out_indices=(1, 2)).eval()
    theirs.load_state_dict({key.removeprefix("net."): value for key, value in ours.state_dict().items()})
    images = torch.randn(1, 3, 32, 48)
    for one, other in zip(ours(images), theirs(images), strict=True):
        assert torch.equal(one, other)
    # timm's groups of VGG: convolution by convolution, with what the module list numbers between them.
    assert ours.layer_depth("net.features_0.weight")[0] == 0
    depths = [ours.layer_depth(name)[0] for name, _ in ours.named_parameters()]
    assert depths == sorted(depths)


def test_padding_and_projection() -> None:
    """A plain transformer's images are filled up to whole patches; 1x1 convolutions bring maps to `out_channels`."""
    plain = backbone("vit_tiny_patch16_224", out_indices=(-1, 1))
    wide = backbone("vit_tiny_patch16_224", out_indices=(-1, 1), out_channels=10)
    wide.net.load_state_dict(plain.net.state_dict())
    images = torch.randn(1, 3, 40, 64)
    maps = plain(images)
    padded = torch.cat([images, torch.zeros(1, 3, 8, 64)], dim=2)
    assert [tuple(y.shape) for y in maps] == [(1, 24, 3, 4)] * 2
    for one, other, last, projection in zip(maps, plain(padded), wide(images), wide.projections, strict=True):
        assert torch.equal(one, other)
        expected = torch.einsum("oc,bchw->bohw", projection.weight[:, :, 0, 0], one) + projection.bias[:, None, None]
        torch.testing.assert_close(last, expected)
    assert wide.channels == (10, 10)


@pytest.mark.parametrize(("name", "depths", "expected"), [
    # stem, then five blocks; a stage's downsampling goes with its first block
    ("convnext_atto", 7, {"stem.0.weight": 0, "stages.0.blocks.0.gamma": 1, "stages.1.downsample.1.weight": 2,
                          "stages.1.blocks.0.conv_dw.weight": 2, "stages.1.blocks.1.mlp.fc1.bias": 3,
                          "stages.2.downsample.0.weight": 4, "stages.3.blocks.0.norm.bias": 5}),
    ("swin_tiny_patch4_window7_224", 7, {"patch_embed.proj.weight": 0, "layers.0.blocks.0.attn.qkv.weight": 1,
                                         "layers.1.downsample.reduction.weight": 2, "layers.1.blocks.0.mlp.fc1.bias": 2,
                                         "layers.1.blocks.1.attn.relative_position_bias_table": 3,
                                         "layers.3.blocks.0.norm1.weight": 5}),
    ("vit_tiny_patch16_224", 6, {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.bias": 0,
                                 "blocks.0.norm1.weight": 1, "blocks.3.mlp.fc2.weight": 4}),
])  # fmt: skip
def test_layer_decay(name: str, depths: int, expected: dict[str, int]) -> None:
    """Learning rate and weight decay of parameters by value; the projection has the full rate of the heads."""
    model = nn.Module()
    model.backbone = backbone(name, out_channels=10)
    model.decode_head = nn.Linear(10, 2)
    for parameter, depth in expected.items():
        assert model.backbone.layer_depth(f"net.model.{parameter}") == (depth, depths)
    with pytest.raises(KeyError):
        model.backbone.layer_depth("net.model.blocks.99.weight")
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = layer_decay_groups(model, lr=2.0, weight_decay=0.1, layer_decay_rate=0.5)
    rates = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(rates) == set(names.values())
    for parameter, depth in expected.items():
        thin = parameter.endswith(("bias", "gamma", "cls_token", "pos_embed", "bias_table")) or "norm" in parameter
        thin |= parameter == "stages.2.downsample.0.weight"  # a norm
        assert rates[f"backbone.net.model.{parameter}"] == (2.0 * 0.5 ** (depths - 1 - depth), 0.0 if thin else 0.1)
    assert rates["backbone.projections.0.weight"] == rates["decode_head.weight"] == (2.0, 0.1)
    assert len({lr for lr, _ in rates.values()}) == depths


def test_checkpoint(tmp_path: Path) -> None:
    """A file of the whole model is read, head and all; one of another model is refused in a sentence."""
    torch.manual_seed(1)
    whole = timm.create_model("convnext_atto", **TINY["convnext_atto"])
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "atto.pth")
    ours = backbone("convnext_atto", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "atto.pth")})
    ours.init_weights()
    state = whole.state_dict()
    for name, tensor in ours.net.state_dict().items():
        assert torch.equal(tensor, state[name.removeprefix("model.")]), name
    other = backbone("vit_tiny_patch16_224", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "atto.pth")})
    with pytest.raises(UserError, match=r"of vit_tiny_patch16_224 are missing .* not a checkpoint of this"):
        other.init_weights()


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"has no model 'convnext_tinny'. Did you mean: convnext_tiny"):
        MODELS.build({"type": "AdPETimmBackbone", "name": "convnext_tinny"})
    with pytest.raises(UserError, match=r"out_indices=\(7,\)"):
        backbone("convnext_atto", out_indices=(7,))
    with pytest.raises(UserError, match=r"convnext_atto .* unexpected keyword argument 'window'"):
        backbone("convnext_atto", window=7)


def swapped(path: str, model: dict[str, Any]) -> Any:
    """The config with the line of the docstring, at its full heads; the backbone alone is small here."""
    cfg = config(path, {"crop_size": (64, 64)} if "ade20k" in path else {"image_size": (64, 64)})
    name = model["backbone"]["name"]
    cfg.merge_from_dict({"model": model})
    cfg.model.backbone.update(TINY[name])
    if "ade20k" in path:
        for part in ("neck", "decode_head", "auxiliary_head"):
            if cfg.model[part]:
                cfg.model[part].norm_cfg.type = "BN"
    return cfg


@pytest.mark.parametrize(("path", "model"), [
    ("configs/ade20k_upernet_vitb.py", {"neck": None, "backbone": {"name": "convnext_atto"}}),
    ("configs/ade20k_upernet_vitb.py", {"backbone": {"name": "vit_tiny_patch16_224", "out_indices": (0, 1, 2, 3)}}),
    ("configs/coco_maskrcnn_vitb.py", {"backbone": {"name": "vit_tiny_patch16_224", "out_indices": (-1,)}}),
    ("configs/coco_maskrcnn_vitb.py", {
        "neck": {"_delete_": True, "type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 256, "num_outs": 5},
        "backbone": {"name": "swin_tiny_patch4_window7_224"},
    }),
])  # fmt: skip
def test_one_line_in_our_configs(path: str, model: dict[str, Any]) -> None:
    """The config builds, its optimizer decays by layer, and necks and heads take the maps."""
    fpn = "type" in (model.get("neck") or {})
    extra = {} if fpn else {"out_channels": 768}
    backbone_line = {"_delete_": True, "type": "AdPETimmBackbone", **extra, **model["backbone"]}
    cfg = swapped(path, {**model, "backbone": backbone_line})
    segmentor = build(cfg).eval()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(segmentor, cfg.optim_wrapper)
    rate = 0.65 if "ade20k" in path else 0.7
    depths = segmentor.backbone.layer_depth(next(segmentor.backbone.named_parameters())[0])[1]
    rates = sorted({group["lr"] for group in wrapper.optimizer.param_groups})
    assert rates == pytest.approx([cfg.lr * rate**depth for depth in reversed(range(depths))])
    with torch.no_grad():
        if "ade20k" in path:
            logits = segmentor.encode_decode(torch.randn(1, 3, 64, 64), [{"img_shape": (64, 64)}])
            assert logits.shape == (1, 150, 64, 64)
        else:
            levels = segmentor.extract_feat(torch.randn(1, 3, 64, 64))
            assert [tuple(level.shape) for level in levels] == [(1, 256, s, s) for s in (16, 8, 4, 2, 1)]


VIT = {"name": "vit_tiny_patch16_224", "depth": 1, "out_indices": (-1,)}


def loaded(content: dict, path, **options) -> AdPETimmBackbone:
    torch.save(content, path / "weights.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(path / "weights.pth")}
    backbone = AdPETimmBackbone(**{**VIT, **options}, init_cfg=init_cfg)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_weights_under_the_prefixes_of_others(prefix: str, tmp_path) -> None:
    theirs = timm.create_model(VIT["name"], depth=1).state_dict()
    backbone = loaded({"state_dict": {f"{prefix}{name}": value for name, value in theirs.items()}}, tmp_path)
    weight = next(value for name, value in backbone.state_dict().items() if name.endswith("blocks.0.attn.qkv.weight"))
    assert torch.equal(weight, theirs["blocks.0.attn.qkv.weight"])
    again = loaded({"state_dict": {f"backbone.{n}": v for n, v in backbone.state_dict().items()}}, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())


def test_weights_of_another_image_size_are_resized_as_timm_does(tmp_path) -> None:
    theirs = timm.create_model(VIT["name"], depth=1, img_size=288)
    torch.nn.init.normal_(theirs.pos_embed)
    backbone = loaded(theirs.state_dict(), tmp_path)
    table = next(value for name, value in backbone.state_dict().items() if name.endswith("pos_embed"))
    expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed, [14, 14], [18, 18])
    torch.testing.assert_close(table, expected)


def test_averaged_weights_are_taken_as_timm_takes_them(tmp_path) -> None:
    raw = timm.create_model(VIT["name"], depth=1).state_dict()
    backbone = loaded({"model": raw, "model_ema": {name: value + 1 for name, value in raw.items()}}, tmp_path)
    weight = next(value for name, value in backbone.state_dict().items() if name.endswith("blocks.0.attn.qkv.weight"))
    assert torch.equal(weight, raw["blocks.0.attn.qkv.weight"] + 1)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "not finite"), (float("inf"), "not finite")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, word: str, tmp_path) -> None:
    theirs = timm.create_model(VIT["name"], depth=1).state_dict()
    theirs["blocks.0.attn.qkv.weight"][0, 0] = value
    with pytest.raises(UserError, match=rf"blocks\.0\.attn\.qkv\.weight are {word}"):
        loaded(theirs, tmp_path)
