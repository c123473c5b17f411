"""SP-ViT as a backbone: any image, batches that do not mix, the authors' names, both frameworks, published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from shrunk_configs import shrunk
from trainable import trainable

import adpe.engine  # noqa: F401
from adpe.errors import UserError
from adpe.models.backbones.spatial_prior import SpatialPrior, offsets
from adpe.models.backbones.spvit import SPViT
from adpe.transfer.backbones.spvit_backbone import AdPESPViT

SMALL: dict[str, Any] = {
    "variant": None, "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "prior_blocks": 2,
    "skip_lam": 2.0, "stem": 8,
}  # fmt: skip
ALL = (0, 1, 2, 3)


def backbone(**options: Any) -> AdPESPViT:
    """A small one whose prior is not at its start."""
    torch.manual_seed(0)
    model = AdPESPViT(**{**SMALL, "out_indices": ALL, **options})
    for name, parameter in model.named_parameters():
        if name.endswith("attn.w2"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def test_parameters_are_as_many_as_published() -> None:
    """With the dense head and 1,000 classes at 224 px, counted by building the reference."""
    published = {"small": 26_234_468, "medium": 55_952_992, "large_as_released": 150_205_520}
    with torch.device("meta"):
        counted = {
            name: sum(p.numel() for p in SPViT(name, num_classes=1000, dense_head=True).parameters())
            for name in published
        }
    assert counted == published


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("train_grid", [None, 4])
def test_prior_of_every_pair(grid: tuple[int, int], train_grid: int | None) -> None:
    """The multiplier of a pair is the small network at its offset, on odd and other grids than squares."""
    torch.manual_seed(0)
    prior = SpatialPrior(8, 2, train_grid)
    assert torch.equal(prior.multiplier(grid), torch.ones(2, grid[0] * grid[1], grid[0] * grid[1]))
    torch.nn.init.normal_(prior.w1.weight)
    torch.nn.init.normal_(prior.w2)
    delta = offsets(*grid).float()
    if train_grid:
        delta = delta * torch.tensor([train_grid / grid[1], train_grid / grid[0]])
    hidden = (delta @ prior.w1.weight.T + prior.w1.bias).relu().unflatten(-1, (2, 4))
    expected = (hidden * prior.w2.view(2, 4)).sum(-1).permute(2, 0, 1) + prior.b2[:, None, None]
    torch.testing.assert_close(prior.multiplier(grid), expected)


@pytest.mark.parametrize("size", [(33, 24), (20, 41), (1, 1), (32, 32)])
def test_maps_of_any_size_and_images_that_do_not_mix(size: tuple[int, int]) -> None:
    model = backbone(final_norm=True)
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        together, alone = model(images), [model(image[None]) for image in images]
    assert model.channels == (16,) * 4 and model.strides == (8,) * 4
    for level, x in enumerate(together):
        assert x.shape == (3, 16, -(-size[0] // 8), -(-size[1] // 8)) and x.is_contiguous()
        torch.testing.assert_close(x, torch.cat([one[level] for one in alone]), rtol=1e-4, atol=1e-5)
    padded = torch.nn.functional.pad(images, (0, -size[1] % 8, 0, -size[0] % 8))
    tokens = model.net.forward_features(padded)[:, 1:]
    torch.testing.assert_close(together[3].flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5)


def test_maps_are_given_as_asked_and_the_rest_is_not_trained() -> None:
    """In the order of out_indices; blocks behind the last are neither run nor trained, nor is an absent class token."""
    whole, part = backbone(), backbone(out_indices=(1, 0))
    images = torch.randn(2, 3, 32, 32)
    for one, other in zip(part(images), (whole(images)[1], whole(images)[0]), strict=True):
        assert torch.equal(one, other)
    part.train()(images)[0].square().sum().backward()
    for name, parameter in part.named_parameters():
        trained = not name.startswith(("net.blocks.2", "net.blocks.3", "net.cls_token"))
        assert parameter.requires_grad == trained == (parameter.grad is not None), name


def test_depths_and_frozen_stages() -> None:
    model = backbone(final_norm=True, frozen_stages=1)
    depths = {name: model.layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert {depths[f"net.{name}"] for name in ("patch_embed.conv1.weight", "pos_embed", "cls_token")} == {0}
    assert [depths[f"net.blocks.{i}.norm1.weight"] for i in ALL] == [1, 2, 3, 4]
    assert depths["net.norm.weight"] == model.layer_depth("net.norm.weight")[1] - 1 == 5
    with pytest.raises(KeyError):
        model.layer_depth("net.head.weight")
    named = dict(model.named_parameters())
    spared = model.no_weight_decay()
    assert spared <= set(named) and {"net.blocks.0.attn.w2", "net.pos_embed"} <= spared
    frozen = ("net.patch_embed.", "net.blocks.0.", "net.pos_embed", "net.cls_token")
    assert all(p.requires_grad != name.startswith(frozen) for name, p in named.items())
    before = model.net.patch_embed.bn1.running_mean.clone()
    model.train()(torch.randn(2, 3, 32, 32))
    assert torch.equal(model.net.patch_embed.bn1.running_mean, before) and model.net.blocks[1].training
    free, kept = backbone().train(), backbone(norm_eval=True).train()
    for one, moved in ((free, True), (kept, False)):
        before = one.net.patch_embed.bn1.running_mean.clone()
        one(torch.randn(2, 3, 32, 32))
        assert torch.equal(one.net.patch_embed.bn1.running_mean, before) != moved


def test_recomputed_blocks_give_the_same_gradient() -> None:
    images = torch.randn(2, 3, 32, 24)
    gradients = []
    for recompute in (False, True):
        model = backbone(grad_checkpointing=recompute).train()
        sum(x.square().sum() for x in model(images)).backward()
        gradients.append(model.net.blocks[0].attn.w2.grad)
    assert gradients[0].any() and torch.equal(*gradients)


def test_a_classifiers_checkpoint(tmp_path: Path) -> None:
    """By the authors' names, heads and all; one that does not cover the backbone is an error that names what lacks."""
    torch.manual_seed(0)
    options = {name: value for name, value in SMALL.items() if name != "variant"}
    source = SPViT(None, num_classes=5, dense_head=True, **options)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "spvit.pth")

    def started(file: str = "spvit.pth", **options: Any) -> AdPESPViT:
        model = backbone(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / file)}, **options)
        model.init_weights()
        return model

    images = torch.randn(2, 3, 32, 32)
    model = started(final_norm=True)
    expected = source.eval().forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model(images)[-1], expected, rtol=1e-4, atol=1e-5)
    torch.save({"state_dict": {f"backbone.{name}": t for name, t in model.state_dict().items()}}, tmp_path / "run.pth")
    torch.testing.assert_close(started("run.pth", final_norm=True)(images)[0], model(images)[0])
    for without in ("module.blocks.1.attn.w2", "module.patch_embed.bn2.running_var"):
        torch.save({"state_dict": {k: v for k, v in state.items() if k != without}}, tmp_path / "part.pth")
        with pytest.raises(UserError, match=rf"part\.pth: .* 1 are missing.*{without.removeprefix('module.')}"):
            started("part.pth")
    with pytest.raises(UserError, match=r"unknown.*prior_blocks"):
        started(prior_blocks=1)
    with pytest.raises(UserError, match=r"16 patches.* Set img_size=32"):
        started(img_size=64)
    state["module.norm.weight"][0] = torch.nan
    torch.save({"state_dict": state}, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"norm\.weight.*not finite"):
        started("nan.pth", final_norm=True)


def test_the_log_says_what_was_loaded(tmp_path: Path) -> None:
    model = backbone()
    torch.save({"state_dict": model.net.state_dict()}, tmp_path / "spvit.pth")
    model.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "spvit.pth")}
    logger = MMLogger.get_instance("spvit", log_file=str(tmp_path / "log.txt"))
    model.init_weights()
    model.init_cfg = None
    model.init_weights()
    for handler in logger.handlers:
        handler.flush()
    text = (tmp_path / "log.txt").read_text()
    assert "coverage    100.0%" in text and "starts at random" in text


@pytest.mark.parametrize(("options", "message"), [
    ({"out_indices": (4,)}, r"out_indices=\(4,\)"), ({"out_indices": ()}, "out_indices"),
    ({"variant": "huge"}, "variant='huge'"), ({"num_heads": 3}, "3 heads"), ({"frozen_stages": 5}, "frozen_stages"),
    ({"prior_blocks": 4}, "prior_blocks=4"), ({"offset_scale": "log"}, "offset_scale"), ({"num_classes": 3}, "num_cl"),
    ({"window_size": 14}, "window_size=14"), ({"colour": 1}, "colour"),
])  # fmt: skip
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        backbone(**options)


@pytest.mark.parametrize("name", ["ade20k_upernet_spvit_s", "coco_maskrcnn_spvit_s"])
def test_heads_of_both_frameworks(name: str, tmp_path: Path) -> None:
    """The configs at a small size: a loss whose gradient reaches all that is trained; the backbone has no classes."""
    cfg, data = shrunk(f"configs/backbones/{name}.py", tmp_path)
    model, _ = trainable(cfg)
    assert not any(hasattr(module, "num_classes") for module in model.backbone.modules())
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode="loss"))
    loss.backward()
    for part, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), part
    assert model.backbone.net.blocks[0].attn.w2.grad.any() and model.backbone.net.patch_embed.conv1.weight.grad.any()


@pytest.mark.parametrize("name", ["ade20k_upernet_spvit_s", "coco_maskrcnn_spvit_s"])
def test_configs_build(name: str) -> None:
    cfg = config(f"configs/backbones/{name}.py", {"pretrained": "spvit.pth"})
    assert cfg.model.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "spvit.pth"}
    with torch.device("meta"):
        model = MODELS.build({**cfg.model.backbone, "init_cfg": None})
    width = cfg.model.neck.embed_dim if "ade" in name else cfg.model.neck.in_channels
    assert {width} == {*model.channels} and {*model.strides} == {16}
    assert model.describe_positions() == "learned timm, spatial prior in 14 blocks, raw offsets"
