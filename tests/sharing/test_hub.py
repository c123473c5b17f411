"""Encoders to folders and back, through timm as well, and from a hub that a local server stands for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from checkpoint_cases import encoder, same
from file_server import serving
from safetensors.torch import load_file, save_file
from torch import Tensor

import adpe
from adpe.checkpoints.loading import describe_encoder
from adpe.checkpoints.names import from_our_names
from adpe.errors import UserError
from adpe.models.specification import specification_of

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def file_of(folder: Path, model: adpe.VisionTransformer, **origin: Any) -> Path:
    """An encoder as a pretraining writes it."""
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    said = specification_of(model, method="MAE", config_sha256="a" * 64, mean=MEAN, std=STD, **origin)
    adpe.save_checkpoint(state, folder / "encoder.safetensors", specification=said)
    return folder / "encoder.safetensors"


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "relative_interpolated"},
        {"learned_pos_embed": True, "init_values": 0.1},
        {"class_token": False},
    ],
)
def test_a_folder_is_read_back_whole(options, tmp_path) -> None:
    model = encoder(1, **options).eval()
    path = file_of(tmp_path, model)
    folder = adpe.save_pretrained(path, tmp_path / "shared", license="mit")
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == path.read_bytes()
    read = adpe.from_pretrained(folder, verbose=False).eval()
    assert same(read.state_dict(), model.state_dict())
    assert torch.equal(read.forward_features(images()), model.forward_features(images()))
    assert (read.pretrained_cfg["mean"], read.pretrained_cfg["std"]) == (MEAN, STD)
    assert read.pretrained_cfg["input_size"] == (3, 32, 32)
    adpe.register_with_timm()
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert isinstance(theirs, adpe.VisionTransformer)
    assert torch.equal(theirs.forward_features(images()), model.forward_features(images()))
    config = timm.data.resolve_model_data_config(theirs)
    assert [config[name] for name in ("mean", "std", "input_size")] == [list(MEAN), list(STD), [3, 32, 32]]


@torch.no_grad()
def test_timm_takes_maps_and_a_new_head_from_a_folder(tmp_path) -> None:
    model = encoder(1).eval()
    folder = adpe.save_pretrained(file_of(tmp_path, model), tmp_path / "shared")
    adpe.register_with_timm()
    maps = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(0, -1)).eval()
    expected = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    assert all(torch.equal(one, two) for one, two in zip(maps(images()), expected, strict=True))
    assert (maps.feature_info.channels(), maps.feature_info.reduction()) == ([32, 32], [4, 4])
    shallow = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=[0]).eval()
    assert len(shallow.model.blocks) == 1
    assert torch.equal(shallow(images())[0], expected[0])
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    assert classifier(images()).shape == (2, 5)
    assert torch.equal(classifier.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    state = load_file(folder / "model.safetensors")
    del state["encoder.blocks.1.mlp.fc1.weight"]
    save_file(state, folder / "model.safetensors")
    for options in ({}, {"num_classes": 5}, {"features_only": True, "out_indices": (0, 1)}):
        with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.weight"):
            timm.create_model(f"local-dir:{folder}", pretrained=True, **options)


@torch.no_grad()
@pytest.mark.parametrize("framework", ["huggingface_vit", "huggingface_dinov2", "huggingface_vitmae"])
def test_folders_for_transformers(framework, tmp_path) -> None:
    model = encoder(1, num_heads=4, norm_eps=3e-5).eval()
    folder = adpe.save_pretrained(file_of(tmp_path, model), tmp_path / "shared", framework=framework)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == {"vitmae": "vit_mae"}.get(framework.partition("_")[2], framework.partition("_")[2])
    assert (config["num_attention_heads"], config["layer_norm_eps"], config["image_size"]) == (4, 3e-5, 32)
    assert config.get("intermediate_size", 32 * config.get("mlp_ratio", 0)) == 128
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == list(MEAN)
    assert describe_encoder(folder / "model.safetensors").carried
    # Without what we say in the file, as transformers itself saves it, the config says what no tensor shows.
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    read = adpe.from_pretrained(folder, verbose=False).eval()
    assert (read.num_heads, read.norm_eps) == (4, 3e-5)
    assert torch.equal(read.forward_features(images()), model.forward_features(images()))


@torch.no_grad()
def test_an_encoder_at_hand_is_saved(tmp_path) -> None:
    model = encoder(1, position="relative").eval()
    read = adpe.from_pretrained(adpe.save_pretrained(model, tmp_path / "shared"), verbose=False).eval()
    assert torch.equal(read.forward_features(images()), model.forward_features(images()))


@torch.no_grad()
def test_a_file_by_other_names_is_shared_by_ours(tmp_path) -> None:
    """OpenMMLab's, with the fixed table of positions and LayerScale of ones that it carries."""
    model = encoder(1).eval()
    said = replace(specification_of(model), layer_scale=True)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    theirs, _ = from_our_names(state, "mmseg", 32)
    adpe.save_checkpoint(theirs, tmp_path / "mmseg.safetensors", specification=said)
    folder = adpe.save_pretrained(tmp_path / "mmseg.safetensors", tmp_path / "shared")
    adpe.register_with_timm()
    for read in (
        adpe.from_pretrained(folder, verbose=False),
        timm.create_model(f"local-dir:{folder}", pretrained=True),
    ):
        assert torch.equal(read.eval().forward_features(images()), model.forward_features(images()))


@torch.no_grad()
def test_weights_that_diverged_are_not_shared(tmp_path) -> None:
    model = encoder(1)
    model.blocks[1].mlp.fc1.bias[3] = float("nan")
    for source in (model, file_of(tmp_path, model)):
        with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.bias"):
            adpe.save_pretrained(source, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"framework": "keras"}, "huggingface_vitmae"),
        ({}, r"model\.safetensors exists"),
        ({"records": ["none.jsonl"], "overwrite": True}, r"none\.jsonl"),
        ({"framework": "huggingface_vit", "overwrite": True, "encoder": "relative"}, "rel_pos_table"),
        ({"encoder": "plain", "overwrite": True}, r"plain\.pth.*--to adpe"),
    ],
)
def test_what_cannot_be_saved(arguments, said, tmp_path) -> None:
    path = file_of(tmp_path, encoder(1, position="relative" if arguments.get("encoder") == "relative" else "absolute"))
    if arguments.pop("encoder", "") == "plain":
        path = tmp_path / "plain.pth"
        torch.save(encoder(1).state_dict(), path)
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "model.safetensors").write_text("precious")
    with pytest.raises(UserError, match=said):
        adpe.save_pretrained(path, folder, **arguments)
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("model.safetensors", "precious")]


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(print))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), r"no model\.safetensors"),
        (_pickled, r"model\.safetensors is not a readable checkpoint"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not readable JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), r"config\.json holds a list"),
        (lambda folder: (folder / "config.json").write_text(" " * 2**21), r"config\.json has 2097152 bytes"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), r"model_type is 'bert'"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "vit", "hidden_act": "relu"}'),
            r"hidden_act is 'relu'",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "vit", "num_attention_heads": "2"}'),
            r"num_attention_heads is '2'",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "vit", "layer_norm_eps": 7}'),
            r"layer_norm_eps is 7",
        ),
    ],
)
def test_what_cannot_be_read(spoil, said, tmp_path) -> None:
    folder = adpe.save_pretrained(file_of(tmp_path, encoder(1)), tmp_path / "shared")
    spoil(folder)
    with pytest.raises(UserError, match=said):
        adpe.from_pretrained(folder, verbose=False)


@pytest.mark.parametrize("name", ["", "no_folder_and_no_name", "a/b/c", "../b"])
def test_names_that_are_no_names(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="OWNER/NAME" if name else "has no model"):
        adpe.from_pretrained(name)


# Each line of standard input is the arguments of a call; a line of JSON answers it.
CALLS = """
import json, sys, torch, adpe
from adpe.errors import UserError
for line in sys.stdin:
    name, options = json.loads(line)
    try:
        encoder = adpe.from_pretrained(name, verbose=False, **options)
        print(json.dumps({"sum": encoder.blocks[1].mlp.fc1.weight.double().sum().item(), "heads": encoder.num_heads}))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
"""


def calls(home: Path, asked: list[tuple[str, dict[str, Any]]], **variables: str) -> list[dict[str, Any]]:
    """What `from_pretrained` answers in a process with these environment variables, which are read at import."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALLS], input="\n".join(map(json.dumps, asked)), cwd=home,
        env={**known, "PYTHONPATH": str(ROOT), "HF_HOME": str(home / "cache"), "HF_HUB_DISABLE_XET": "1", **variables},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow(8)
def test_a_hub_is_read_through_its_endpoint_and_then_from_the_cache(tmp_path) -> None:
    ours, vit = encoder(1), encoder(2, num_heads=4)
    folders = {
        "one/ours": adpe.save_pretrained(file_of(tmp_path, ours), tmp_path / "ours"),
        "one/vit": adpe.save_pretrained(file_of(tmp_path, vit), tmp_path / "vit", framework="huggingface_vit"),
    }
    state, _ = from_our_names({f"encoder.{k}": t for k, t in vit.state_dict().items()}, "huggingface_vit", 32)
    save_file(state, folders["one/vit"] / "model.safetensors", {"format": "pt"})
    files = {
        f"/{name}/resolve/{revision}/{file.name}": file.read_bytes()
        for name, folder in folders.items()
        for revision in ("main", "v1")
        for file in folder.iterdir()
    }
    files["/one/pickled/resolve/main/pytorch_model.bin"] = pickle.dumps(print)
    expected = [
        {"sum": model.blocks[1].mlp.fc1.weight.double().sum().item(), "heads": model.num_heads} for model in (ours, vit)
    ]
    asked = [("one/ours", {}), ("one/vit", {})]
    others = [("one/pickled", {}), ("one/none", {}), ("one/ours", {"revision": "v1"})]
    with serving(files) as server:
        server.etags = {path: f'"{hashlib.sha256(body).hexdigest()}"' for path, body in files.items()}
        server.headers = {"X-Repo-Commit": "c" * 40}
        server.missing = {"": {"X-Error-Code": "EntryNotFound"}} | {
            f"/one/none/resolve/main/{file}": {"X-Error-Code": "RepoNotFound"}
            for file in ("config.json", "model.safetensors")
        }
        found = calls(tmp_path, [*asked, *others], HF_ENDPOINT=server.url)
        wanted = {path for path, _ in server.requests}
    assert found[:2] == expected
    assert "model.safetensors" in found[2]["error"] and "one/none" in found[3]["error"]
    assert found[4] == expected[0]
    assert not any(path.endswith((".bin", ".pth", ".py")) for path in wanted)
    # The server is gone: what was read lies in the cache, and nothing else is asked for.
    offline = calls(tmp_path, [*asked, ("one/new", {})], HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
    assert offline[:2] == expected
    assert "HF_HUB_OFFLINE" in offline[2]["error"] and "one/new" in offline[2]["error"]
