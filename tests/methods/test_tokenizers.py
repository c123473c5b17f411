"""Files of tokens and parts: what the tool writes and refuses, and what is read back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_encoders import small_encoder, tokenizer_file
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from adpe.checkpoints.loading import load_encoder
from adpe.errors import UserError
from adpe.methods.masks.part_attention import train_parts
from adpe.methods.targets.kmeans import kmeans, nearest_centroid
from adpe.methods.targets.tokenizers import load_tokenizer, patch_features, usage
from adpe.viz.attention_maps import attention_maps
from tools import make_centroids


def folder_of_images(folder: Path, count: int = 12) -> Path:
    """Images of two flat halves and a little noise."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = np.zeros((32, 40, 3))
        pixels[:16], pixels[16:] = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        (folder / "images").mkdir(exist_ok=True)
        noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "images" / f"{i}.png")
    return folder / "images"


def make(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["make_centroids.py", *map(str, arguments)])
    return make_centroids.main()


@pytest.mark.parametrize("kind", ["kmeans", "heads", "attention"])
def test_the_tool_writes_what_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder, images = small_encoder(tmp_path), folder_of_images(tmp_path)
    out = tmp_path / "parts.safetensors"
    count = [] if kind == "heads" else ["--count", 3]
    options = ["--kind", kind, *count, "--out", out, "--steps", 60, "--restarts", 2]
    assert make(monkeypatch, encoder, images, *options) == 0
    first = out.read_bytes()
    assert make(monkeypatch, encoder, images, *options) == 0
    assert out.read_bytes() == first
    tokenizer = load_tokenizer(out)
    tokens = tokenizer.tokens(torch.randn(2, 3, 32, 48))
    assert tokens.shape == (2, 96) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < 3 == tokenizer.vocabulary
    assert (tokenizer.origin["kind"], tokenizer.origin["vocabulary"]) == (kind, 3)


@pytest.mark.parametrize(
    "options",
    [["--count", 1], [], ["--kind", "heads", "--count", 3], ["--count", 3, "--iterations", 0], ["--count", 5000]],
)
def test_the_tool_refuses(options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "parts.safetensors"
    assert make(monkeypatch, small_encoder(tmp_path), folder_of_images(tmp_path), "--out", out, *options) == 2
    assert not out.exists()


def test_heads_are_those_of_the_attention_maps(tmp_path: Path):
    tokenizer = load_tokenizer(tokenizer_file(tmp_path, None))
    images = torch.randn(3, 3, 32, 32)
    maps = attention_maps(tokenizer.encoder, images)[-1].flatten(2)
    expected = (maps / maps.sum(-1, keepdim=True)).argmax(1)
    assert (tokenizer.tokens(images) == expected).float().mean() > 0.99
    assert tokenizer.vocabulary == 3


def test_kmeans_refills_empty_clusters_and_refuses_nan():
    torch.manual_seed(0)
    points = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 20])
    start = torch.tensor([[0.0, 0.0], [500.0, 0.0], [600.0, 0.0]])
    centroids = kmeans(points, start)
    assert len(nearest_centroid(points, centroids).unique()) == 3
    points[3, 1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        kmeans(points, start)
    with pytest.raises(ValueError, match="2 points for 3"):
        kmeans(points[:2], start)


def test_usage_by_hand():
    share, perplexity = usage(torch.tensor([[0, 0, 1, 1], [3, 3, 3, 3]]), 8)
    assert share == 3 / 8
    assert perplexity == pytest.approx(2 ** (2 * 0.25 * 2 + 0.5))


def test_part_attention_tells_halves_apart(tmp_path: Path):
    """Trained on flat halves of different colours; the maps of two parts overlap less than at the start."""
    encoder = load_encoder(small_encoder(tmp_path), verbose=False).eval()
    torch.manual_seed(0)
    images = torch.randn(32, 3, 2, 1).repeat_interleave(16, 2).repeat_interleave(32, 3)
    with torch.no_grad():
        tokens = encoder.forward_features(images)
    losses = [train_parts(tokens, images, 4, 2, steps).loss(tokens, images, 4, (8, 8)).item() for steps in (1, 200)]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("fault", ["text", "kind", "moved", "changed", "width", "mean"])
def test_files_that_do_not_fit_are_refused(fault: str, tmp_path: Path):
    path = tokenizer_file(tmp_path, 5, **({"mean": (0.5,) * 3, "std": (0.5,) * 3} if fault == "mean" else {}))
    encoder = tmp_path / "frozen.safetensors"
    key = {"moved": encoder.name, "changed": encoder.name, "width": "24", "mean": "0.5"}.get(fault, path.name)
    if fault == "text":
        path.write_text("tokens")
    elif fault in ("kind", "width"):
        with safe_open(path, "pt") as opened:
            said = {
                n: t.replace("kmeans", "fuzzy" if fault == "kind" else "kmeans") for n, t in opened.metadata().items()
            }
        save_file({"centroids": torch.rand(5, 24 if fault == "kind" else 12)}, path, said)
    elif fault == "moved":
        encoder.unlink()
    elif fault == "changed":
        encoder.write_bytes(encoder.read_bytes() + b" ")
    with pytest.raises(UserError, match=key):
        load_tokenizer(path)


def test_features_are_the_patches_after_the_final_norm(tmp_path: Path):
    encoder = load_encoder(small_encoder(tmp_path), verbose=False).eval()
    images = torch.randn(2, 3, 32, 32)
    features = patch_features(encoder, images)
    assert torch.equal(features, encoder.forward_features(images)[:, 1:].detach())
    assert features.shape == (2, 64, 24)
