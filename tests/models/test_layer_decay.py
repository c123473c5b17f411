"""Layer-wise learning-rate decay: the learning rate and weight decay of every parameter, and what mmseg really does."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from adpe.errors import UserError
from adpe.models.layer_decay import layer_decay_groups
from adpe.models.vit import VisionTransformer


class ChannelNorm(nn.Module):
    """A norm that is none of torch's, as in detectron2's pyramids."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.bias = nn.Parameter(torch.zeros(8))


class Segmentor(nn.Module):
    """A backbone with heads around it, in mmseg's and mmdet's names."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), ChannelNorm(), nn.BatchNorm2d(8))
        self.decode_head = nn.Linear(8, 2)


class Toy(nn.Module):
    """Two layers that say how deep they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.body = nn.Linear(2, 2)
        self.token = nn.Parameter(torch.zeros(1, 2))

    def layer_depth(self, name: str) -> tuple[int, int]:
        return {"stem": 0, "token": 0, "body": 1}[name.split(".")[0]], 3

    def no_weight_decay(self) -> set[str]:
        return {"token"}


def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Name to (learning rate, weight decay) of every parameter; each must be in exactly one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[p], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_parameter_of_a_toy() -> None:
    model = Segmentor(Toy())
    rates = settings(model, layer_decay_groups(model, lr=8.0, weight_decay=0.3, layer_decay_rate=0.5))
    assert rates == {
        "backbone.stem.weight": (2.0, 0.3),
        "backbone.stem.bias": (2.0, 0.0),
        "backbone.token": (2.0, 0.0),
        "backbone.body.weight": (4.0, 0.3),
        "backbone.body.bias": (4.0, 0.0),
        "neck.0.weight": (8.0, 0.3),
        "neck.0.bias": (8.0, 0.0),
        "neck.1.weight": (8.0, 0.0),
        "neck.1.bias": (8.0, 0.0),
        "neck.2.weight": (8.0, 0.0),
        "neck.2.bias": (8.0, 0.0),
        "decode_head.weight": (8.0, 0.3),
        "decode_head.bias": (8.0, 0.0),
    }


@pytest.mark.parametrize("compat", ["clean", "mmseg", "detectron2"])
def test_every_parameter_of_vit_base(compat: str) -> None:
    """ViT-B, 14 depths: embedding 0, block i at i + 1, what follows at 13; weight decay as each framework has it."""
    with torch.device("meta"):
        backbone = VisionTransformer(position="relative", learned_pos_embed=True)
        model = Segmentor(backbone)
    groups = layer_decay_groups(model, lr=1e-4, weight_decay=0.1, layer_decay_rate=0.7, compat=compat)
    rates = settings(model, groups)
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert len(groups) <= 28
    for name, (lr, decay) in rates.items():
        block = re.match(r"backbone\.blocks\.(\d+)\.", name)
        shallow = re.match(r"backbone\.(patch_embed|cls_token|pos_embed)", name)
        depth = int(block[1]) + 1 if block else 0 if shallow else 13
        assert lr == pytest.approx(1e-4 * 0.7 ** (13 - depth), rel=1e-12), name
        token = name in ("backbone.cls_token", "backbone.pos_embed")
        torch_norm = re.search(r"\.norm\d?\.|neck\.2\.", name)
        thin = re.search(r"bias$|norm|neck\.[12]\.", name)
        spared = {"clean": token or thin, "mmseg": thin, "detectron2": token or torch_norm}[compat]
        assert decay == (0.0 if spared else 0.1), name
    # The differences by name: mmseg decays the tokens, detectron2 biases and norms that are not torch's.
    assert rates["backbone.cls_token"][1] == rates["backbone.pos_embed"][1] == (0.1 if compat == "mmseg" else 0.0)
    assert rates["backbone.blocks.3.mlp.fc1.bias"][1] == (0.1 if compat == "detectron2" else 0.0)
    assert rates["neck.1.weight"][1] == (0.1 if compat == "detectron2" else 0.0)
    assert rates["backbone.blocks.0.attn.rel_pos_table"] == (pytest.approx(1e-4 * 0.7**12), 0.1)


def test_merged_groups() -> None:
    with torch.device("meta"):
        model = Segmentor(VisionTransformer())
    groups = layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay_rate=0.65)
    assert len(groups) == 28
    assert len({(group["lr_scale"], group["weight_decay"]) for group in groups}) == 28
    assert [group["lr"] for group in groups] == sorted(group["lr"] for group in groups)
    assert groups[0]["lr_scale"] == pytest.approx(0.65**13)
    assert groups[-1]["lr_scale"] == 1.0


def test_rate_of_one_and_frozen_parameters() -> None:
    model = Segmentor(Toy())
    model.backbone.stem.requires_grad_(False)
    groups = layer_decay_groups(model, lr=3.0, weight_decay=0.0, layer_decay_rate=1.0)
    assert [group["lr"] for group in groups] == [3.0]
    assert "backbone.stem.weight" not in settings(model, groups)


def test_the_model_itself_may_describe_its_parameters() -> None:
    encoder = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3)
    rates = settings(encoder, layer_decay_groups(encoder, 1.0, 0.05, 0.5))
    assert rates["patch_embed.proj.weight"] == (0.125, 0.05)
    assert rates["blocks.1.attn.qkv.weight"] == (0.5, 0.05)
    assert rates["head.weight"] == (1.0, 0.05)
    assert rates["fc_norm.weight"] == (1.0, 0.0)


def test_unknown_parameters_are_errors() -> None:
    model = Segmentor(Toy())
    model.backbone.surprise = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"Toy\.layer_depth does not know its parameter 'surprise\.weight'"):
        layer_decay_groups(model, 1.0, 0.1, 0.5)
    with pytest.raises(UserError, match="Sequential does not say how deep its parameters lie"):
        layer_decay_groups(Segmentor(nn.Sequential(nn.Linear(1, 1))), 1.0, 0.1, 0.5)
    two = nn.ModuleDict({"student": Segmentor(Toy()), "teacher": Segmentor(nn.Sequential(nn.Linear(1, 1)))})
    with pytest.raises(UserError, match=r"'teacher\.backbone\.0\.weight' belongs to a backbone"):
        layer_decay_groups(two, 1.0, 0.1, 0.5)


@pytest.mark.parametrize("rate", [0.0, 1.5, -0.5])
def test_rates_out_of_range_are_errors(rate: float) -> None:
    with pytest.raises(UserError, match="layer_decay_rate must lie above 0 and be at most 1"):
        layer_decay_groups(Segmentor(Toy()), 1.0, 0.1, rate)


def test_unknown_compat_is_an_error() -> None:
    with pytest.raises(UserError, match="compat must be one of clean, mmseg, detectron2, all, got 'timm'"):
        layer_decay_groups(Segmentor(Toy()), 1.0, 0.1, 0.5, compat="timm")  # type: ignore[arg-type]


def test_constructor_builds_the_wrapper() -> None:
    pytest.importorskip("mmengine")
    from mmengine.optim import build_optim_wrapper

    import adpe.engine  # noqa: F401  registers the constructor

    model = Segmentor(Toy())
    cfg = {
        "type": "OptimWrapper",
        "constructor": "AdPELayerDecayOptimWrapperConstructor",
        "optimizer": {"type": "AdamW", "lr": 8.0, "betas": (0.9, 0.999), "weight_decay": 0.3},
        "paramwise_cfg": {"layer_decay_rate": 0.5},
        "accumulative_counts": 4,
    }
    wrapper = build_optim_wrapper(model, cfg)
    rates = settings(model, wrapper.optimizer.param_groups)
    assert rates["backbone.stem.weight"] == (2.0, 0.3)
    assert rates["decode_head.bias"] == (8.0, 0.0)
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.optimizer.defaults["betas"] == (0.9, 0.999)
    assert wrapper._accumulative_counts == 4
    for wrong, message in (({}, "lacks layer_decay_rate"), ({"layer_decay_rate": 0.5, "num_layers": 12}, "num_layers")):
        with pytest.raises(UserError, match=message):
            build_optim_wrapper(model, {**cfg, "paramwise_cfg": wrong})


def test_compat_mmseg_is_what_mmseg_does() -> None:
    """Against mmseg's own constructor on its own MAE backbone: learning rate and weight decay of every parameter."""
    pytest.importorskip("mmseg")
    import mmseg.engine  # noqa: F401  registers the constructor
    from mmengine.optim import build_optim_wrapper
    from mmseg.models.backbones import MAE

    theirs = nn.Module()
    theirs.backbone = MAE(img_size=16, patch_size=8, embed_dims=16, num_layers=3, num_heads=2, out_indices=[2])
    theirs.decode_head = nn.Linear(16, 2)
    cfg = {
        "type": "OptimWrapper",
        "constructor": "mmseg.LearningRateDecayOptimizerConstructor",
        "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05},
        "paramwise_cfg": {"num_layers": 3, "decay_rate": 0.65, "decay_type": "layer_wise"},
    }
    expected = settings(theirs, build_optim_wrapper(theirs, cfg).optimizer.param_groups)

    ours = nn.Module()
    ours.backbone = VisionTransformer(16, 8, embed_dim=16, depth=3, num_heads=2, learned_pos_embed=True)
    ours.backbone.norm = nn.Identity()
    ours.decode_head = nn.Linear(16, 2)
    found = settings(ours, layer_decay_groups(ours, 1.0, 0.05, 0.65, compat="mmseg"))
    for name, rates in found.items():
        translated = name
        for old, new in (
            ("blocks.", "layers."), ("norm1", "ln1"), ("norm2", "ln2"), ("mlp.fc1", "ffn.layers.0.0"),
            ("mlp.fc2", "ffn.layers.1"), ("patch_embed.proj", "patch_embed.projection"),
        ):  # fmt: skip
            translated = translated.replace(old, new)
        assert rates == (pytest.approx(expected[translated][0]), expected[translated][1]), name
    only_theirs = {name.split(".")[-1] for name in expected} - {name.split(".")[-1] for name in found}
    assert only_theirs == {"gamma_1", "gamma_2", "relative_position_bias_table"}
    assert expected["backbone.cls_token"] == (pytest.approx(0.65**4), 0.05)
