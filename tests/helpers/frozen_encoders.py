"""Files of tokens and parts from small random encoders."""

from __future__ import annotations

from pathlib import Path

import torch

from adpe.checkpoints.loading import save_checkpoint
from adpe.methods.targets.kmeans import kmeans, random_points
from adpe.methods.targets.tokenizers import HeadTokenizer, KMeansTokenizer, Tokenizer, patch_features, save_tokenizer
from adpe.models.specification import specification_of
from adpe.models.vit import VisionTransformer


def small_encoder(folder: Path, patch_size: int = 4, **said) -> Path:
    """An encoder of random weights, with what it says of itself: the path."""
    torch.manual_seed(7)
    encoder = VisionTransformer(32, patch_size, embed_dim=24, depth=2, num_heads=3)
    path = folder / "frozen.safetensors"
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_checkpoint(state, path, specification=specification_of(encoder, (32, 32), method="MAE", **said))
    return path


def tokenizer_file(folder: Path, count: int | None = 5, **options) -> Path:
    """k-means of `count` centroids on random images, or the encoder's heads for None: the path."""
    from adpe.checkpoints.loading import load_encoder

    encoder = small_encoder(folder, **options)
    frozen = load_encoder(encoder, verbose=False).eval()
    tokenizer: Tokenizer = HeadTokenizer(frozen)
    if count:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 3, 32, 32, generator=generator)
        points = patch_features(frozen, images).flatten(0, 1)
        tokenizer = KMeansTokenizer(frozen, kmeans(points, random_points(points, count, generator), 10))
    save_tokenizer(folder / "tokens.safetensors", tokenizer, encoder)
    return folder / "tokens.safetensors"
