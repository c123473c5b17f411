"""Files that are no checkpoints are refused by name, nothing in a file is run, and a checkpoint builds its model."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_cases import TINY, autoencoder, encoder, fails, same
from safetensors.torch import save_file

import adpe
from adpe.checkpoints.reading import build_model, read_file, read_model_config
from adpe.errors import UserError


class Code:
    """Unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path) -> None:
    torch.save({"model": encoder().state_dict(), "args": Code(tmp_path / "executed")}, tmp_path / "code.pth")
    text = fails(tmp_path / "code.pth", r"holds (posix|os)\.system, which is code and is not run")
    assert "state_dict()" in text
    assert not (tmp_path / "executed").exists()


def test_objects_of_other_packages_are_named(tmp_path) -> None:
    torch.save({"model": encoder().state_dict(), "when": Fraction(1, 2)}, tmp_path / "fraction.pth")
    fails(tmp_path / "fraction.pth", r"holds fractions\.Fraction, which is code and is not run")


def test_training_checkpoints_of_mae_and_of_mmengine_are_read(tmp_path) -> None:
    """Their command lines, logs and numbers are data; mmengine itself is not needed for them."""
    from mmengine.logging import HistoryBuffer

    source, target = encoder(1), encoder(2)
    contents = {"args": argparse.Namespace(lr=1.0, out=["a"]), "epoch": 3, "loss": np.float64(0.5)}
    contents["message_hub"] = {"log_scalars": OrderedDict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))}
    torch.save({"model": source.state_dict(), **contents}, tmp_path / "training.pth")
    adpe.load_checkpoint(target, tmp_path / "training.pth", verbose=False)
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_arrays_are_read_whatever_the_protocol(protocol, tmp_path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in encoder(1).state_dict().items()}
    arrays["mask_token"] = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    contents = {"model": OrderedDict(arrays), "__author__": "MAE", "matching_heuristics": True, "n": np.float32(2)}
    (tmp_path / "mae.pkl").write_bytes(pickle.dumps(contents, protocol))
    state = read_file(tmp_path / "mae.pkl")["model"]
    assert torch.equal(state.pop("mask_token"), torch.arange(6.0).view(2, 3))
    assert same(state, encoder(1).state_dict())


@pytest.mark.parametrize(
    ("value", "name"),
    [(Code(Path("executed")), r"(posix|os)\.system"), (eval, r"builtins\.eval"), (torch.ones(1), r"torch\._utils\.\w+"),
     (Fraction(1, 2), r"fractions\.Fraction"), (np.random.default_rng(0), r"numpy\.random\.\S+")],
    ids=["system", "eval", "tensor", "fraction", "generator"],
)  # fmt: skip
def test_a_pickle_of_anything_else_is_refused_by_name(value, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"cls_token": np.ones(3), "x": value}}))
    fails(tmp_path / "model.pkl", rf"holds {name}, which is code and is not run")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]


def test_other_codecs_than_latin1_are_refused(tmp_path) -> None:
    """Protocol 2 spells bytes with ``_codecs.encode``, which could also compress, decompress or rotate."""
    (tmp_path / "codec.pkl").write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    fails(tmp_path / "codec.pkl", r"holds _codecs\.encode, which is code")


@pytest.mark.parametrize("contents", [b"\x80\x04", b"garbage", np.random.default_rng(0).bytes(500)])
def test_damaged_pickles(contents, tmp_path) -> None:
    for name in ("damaged.pkl", "damaged.pth"):
        (tmp_path / name).write_bytes(contents)
        fails(tmp_path / name, r"is not a readable checkpoint, or it is truncated.*Write or download it again")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_and_empty_files(suffix, tmp_path) -> None:
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"torn.{suffix}"
    if suffix == "pth":
        torch.save(encoder().state_dict(), whole)
    else:
        save_file(encoder().state_dict(), whole)
    for share in (0.3, 0.97):
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        fails(path, "is not a readable checkpoint, or it is truncated")
    path.write_bytes(b"")
    fails(path, "is empty")
    path.write_text("<html>404</html>")
    fails(path, "is not a readable checkpoint|holds no tensors|expected what")


def test_missing_file_and_other_contents(tmp_path) -> None:
    fails(tmp_path / "nowhere.pth", "does not exist")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    fails(tmp_path / "list.pth", "holds a list, expected a dict")
    torch.save({"layer1.0.conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "resnet.pth")
    fails(tmp_path / "resnet.pth", r"holds no ViT encoder.*found layer1\.\*\.conv1\.weight, fc\.bias")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    fails(tmp_path / "nothing.pth", "found nothing|found model")


CONFIG = """
import os
model = dict(
    type='AdPEPretraining', adversary='coordinate', img_size=(32, -4), decoder=dict(depth=1), betas=[0.9, 1e-3],
    on=True)
os.system('touch {path}')
"""


def test_the_model_of_a_config_is_read_without_executing_it(tmp_path) -> None:
    text = CONFIG.format(path=tmp_path / "executed")
    torch.save({"state_dict": encoder().state_dict(), "meta": {"cfg": text}}, tmp_path / "training.pth")
    assert read_model_config(tmp_path / "training.pth") == {
        "type": "AdPEPretraining", "adversary": "coordinate", "img_size": (32, -4), "decoder": {"depth": 1},
        "betas": [0.9, 1e-3], "on": True,
    }  # fmt: skip
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text", ["model = dict(", "model = build()", "model = dict(a=os.getcwd())", "x = 1", "model = 3"]
)
def test_a_config_that_says_nothing_certain_is_none(text, tmp_path) -> None:
    torch.save({"state_dict": encoder().state_dict(), "meta": {"cfg": text}}, tmp_path / "training.pth")
    assert read_model_config(tmp_path / "training.pth") is None
    torch.save({"state_dict": encoder().state_dict()}, tmp_path / "plain.pth")
    assert read_model_config(tmp_path / "plain.pth") is None


def training_checkpoint(path: Path, model: torch.nn.Module, config: dict) -> Path:
    torch.save({"state_dict": model.state_dict(), "meta": {"cfg": f"model = {config!r}"}}, path)
    return path


def test_a_checkpoint_builds_its_model(tmp_path) -> None:
    options = {key: value for key, value in TINY.items() if key != "patch_size"}
    decoder = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    config = {"type": "AdPEPretraining", "model": "adpe_vit_tiny_patch4", "compile": True, "adversary": "coordinate"}
    source = autoencoder(adversary="coordinate")
    path = training_checkpoint(tmp_path / "epoch_1.pth", source, config | options | decoder)
    model = build_model(path)
    assert isinstance(model, adpe.MAE)
    adpe.load_checkpoint(model, path, verbose=False)
    assert same(model.state_dict(), source.state_dict())
    assert build_model(path, mask_ratio=0.5).mask_ratio == 0.5
    backbone = {"type": "AdPEViT", "model": "adpe_vit_tiny_patch4", "out_indices": [1], "init_cfg": None, **options}
    path = training_checkpoint(tmp_path / "iter_1.pth", encoder(), {"type": "EncoderDecoder", "backbone": backbone})
    model = build_model(path)
    assert isinstance(model, adpe.VisionTransformer) and model.embed_dim == 32
    assert build_model(path, "adpe_vit_small_patch16", depth=1).encoder.embed_dim == 384


def test_models_that_cannot_be_built(tmp_path) -> None:
    torch.save(encoder().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"plain\.pth does not say of which model it is.*--model"):
        build_model(tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"No model can be built of adpe_vit_tiny_patch4 and {'width': 3}.*width"):
        build_model(tmp_path / "plain.pth", "adpe_vit_tiny_patch4", width=3)
    with pytest.raises(UserError, match="Unknown model 'resnet50'"):
        build_model(tmp_path / "plain.pth", "resnet50")
