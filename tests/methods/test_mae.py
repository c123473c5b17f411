from __future__ import annotations

from functools import partial

import pytest
import specification as spec
import torch
from test_vit import close, images, randomized
from timm.models.vision_transformer import Block

import adpe
from adpe.methods.targets.pixels import patchify, unpatchify

TINY = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}


def autoencoder(position: str = "absolute", size=16, **options) -> adpe.MAE:
    encoder = adpe.VisionTransformer(img_size=size, position=position, **TINY)
    return randomized(adpe.masked_autoencoder(encoder, **DECODER, **options))


def noise(count: int, length: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder"])
def test_against_timms_blocks(mask_tokens) -> None:
    """MAE and MAE+ put together from timm's blocks with the same weights: loss, prediction, mask, gradients."""
    model = autoencoder(mask_tokens=mask_tokens).double()
    x, u = images(16, 16, count=3).double(), noise(3, 16)

    def block(dim: int, heads: int, name: str) -> Block:
        layer = Block(dim, heads, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).double()
        layer.load_state_dict({n[len(name) :]: p for n, p in model.state_dict().items() if n.startswith(name)})
        return layer

    encoder = [block(32, 4, f"encoder.blocks.{i}.") for i in range(2)]
    decoder = [block(16, 2, f"decoder.blocks.{i}.") for i in range(2)]
    rows, columns = spec.coordinates((4, 4))
    keep = u.argsort(1)[:, :4].sort(1).values
    mask = torch.ones(3, 16).double().scatter(1, keep, 0.0)
    y = torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # (B, L, C * p * p)
    y = y @ model.encoder.patch_embed.proj.weight.flatten(1).T + model.encoder.patch_embed.proj.bias
    codes = spec.sincos(columns, rows, 32)
    if mask_tokens == "encoder":
        y = y * (1 - mask[..., None]) + model.mask_token * mask[..., None] + codes
    else:
        y = (y + codes).gather(1, keep[..., None].expand(-1, -1, 32))
    y = torch.cat([model.encoder.cls_token.expand(3, -1, -1), y], 1)
    for layer in encoder:
        y = layer(y)
    y = model.decoder.embed(model.encoder.norm(y))
    if mask_tokens == "decoder":
        patches = model.mask_token.expand(3, 16, -1).scatter(1, keep[..., None].expand(-1, -1, 16), y[:, 1:])
        y = torch.cat([y[:, :1], patches], 1)
    y = y + torch.cat([torch.zeros(1, 16).double(), spec.sincos(columns, rows, 16)])
    for layer in decoder:
        y = layer(y)
    prediction = model.decoder.pred(model.decoder.norm(y)[:, 1:])
    target = spec.patchify(x, 4)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = ((prediction - target).square().mean(-1) * mask).sum() / mask.sum()

    outside = {n: p for n, p in model.named_parameters() if ".blocks." not in n and p.requires_grad}
    inside = [p for layer in [*encoder, *decoder] for p in layer.parameters()]
    theirs = torch.autograd.grad(expected, [*outside.values(), *inside])
    loss = model(x, u)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    blocks = [p for part in (model.encoder, model.decoder) for p in part.blocks.parameters()]
    ours = torch.autograd.grad(loss, [*outside.values(), *blocks])
    for name, a, b in zip([*outside, *["blocks"] * len(blocks)], ours, theirs, strict=True):
        assert b.abs().max() > 0, name
        # The gradient of a key's bias is rounding noise: its scale is the whole model's.
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
    predicted, hidden = model.reconstruct(x, u)
    close(predicted, prediction, 1e-12)
    assert torch.equal(hidden.double(), mask)


VARIANTS = {
    "mae": ("absolute", {"mask_tokens": "decoder"}),
    "mae_plus": ("absolute", {}),
    "mae_plus_relative": ("relative", {}),
    "mae_plus_interpolated": ("relative_interpolated", {}),
    "embedding": ("absolute", {"adversary": "embedding"}),
    "coordinate": ("absolute", {"adversary": "coordinate"}),
    "relative_embedding": ("relative", {"adversary": "embedding"}),
    "interpolated_embedding": ("relative_interpolated", {"adversary": "embedding"}),
    "relative_reference": ("relative", {"adversary": "embedding", "adversary_variant": "reference"}),
    "relative_coordinate": ("relative_interpolated", {"adversary": "coordinate"}),
}


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_against_the_equations(variant, size) -> None:
    """Loss, prediction, mask and every gradient, of all methods, on square and rectangular grids, in float64."""
    position, options = VARIANTS[variant]
    model = autoencoder(position, size, **options).double()
    x, u = images(*size, count=2).double(), noise(2, size[0] * size[1] // 16)
    state = {name: p.detach().clone().requires_grad_() for name, p in model.state_dict().items()}
    renamed = {key.replace("adversary_", ""): value for key, value in options.items()}
    loss, prediction, mask = spec.autoencode(state, x, u, 4, 4, 2, position, **renamed)
    loss.backward()
    ours = model(x, u)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-7)
    ours.backward()
    predicted, hidden = model.reconstruct(x, u)
    close(predicted, prediction, 1e-6)
    assert torch.equal(hidden.bool(), mask)
    largest = max(p.grad.abs().max().item() for p in state.values() if p.grad is not None)
    for name, parameter in model.named_parameters():
        assert state[name].grad is not None, name
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-5, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.6, 6), (0.9, 1)])
def test_as_many_patches_stay_visible_as_the_ratio_says(ratio, visible) -> None:
    model = autoencoder(mask_ratio=ratio)
    u = torch.arange(16.0).flip(0).repeat(2, 1)  # the last patches have the smallest noise
    mask = model.reconstruct(images(16, 16), u)[1]
    assert torch.equal(mask, (torch.arange(16) < 16 - visible).float().repeat(2, 1))


def test_masks_are_random_per_image_and_follow_the_seed() -> None:
    model = autoencoder()
    x = images(16, 16, count=8)
    torch.manual_seed(3)
    first, second = model.reconstruct(x)[1], model.reconstruct(x)[1]
    torch.manual_seed(3)
    assert torch.equal(model.reconstruct(x)[1], first)
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) > 4
    assert torch.equal(first.sum(1), torch.full((8,), 12.0))


def test_the_loss_is_that_of_masked_patches() -> None:
    """Computed from what `reconstruct` shows; visible pixels count only as input."""
    model = autoencoder()
    x, u = images(16, 16), noise(2, 16)
    prediction, mask = model.reconstruct(x, u)
    expected = ((prediction - model.target(x)).square().mean(-1) * mask).sum() / mask.sum()
    assert model(x, u).item() == pytest.approx(expected.item(), rel=1e-5)


def test_masked_pixels_are_seen_by_nobody_but_the_target() -> None:
    for options in ({"mask_tokens": "decoder"}, {}, {"adversary": "coordinate"}):
        model = autoencoder(**options)
        x, u = images(16, 16), noise(2, 16)
        prediction, mask = model.reconstruct(x, u)
        hidden = unpatchify(mask[..., None].expand(-1, -1, 48), 4).bool()
        other = torch.where(hidden, torch.randn_like(x), x)
        assert torch.equal(model.reconstruct(other, u)[0], prediction)
        seen = torch.where(hidden, x, torch.randn_like(x))
        assert not torch.allclose(model.reconstruct(seen, u)[0], prediction)


def test_pixels_that_are_not_normalised() -> None:
    model = autoencoder(norm_pix_loss=False)
    x, u = images(16, 16), noise(2, 16)
    prediction, mask = model.reconstruct(x, u)
    expected = ((prediction - spec.patchify(x, 4)).square().mean(-1) * mask).sum() / mask.sum()
    assert model(x, u).item() == pytest.approx(expected.item(), rel=1e-5)


def test_patchify_and_back() -> None:
    x = images(12, 20)
    patches = patchify(x, 4)
    assert torch.equal(patches, spec.patchify(x, 4))
    assert torch.equal(unpatchify(patches, 4, (3, 5)), x)
    square = images(16, 16)
    assert torch.equal(unpatchify(patchify(square, 4), 4), square)


def test_features_are_the_encoders() -> None:
    model, x = autoencoder("relative").eval(), images(16, 16)
    assert torch.equal(model.forward_features(x), model.encoder.forward_features(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputed_blocks_have_the_same_gradients(variant) -> None:
    position, options = VARIANTS[variant]
    model = autoencoder(position, **options)
    gradients = []
    for enable in (False, True):
        model.encoder.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images(16, 16), noise(2, 16).float()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("position", "options", "message"),
    [
        ("absolute", {"mask_tokens": "both"}, "mask_tokens must be encoder or decoder, got 'both'"),
        ("absolute", {"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, got 1.0"),
        ("absolute", {"mask_tokens": "decoder", "adversary": "coordinate"}, "mask_tokens"),
        ("relative", {"mask_tokens": "decoder"}, "mae_plus"),
        ("absolute", {"adversary": "positions"}, "embedding, coordinate, random or None; got 'positions'"),
        ("relative", {"adversary": "coordinate"}, "position='relative_interpolated'"),
        ("absolute", {"adversary": "coordinate", "adversary_norm": "l2"}, "needs both, epsilon positive"),
        ("absolute", {"adversary": "coordinate", "adversary_norm": "l1", "adversary_epsilon": 1.0}, "got 'l1'"),
        ("relative", {"adversary": "embedding", "adversary_variant": "keys"}, "masked_keys, reference; got 'keys'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(position, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(position, **options)


def test_a_learned_table_and_an_adversary_are_refused() -> None:
    encoder = adpe.VisionTransformer(img_size=16, learned_pos_embed=True, **TINY)
    with pytest.raises(ValueError, match="learned_pos_embed=False"):
        adpe.masked_autoencoder(encoder, adversary="coordinate", **DECODER)
