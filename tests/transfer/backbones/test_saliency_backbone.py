"""Saliency-guided attention as a backbone: whole maps of any image, the encoder's checkpoints, choosers, both heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import config
from mmengine.registry import MODELS
from shrunk_configs import shrunk
from trainable import trainable

import adpe.engine  # noqa: F401
from adpe.checkpoints.loading import save_checkpoint
from adpe.errors import UserError
from adpe.models.backbones.saliency import CHOOSERS, keep_best
from adpe.models.specification import specification_of
from adpe.models.vit import VisionTransformer
from adpe.transfer.backbones.saliency_backbone import AdPESaliencyViT
from adpe.transfer.backbones.vit_backbone import AdPEViT

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
ALL = (0, 1, 2, 3)


def backbone(kind: str = "spectral_residual", seed: int = 0, **options: Any) -> AdPESaliencyViT:
    torch.manual_seed(seed)
    saliency = {"type": kind, **options.pop("saliency", {})}
    return AdPESaliencyViT(None if "init_cfg" in options else "adpe_vit_tiny_patch4",
                           **{**SMALL, "out_indices": ALL, "saliency": saliency, **options}).eval()  # fmt: skip


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    encoder = VisionTransformer(**SMALL)
    save_checkpoint(encoder.state_dict(), tmp_path / "encoder.safetensors", specification=specification_of(encoder))
    return tmp_path / "encoder.safetensors"


@pytest.mark.parametrize("kind", [*CHOOSERS, "attention"])
@pytest.mark.parametrize("size", [(33, 24), (20, 41)])
def test_maps_of_any_size_and_images_that_do_not_mix(kind: str, size: tuple[int, int], encoder_file: Path) -> None:
    model = backbone(kind, saliency={"encoder": str(encoder_file)} if kind == "attention" else {})
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        together, alone = model(images), [model(image[None]) for image in images]
    for level, x in enumerate(together):
        assert x.shape == (3, 16, -(-size[0] // 8), -(-size[1] // 8)) and x.is_contiguous()
        torch.testing.assert_close(x, torch.cat([one[level] for one in alone]), rtol=1e-4, atol=1e-5)


def test_dropped_patches_are_their_embeddings_until_the_residual() -> None:
    model = backbone("centre")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = [x.flatten(2) for x in model(images)]
        embedded = model.embed(images)[0][:, 1:].transpose(1, 2)
        kept = model.choose(images)
    assert kept.sort(dim=1).values.tolist() == [[5, 6, 9, 10]] * 2
    dropped = [i for i in range(16) if i not in kept[0].tolist()]
    for x in maps[:3]:
        assert torch.equal(x[..., dropped], embedded[..., dropped])
        assert not torch.isclose(x[..., kept[0]], embedded[..., kept[0]]).all()
    assert not torch.isclose(maps[3][..., dropped], embedded[..., dropped]).all(dim=1).any()


def test_choosers() -> None:
    """Each keeps a quarter, the same in another batch; random's are even over the patches, of no border or middle."""
    torch.manual_seed(0)
    images = torch.rand(200, 3, 48, 64)
    for kind, chooser in CHOOSERS.items():
        kept = keep_best(chooser(images, 8), 0.25)
        assert kept.shape == (200, 12) and all(len({*row}) == 12 for row in kept.tolist())
        assert torch.equal(kept[7:9], keep_best(chooser(images[7:9], 8), 0.25)), kind
    often = torch.bincount(keep_best(CHOOSERS["random"](images, 8), 0.25).flatten(), minlength=48)
    assert int(often.min()) > 20 and int(often.max()) < 80  # 50 of 200 expected, four standard deviations are 24


def test_order_of_out_indices_and_what_is_not_masked() -> None:
    """As AdPEViT gives them: in the order of blocks. Without the mask at test the maps are AdPEViT's."""
    torch.manual_seed(0)
    plain = AdPEViT("adpe_vit_tiny_patch4", **SMALL, out_indices=(3, 1)).eval()
    images = torch.randn(2, 3, 32, 32)
    for masked in (False, True):
        model = backbone(out_indices=(3, 1), saliency={"mask_at_test": masked})
        model.load_state_dict(plain.state_dict())
        same = [torch.equal(one, other) for one, other in zip(model(images), plain(images), strict=True)]
        assert same == [not masked] * 2
    whole = backbone()
    whole.load_state_dict(plain.state_dict())
    assert torch.equal(model(images)[0], whole(images)[1])
    drawn = backbone(saliency={"mask_probability": 0.4}).train()
    torch.manual_seed(0)
    assert 0.3 < sum(drawn.masked() for _ in range(500)) / 500 < 0.5


def test_gradient_reaches_dropped_patches_through_the_last_block_alone() -> None:
    model = backbone("centre", out_indices=(2, 3)).train()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    before, last = model(images)
    kept_only = before.flatten(2)[..., 5].square().sum()
    corner = torch.autograd.grad(kept_only, images, retain_graph=True)[0][..., :8, :8]
    assert not corner.any()
    assert torch.autograd.grad(last.flatten(2)[..., 5].square().sum(), images)[0][..., :8, :8].any()


def test_depths_and_checkpoints_are_the_encoders(encoder_file: Path, tmp_path: Path) -> None:
    init_cfg = {"type": "Pretrained", "checkpoint": str(encoder_file)}
    model = backbone("attention", init_cfg=init_cfg, final_norm=True, frozen_stages=1)
    model.init_weights()
    plain = AdPEViT(None, **SMALL, out_indices=ALL, init_cfg=init_cfg, final_norm=True)
    plain.init_weights()
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert torch.equal(model.chooser.encoder.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    for name, parameter in model.named_parameters():
        assert model.layer_depth(name) == plain.layer_depth(name)
        assert parameter.requires_grad != name.startswith(("patch_embed", "cls_token", "blocks.0."))
    from safetensors.torch import load_file

    state = load_file(encoder_file)
    del state["blocks.2.mlp.fc1.weight"]
    save_checkpoint(state, tmp_path / "part.safetensors", specification=specification_of(VisionTransformer(**SMALL)))
    model.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "part.safetensors")}
    with pytest.raises(UserError, match=r"98\.1% .*\n.*fc1\.weight: the checkpoint lacks"):
        model.init_weights()


@pytest.mark.parametrize(("options", "message"), [
    ({"saliency": {"type": "gaze"}}, "'gaze'"), ({"saliency": {"ratio": 0}}, "ratio=0"),
    ({"saliency": {"residual_before": 4}}, "residual_before=4"), ({"saliency": {"type": "attention"}}, "encoder=FILE"),
    ({"saliency": {"mask_probability": 2}}, "saliency"), ({"saliency": {"colour": 1}}, "colour"),
    ({"position": "relative"}, "absolute positions"), ({"class_token": False}, "class token"),
    ({"out_indices": (4,)}, "out_indices"),
])  # fmt: skip
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        backbone(**options)


def test_images_that_have_no_spectral_residual() -> None:
    """A single row of patches has no blur; the other choosers take it."""
    with pytest.raises(ValueError, match="1 x 4"):
        backbone()(torch.randn(1, 3, 8, 32))
    assert backbone("centre")(torch.randn(1, 3, 8, 32))[0].shape == (1, 16, 1, 4)
    flat = backbone().choose(torch.zeros(2, 3, 32, 32))
    assert flat.tolist() == [[0, 1, 2, 3]] * 2


def test_an_encoder_of_other_patches_does_not_choose(tmp_path: Path) -> None:
    encoder = VisionTransformer(**{**SMALL, "patch_size": 16})
    file = tmp_path / "other.safetensors"
    save_checkpoint(encoder.state_dict(), file, specification=specification_of(encoder))
    with pytest.raises(ValueError, match="patches of 16"):
        backbone("attention", saliency={"encoder": str(file)})(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["backbones/ade20k_upernet_saliency_vitb", "coco_maskrcnn_vitb"])
def test_heads_of_both_frameworks(name: str, tmp_path: Path) -> None:
    """At a small size: a loss whose gradient reaches every parameter, of maps that depend on the chosen patches."""
    cfg, data = shrunk(f"configs/{name}.py", tmp_path)
    if "coco" in name:
        saliency = {"type": "spectral_residual", "ratio": 0.5}
        sizes = {**SMALL, "img_size": 64, "patch_size": 16, "embed_dim": 32}
        cfg.model.backbone = {"type": "AdPESaliencyViT", "model": "adpe_vit_tiny_patch4", "saliency": saliency, **sizes}
    model, _ = trainable(cfg)
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode="loss"))
    loss.backward()
    for part, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), part
    assert not any(hasattr(module, "num_classes") for module in model.backbone.modules())


def test_config_builds() -> None:
    cfg = config("configs/backbones/ade20k_upernet_saliency_vitb.py")
    with torch.device("meta"):
        model = MODELS.build(cfg.model.backbone)
    assert model.describe_positions().endswith(
        "saliency spectral_residual 0.25, residual before block 11, masked at test"
    )
    controls = [config("configs/backbones/ade20k_upernet_saliency_vitb.py", {"model.backbone.saliency.type": kind})
                for kind in ("centre", "random")]  # fmt: skip
    assert [cfg.model.backbone.saliency.type for cfg in controls] == ["centre", "random"]
