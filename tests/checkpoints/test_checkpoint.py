from __future__ import annotations

import os
import re

import pytest
import torch
from checkpoint_cases import autoencoder, encoder, fails, reference, same
from safetensors.torch import load_file

import adpe
from adpe import files
from adpe.checkpoints.loading import LoadReport
from adpe.checkpoints.names import summarize
from adpe.errors import UserError

# Formats and wrappers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "meta": {"epoch": 3}, "optimizer": {"param_groups": []}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.model.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"model.module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
        lambda state: {"teacher": {f"module.backbone.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"encoder.{name}": tensor for name, tensor in state.items()},
    ],
)  # fmt: skip
def test_wrappers(wrap, tmp_path) -> None:
    source, target = encoder(1), encoder(2)
    torch.save(wrap(source.state_dict()), tmp_path / "checkpoint.pth")
    report = adpe.load_checkpoint(target, tmp_path / "checkpoint.pth", verbose=False)
    assert same(source.state_dict(), target.state_dict())
    assert (report.coverage, report.dropped, report.unexpected) == (100.0, {}, [])
    assert sorted(report.matched) == sorted(source.state_dict())


@pytest.mark.parametrize(
    ("case", "position", "options", "adversary"),
    [
        ("pretrain_ape_none", "absolute", {}, {}),
        ("pretrain_ape_embedding", "absolute", {"adversary": "embedding"}, {"token": "adv_token"}),
        ("pretrain_ape_coordinate", "absolute", {"adversary": "coordinate"}, {"shift": "adv_token"}),
        ("pretrain_rpe_none", "relative", {}, {}),
        ("pretrain_rpe_embedding", "relative", {"adversary": "embedding"},
         {"encoder": "adv_token", "decoder": "adv_token"}),
        ("pretrain_rpe_coordinate", "relative_interpolated", {"adversary": "coordinate"},
         {"encoder": "adv_shift", "decoder": "adv_shift"}),
    ],
)  # fmt: skip
def test_the_references_pretraining_checkpoints(case, position, options, adversary, tmp_path) -> None:
    raw = reference(case)
    torch.save({"model": raw, "epoch": 1599}, tmp_path / "reference.pth")
    model = autoencoder(position=position, **options)
    report = adpe.load_checkpoint(model, tmp_path / "reference.pth", verbose=False)
    assert report.coverage == 100.0
    assert set(report.dropped) == {"encoder.pos_embed", "decoder.pos_embed"}
    state = model.state_dict()
    assert torch.equal(state["encoder.blocks.1.mlp.fc2.weight"], raw["blocks.1.mlp.fc2.weight"])
    assert torch.equal(state["decoder.blocks.0.attn.qkv.bias"], raw["decoder_blocks.0.attn.qkv.bias"])
    assert torch.equal(state["decoder.pred.weight"], raw["decoder_pred.weight"])
    if position != "absolute":
        table = raw["blocks.1.attn.rpe_k.lookup_table_weight"]
        assert torch.equal(state["encoder.blocks.1.attn.rel_pos_table"], table[0])
        for ours, theirs in adversary.items():
            prefix = "blocks" if ours == "encoder" else "decoder_blocks"
            for layer, row in enumerate(state[f"adversary.{ours}"]):
                assert torch.equal(row, raw[f"{prefix}.{layer}.attn.rpe_k.{theirs}"].flatten())
    else:
        for ours, theirs in adversary.items():
            assert torch.equal(state[f"adversary.{ours}"], raw[theirs])
    alone = encoder(position=position)
    report = adpe.load_checkpoint(alone, tmp_path / "reference.pth", verbose=False)
    assert same(alone.state_dict(), model.encoder.state_dict())
    assert report.coverage == 100.0
    # The number of decoder tensors depends on the case; the adversary and the mask token are named.
    assert re.search(r"dropped +.*decoder\.\* \(\d\d\).*: not part of the encoder", str(report))


def test_our_own_pretraining_checkpoint_round_trips(tmp_path) -> None:
    source = autoencoder(1, "relative_interpolated", adversary="coordinate")
    target = autoencoder(2, "relative_interpolated", adversary="coordinate")
    torch.nn.init.normal_(source.adversary.encoder)
    adpe.save_checkpoint(source.state_dict(), tmp_path / "model.safetensors", {"note": "a"})
    assert same(adpe.read_checkpoint(tmp_path / "model.safetensors"), source.state_dict())
    adpe.load_checkpoint(target, tmp_path / "model.safetensors", verbose=False)
    assert same(source.state_dict(), target.state_dict())


def test_a_dense_tasks_checkpoint_gives_its_encoder(tmp_path) -> None:
    source = encoder(1)
    state = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items() if not name.startswith("norm.")}
    torch.save({"state_dict": {**state, "decode_head.w": torch.ones(1)}}, tmp_path / "segmentor.pth")
    fails(tmp_path / "segmentor.pth", r"missing +norm\.weight, norm\.bias")
    report = adpe.load_checkpoint(encoder(), tmp_path / "segmentor.pth", ["norm.*"], verbose=False)
    assert report.missing == ["norm.weight", "norm.bias"]
    assert report.dropped == {"decode_head.w": "not part of the backbone"}
    assert report.coverage < 100


def test_half_precision_checkpoints(tmp_path) -> None:
    raw = {name: tensor.half() for name, tensor in reference("pretrain_ape_none").items()}
    torch.save(raw, tmp_path / "half.pth")
    model = encoder()
    report = adpe.load_checkpoint(model, tmp_path / "half.pth", verbose=False)
    assert report.dropped["pos_embed"].startswith("fixed sine-cosine table")
    assert model.cls_token.dtype == torch.float32
    assert torch.equal(model.cls_token.data, raw["cls_token"].float())


# Heads, positions, shapes ---------------------------------------------------------------------------------------------


def test_a_new_head_starts_at_random_and_is_said_so(tmp_path) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "features.pth")
    model = encoder(num_classes=5)
    head = model.head.weight.clone()
    report = adpe.load_checkpoint(model, tmp_path / "features.pth", verbose=False)
    assert report.new == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert report.coverage == 100.0
    assert set(report.dropped) == {"norm.weight", "norm.bias"}
    assert torch.equal(model.head.weight, head)


def test_heads_of_the_same_and_of_another_number_of_classes(tmp_path) -> None:
    source = encoder(1, num_classes=5)
    torch.save(source.state_dict(), tmp_path / "tuned.pth")
    target = encoder(2, num_classes=5)
    assert adpe.load_checkpoint(target, tmp_path / "tuned.pth", verbose=False).new == []
    assert same(source.state_dict(), target.state_dict())
    report = adpe.load_checkpoint(encoder(2, num_classes=3), tmp_path / "tuned.pth", verbose=False)
    assert report.new == ["head.weight", "head.bias"]
    assert report.dropped["head.weight"] == "head of another number of classes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 64}, r"has shape \(1, 1, 32\), the model expects \(1, 1, 64\)"),
        ({"patch_size": 8}, r"patch_embed\.proj\.weight has shape \(32, 3, 4, 4\), the model expects \(32, 3, 8, 8\)"),
        ({"depth": 3}, r"missing +blocks\.\* \(12\)"),
        ({"depth": 1}, r"unexpected +blocks\.\* \(12\)"),
        ({"position": "relative"}, r"missing +blocks\.\*\.attn\.rel_pos_table \(2\)"),
    ],
    ids=str,
)
def test_another_architecture_is_refused(options, message, tmp_path) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "encoder.pth")
    fails(tmp_path / "encoder.pth", message, encoder(**options))


def test_a_relative_checkpoint_does_not_fit_absolute_positions(tmp_path) -> None:
    torch.save({"model": reference("pretrain_rpe_none")}, tmp_path / "relative.pth")
    text = fails(tmp_path / "relative.pth", r"unexpected +blocks\.\*\.attn\.rel_pos_table \(2\)")
    assert "position='relative' or 'relative_interpolated'" in text
    report = adpe.load_checkpoint(
        encoder(), tmp_path / "relative.pth", allow_unexpected=["blocks.*.attn.rel_pos_table"], verbose=False
    )
    assert len(report.unexpected) == 2


def test_what_may_be_missing_is_named_by_patterns(tmp_path) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "absolute.pth")
    model = encoder(position="relative")
    fails(tmp_path / "absolute.pth", "does not fit", model, allow_missing=["blocks.0.attn.rel_pos_table"])
    report = adpe.load_checkpoint(model, tmp_path / "absolute.pth", ["blocks.*.attn.rel_pos_table"], verbose=False)
    assert report.missing == [f"blocks.{i}.attn.rel_pos_table" for i in range(2)]
    assert report.coverage == pytest.approx(100 * 29 / 31)


def test_an_autoencoder_needs_its_decoder(tmp_path) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "encoder.pth")
    text = fails(tmp_path / "encoder.pth", r"missing +mask_token, decoder\.\* \(18\)", autoencoder())
    assert len(text.splitlines()) < 8


def test_an_adversary_is_not_lost_in_silence(tmp_path) -> None:
    torch.save(autoencoder(1, adversary="coordinate").state_dict(), tmp_path / "adpe.pth")
    fails(tmp_path / "adpe.pth", r"unexpected +adversary\.shift", autoencoder())


def test_a_head_over_the_class_token_is_not_taken_for_one_over_the_patches(tmp_path) -> None:
    state = encoder(1).state_dict() | {"head.weight": torch.ones(5, 32), "head.bias": torch.ones(5)}
    torch.save(state, tmp_path / "deit.pth")
    model = encoder(num_classes=5)
    report = adpe.load_checkpoint(model, tmp_path / "deit.pth", verbose=False)
    assert report.new == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert report.dropped["head.weight"].startswith("head over the class token")
    assert model.head.weight.abs().max() < 1


def test_learned_positions_are_resized_as_timm_does(tmp_path) -> None:
    from timm.layers import resample_abs_pos_embed

    source = encoder(1, learned_pos_embed=True)
    torch.save(source.state_dict(), tmp_path / "learned.pth")
    target = encoder(2, learned_pos_embed=True, img_size=(24, 48), pos_embed_resize="timm")
    report = adpe.load_checkpoint(target, tmp_path / "learned.pth", verbose=False)
    assert report.resized == {"pos_embed": "bicubic with antialias, as timm, 8x8 to 6x12 patches"}
    expected = resample_abs_pos_embed(source.pos_embed, [6, 12], [8, 8])
    torch.testing.assert_close(target.pos_embed, expected, rtol=0, atol=1e-6)
    assert report.coverage == 100.0
    assert "resized     pos_embed: bicubic with antialias, as timm, 8x8 to 6x12 patches" in str(report)


def test_learned_and_fixed_positions_are_told_apart_by_value(tmp_path) -> None:
    torch.save(encoder(1, learned_pos_embed=True).state_dict(), tmp_path / "learned.pth")
    fails(tmp_path / "learned.pth", r"pos_embed is a learned table.*learned_pos_embed=True")
    fixed = encoder(1).state_dict() | {"pos_embed": encoder().position_table((8, 8), torch.zeros(1))}
    torch.save(fixed, tmp_path / "fixed.pth")
    report = adpe.load_checkpoint(encoder(img_size=16), tmp_path / "fixed.pth", verbose=False)
    assert report.dropped == {"pos_embed": "fixed sine-cosine table, which the model makes itself"}
    model = encoder(learned_pos_embed=True)
    adpe.load_checkpoint(model, tmp_path / "fixed.pth", verbose=False)
    assert torch.equal(model.pos_embed.data, fixed["pos_embed"])


def test_positions_without_a_row_for_the_class_token(tmp_path) -> None:
    """timm's no_embed_class adds nothing to the class token, as a row of zeros does."""
    source = encoder(1, learned_pos_embed=True)
    with torch.no_grad():
        source.pos_embed[:, 0] = 0
    torch.save(source.state_dict() | {"pos_embed": source.pos_embed.data[:, 1:]}, tmp_path / "no_embed_class.pth")
    target = encoder(2, learned_pos_embed=True)
    report = adpe.load_checkpoint(target, tmp_path / "no_embed_class.pth", verbose=False)
    assert same(source.state_dict(), target.state_dict())
    assert report.resized == {"pos_embed": "a row of zeros added for the class token, which has no position"}


@pytest.mark.parametrize("shape", [(1, 63, 32), (1, 51, 32), (65, 32), (1, 0, 32)])
def test_positions_of_no_square_grid_are_refused(shape, tmp_path) -> None:
    torch.save(encoder(1).state_dict() | {"pos_embed": torch.randn(shape)}, tmp_path / "odd.pth")
    message = re.escape(f"pos_embed has shape {shape}: without a square grid and at most a class token")
    fails(tmp_path / "odd.pth", message, encoder(learned_pos_embed=True))
    fails(tmp_path / "odd.pth", "pos_embed is a learned table")


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    adpe.save_checkpoint({"blocks.0.w": torch.ones(3)}, path)
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        adpe.save_checkpoint({"blocks.0.w": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_is_written_does_not_depend_on_layout_or_sharing(tmp_path) -> None:
    """Transposed, shared and half-precision tensors are written by value; safetensors itself refuses sharing."""
    base = torch.arange(6.0).view(2, 3)
    state = {"a": base, "b": base.T, "c": base[0], "d": base.half(), "e": torch.tensor(2)}
    adpe.save_checkpoint(state, tmp_path / "folder" / "model.safetensors")
    loaded = load_file(tmp_path / "folder" / "model.safetensors")
    assert same(loaded, {name: tensor.contiguous() for name, tensor in state.items()})
    assert loaded["d"].dtype == torch.float16


def test_permissions_follow_the_umask(tmp_path) -> None:
    old = os.umask(0o027)
    try:
        adpe.save_checkpoint({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


# Reports ----------------------------------------------------------------------------------------------


def test_summaries() -> None:
    layers = [f"decoder.blocks.{i}.{name}" for i in range(4) for name in ("a", "b", "c", "d")]
    assert summarize([*layers, "decoder.norm.weight", "mask_token"]) == "decoder.* (17), mask_token"
    assert summarize([f"blocks.{i}.attn.rel_pos_table" for i in range(12)]) == "blocks.*.attn.rel_pos_table (12)"
    assert summarize([]) == ""
    assert summarize(f"layer{i}" for i in range(9)).endswith("layer5 and 3 more")


def test_report_is_one_screen() -> None:
    report = LoadReport(
        "run/model.pth",
        matched=["a"] * 7,
        resized={"pos_embed": "bicubic, 8x8 to 6x12 patches"},
        dropped={"decoder.norm.weight": "not part of the encoder", "mask_token": "not part of the encoder"},
        missing=["blocks.0.attn.rel_pos_table", "blocks.1.attn.rel_pos_table"],
        new=["head.weight", "head.bias"],
    )
    assert str(report).splitlines() == [
        "loaded run/model.pth",
        "  coverage    80.0% (8 of 10 tensors)",
        "  resized     pos_embed: bicubic, 8x8 to 6x12 patches",
        "  dropped     decoder.norm.weight, mask_token: not part of the encoder",
        "  new         head.weight, head.bias: randomly initialised, as a new head is",
        "  missing     blocks.*.attn.rel_pos_table (2): the checkpoint lacks them",
    ]


def test_the_report_is_printed_on_demand(tmp_path, capsys) -> None:
    torch.save(encoder(1).state_dict(), tmp_path / "encoder.pth")
    report = adpe.load_checkpoint(encoder(), tmp_path / "encoder.pth")
    assert capsys.readouterr().out == f"{report}\n"
    assert str(report).splitlines()[1] == "  coverage    100.0% (29 of 29 tensors)"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.index_put_((torch.tensor([0]),), torch.tensor(float("nan"))), "not finite"),
        (lambda t: t.to(torch.int8), "int8"),
    ],
)
def test_weights_that_are_none_are_refused_by_name(spoil, words, tmp_path):
    model = encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in before.items()}
    name = "blocks.1.mlp.fc1.weight"
    state[name] = spoil(state[name])
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*{words}|{words}.*{re.escape(name)}"):
        adpe.load_checkpoint(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("raw", "average", "taken"), [
    ("state_dict", "state_dict_ema", "state_dict_ema"), ("model", "model_ema", "model"),
    ("state_dict", "ema_state_dict", "state_dict"),
])  # fmt: skip
def test_which_of_two_copies_was_taken_is_reported(raw, average, taken, tmp_path):
    state = encoder().state_dict()
    copies = {raw: state, average: {name: value + 1 for name, value in state.items()}}
    torch.save(copies, tmp_path / "weights.pth")
    model = encoder(seed=1)
    report = adpe.load_checkpoint(model, tmp_path / "weights.pth")
    left = average if taken == raw else raw
    assert taken in report.dropped[left]
    assert torch.equal(model.state_dict()["norm.weight"], copies[taken]["norm.weight"])
