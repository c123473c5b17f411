"""tools/convert_checkpoint.py: bit-equal round trips on files, and nothing overwritten or half written."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from checkpoint_cases import autoencoder, encoder, same
from safetensors.torch import load_file

import adpe
from adpe.checkpoints.loading import describe_encoder
from adpe.checkpoints.names import Framework
from adpe.models.specification import specification_of

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def main():
    specification = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path) -> Path:
    state = {f"encoder.{name}": tensor for name, tensor in encoder(1).state_dict().items()}
    adpe.save_checkpoint(state, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("framework", get_args(Framework)[1:])
def test_files_there_and_back(main, source, framework, suffix, tmp_path, capsys):
    theirs, back, again = (tmp_path / f"{name}{suffix}" for name in ("theirs", "back", "again"))
    assert main(source, theirs, "--to", framework, "--img-size", 32) == 0
    assert main(theirs, back, "--to", "adpe") == 0
    assert main(back, again, "--to", framework, "--img-size", 32) == 0
    assert theirs.read_bytes() == again.read_bytes() or suffix == ".pth"
    state = adpe.read_checkpoint(back)
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(source).items())
    model = encoder(2)
    assert adpe.load_checkpoint(model, theirs, verbose=False).coverage == 100.0
    assert same(model.state_dict(), encoder(1).state_dict())
    lines = capsys.readouterr().out.splitlines()
    count = {"mmseg": 34, "huggingface_dinov2": 43}.get(framework, 38 if framework.startswith("hugging") else 30)
    assert lines[0] == f"wrote {theirs}: {count} tensors in {framework}'s names"
    assert len(lines) == 3


def test_what_each_framework_finds_in_the_file(main, source, tmp_path):
    wrappers = {"mae": "model", "detectron2": "model", "mmseg": "state_dict", "mmpretrain": "state_dict"}
    names = {
        "timm": "blocks.1.mlp.fc1.weight", "mae": "blocks.1.mlp.fc1.weight", "mmseg": "layers.1.ffn.layers.0.0.weight",
        "mmpretrain": "backbone.layers.1.ffn.layers.0.0.weight", "detectron2": "backbone.net.blocks.1.mlp.fc1.weight",
    }  # fmt: skip
    for framework, name in names.items():
        main(source, tmp_path / "out.pth", "--to", framework, "--img-size", 32, "--force")
        contents = torch.load(tmp_path / "out.pth", weights_only=True)
        inner = contents[wrappers[framework]] if framework in wrappers else contents
        assert torch.equal(inner[name], encoder(1).state_dict()["blocks.1.mlp.fc1.weight"])


def test_mmseg_and_timm_load_what_is_written(main, source, tmp_path):
    import timm

    main(source, tmp_path / "timm.safetensors", "--to", "timm", "--img-size", 32)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4, embed_dim=32, depth=2,
                               num_heads=2, checkpoint_path=str(tmp_path / "timm.safetensors")).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    ours = encoder(1).eval().forward_features(images)
    torch.testing.assert_close(theirs.forward_features(images), ours, rtol=1e-5, atol=1e-5)
    backbones = pytest.importorskip("mmseg.models.backbones")
    main(source, tmp_path / "mmseg.pth", "--to", "mmseg", "--img-size", 32)
    norm, start = {"type": "LN", "eps": 1e-6}, {"type": "Pretrained", "checkpoint": str(tmp_path / "mmseg.pth")}
    mae = backbones.MAE(img_size=32, patch_size=4, embed_dims=32, num_layers=2, num_heads=2, final_norm=True,
                        norm_cfg=norm, init_cfg=start)  # fmt: skip
    mae.init_weights()
    mae.eval()
    maps = ours[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(mae(images)[0], maps, rtol=1e-5, atol=1e-5)


def test_an_autoencoder_keeps_its_decoder_for_mae_and_for_us(main, tmp_path, capsys):
    state = autoencoder(1, adversary="coordinate").state_dict()
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "epoch_1.pth")
    assert main(tmp_path / "epoch_1.pth", tmp_path / "ours.safetensors", "--to", "adpe") == 0
    assert same(load_file(tmp_path / "ours.safetensors"), state)
    assert main(tmp_path / "epoch_1.pth", tmp_path / "mae.pth", "--to", "mae", "--img-size", 32) == 0
    assert "; left out 1: adversary.shift" in capsys.readouterr().out
    names = torch.load(tmp_path / "mae.pth", weights_only=True)["model"]
    assert {"decoder_blocks.0.mlp.fc1.bias", "decoder_pred.weight", "mask_token", "blocks.0.norm1.bias"} <= set(names)
    assert not any(name.startswith("encoder.") for name in names)


def test_an_existing_file_is_kept_unless_forced(main, source, tmp_path, capsys):
    target = tmp_path / "out.pth"
    target.write_text("precious")
    assert main(source, target, "--to", "timm") == 2
    assert target.read_text() == "precious"
    assert f"error: {target} exists: give another name, or --force" in capsys.readouterr().err
    assert main(source, target, "--to", "timm", "--img-size", 32, "--force") == 0
    assert "pos_embed" in torch.load(target, weights_only=True)
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors", "out.pth"}


@pytest.mark.parametrize(
    ("contents", "target", "message"),
    [
        (None, "out.pth", "does not exist: give the path"),
        (b"", "out.pth", "is empty"),
        (b"garbage", "out.pth", "is not a readable checkpoint"),
        (b"garbage", "out.bin", "expected a name ending in .safetensors or .pth"),
    ],
)
def test_mistakes_are_told_in_a_line(main, contents, target, message, tmp_path, capsys):
    if contents is not None:
        (tmp_path / "in.pth").write_bytes(contents)
    assert main(tmp_path / "in.pth", tmp_path / target, "--to", "timm") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / target).exists()


def test_help_answers():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert "adpe,timm,mae,mmseg,mmpretrain,detectron2" in result.stdout


def test_positions_are_written_on_the_grid_of_pretraining_and_the_specification_goes_along(main, tmp_path, capsys):
    """7 x 7 patches for crops of 28 pixels, whatever the images of 32 that the encoder was built for."""
    model = encoder(1)
    said = specification_of(model, (28, 28), method="AdPE APE coordinate", seed=2)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(state, tmp_path / "encoder.safetensors", specification=said)
    for framework, suffix in (("mae", "pth"), ("mmseg", "pth"), ("timm", "safetensors"), ("adpe", "pth")):
        target = tmp_path / f"{framework}.{suffix}"
        assert main(tmp_path / "encoder.safetensors", target, "--to", framework) == 0
        described = describe_encoder(target)
        assert described.carried
        assert described.specification == replace(said, layer_scale=framework == "mmseg")
        table = adpe.read_checkpoint(target).get("encoder.pos_embed")
        assert (table is None) == (framework == "adpe")
        assert table is None or table.shape == (1, 1 + 7 * 7, 32)
    assert main(tmp_path / "encoder.safetensors", tmp_path / "a.pth", "--to", "mae", "--img-size", 32) == 2
    assert "pretrain_img_size is [28, 28], not [32, 32]" in capsys.readouterr().err


def test_what_the_tensors_do_not_show_has_to_be_given(main, source, tmp_path, capsys):
    """Heads and size of a narrow encoder without specification; with them the file carries one."""
    assert main(source, tmp_path / "a.safetensors", "--to", "adpe") == 0
    assert "num_heads, pretrain_img_size" in capsys.readouterr().err
    assert not describe_encoder(tmp_path / "a.safetensors").carried
    assert main(source, tmp_path / "a.pth", "--to", "timm") == 2
    assert "--img-size" in capsys.readouterr().err
    given = ["--img-size", 28, "--set", "num_heads=2", "method=MAE"]
    assert main(source, tmp_path / "b.safetensors", "--to", "adpe", *given) == 0
    said = describe_encoder(tmp_path / "b.safetensors")
    assert said.carried
    assert (said.specification.num_heads, said.specification.method) == (2, "MAE")
