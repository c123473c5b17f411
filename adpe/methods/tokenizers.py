"""Tokenizers: images to integers, one for each patch, for methods that predict tokens.

A tokenizer is a frozen module with ``tokens(images) -> (B, L)``, `vocabulary` and `patch_size`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.methods.kmeans import nearest_centroid
from adpe.models.vit import VisionTransformer


class KMeansTokenizer(nn.Module):
    """The nearest of ``(V, D)`` centroids to every patch token of a frozen encoder, after its final norm.

    Args:
        encoder: of the suite.
        centroids: of k-means of its tokens.
    """

    centroids: Tensor

    def __init__(self, encoder: VisionTransformer, centroids: Tensor) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("centroids", centroids)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return len(self.centroids)

    @property
    def patch_size(self) -> int:
        """Pixels of a patch."""
        return self.encoder.patch_size

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """``(B, L)`` int64 of normalised images."""
        self.eval()
        found = patch_features(self.encoder, images)
        return nearest_centroid(found.flatten(0, 1), self.centroids).view(found.shape[:2])


@torch.no_grad()
def patch_features(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Patch tokens ``(B, L, D)`` float32 after the final norm."""
    return encoder.forward_features(images)[:, encoder.num_prefix_tokens :].float()


def save_centroids(path: str | Path, centroids: Tensor, **said: str) -> None:
    """Write the file that :func:`load_tokenizer` and SemMAE's parts read.

    Args:
        path: of the file.
        centroids: ``(K, D)``.
        said: ``encoder``, its path, and what else the file should say.
    """
    from safetensors.torch import save_file

    with atomic_write(Path(path)) as temporary:
        save_file({"centroids": centroids.contiguous().cpu()}, temporary, said)


def load_centroids(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """Centroids and what the file says.

    Raises:
        UserError: for a file that is none.
    """
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor("centroids"), dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no file of centroids ({error}): make it by tools/make_centroids.py.") from None


def load_tokenizer(path: str | Path) -> KMeansTokenizer:
    """The tokenizer of a file of ``tools/make_centroids.py``.

    Raises:
        UserError: for a file that is none, or whose encoder has another width.
    """
    from adpe.checkpoints.loading import load_encoder

    centroids, said = load_centroids(path)
    if "encoder" not in said:
        raise UserError(f"{path} does not say its encoder: make it by tools/make_centroids.py.")
    encoder = load_encoder(said["encoder"], verbose=False)
    if encoder.embed_dim != centroids.shape[1]:
        raise UserError(f"{path}: centroids of width {centroids.shape[1]}, {said['encoder']} has {encoder.embed_dim}.")
    return KMeansTokenizer(encoder, centroids)


def usage(tokens: Tensor, vocabulary: int) -> tuple[float, float]:
    """Share of the vocabulary that occurs, and the perplexity of the tokens."""
    counts = torch.bincount(tokens.flatten(), minlength=vocabulary).double()
    shares = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(float(-(shares * shares.log()).sum()))
