"""The encoder against its peers with the same weights: timm's ViT, mmseg's MAE, ViTDet's windowed attention."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_vit import TINY, images, randomized
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

import adpe
from adpe.models import fused_attention
from adpe.models.pos_embed import sincos_table
from benchmarks.speed.reference_encoder import PlainViTDet, mmseg_mae, to_mmseg_name

LOSS, GRADIENTS = 1e-5, 1e-4


def encoder(seed: int = 0, **options) -> adpe.VisionTransformer:
    return randomized(adpe.VisionTransformer(**{**TINY, **options}), seed)


def check(ours: list[Tensor], theirs: list[Tensor], model: nn.Module, peer_gradients, loss: float = LOSS) -> None:
    """Values, and the gradients of a sum with fixed weights, over the largest magnitude of each tensor.

    Args:
        model: ours.
        peer_gradients: after the backward pass, our parameter's name to the peer's gradient; None if it has none.
    """
    assert len(ours) == len(theirs)
    for features in (ours, theirs):
        generator = torch.Generator().manual_seed(5)
        total = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in features)
        total.backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        error = (mine.double() - other.double()).abs().max() / other.abs().max()
        assert error <= loss, error
    compared = 0
    for name, parameter in model.named_parameters():
        other = peer_gradients(name)
        if other is None:
            continue
        assert parameter.grad is not None, name
        # A key's bias shifts all logits of a query alike: its gradient is zero but for rounding.
        mine, other = (without_key_bias(name, g.double()) for g in (parameter.grad, other))
        assert other.abs().max() > 1e-3, name
        error = (mine - other).abs().max() / other.abs().max()
        assert error <= 10 * loss, (name, error)
        compared += 1
    assert compared > 20


def without_key_bias(name: str, gradient: Tensor) -> Tensor:
    if not name.endswith("qkv.bias"):
        return gradient
    q, _, v = gradient.chunk(3)
    return torch.cat([q, v])


# timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"img_size": (24, 16)},
    {"img_size": (24, 16), "init_values": 0.1},
    {"img_size": (24, 16), "class_token": False},
    {"img_size": (24, 40), "pos_embed_resize": "timm", "pretrain_img_size": 16},
], ids=str)  # fmt: skip
def test_timm(options) -> None:
    model = encoder(**options)
    size, class_token = options["img_size"], options.get("class_token", True)
    old = (4, 4) if "pretrain_img_size" in options else (6, 4)
    table = sincos_table(*old, 32, torch.float32, torch.device("cpu"))
    if "pretrain_img_size" in options:
        table = resample_abs_pos_embed(table, [6, 10], [4, 4])
        assert (model.position_table((6, 10), table) - table).abs().max() < 1e-6
    twin = TimmViT(
        img_size=size, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_classes=0, global_pool="avg", fc_norm=False,
        class_token=class_token, init_values=options.get("init_values"), **TINY,
    )  # fmt: skip
    state = {**model.state_dict(), "pos_embed": table[:, 0 if class_token else 1 :]}
    twin.load_state_dict(state, strict=True)
    parameters = dict(twin.named_parameters())
    x = images(*size)
    ours, theirs = [model.forward_features(x)], [twin.forward_features(x)]
    check(ours, theirs, model, lambda name: parameters[name].grad)


# mmsegmentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("piece", [2**17, 40])
def test_mmseg_mae(bias, piece, monkeypatch) -> None:
    """Maps of all blocks with the relative bias on and off, LayerScale of 0.1 at the start, a learned table."""
    pytest.importorskip("mmseg")
    monkeypatch.setattr(fused_attention, "PIECE", piece)
    model = encoder(img_size=(24, 24), learned_pos_embed=True, use_rel_pos_bias=bias, init_values=0.1)
    peer = mmseg_mae(model)
    x = images(24, 24)
    ours = model.forward_intermediates(x, intermediates_only=True)
    parameters = dict(peer.named_parameters())
    skip = ("norm.",)  # mmseg's backbone has no final norm here

    def gradient(name: str) -> Tensor | None:
        return None if name.startswith(skip) else parameters[to_mmseg_name(name)].grad

    check(ours, list(peer(x)), model, gradient)
    if bias:
        table = model.blocks[1].attn.relative_position_bias_table
        assert table.shape == (11 * 11 + 3, 4)
        with torch.no_grad():
            table.zero_()
            without = model.forward_intermediates(x, intermediates_only=True)
        assert (without[1] - ours[1]).abs().max() > 1e-3  # the bias acts


# ViTDet ----------------------------------------------------------------------------------------------------------


VITDET = {
    "padded windows": {"img_size": (24, 40), "window_size": 4, "global_attn_indexes": (2,)},
    "whole windows": {"img_size": (32, 16), "window_size": 4, "global_attn_indexes": (0,)},
    "a window larger than the image": {"img_size": (12, 20), "window_size": 7},
    "global": {"img_size": (16, 24)},
}


@pytest.mark.parametrize("case", VITDET)
@pytest.mark.parametrize("piece", [2**17, 100])
def test_vitdet(case, piece, monkeypatch) -> None:
    """Float32 features and gradients against the transcription in float64, and ours in float64 against it."""
    monkeypatch.setattr(fused_attention, "PIECE", piece)
    options = {**VITDET[case], "use_rel_pos": True, "class_token": False}
    x = images(*options["img_size"])
    last = TINY["depth"] - 1
    for dtype, tolerance in ((torch.float32, LOSS), (torch.float64, 1e-12)):
        model = encoder(**options).to(dtype)
        plain = PlainViTDet(model).double()
        ours = model.forward_intermediates(x.to(dtype), indices=[last], intermediates_only=True)

        def gradient(name: str, plain=plain) -> Tensor | None:
            return None if name.startswith("norm.") else plain.weight(name).grad

        check(ours, [plain(x.double())], model, gradient, tolerance)


def test_vitdet_at_another_size() -> None:
    """Tables of 6 x 10 patches on 4 x 12: the global block resizes its tables, the windowed ones keep theirs."""
    options = {"window_size": 3, "global_attn_indexes": (1,), "use_rel_pos": True, "class_token": False}
    model = encoder(img_size=(24, 40), **options)
    peer = encoder(img_size=(16, 48), **options)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("blocks.1.attn.rel_pos")}
    peer.load_state_dict(state, strict=False)
    plain = PlainViTDet(peer)
    for kind in ("h", "w"):
        plain.weights[f"blocks/1/attn/rel_pos_{kind}"] = getattr(model.blocks[1].attn, f"rel_pos_{kind}").detach()
    x = images(16, 48)
    with torch.no_grad():
        ours = model.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
        theirs = plain.double()(x.double())
    assert (ours - theirs).abs().max() <= LOSS * theirs.abs().max()
