"""The specification that a file carries: built from, held against configs and tensors, refused where it is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_cases import TINY, autoencoder, encoder, reference, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adpe
from adpe.checkpoints.loading import describe_encoder
from adpe.errors import UserError
from adpe.models.pos_embed import sincos_table
from adpe.models.resampling import resample_pos_embed
from adpe.models.specification import KEY, LONGEST, VERSION, ModelSpecification, read_json, specification_of

KINDS = [
    {},
    {"position": "relative"},
    {"position": "relative_interpolated", "relative_query": "unscaled"},
    {"position": "none", "use_rel_pos_bias": True},
    {"learned_pos_embed": True, "img_size": (16, 32)},
    {"norm_eps": 1e-5, "mlp_ratio": 2.0, "in_chans": 1},
    {"class_token": False, "window_size": 2, "global_attn_indexes": (1,), "use_rel_pos": True, "init_values": 0.5},
    {"pretrain_img_size": 16},
]


def export(model: adpe.VisionTransformer, path: Path, **origin) -> ModelSpecification:
    said = specification_of(model, **origin)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(state, path, specification=said)
    return said


def rewrite(path: Path, text: str) -> None:
    """The same tensors under another specification."""
    save_file(load_file(path), path, metadata={KEY: text})


def changed(path: Path, **values) -> None:
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()[KEY])
    rewrite(path, json.dumps({**said, **values}))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_an_encoder_is_built_from_its_file(options, tmp_path) -> None:
    """The same function on images of the size of pretraining, and on larger ones, with nothing given."""
    model = encoder(1, **options).eval()
    path = tmp_path / "encoder.safetensors"
    said = export(model, path, method="AdPE", seed=3, mean=(0.5,) * model.patch_embed.proj.in_channels)
    assert describe_encoder(path).specification == said
    built = adpe.load_encoder(path, verbose=False).eval()
    assert same(built.state_dict(), model.state_dict())
    size = said.pretrain_img_size
    for pixels in (size, (size[0] + 8, size[1] + 16)):
        images = torch.randn(2, said.in_chans, *pixels)
        if model.pretrain_img_size is None and model.pos_embed is None:
            model.pretrain_img_size = size  # what the file says, where the encoder that wrote it was not told
        torch.testing.assert_close(built.forward_features(images), model.forward_features(images), rtol=0, atol=0)
    assert specification_of(built) == replace(said, method=None, seed=None, mean=None)


@pytest.mark.parametrize(
    ("options", "given", "key", "values"),
    [
        (
            {"position": "relative_interpolated"},
            {"position": "relative"},
            "position",
            ("relative", "relative_interpolated"),
        ),
        (
            {"position": "relative"},
            {"position": "relative_interpolated"},
            "position",
            ("relative_interpolated", "relative"),
        ),
        ({}, {"position": "relative"}, "position", ("relative", "absolute")),
        ({"position": "none", "use_rel_pos_bias": True}, {"position": "absolute"}, "position", ("absolute", "none")),
        ({"pretrain_img_size": 16}, {"pretrain_img_size": 32}, "pretrain_img_size", ("32", "16")),
        ({"norm_eps": 1e-5}, {"norm_eps": 1e-6}, "norm_eps", ("1e-06", "1e-05")),
        ({}, {"num_heads": 4}, "num_heads", ("4", "2")),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_by_name(options, given, key, values, tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    export(encoder(1, **options), path)
    with pytest.raises(UserError, match=rf"load_encoder: {key} = ") as caught:
        adpe.load_encoder(path, verbose=False, **given)
    assert str(path) in str(caught.value)
    model = encoder(2, **{**options, **given})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"VisionTransformer: {key} = .*{values[0]}.*{values[1]}"):
        adpe.load_checkpoint(model, path, verbose=False)
    assert same(before, model.state_dict())


def test_the_form_of_relative_tables_is_in_every_state(tmp_path) -> None:
    """Without a specification too: by the state of the encoder, and by torch's own loading."""
    forms = ("relative", "relative_interpolated")
    for form, other in (forms, forms[::-1]):
        torch.save(encoder(1, position=form).state_dict(), tmp_path / "encoder.pth")
        assert adpe.load_encoder(tmp_path / "encoder.pth", verbose=False, num_heads=2).position == form
        with pytest.raises(UserError, match=f"position = '{other}'.*'{form}'"):
            adpe.load_checkpoint(encoder(2, position=other), tmp_path / "encoder.pth", verbose=False)
        with pytest.raises(RuntimeError, match="rel_pos_interpolated"):
            encoder(2, position=other).load_state_dict(encoder(1, position=form).state_dict())


def test_older_files_still_load_and_the_report_says_what_is_inferred(tmp_path) -> None:
    state = {name: t for name, t in encoder(1, position="relative").state_dict().items() if "interpolated" not in name}
    torch.save(state, tmp_path / "old.pth")
    for position in ("relative", "relative_interpolated"):
        model = encoder(2, position=position)
        report = adpe.load_checkpoint(model, tmp_path / "old.pth", verbose=False)
        assert report.coverage == 100.0
        assert report.inferred["position"].startswith(f"{position} (")
        assert report.inferred["pretrain_img_size"].startswith("not known")
        model.load_state_dict(state)
    with pytest.raises(UserError, match=r"set load_encoder\.position to relative"):
        adpe.load_encoder(tmp_path / "old.pth", verbose=False)
    built = adpe.load_encoder(tmp_path / "old.pth", verbose=False, position="relative")
    assert (built.num_heads, built.pretrain_img_size) == (2, None)


def test_the_references_files_are_known_for_what_they_are(tmp_path) -> None:
    """Its fixed table gives the grid, its shifts the interpolated form; a trained table without shifts says nothing."""
    expected = {"ape_coordinate": "absolute", "rpe_none": "relative", "rpe_embedding": "relative",
                "rpe_coordinate": "relative_interpolated"}  # fmt: skip
    for case, position in expected.items():
        torch.save({"model": reference(f"pretrain_{case}")}, tmp_path / "reference.pth")
        built = adpe.load_encoder(tmp_path / "reference.pth", verbose=False, num_heads=2)
        assert (built.position, built.pretrain_img_size, built.pos_embed) == (position, (32, 32), None)
    torch.save({"model": reference("encoder_rpe_interpolated_32")}, tmp_path / "reference.pth")
    with pytest.raises(UserError, match="position to relative"):
        adpe.load_encoder(tmp_path / "reference.pth", verbose=False)


def test_a_trained_table_starts_from_the_recorded_grid(tmp_path) -> None:
    """A file without a table: sine-cosine of its grid, resized once, or at its own grid to be resized in every pass."""
    path = tmp_path / "encoder.safetensors"
    export(encoder(1), path, pretrain_img_size=(16, 16))
    table = sincos_table(4, 4, 32, torch.float32, torch.device("cpu"))
    once = adpe.load_encoder(path, verbose=False, img_size=32, learned_pos_embed=True)
    assert torch.equal(once.pos_embed, resample_pos_embed(table, (4, 4), (8, 8)))
    in_every_pass = adpe.load_encoder(path, verbose=False, img_size=32, learned_pos_embed="pretraining")
    assert torch.equal(in_every_pass.pos_embed, table)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(in_every_pass(images), once(images))
    assert once.pos_embed.requires_grad and in_every_pass.pos_embed.requires_grad
    anew = adpe.load_encoder(path, verbose=False, img_size=32, learned_pos_embed=True, pos_embed_resize="recompute")
    assert torch.equal(anew.pos_embed, sincos_table(8, 8, 32, torch.float32, torch.device("cpu")))
    fixed = adpe.load_encoder(path, verbose=False, img_size=32)
    assert fixed.pos_embed is None
    assert torch.equal(fixed.position_table((8, 8), images), once.pos_embed)


WRONG = {
    "not JSON": ("{", "not readable JSON"),
    "nested": ("[" * 20000 + "]" * 20000, "not readable JSON"),
    "huge": (" " * (LONGEST + 1), f"expected JSON of at most {LONGEST} characters"),
    "a list": ("[1]", "expected an object"),
    "no version": ("{}", r"\.version is None"),
    "newer": (json.dumps({"version": VERSION + 1}), rf"\.version is {VERSION + 1}"),
    "too little": (json.dumps({"version": VERSION}), "lacks 'class_token'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_hostile_and_newer_specifications_are_refused(name, tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    export(encoder(1), path)
    text, message = WRONG[name]
    rewrite(path, text)
    for read in (lambda: adpe.load_encoder(path), lambda: adpe.load_checkpoint(encoder(), path)):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 3), ("depth", 10**9), ("depth", "2"), ("depth", True), ("embed_dim", 64), ("patch_size", 8),
        ("in_chans", 1), ("num_heads", 3), ("num_heads", 0), ("mlp_ratio", 3.0), ("mlp_ratio", float("nan")),
        ("position", "relative"), ("position", "rope"), ("position", None), ("relative_query", "twice"),
        ("class_token", False), ("class_token", 1), ("layer_scale", True), ("use_rel_pos", True),
        ("use_rel_pos_bias", True), ("learned_pos_embed", True), ("pretrain_img_size", [30, 32]),
        ("pretrain_img_size", 32), ("pretrain_img_size", [32, 32, 32]), ("window_size", 2), ("norm_eps", 0),
        ("global_attn_indexes", [5]), ("mean", [0.5]), ("std", [0.5, 0.5, 0.0]), ("method", ""), ("method", "a\nb"),
        ("seed", -1), ("config_sha256", "abc"), ("epochs", 1.5), ("surprise", 1),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(key, value, tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    export(encoder(1), path)
    changed(path, **{key: value})
    with pytest.raises(UserError, match=key) as caught:
        adpe.load_encoder(path)
    assert str(path) in str(caught.value)


def test_a_learned_table_is_held_against_its_grid(tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    export(encoder(1, learned_pos_embed=True), path)
    changed(path, pretrain_img_size=[16, 32])
    with pytest.raises(UserError, match=r"pretrain_img_size is \[16, 32\], 4x8 patches, but its pos_embed has 65 rows"):
        adpe.load_encoder(path)
    changed(path, pretrain_img_size=[32, 32], learned_pos_embed=False)
    with pytest.raises(UserError, match=r"learned_pos_embed is False, but its tensors show True"):
        adpe.load_encoder(path)


def test_every_kind_of_file_carries_it(tmp_path) -> None:
    """Beside the tensors of a .pth, and in the `meta` of a training checkpoint."""
    model = encoder(1, position="relative_interpolated", pretrain_img_size=16, norm_eps=1e-5)
    said = specification_of(model, method="AdPE RPE coordinate")
    state = {f"model.encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    contents = ({"model": state, KEY: said.to_json()}, {"state_dict": state, "meta": {KEY: said.to_json()}})
    for content in contents:
        torch.save(content, tmp_path / "a.pth")
        described = describe_encoder(tmp_path / "a.pth")
        assert (described.carried, described.specification) == (True, said)
    assert read_json(said.to_json(), "a") == said


def test_normal_autoencoders_take_it_too(tmp_path) -> None:
    model = autoencoder(1, position="relative")
    adpe.save_checkpoint(model.state_dict(), tmp_path / "a.safetensors", specification=specification_of(model.encoder))
    assert adpe.load_checkpoint(autoencoder(2, position="relative"), tmp_path / "a.safetensors", verbose=False).carried
    with pytest.raises(UserError, match="position = 'relative_interpolated'"):
        adpe.load_checkpoint(autoencoder(2, position="relative_interpolated"), tmp_path / "a.safetensors")
    assert TINY["num_heads"] == describe_encoder(tmp_path / "a.safetensors").specification.num_heads
