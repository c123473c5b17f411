from __future__ import annotations

import pytest
import timm
import torch

import adpe
from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.models.factory import PUBLISHED, create_encoder


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# By hand: patches 3 p^2 D + D, class token D, blocks (12 D^2 + 13 D) each, final norm 2 D.
ENCODERS = {
    "adpe_vit_tiny_patch16": 5_486_592,
    "adpe_vit_small_patch16": 21_590_016,
    "adpe_vit_base_patch16": 85_647_360,
    "adpe_vit_large_patch16": 303_099_904,
    "adpe_vit_huge_patch14": 630_435_840,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_published_sizes(name) -> None:
    with torch.device("meta"):
        assert count(create_encoder(name)) == ENCODERS[name]
        # A table (d, 50) in every block.
        relative = create_encoder(name, position="relative")
        assert count(relative) - ENCODERS[name] == 50 * relative.embed_dim // relative.num_heads * len(relative.blocks)


# By hand for the published decoder, 8 blocks of width 512 with 16 heads: embedding 512 D + 512, blocks
# 8 (12 * 512^2 + 13 * 512) = 25,219,072, norm 1024, prediction 513 * 3 p^2.
DECODERS = {
    "adpe_vit_base_patch16": 393_728 + 25_219_072 + 1_024 + 393_984,
    "adpe_vit_large_patch16": 524_800 + 25_219_072 + 1_024 + 393_984,
    "adpe_vit_huge_patch14": 655_872 + 25_219_072 + 1_024 + 301_644,
}


@pytest.mark.parametrize("name", DECODERS)
def test_published_autoencoders(name) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name)
        base = ENCODERS[name] + DECODERS[name]
        assert count(adpe.create_model(name)) == base + encoder.embed_dim
        assert count(adpe.create_model(name, mask_tokens="decoder")) == base + 512
        assert count(adpe.create_model(name, adversary="embedding")) == base + encoder.embed_dim
        assert count(adpe.create_model(name, adversary="coordinate")) == base + encoder.embed_dim + 2
        d, depth = encoder.embed_dim // encoder.num_heads, len(encoder.blocks)
        tables = 50 * d * depth + 50 * 32 * 8
        relative = base + encoder.embed_dim + tables
        assert count(adpe.create_model(name, position="relative")) == relative
        model = adpe.create_model(name, position="relative", adversary="embedding")
        assert count(model) == relative + d * depth + 32 * 8
        model = adpe.create_model(name, position="relative", adversary="coordinate")
        assert count(model) == relative + 2 * (depth + 8)
        assert model.encoder.position == "relative_interpolated"
        assert (model.mask_ratio, model.norm_pix_loss, len(model.decoder.blocks)) == (0.75, True, 8)
        assert model.decoder.blocks[0].attn.num_heads == 16


def test_options_override_the_size() -> None:
    model = adpe.create_model("adpe_vit_tiny_patch4", depth=2, img_size=(16, 24), mask_ratio=0.5, decoder_depth=1)
    assert (len(model.encoder.blocks), model.encoder.patch_size, model.encoder.img_size) == (2, 4, (16, 24))
    assert (model.mask_ratio, len(model.decoder.blocks)) == (0.5, 1)


@pytest.mark.parametrize("name", ["vit_base_patch16", "adpe_vit_giant_patch16", "adpe_vit_base", "adpe_vit_base_patch"])
def test_unknown_names_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"Unknown model '{name}': expected adpe_vit_{{tiny,small,base,large,huge}}"):
        adpe.create_model(name)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="mask_ration"):
        adpe.create_model("adpe_vit_tiny_patch16", mask_ration=0.5)


def test_timm_builds_our_encoders() -> None:
    adpe.register_with_timm()
    adpe.register_with_timm()
    assert set(PUBLISHED) <= set(timm.list_models("adpe_vit_*"))
    torch.manual_seed(0)
    model = timm.create_model("adpe_vit_base_patch16", num_classes=3, depth=1, img_size=32)
    assert isinstance(model, adpe.VisionTransformer)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 768)
    torch.manual_seed(0)
    same = create_encoder("adpe_vit_base_patch16", num_classes=3, depth=1, img_size=32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    with pytest.raises(ValueError, match="No weights are published for adpe_vit_base_patch16"):
        timm.create_model("adpe_vit_base_patch16", pretrained=True)


@torch.no_grad()
def test_timm_finds_normalisation_and_maps_of_our_names() -> None:
    adpe.register_with_timm()
    model = timm.create_model("adpe_vit_tiny_patch16", num_classes=0, depth=4).eval()
    config = timm.data.resolve_model_data_config(model)
    assert (config["mean"], config["std"]) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (config["input_size"], config["interpolation"], config["crop_pct"]) == ((3, 224, 224), "bicubic", 0.875)
    maps = timm.create_model("adpe_vit_tiny_patch16", features_only=True, depth=4, out_indices=(1, 2)).eval()
    assert len(maps.model.blocks) == 3
    assert (maps.feature_info.channels(), maps.feature_info.reduction()) == ([192, 192], [16, 16])
    maps.model.load_state_dict(
        {k: t for k, t in model.state_dict().items() if not k.startswith(("blocks.3.", "norm."))}
    )
    images = torch.randn(1, 3, 32, 48)
    expected = model.forward_intermediates(images, [1, 2], intermediates_only=True)
    assert all(torch.equal(one, two) for one, two in zip(maps(images), expected, strict=True))


def test_parameter_groups_by_name() -> None:
    """Decay: matrices, tables and tokens. None: biases and norms. The adversary ascends, without decay."""
    model = adpe.create_model(
        "adpe_vit_tiny_patch4", depth=1, img_size=16, position="relative", adversary="coordinate",
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    names = {id(p): name for name, p in model.named_parameters()}
    groups = model.parameter_groups(1e-3, 0.05, adversary_lr=3e-3)
    found = {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}
    layers = ["encoder.blocks.0", "decoder.blocks.0"]
    linear = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    others = ["encoder.patch_embed.proj", "decoder.embed", "decoder.pred"]
    assert found == {
        "decay": {
            "encoder.cls_token", "mask_token",
            *(f"{layer}.attn.rel_pos_table" for layer in layers),
            *(f"{layer}.{name}.weight" for layer in layers for name in linear),
            *(f"{name}.weight" for name in others),
        },
        "no_decay": {
            *(f"{layer}.{name}.bias" for layer in layers for name in linear),
            *(f"{name}.bias" for name in others),
            *(f"{layer}.norm{i}.{kind}" for layer in layers for i in (1, 2) for kind in ("weight", "bias")),
            *(f"{stage}.norm.{kind}" for stage in ("encoder", "decoder") for kind in ("weight", "bias")),
        },
        "adversary": {"adversary.encoder", "adversary.decoder"},
    }  # fmt: skip
    assert [(g["name"], g["lr"], g["weight_decay"], g.get("maximize", False)) for g in groups] == [
        ("decay", 1e-3, 0.05, False), ("no_decay", 1e-3, 0.0, False), ("adversary", 3e-3, 0.0, True),
    ]  # fmt: skip


def test_frozen_parameters_are_in_no_group() -> None:
    model = adpe.create_model("adpe_vit_tiny_patch4", depth=1, img_size=16, decoder_depth=1)
    model.encoder.requires_grad_(False)
    groups = model.parameter_groups(1e-3, 0.05, adversary_lr=1e-3)
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
