"""AdPEViT as mmseg's, mmdet's and mmpretrain's backbone: outputs, checkpoints, frozen stages, mixed precision."""

from __future__ import annotations

import pytest
import torch
from test_vit import images, randomized
from torch import nn

pytest.importorskip("mmengine")
from mmengine.registry import MODELS

import adpe
from adpe.checkpoints.loading import save_checkpoint
from adpe.errors import UserError
from adpe.transfer.backbones.vit_backbone import AdPEViT

TINY = {"model": "adpe_vit_tiny_patch4", "embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 16}
VITDET = {"class_token": False, "window_size": 2, "global_attn_indexes": (2,), "use_rel_pos": True}


def backbone(**options) -> AdPEViT:
    return randomized(MODELS.build({"type": "AdPEViT", **TINY, **options}))


@pytest.mark.parametrize("options", [
    {}, {"position": "relative"}, VITDET, {**VITDET, "position": "relative_interpolated"},
    {"use_rel_pos_bias": True, "init_values": 0.1},
], ids=str)  # fmt: skip
def test_maps_of_any_size(options) -> None:
    """Blocks in order, inputs padded to whole patches, not square; each map is the encoder's after that block."""
    model = backbone(out_indices=(0, -1), **options).eval()
    x = images(18, 30)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 2))
    maps = model(x)
    assert [tuple(y.shape) for y in maps] == [(2, 32, 5, 8)] * 2
    expected = model.forward_intermediates(padded, indices=[0, 2], intermediates_only=True)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (maps[0] - maps[1]).abs().max() > 0.1


def test_out_types_are_mmpretrains() -> None:
    kinds = ("raw", "featmap", "avg_featmap", "cls_token")
    models = {kind: backbone(out_type=kind, final_norm=True).eval() for kind in kinds}
    for model in models.values():
        model.load_state_dict(models["raw"].state_dict())
    x = images(16, 24)
    raw = models["raw"](x)[0]
    assert raw.shape == (2, 25, 32)
    torch.testing.assert_close(raw, models["raw"].forward_features(x))
    torch.testing.assert_close(models["featmap"](x)[0], raw[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6))
    torch.testing.assert_close(models["avg_featmap"](x)[0], raw[:, 1:].mean(1))
    torch.testing.assert_close(models["cls_token"](x)[0], raw[:, 0])
    assert models["raw"].get_layer_depth("backbone.blocks.1.attn.qkv.weight", "backbone.") == (2, 5)
    with pytest.raises(UserError, match=r"out_type must be one of .* got 'cls_token'"):
        backbone(out_type="cls_token", class_token=False)


@pytest.mark.parametrize(("options", "message"), [
    ({"window_size": 2}, "window_size=2 needs class_token=False"),
    ({"global_attn_indexes": (1,)}, r"global_attn_indexes=\[1\] with window_size=0"),
    ({**VITDET, "global_attn_indexes": (3,)}, r"global_attn_indexes=\[3\].*blocks 0\.\.2"),
    ({"pos_embed_resize": "resample"}, "bicubic, timm, dino, recompute or None; got 'resample'"),
    ({"learned_pos_embed": True, "position": "none"}, "learned_pos_embed must be .* got True with position='none'"),
    ({"norm_eps": 0.0}, "norm_eps must lie between 0 and 1, got 0.0"),
    ({"out_indices": (5,)}, r"out_indices \[5\] do not exist"),
    ({"out_type": "map"}, "out_type must be one of featmap"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, message) -> None:
    with pytest.raises(UserError, match=message):
        backbone(**options)


def test_a_plain_checkpoint_under_vitdets_attention(tmp_path) -> None:
    """MAE's weights: the class token is left out, new tables must be allowed to be missing, and stay at zero."""
    plain = randomized(adpe.VisionTransformer(16, 4, embed_dim=32, depth=3, num_heads=4), seed=3)
    path = tmp_path / "encoder.safetensors"
    save_checkpoint({f"encoder.{name}": tensor for name, tensor in plain.state_dict().items()}, path)
    init = {"type": "Pretrained", "checkpoint": str(path)}
    model = MODELS.build({"type": "AdPEViT", **TINY, **VITDET, "init_cfg": init})
    with pytest.raises(UserError, match="rel_pos_h"):
        model.init_weights()
    init["allow_missing"] = ["blocks.*.attn.rel_pos_[hw]"]
    model = MODELS.build({"type": "AdPEViT", **TINY, **VITDET, "init_cfg": init})
    model.init_weights()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            assert not parameter.any()
        else:
            assert torch.equal(parameter, plain.state_dict()[name]), name
    assert "cls_token" not in dict(model.named_parameters())


@pytest.mark.parametrize("options", [{}, VITDET], ids=["plain", "vitdet"])
def test_frozen_stages(options) -> None:
    model = backbone(frozen_stages=2, drop_path_rate=0.5, learned_pos_embed=True, **options).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    tokens = {"pos_embed"} if options else {"pos_embed", "cls_token"}
    stages = ("patch_embed", "blocks.0", "blocks.1")
    assert frozen == tokens | {name for name, _ in model.named_parameters() if name.startswith(stages)}
    assert [block.training for block in model.blocks] == [False, False, True]
    sum(y.sum() for y in model(images(16, 16))).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen


@pytest.mark.parametrize("options", [VITDET, {"use_rel_pos_bias": True}, {**VITDET, "position": "relative"}], ids=str)
def test_mixed_precision_and_checkpointing(options) -> None:
    """Bfloat16 autocast within 3% of float32; recomputed blocks give the same gradients."""
    model = backbone(**options)
    x = images(20, 28)
    exact = model(x)[0]
    exact.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)[0]
    rough.float().square().mean().backward()
    error = (rough.float() - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.03
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x)[0].square().mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-5, atol=1e-7)


def test_half_precision_weights() -> None:
    model = backbone(**VITDET, position="relative").eval()
    x = images(16, 16)
    with torch.no_grad():
        exact, rough = model(x)[0], model.bfloat16()(x.bfloat16())[0]
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_descriptions_tell_apart_what_computes_otherwise() -> None:
    kinds = [
        {}, {"position": "relative"}, {"position": "relative", "relative_query": "unscaled"}, VITDET,
        {**VITDET, "window_size": 3}, {**VITDET, "global_attn_indexes": (1,)}, {**VITDET, "position": "relative"},
        {"use_rel_pos_bias": True}, {"class_token": False}, {"learned_pos_embed": True},
        {"pos_embed_resize": "bicubic"}, {"pretrain_img_size": 32}, {"position": "none"},
        {"pos_embed_resize": "timm", "pretrain_img_size": 32}, {"learned_pos_embed": True, "pretrain_img_size": 32},
        {"learned_pos_embed": "pretraining", "pretrain_img_size": 32},
    ]  # fmt: skip
    assert len({backbone(**kind).describe_positions() for kind in kinds}) == len(kinds)
    assert backbone(**VITDET, position="relative").describe_positions() == (
        "sincos recompute, relative (scaled query), decomposed, windows of 2, offsets within windows, global 2, "
        "no class token"
    )


def test_mmdets_check_of_classes(tmp_path) -> None:
    """The hook of stock configs compares every module's `num_classes`; a backbone has none."""
    pytest.importorskip("mmdet")
    from mmdet.engine.hooks import NumClassCheckHook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader, Dataset

    class Data(Dataset):
        metainfo = {"classes": ("a", "b", "c")}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return images(16, 16, count=1)[0]

    class Model(BaseModel):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.backbone = AdPEViT(**TINY, out_type="avg_featmap")
            self.head = nn.Linear(32, num_classes)
            self.head.num_classes = num_classes

        def forward(self, inputs, mode="tensor"):
            return {"loss": self.head(self.backbone(inputs)[0]).square().mean()}

        def train_step(self, data, optim_wrapper):
            loss = self(data)["loss"]
            optim_wrapper.update_params(loss)
            return {"loss": loss}

    def train(num_classes: int) -> int:
        runner = Runner(
            Model(num_classes), str(tmp_path), DataLoader(Data(), batch_size=2),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
            custom_hooks=[NumClassCheckHook()], default_scope="mmengine", experiment_name=f"classes{num_classes}",
            default_hooks={"checkpoint": None}, log_level="ERROR",
        )  # fmt: skip
        runner.train()
        return runner.iter

    assert train(3) == 1
    with pytest.raises(AssertionError, match="num_classes"):
        train(4)
