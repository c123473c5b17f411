"""ViT, DINOv2 and ViTMAE by the names of Hugging Face's transformers: written, read back, and as its modules see it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checkpoint_cases import DECODER, autoencoder, encoder, randomized, same
from torch import Tensor, nn
from transformers_names import DINOV2, VIT, transformers_names

import adpe
from adpe.checkpoints.names import from_our_names
from adpe.errors import UserError
from adpe.models.pos_embed import sincos_table
from adpe.models.specification import specification_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
# transformers 5 in memory, by what version 4 and every file have.
VERSION_5 = {
    r"encoder\.layer\.": "layers.", r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj", r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj", r"intermediate\.dense": "mlp.fc1",
    r"(\d\.)output\.dense": r"\1mlp.fc2",
}  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prefixed(model: nn.Module) -> dict[str, Tensor]:
    return {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}


def written(model: nn.Module, framework: str) -> dict[str, Tensor]:
    return from_our_names(prefixed(model), framework, 32)[0]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("framework", ["huggingface_vit", "huggingface_dinov2", "huggingface_vitmae"])
def test_names_and_tensors_are_theirs(framework, learned) -> None:
    dino = framework == "huggingface_dinov2"
    model = encoder(1, learned_pos_embed=learned, init_values=0.1 if dino and learned else None)
    expected = transformers_names(model, DINOV2 if dino else VIT)
    if not learned:
        expected["embeddings.position_embeddings"] = sincos_table(8, 8, 32, torch.float32, torch.device("cpu"))
    if dino:
        expected["embeddings.mask_token"] = torch.zeros(1, 32)
        for block in range(2):
            for branch in (1, 2):
                expected.setdefault(f"encoder.layer.{block}.layer_scale{branch}.lambda1", torch.ones(32))
    if framework == "huggingface_vitmae":
        expected = {f"vit.{name}": tensor for name, tensor in expected.items()}
    found = written(model, framework)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("framework", ["huggingface_vit", "huggingface_dinov2"])
def test_names_of_files_and_of_version_5_in_memory_are_read(framework, version, tmp_path) -> None:
    model = randomized(encoder(1, learned_pos_embed=True))
    state = {}
    for name, tensor in written(model, framework).items():
        changes = dict(VERSION_5 if framework == "huggingface_vit" else list(VERSION_5.items())[1:5])
        for pattern, replacement in changes.items() if version == 5 else ():
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    assert any(".q_proj." in name for name in state) == (version == 5)
    torch.save(state, tmp_path / "model.pth")
    read = adpe.load_encoder(tmp_path / "model.pth", verbose=False, num_heads=2, norm_eps=1e-6).eval()
    assert torch.equal(read.forward_features(images()), model.forward_features(images()))


@pytest.mark.parametrize("layers", ["decoder_layers", "decoder_encoder.layer"])
def test_a_decoder_of_mae_goes_along_and_comes_back(layers, tmp_path) -> None:
    """transformers 5.24 saves the layers of a decoder under the second name."""
    model = autoencoder(1, mask_tokens="decoder")
    state, left_out = from_our_names(model.state_dict(), "huggingface_vitmae", 32)
    assert not left_out
    assert state["decoder.decoder_pos_embed"].shape == (1, 65, 16)
    assert state["decoder.decoder_layers.0.attention.attention.value.weight"].shape == (16, 16)
    renamed = {name.replace("decoder_layers", layers): tensor for name, tensor in state.items()}
    torch.save(renamed, tmp_path / "vitmae.pth")
    back = adpe.masked_autoencoder(encoder(2), **DECODER, mask_tokens="decoder")
    assert adpe.load_checkpoint(back, tmp_path / "vitmae.pth", verbose=False).coverage == 100.0
    assert same(back.state_dict(), model.state_dict())


def test_the_decoder_of_mae_plus_is_left_out() -> None:
    """Its mask token enters before the encoder, which ViTMAE's does not."""
    state, left_out = from_our_names(autoencoder(1).state_dict(), "huggingface_vitmae", 32)
    assert all(name.startswith("vit.") for name in state)
    assert {"mask_token", "decoder.embed.weight"} <= set(left_out)


@pytest.mark.parametrize(
    ("framework", "options", "said"),
    [
        ("huggingface_vit", {"position": "relative"}, "rel_pos_table"),
        ("huggingface_vit", {"init_values": 0.1}, "huggingface_dinov2"),
        ("huggingface_vitmae", {"class_token": False}, "cls_token"),
        ("huggingface_dinov2", {"num_class_tokens": 2, "learned_pos_embed": True}, "cls_token"),
        ("huggingface_dinov2", {"use_rel_pos_bias": True}, "relative_position_bias_table"),
        ("huggingface_vit", {"num_classes": 3}, "norm.weight"),
    ],
)
def test_what_they_cannot_hold_is_refused(framework, options, said) -> None:
    with pytest.raises(UserError, match=said):
        written(encoder(1, **options), framework)


@torch.no_grad()
def test_their_modules_compute_what_ours_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vit = {"intermediate_size": 128, "layer_norm_eps": 1e-6, **SIZES}
    model = randomized(encoder(1))
    adpe.save_checkpoint(prefixed(model), tmp_path / "encoder.safetensors", specification=specification_of(model))
    for framework in ("huggingface_vit", "huggingface_dinov2"):
        folder = adpe.save_pretrained(tmp_path / "encoder.safetensors", tmp_path / framework, framework=framework)
        theirs, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        assert {name for name in told["missing_keys"] if not name.startswith("pooler.")} == set()
        assert not told["unexpected_keys"]
        features = theirs.eval()(images()).last_hidden_state
        torch.testing.assert_close(features, model.forward_features(images()), rtol=1e-5, atol=1e-5)
    mae = randomized(autoencoder(3, mask_tokens="decoder", norm_pix_loss=False))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**vit, **decoder)).eval()
    folder = tmp_path / "mae"
    theirs.save_pretrained(folder)
    state, _ = from_our_names(mae.state_dict(), "huggingface_vitmae", 32)
    adpe.save_checkpoint(state, folder / "model.safetensors", {"format": "pt"})
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    losses = [theirs(images(), noise=noise).loss, mae(images(), noise)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
