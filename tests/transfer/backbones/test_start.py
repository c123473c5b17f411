"""What a transfer takes from its checkpoint: every shipped config with ``pretrained=FILE`` and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from built_configs import config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import adpe
from adpe.checkpoints.names import from_our_names
from adpe.engine.config import read_config
from adpe.errors import UserError
from adpe.models.resampling import resample_pos_embed
from adpe.models.specification import specification_of
from adpe.transfer.backbones.timm_backbone import AdPETimmBackbone

# A narrow encoder of 12 blocks, as the configs of ViT-B have them.
NARROW = {"embed_dim": 16, "depth": 12, "num_heads": 2}
ADE20K, COCO = "configs/ade20k_upernet_vitb.py", "configs/coco_maskrcnn_vitb.py"
IMAGENET = "configs/imagenet/finetune_vitb.py"
TRANSFERS = [
    ADE20K, COCO, "configs/coco_cascade_maskrcnn_vitb_adpe.py", IMAGENET, "configs/imagenet/linear_vitb.py",
    "configs/imagenet/knn_vitb.py",
]  # fmt: skip


def narrow(name: str) -> dict[str, Any]:
    """Options that put the narrow encoder into a config."""
    where = "model" if "imagenet" in name else "model.backbone"
    return {f"{where}.{key}": value for key, value in NARROW.items()}


def pretrained(**options: Any) -> adpe.VisionTransformer:
    torch.manual_seed(0)
    model = adpe.VisionTransformer(**{"patch_size": 16, **NARROW, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def export(model: adpe.VisionTransformer, path: Path, **origin: Any) -> str:
    origin = {"pretrain_img_size": (112, 112), "method": "AdPE", "mean": (0.485, 0.456, 0.406), **origin}
    adpe.save_checkpoint(model.state_dict(), path, specification=specification_of(model, **origin))
    return str(path)


def start(name: str, file: str, **options: Any) -> Any:
    """The encoder of a config that starts from a file."""
    cfg = read_config(name, {"pretrained": file, **narrow(name), **options})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model if "imagenet" in name else cfg.model.backbone)
    model.init_weights()
    return getattr(model, "backbone", model).eval()


@pytest.mark.parametrize("name", TRANSFERS)
def test_nothing_but_the_file_is_said(name, tmp_path) -> None:
    position = "relative_interpolated"
    source = pretrained(position=position)
    file = export(source, tmp_path / "encoder.safetensors", method="AdPE RPE coordinate")
    cfg = read_config(name, {"pretrained": file, **narrow(name)})
    node = cfg.model if "imagenet" in name else cfg.model.backbone
    assert (node.position, node.pretrain_img_size, cfg.record.method) == (position, (112, 112), "AdPE RPE coordinate")
    encoder = start(name, file)
    assert (encoder.position, encoder.pretrain_img_size) == (position, (112, 112))
    frozen = "linear" in name or "knn" in name
    assert encoder.relative_query == ("scaled" if frozen else "unscaled")
    grid = encoder.grid_of(encoder.img_size)
    expected = resample_pos_embed(source.position_table((7, 7), torch.zeros(1)), (7, 7), grid)
    torch.testing.assert_close(encoder.position_table(grid, torch.zeros(1)), expected, rtol=0, atol=1e-6)
    assert (encoder.pos_embed is None) == frozen


@pytest.mark.parametrize("name", [ADE20K, COCO, IMAGENET])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"position": "relative"}, r"position = 'relative', but .* 'relative_interpolated'"),
        ({"WHERE.pretrain_img_size": 224}, r"pretrain_img_size = 224, but .*\(112, 112\)"),
        ({"WHERE.num_heads": 4}, "num_heads = 4, but .* 2"),
        ({"WHERE.norm_eps": 1e-5}, "norm_eps = 1e-05, but .* 1e-06"),
        ({"record.method": "MAE"}, r"record\.method = 'MAE', but .* 'AdPE'"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_its_file_is_refused(name, option, message, tmp_path) -> None:
    file = export(pretrained(position="relative_interpolated"), tmp_path / "encoder.safetensors")
    where = "model" if "imagenet" in name else "model.backbone"
    options = {key.replace("WHERE", where): value for key, value in option.items()}
    with pytest.raises(UserError, match=message) as caught:
        read_config(name, {"pretrained": file, **narrow(name), **options})
    assert file in str(caught.value)
    if "record.method" not in options:
        assert f"{where}: " in str(caught.value)


def test_images_are_normalised_as_in_pretraining(tmp_path) -> None:
    file = export(pretrained(), tmp_path / "encoder.safetensors", mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=r"model\.data_preprocessor\.mean = .*127\.5, 127\.5, 127\.5"):
        read_config(ADE20K, {"pretrained": file, **narrow(ADE20K)})
    with pytest.raises(UserError, match=r"dataset\.transform\.mean = .*0\.5, 0\.5, 0\.5"):
        read_config(IMAGENET, {"pretrained": file, **narrow(IMAGENET)})
    with pytest.raises(UserError, match=r"AdPESquash.*mean = .*0\.5, 0\.5, 0\.5"):
        read_config("configs/dense/ade20k_knn_vitb.py", {"pretrained": file, **narrow(IMAGENET)})
    read_config(ADE20K, {"pretrained": file, **narrow(ADE20K), "model.data_preprocessor.mean": [127.5] * 3})


def test_a_name_is_made_of_a_file_that_has_none(tmp_path) -> None:
    torch.save(pretrained().state_dict(), tmp_path / "mae_pretrain_vit_base.pth")
    cfg = config(ADE20K, {"pretrained": str(tmp_path / "mae_pretrain_vit_base.pth"), **narrow(ADE20K)})
    assert cfg.record.method == "mae_pretrain_vit_base"
    assert config(ADE20K).record.method == "random"


def test_mmsegs_mae_from_224_to_512_pixels(tmp_path) -> None:
    """mmseg's own backbone and the shipped config, both from MAE's file: maps of all four blocks, and the table."""
    backbones = pytest.importorskip("mmseg.models.backbones")
    table = {"encoder.pos_embed": pretrained().position_table((14, 14), torch.zeros(1))}
    state = {f"encoder.{name}": tensor for name, tensor in pretrained().state_dict().items()} | table
    torch.save({"model": from_our_names(state, "mae")[0]}, tmp_path / "mae.pth")
    ours = start(ADE20K, str(tmp_path / "mae.pth"))
    torch.save({"state_dict": from_our_names(state, "mmseg")[0]}, tmp_path / "mmseg.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "mmseg.pth")}
    theirs = backbones.MAE(
        img_size=(512, 512), patch_size=16, embed_dims=16, num_layers=12, num_heads=2, out_indices=(3, 5, 7, 11),
        norm_cfg={"type": "LN", "eps": 1e-6}, init_cfg=init_cfg,
    )  # fmt: skip
    theirs.init_weights()
    theirs.eval()
    assert torch.equal(ours.pos_embed, theirs.pos_embed)
    images = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def detectron2_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """What ViTDet adds (detectron2, get_abs_pos): the patches of the trained table, bicubic, ``(1, h, w, D)``."""
    side = round((table.shape[1] - 1) ** 0.5)
    image = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(image, size=grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)


def test_detectron2s_positions_from_224_to_1024_pixels(tmp_path) -> None:
    """The table that is added, and the gradient that reaches the trained 14 x 14 one."""
    table = pretrained().position_table((14, 14), torch.zeros(1)) + 0.1 * torch.randn(1, 197, 16)
    torch.save({"model": {**pretrained().state_dict(), "pos_embed": table}}, tmp_path / "mae.pth")
    encoder = start(COCO, str(tmp_path / "mae.pth"))
    assert torch.equal(encoder.pos_embed, table)
    weight = torch.randn(1, 64, 64, 16)
    (encoder.position_table((64, 64), weight)[:, 1:].unflatten(1, (64, 64)) * weight).sum().backward()
    theirs = nn.Parameter(table.clone())
    added = detectron2_positions(theirs, (64, 64))
    (added * weight).sum().backward()
    ours = encoder.position_table((64, 64), weight)[:, 1:].unflatten(1, (64, 64))
    torch.testing.assert_close(ours, added, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.pos_embed.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    assert encoder.layer_depth("pos_embed")[0] == 0
    assert "pos_embed" in encoder.no_weight_decay()


def test_beits_file_has_no_absolute_positions(tmp_path) -> None:
    """Taken as it is by a config that is silent, refused by one that adds a fixed table."""
    timm = pytest.importorskip("timm")
    beit = timm.create_model("beit_base_patch16_224", embed_dim=16, depth=12, num_heads=2, init_values=0.1).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in beit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(beit.state_dict(), tmp_path / "beit.pth")
    encoder = start(ADE20K, str(tmp_path / "beit.pth"), crop_size=(224, 224))
    assert (encoder.position, encoder.pos_embed) == ("none", None)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = beit.forward_intermediates(images, indices=[11], intermediates_only=True)[0]
        torch.testing.assert_close(encoder(images)[-1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    with pytest.raises(UserError, match=r"model\.backbone: position = 'absolute', but .* 'none'"):
        start(ADE20K, str(tmp_path / "beit.pth"), position="absolute")
    fixed = pretrained(use_rel_pos_bias=True, init_values=0.1)
    with pytest.raises(UserError, match=r"position = 'absolute', but .* 'none'"):
        adpe.load_checkpoint(fixed, tmp_path / "beit.pth", verbose=False)


def test_another_backbone_is_left_alone(tmp_path) -> None:
    file = export(pretrained(), tmp_path / "encoder.safetensors")
    backbone = {"_delete_": True, "type": AdPETimmBackbone.__name__, "name": "vit_tiny_patch16_224"}
    cfg = read_config(ADE20K, {"pretrained": file, **{f"model.backbone.{k}": v for k, v in backbone.items()}})
    assert "position" not in cfg.model.backbone
