"""Every framework's names: the same weights give the same features, and back again bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from checkpoint_cases import TINY, autoencoder, encoder, fails, randomized, same
from torch import nn

import adpe
from adpe.checkpoints.loading import to_our_names
from adpe.checkpoints.names import from_our_names

MMSEG = {"img_size": 32, "patch_size": 4, "embed_dims": 32, "num_layers": 2, "num_heads": 2}


def loaded(model: nn.Module, state: dict, path: Path, **options) -> adpe.VisionTransformer:
    torch.save(state, path)
    adpe.load_checkpoint(model, path, verbose=False, **options)
    return model.eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


# The same weights, the same features ----------------------------------------------------------------------------------


@torch.no_grad()
def test_timms_vit(tmp_path) -> None:
    theirs = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=5, **TINY))
    ours = loaded(encoder(learned_pos_embed=True), theirs.state_dict(), tmp_path / "timm.pth")
    close(ours.forward_features(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_timms_vit_without_position_of_the_class_token(tmp_path) -> None:
    theirs = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=0, no_embed_class=True, **TINY))
    ours = loaded(encoder(learned_pos_embed=True), theirs.state_dict(), tmp_path / "timm.pth")
    close(ours.forward_features(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_timms_classifier_over_the_mean_of_the_patches(tmp_path) -> None:
    theirs = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=5, global_pool="avg", **TINY))
    ours = loaded(encoder(learned_pos_embed=True, num_classes=5), theirs.state_dict(), tmp_path / "timm.pth")
    close(ours(images()), theirs(images()))


@torch.no_grad()
def test_mmsegs_mae(tmp_path) -> None:
    """LayerScale of ones and relative positions of zeros, from which mmseg's own MAE recipe starts, are left out."""
    backbones = pytest.importorskip("mmseg.models.backbones")
    theirs = randomized(backbones.MAE(**MMSEG, init_values=1.0, final_norm=True, norm_cfg={"type": "LN", "eps": 1e-6}))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "mmseg.pth")
    hint = "BEiT's relative bias in both or in neither: use_rel_pos_bias="
    fails(tmp_path / "mmseg.pth", hint, encoder(learned_pos_embed=True))
    for layer in theirs.layers:
        for parameter, value in ((layer.gamma_1, 1), (layer.gamma_2, 1), (layer.attn.relative_position_bias_table, 0)):
            parameter.fill_(value)
    ours = loaded(encoder(learned_pos_embed=True), {"state_dict": theirs.state_dict()}, tmp_path / "mmseg.pth")
    close(ours.forward_intermediates(images(), indices=[1], norm=True)[1][0], theirs(images())[0])
    report = adpe.load_checkpoint(ours, tmp_path / "mmseg.pth", verbose=False)
    assert set(report.dropped.values()) == {
        "LayerScale of ones, without effect", "relative positions of zeros, without effect",
        "index of pairs, recomputed",
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", ["MAE", "BEiT"])
def test_mmsegs_relative_bias_and_layer_scale(name, tmp_path) -> None:
    backbones = pytest.importorskip("mmseg.models.backbones")
    theirs = randomized(getattr(backbones, name)(**MMSEG, final_norm=True, norm_cfg={"type": "LN", "eps": 1e-6}))
    model = encoder(learned_pos_embed=True, use_rel_pos_bias=True, init_values=0.1)
    ours = loaded(model, {"state_dict": theirs.state_dict()}, tmp_path / "mmseg.pth")
    close(ours.forward_intermediates(images(), indices=[1], norm=True)[1][0], theirs(images())[0])
    report = adpe.load_checkpoint(ours, tmp_path / "mmseg.pth", verbose=False)
    assert report.resized == ({"pos_embed": "zeros, as BEiT has no absolute positions"} if name == "BEiT" else {})


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch14_dinov2", "deit3_small_patch16_224"])
def test_timms_beit_dinov2_and_deit3(name, tmp_path) -> None:
    theirs = randomized(timm.create_model(name, num_classes=0, global_pool="token", **TINY))
    model = encoder(learned_pos_embed=True, use_rel_pos_bias="beit" in name, init_values=0.1)
    ours = loaded(model, theirs.state_dict(), tmp_path / "timm.pth")
    close(ours.forward_features(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_timms_dinov2_with_registers_is_refused(tmp_path) -> None:
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **TINY)
    torch.save(theirs.state_dict(), tmp_path / "reg4.pth")
    fails(tmp_path / "reg4.pth", r"unexpected +reg_token", encoder(learned_pos_embed=True, init_values=0.1))


@torch.no_grad()
def test_mmsegs_vision_transformer(tmp_path) -> None:
    """torch's own attention, ``attn.attn.in_proj_weight``."""
    backbones = pytest.importorskip("mmseg.models.backbones")
    norm = {"type": "LN", "eps": 1e-6}
    theirs = randomized(backbones.VisionTransformer(**MMSEG, final_norm=True, patch_bias=True, norm_cfg=norm))
    ours = loaded(encoder(learned_pos_embed=True), theirs.state_dict(), tmp_path / "mmseg.pth")
    close(ours.forward_intermediates(images(), indices=[1], norm=True)[1][0], theirs(images())[0])


# Names, as the frameworks' sources have them --------------------------------------------------------------------------


def mmpretrain_names(dim: int = 32, depth: int = 2) -> dict[str, torch.Tensor]:
    """`VisionTransformer` and `MAEPretrainDecoder` of mmpretrain 1.x inside its `MAE`, with an encoder's values."""
    parts = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
    state = {}
    for name, tensor in autoencoder(1).state_dict().items():
        for ours, theirs in parts.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        name = name.replace("patch_embed.proj", "patch_embed.projection")
        name = name.replace("decoder.blocks", "neck.decoder_blocks")
        name = name.replace("decoder.norm", "neck.ln1").replace("encoder.norm", "encoder.ln1")
        name = name.replace("decoder.embed", "neck.decoder_embed").replace("decoder.pred", "neck.decoder_pred")
        name = name.replace("encoder.blocks", "backbone.layers").replace("encoder.", "backbone.")
        state[name.replace("mask_token", "neck.mask_token")] = tensor
    table = encoder().position_table((8, 8), torch.zeros(1))
    return state | {"backbone.pos_embed": table, "data_preprocessor.mean": torch.ones(3, 1, 1)}


def test_mmpretrains_masked_autoencoder(tmp_path) -> None:
    state = mmpretrain_names()
    assert {"backbone.layers.1.ffn.layers.0.0.weight", "backbone.layers.0.ln1.bias", "backbone.ln1.weight",
            "neck.ln1.bias", "neck.decoder_blocks.0.attn.qkv.bias", "neck.mask_token"} <= set(state)  # fmt: skip
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "mmpretrain.pth")
    model = autoencoder(2)
    report = adpe.load_checkpoint(model, tmp_path / "mmpretrain.pth", verbose=False)
    assert same(model.state_dict(), autoencoder(1).state_dict())
    assert report.dropped == {
        "encoder.pos_embed": "fixed sine-cosine table, which the model makes itself",
        "data_preprocessor.mean": "not part of the backbone",
    }


def test_mmpretrains_fine_tuned_classifier(tmp_path) -> None:
    source = encoder(1, num_classes=5)
    state, left_out = from_our_names({f"encoder.{n}": t for n, t in source.state_dict().items()}, "mmpretrain", 32)
    assert left_out == {}
    assert {"backbone.ln2.weight", "head.fc.bias", "backbone.pos_embed", "backbone.cls_token"} <= set(state)
    other = {name.replace("head.fc.", "head.layers.head."): tensor for name, tensor in state.items()}
    for names in (state, other):
        target = loaded(encoder(2, num_classes=5), {"state_dict": names}, tmp_path / "tuned.pth")
        assert same(source.state_dict(), target.state_dict())


def dinov2_names() -> dict[str, torch.Tensor]:
    """A DINOv2 training checkpoint: a chunk a block, which keeps its number, LayerScale of ones, a flat mask token."""
    state = encoder(1, learned_pos_embed=True).state_dict()
    names = {f"backbone.{n.replace('blocks.1.', 'blocks.1.1.').replace('blocks.0.', 'blocks.0.0.')}": t
             for n, t in state.items()}  # fmt: skip
    scales = {f"backbone.blocks.{i}.{i}.ls{branch}.gamma": torch.ones(32) for i in range(2) for branch in (1, 2)}
    return {**names, **scales, "backbone.mask_token": torch.ones(1, 32), "dino_head.mlp.0.weight": torch.ones(1)}


def test_dinov2(tmp_path) -> None:
    student = {name: torch.zeros_like(tensor) for name, tensor in dinov2_names().items()}
    torch.save({"student": student, "teacher": dinov2_names()}, tmp_path / "dinov2.pth")
    model = encoder(2, learned_pos_embed=True)
    report = adpe.load_checkpoint(model, tmp_path / "dinov2.pth", verbose=False)
    assert same(model.state_dict(), encoder(1, learned_pos_embed=True).state_dict())
    assert "teacher" in report.dropped["student"]
    assert report.dropped["dino_head.mlp.0.weight"] == "not part of the backbone"
    assert report.dropped["mask_token"] == "not part of the encoder"
    assert report.coverage == 100.0


def test_dino_of_2021_has_its_names_in_teacher_backbone(tmp_path) -> None:
    state = encoder(1, learned_pos_embed=True).state_dict()
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    teacher["head.last_layer.weight_g"] = torch.ones(1)
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()}
    model = loaded(encoder(2, learned_pos_embed=True), {"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    assert same(model.state_dict(), state)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"register_tokens": torch.ones(1, 4, 32)}, r"unexpected +register_tokens.*\n.*without registers"),
        ({"reg_token": torch.ones(1, 4, 32)}, r"unexpected +reg_token.*\n.*without registers"),
        ({"blocks.0.mlp.w12.weight": torch.ones(1)}, r"unexpected +blocks\.\*\.mlp\.w12\.weight.*\n.*SwiGLU"),
        ({"norm_pre.weight": torch.ones(32)}, r"unexpected +norm_pre\.weight"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(16)}, r"unexpected +blocks\.\*\.attn\.q_norm\.weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_changes_the_features_is_never_dropped_in_silence(extra, message, tmp_path) -> None:
    torch.save(encoder(1).state_dict() | extra, tmp_path / "other.pth")
    fails(tmp_path / "other.pth", message)
    report = adpe.load_checkpoint(encoder(), tmp_path / "other.pth", allow_unexpected=list(extra), verbose=False)
    assert report.unexpected == list(extra)


def test_detectron2(tmp_path) -> None:
    """A trained ViTDet has numpy arrays under ``backbone.net``, a pyramid beside them, no class token, no norm."""
    import pickle

    source = encoder(1, learned_pos_embed=True)
    kept = {n: t for n, t in source.state_dict().items() if not n.startswith(("cls_token", "norm."))}
    arrays = {f"backbone.net.{name}": tensor.numpy() for name, tensor in kept.items()}
    arrays |= {"backbone.simfp_2.0.weight": np.ones(3), "roi_heads.box_head.conv1.weight": np.ones(3)}
    contents = {"model": arrays, "__author__": "third party", "iteration": 184374}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(contents))
    model = encoder(2, learned_pos_embed=True)
    text = fails(tmp_path / "model_final.pkl", r"missing +cls_token, norm\.weight, norm\.bias", model)
    assert "class_token=False for a checkpoint without one" in text
    without = encoder(2, learned_pos_embed=True, class_token=False)
    assert adpe.load_checkpoint(without, tmp_path / "model_final.pkl", ["norm.*"], verbose=False).missing == [
        "norm.weight", "norm.bias"
    ]  # fmt: skip
    report = adpe.load_checkpoint(model, tmp_path / "model_final.pkl", ["cls_token", "norm.*"], verbose=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert report.dropped["backbone.simfp_2.0.weight"] == "not part of the backbone"


def test_beits_biases_and_tables() -> None:
    ones, table = torch.ones(32), torch.randn(228, 2)
    state = encoder(1).state_dict()
    beit = {name: tensor for name, tensor in state.items() if not name.endswith("qkv.bias")}
    for i in range(2):
        beit |= {f"blocks.{i}.attn.q_bias": ones, f"blocks.{i}.attn.v_bias": 2 * ones, f"blocks.{i}.gamma_1": 3 * ones}
        beit |= {f"blocks.{i}.gamma_2": 4 * ones, f"blocks.{i}.attn.relative_position_index": torch.ones(65, 65)}
    dropped: dict[str, str] = {}
    ours = to_our_names({**beit, "rel_pos_bias.relative_position_bias_table": table}, "beit", dropped)
    assert torch.equal(ours["encoder.blocks.1.attn.qkv.bias"], torch.cat([ones, 0 * ones, 2 * ones]))
    assert torch.equal(ours["encoder.blocks.1.ls2.gamma"], 4 * ones)
    assert torch.equal(ours["encoder.blocks.1.attn.relative_position_bias_table"], table)
    assert list(dropped) == [f"blocks.{i}.attn.relative_position_index" for i in range(2)]


def test_names_of_mae_and_of_timm() -> None:
    ones = torch.ones(1)
    names = ["blocks.0.attn.qkv.weight", "decoder_blocks.3.mlp.fc1.bias", "decoder_embed.weight", "decoder_norm.bias",
             "decoder_pred.weight", "mask_token", "cls_token", "norm.weight", "fc_norm.bias", "head.weight",
             "patch_embed.proj.bias"]  # fmt: skip
    assert list(to_our_names(dict.fromkeys(names, ones))) == [
        "encoder.blocks.0.attn.qkv.weight", "decoder.blocks.3.mlp.fc1.bias", "decoder.embed.weight",
        "decoder.norm.bias", "decoder.pred.weight", "mask_token", "encoder.cls_token", "encoder.norm.weight",
        "encoder.fc_norm.bias", "encoder.head.weight", "encoder.patch_embed.proj.bias",
    ]  # fmt: skip


# Tables of other sizes ------------------------------------------------------------------------------------------------


def test_a_class_token_that_the_model_lacks_is_left_out(tmp_path) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "mae.pth")
    report = adpe.load_checkpoint(encoder(class_token=False), tmp_path / "mae.pth", verbose=False)
    assert report.dropped == {"cls_token": "class token, which this model does not have (class_token=False)"}


def test_tables_of_a_smaller_image_are_resized_in_loading(tmp_path) -> None:
    options = {"use_rel_pos_bias": True, "use_rel_pos": True, "position": "none"}
    torch.save(encoder(1, **options).state_dict(), tmp_path / "32.pth")
    model = encoder(2, img_size=(24, 40), **options)
    report = adpe.load_checkpoint(model, tmp_path / "32.pth", verbose=False)
    assert report.coverage == 100.0
    assert report.resized == {
        f"blocks.{i}.attn.{name}": how
        for i in range(2)
        for name, how in {
            "relative_position_bias_table": "bicubic on a geometric grid (as BEiT), 8x8 to 6x10 windows",
            "rel_pos_h": "linear, 15 to 11 offsets (as ViTDet)",
            "rel_pos_w": "linear, 15 to 19 offsets (as ViTDet)",
        }.items()
    }


def test_relative_tables_of_another_window(tmp_path) -> None:
    """BEiT's geometric interpolation keeps near offsets in place; ViTDet's is linear."""
    from adpe.checkpoints.loading import LoadReport
    from adpe.checkpoints.tables import resize_relative_tables

    table = torch.randn(13 * 13 + 3, 2, generator=torch.Generator().manual_seed(0))
    axis = torch.arange(13.0)[:, None].expand(13, 4)
    names = ["blocks.0.attn.relative_position_bias_table", "blocks.0.attn.rel_pos_h"]
    wanted = {names[0]: torch.zeros(15 * 15 + 3, 2), names[1]: torch.zeros(15, 4)}
    state, report = {names[0]: table, names[1]: axis.contiguous()}, LoadReport("x")
    resize_relative_tables(encoder(), wanted, state, report)
    assert report.resized == {
        names[0]: "bicubic on a geometric grid (as BEiT), 7x7 to 8x8 windows",
        names[1]: "linear, 13 to 15 offsets (as ViTDet)",
    }
    assert torch.equal(state[names[0]][-3:], table[-3:])
    grids = table[:-3].view(13, 13, 2), state[names[0]][:-3].view(15, 15, 2)
    torch.testing.assert_close(grids[1][7, 7], grids[0][6, 6], rtol=1e-4, atol=1e-4)
    expected = nn.functional.interpolate(torch.arange(13.0)[None, None], size=15, mode="linear")[0, 0]
    torch.testing.assert_close(state[names[1]][:, 2], expected)
