"""Names of transformers and torchvision, files of several encoders, averages alone, files that are no checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from checkpoint_cases import encoder, fails, randomized, same
from torch import Tensor, nn
from transformers_names import DINOV2, VIT, transformers_names

import adpe
from adpe.errors import UserError


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_vit_of_transformers(prefix, tmp_path) -> None:
    theirs = encoder(1, learned_pos_embed=True, norm_eps=1e-12).eval()
    state = {prefix + name: tensor for name, tensor in transformers_names(theirs, VIT).items()}
    state |= {"vit.pooler.dense.weight": torch.ones(32, 32)} if prefix else {}
    state |= {"classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)} if prefix else {}
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = adpe.load_encoder(tmp_path / "pytorch_model.bin", verbose=False, num_heads=2).eval()
    assert ours.norm_eps == 1e-12
    assert torch.equal(ours.forward_features(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_dinov2_of_transformers(tmp_path) -> None:
    theirs = encoder(1, learned_pos_embed=True, init_values=0.1).eval()
    state = {f"dinov2.{name}": tensor for name, tensor in transformers_names(theirs, DINOV2).items()}
    assert "dinov2.encoder.layer.1.layer_scale2.lambda1" in state
    state["dinov2.embeddings.mask_token"] = torch.ones(1, 32)
    torch.save(state, tmp_path / "dinov2.bin")
    ours = adpe.load_encoder(tmp_path / "dinov2.bin", verbose=False, num_heads=2).eval()
    assert torch.equal(ours.forward_features(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_beit_of_transformers_has_no_bias_of_the_key(tmp_path) -> None:
    theirs = encoder(1, use_rel_pos_bias=True, init_values=0.1, position="none").eval()
    for block in theirs.blocks:
        block.attn.qkv.bias[32:64] = 0
    state = transformers_names(theirs, VIT, beit=True)
    assert "encoder.layer.0.attention.attention.key.bias" not in state
    torch.save({f"beit.{name}": tensor for name, tensor in state.items()}, tmp_path / "beit.bin")
    ours = adpe.load_encoder(tmp_path / "beit.bin", verbose=False, img_size=32, norm_eps=1e-6).eval()
    assert torch.equal(ours.forward_features(images()), theirs.forward_features(images()))


def test_masked_autoencoder_of_transformers(tmp_path) -> None:
    """Its decoder stands beside its encoder: `ViTMAEForPreTraining`."""
    source = adpe.masked_autoencoder(encoder(1), decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    state = {f"vit.{name}": tensor for name, tensor in transformers_names(source.encoder, VIT).items()}
    decoder = transformers_names(nn.ModuleDict({"blocks": source.decoder.blocks}), VIT)
    state |= {f"decoder.{n.replace('encoder.layer', 'decoder_layers')}": t for n, t in decoder.items()}
    for part in ("embed", "norm", "pred"):
        module = getattr(source.decoder, part)
        state |= {f"decoder.decoder_{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    state["decoder.mask_token"] = source.mask_token
    torch.save(state, tmp_path / "vitmae.bin")
    ours = adpe.masked_autoencoder(encoder(2), decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    report = adpe.load_checkpoint(ours, tmp_path / "vitmae.bin", verbose=False)
    assert report.coverage == 100.0
    assert not report.dropped
    assert same(ours.state_dict(), source.state_dict())


@torch.no_grad()
def test_torchvision(tmp_path) -> None:
    theirs = randomized(torchvision.models.vision_transformer.VisionTransformer(32, 4, 2, 2, 32, 128, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "vit_b_16.pth")
    ours = adpe.load_encoder(tmp_path / "vit_b_16.pth", verbose=False, num_heads=2).eval()
    tokens = theirs._process_input(images())
    expected = theirs.encoder(torch.cat([theirs.class_token.expand(2, -1, -1), tokens], dim=1))
    torch.testing.assert_close(ours.forward_features(images()), expected, rtol=1e-5, atol=1e-5)


# Which encoder of a file ----------------------------------------------------------------------------------------------


def under(prefix: str, seed: int) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in encoder(seed).state_dict().items()}


@pytest.mark.parametrize(
    ("contents", "left_out"),
    [
        ({"state_dict_ema": under("", 1)}, set()),
        ({"model_ema": under("module.", 1), "epoch": 3}, set()),
        ({"ema_state_dict": {**under("module.backbone.", 1), "steps": torch.tensor(7)}}, {"steps"}),
        ({"n_averaged": torch.tensor(7), **under("module.", 1)}, {"n_averaged"}),  # torch.optim.swa_utils
        (under("encoder.", 1) | under("teacher.", 2) | {"predictor.weight": torch.ones(2)}, {"teacher.*", "predictor"}),
        (under("encoder.", 1) | under("student.", 2), {"student.*"}),
        (under("", 1) | under("teacher.", 2) | {"predictor.fc.weight": torch.ones(2)}, {"teacher.*", "predictor"}),
        (under("teacher.backbone.", 1) | under("student.backbone.", 2), {"student.*"}),
        # MoCo v3's own loader takes the base encoder, I-JEPA evaluates the target encoder.
        ({"state_dict": under("module.base_encoder.", 1) | under("module.momentum_encoder.", 2)}, {"momentum"}),
        ({"encoder": under("module.", 2), "target_encoder": under("module.", 1), "predictor": {}}, {"encoder"}),
        ({"module": under("", 1)}, set()),  # DeepSpeed
        ({"state_dict": under("model.image_encoder.trunk.", 1)}, set()),
        (under("_orig_mod.vit.", 1), set()),
        ({n.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): t for n, t in under("", 1).items()}, set()),
    ],
)  # fmt: skip
def test_which_encoder_is_taken(contents, left_out, tmp_path) -> None:
    torch.save(contents, tmp_path / "model.pth")
    model = encoder(3)
    report = adpe.load_checkpoint(model, tmp_path / "model.pth", verbose=False)
    assert same(model.state_dict(), encoder(1).state_dict())
    assert report.coverage == 100.0
    for name in left_out:
        assert any(name.removesuffix("*") in dropped for dropped in report.dropped), report.dropped


def test_two_encoders_of_unknown_names_are_refused(tmp_path) -> None:
    torch.save(under("left.", 1) | under("right.", 2), tmp_path / "model.pth")
    fails(tmp_path / "model.pth", r"left\., right\.")


# Tokens that take part in attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["dist_token", "reg_token"])
def test_tokens_with_rows_in_the_table_are_named(tokens, tmp_path) -> None:
    state = encoder(1, learned_pos_embed=True).state_dict()
    number = {"dist_token": 1, "reg_token": 4}[tokens]
    state[tokens] = torch.ones(1, number, 32)
    state["pos_embed"] = torch.cat([state["pos_embed"], torch.ones(1, number, 32)], dim=1)
    torch.save(state, tmp_path / "tokens.pth")
    for options in ({"learned_pos_embed": True}, {}):
        text = fails(tmp_path / "tokens.pth", tokens, encoder(**options))
        assert "img_size" not in text
        assert "learned_pos_embed" not in text


# Files that are no checkpoint -----------------------------------------------------------------------------------------


def _torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.onnx", lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.8.0"), "ONNX"),
        ("a.pth", lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x052.8.0"), "ONNX"),
        ("a.pt", _torchscript, "TorchScript"),
        ("a.npz", lambda path: np.savez(path, kernel=np.ones(3)), "NumPy"),
        ("a.bin", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "LFS"),
        ("a.pkl", lambda path: path.write_text("<!DOCTYPE html><html></html>"), "web page"),
        ("a.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5"),
    ],
)
def test_whole_files_of_other_formats_are_not_called_truncated(name, write, said, tmp_path) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=said) as caught:
        adpe.load_encoder(tmp_path / name)
    assert "truncated" not in str(caught.value)
