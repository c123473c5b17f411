"""Tokenizers: images to integers, one for each patch, for methods that predict tokens or mask by parts.

A tokenizer is a frozen module with ``tokens(images) -> (B, L)``, `vocabulary` and `patch_size`.
:func:`load_tokenizer` reads the files of ``tools/make_centroids.py``, and those that ``method="vitvq"`` exports.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.leaderboard.records import file_sha256
from adpe.methods.masks.part_attention import PartAttention
from adpe.methods.parti.vitvq import ViTVQ
from adpe.methods.targets.kmeans import nearest_centroid
from adpe.models.layers import Block
from adpe.models.vit import VisionTransformer

_TOOL = "tools/make_centroids.py"
_KEY = "adpe.tokenizer"  # of the file's metadata
# Of the codes of an autoencoder: the share that occurs, and how far they are from each other.
_LEAST_USED, _LEAST_SPREAD = 0.5, 0.05


class Tokenizer(nn.Module):
    """Tokens by a frozen encoder.

    Args:
        encoder: of the suite, or an autoencoder with a codebook.

    Attributes:
        origin: kind and hash of its file, vocabulary, and method and hash of the encoder, for records.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.origin: dict[str, str | int | float | None] = {}
        self.encoder = encoder.eval().requires_grad_(False)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        raise NotImplementedError

    @property
    def patch_size(self) -> int:
        """Pixels of a patch."""
        return cast(int, self.encoder.patch_size)

    def tokens(self, images: Tensor) -> Tensor:
        """``(B, L)`` int64 of normalised images."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Tokenizer:
        """Stays in evaluation mode, whatever contains it."""
        return super().train(False)


class KMeansTokenizer(Tokenizer):
    """The nearest of ``(V, D)`` centroids to every patch token of a frozen encoder, after its final norm.

    Args:
        encoder: of the suite.
        centroids: of k-means of its tokens.
    """

    centroids: Tensor
    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer, centroids: Tensor) -> None:
        super().__init__(encoder)
        self.register_buffer("centroids", centroids)

    @property
    def vocabulary(self) -> int:
        return len(self.centroids)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        # Distances in float32 whatever autocast says: tokens are the same in every precision of the training.
        with torch.autocast(images.device.type, enabled=False):
            found = patch_features(self.encoder, images.float())
            return nearest_centroid(found.flatten(0, 1), self.centroids).view(found.shape[:2])


class HeadTokenizer(Tokenizer):
    """The head of the last block whose attention from the class token, divided by its sum, is the largest there.

    Args:
        encoder: of the suite, with a class token.
    """

    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__(encoder)
        if encoder.cls_token is None or encoder.needs_grid or encoder.relative:
            raise UserError("parts by heads: expected an encoder with a class token and absolute positions.")

    @property
    def vocabulary(self) -> int:
        return self.encoder.num_heads

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        encoder, last = self.encoder, cast(Block, self.encoder.blocks[-1])
        with torch.autocast(images.device.type, enabled=False):
            x, _ = encoder.embed(images.float())
            for block in encoder.blocks[:-1]:
                x = block(x)
            terms = last.attn.terms(last.norm1(x))
            weights = (terms.q[:, :, :1] @ terms.k.transpose(2, 3)).softmax(dim=-1)  # (B, H, 1, N)
            own = weights[:, :, 0, encoder.num_prefix_tokens :]
            return (own / own.sum(dim=-1, keepdim=True)).argmax(dim=1)


class AttentionTokenizer(Tokenizer):
    """The part whose map, of :class:`adpe.methods.masks.part_attention.PartAttention`, is the largest there.

    Args:
        encoder: of the suite, with one class token.
        attention: trained on its tokens.
    """

    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer, attention: PartAttention) -> None:
        super().__init__(encoder)
        self.attention = attention.eval().requires_grad_(False)

    @property
    def vocabulary(self) -> int:
        return self.attention.count

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.attention(self.encoder.forward_features(images.float())).argmax(dim=1)


class CodebookTokenizer(Tokenizer):
    """Codes of a trained :class:`adpe.methods.parti.vitvq.ViTVQ`, whose pixels have neither mean nor deviation.

    Args:
        encoder: the autoencoder.
    """

    encoder: ViTVQ
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ViTVQ) -> None:
        super().__init__(encoder)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def vocabulary(self) -> int:
        return self.encoder.vocabulary

    def tokens(self, images: Tensor) -> Tensor:
        return self.tokens_of_pixels(images.float() * self.std + self.mean)

    def tokens_of_pixels(self, images: Tensor) -> Tensor:
        """``(B, L)`` int64 of pixels in [0, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder.tokens(images.float())

    @torch.no_grad()
    def pictures(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [0, 1] of tokens ``(B, L)``."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.encoder.decode(tokens, grid).clamp(0, 1)


@torch.no_grad()
def patch_features(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Patch tokens ``(B, L, D)`` float32 after the final norm."""
    return encoder.forward_features(images)[:, encoder.num_prefix_tokens :].float()


def save_tokenizer(path: str | Path, tokenizer: Tokenizer, encoder: str | Path) -> None:
    """Write the file that :func:`load_tokenizer` reads.

    Args:
        path: of the file.
        tokenizer: whose encoder is not in the file.
        encoder: path of that encoder; its hash is written too.
    """
    from safetensors.torch import save_file

    kind = next(name for name, cls in _KINDS.items() if type(tokenizer) is cls)
    tensors = {n: t.contiguous().cpu() for n, t in tokenizer.state_dict().items() if not n.startswith("encoder.")}
    said = {"kind": kind, "encoder": str(Path(encoder).resolve()), "encoder_sha256": file_sha256(encoder)}
    with atomic_write(Path(path)) as temporary:
        # One entry: safetensors keeps no order of several, and equal files should have equal hashes.
        save_file(tensors, temporary, {_KEY: json.dumps(said, sort_keys=True)})


def save_autoencoder(path: str | Path, model: ViTVQ) -> None:
    """Write the file that :func:`load_tokenizer` reads: weights, options, and how many of the codes occurred."""
    from safetensors.torch import save_file

    share, perplexity = model.usage()
    said = {"kind": "vitvq", "options": model.options, "used": share, "perplexity": perplexity}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_write(Path(path)) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(said, sort_keys=True)})


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file of ``tools/make_centroids.py``, or exported by ``method="vitvq"``.

    Raises:
        UserError: for a file that is none, or whose encoder is missing, another than it was made from, of another width
            or trained on pixels normalised in another way; for a codebook of which less than half is used.
    """
    from adpe.checkpoints.loading import describe_encoder, load_encoder

    try:
        with safe_open(path, "pt") as opened:
            said = json.loads((opened.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is no file of tokens or parts ({error}): make it by {_TOOL}.") from None
    if isinstance(said, dict) and said.get("kind") == "vitvq":
        return _load_autoencoder(path, said, tensors)
    if not isinstance(said, dict) or said.get("kind") not in _KINDS or not {"encoder", "encoder_sha256"} <= said.keys():
        raise UserError(f"{path} does not say its kind and its encoder: make it by {_TOOL}.")
    source = said["encoder"]
    if not Path(source).is_file():
        raise UserError(
            f"{path} was made from the encoder {source}, which does not exist: put it back, or run {_TOOL}."
        )
    if file_sha256(source) != said["encoder_sha256"]:
        raise UserError(f"{path} was made from another file than {source} is now: run {_TOOL} again.")
    described = describe_encoder(source).specification
    own = tuple(map(tuple, (described.mean or IMAGENET_MEAN, described.std or IMAGENET_STD)))
    if own != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(f"{source}: trained on mean and std {own}, expected those of ImageNet, which crops here have.")
    tokenizer = _build(said["kind"], load_encoder(source, verbose=False), tensors, path)
    tokenizer.origin = {
        "kind": said["kind"], "vocabulary": tokenizer.vocabulary, "file_sha256": file_sha256(path),
        "encoder_method": described.method, "encoder_sha256": said["encoder_sha256"],
    }  # fmt: skip
    return tokenizer


def _load_autoencoder(path: str | Path, said: dict, tensors: dict[str, Tensor]) -> CodebookTokenizer:
    try:
        model = ViTVQ(**said["options"])
        model.load_state_dict(tensors)
        share = float(said["used"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no whole tokenizer ({str(error)[:300]}): export it again.") from None
    if not share >= _LEAST_USED:
        raise UserError(
            f"{path}: {share:.1%} of its {model.vocabulary} codes were used in its last pass, expected at least "
            f"{_LEAST_USED:.0%}: train a tokenizer of fewer model.codes, or with model.codebook='moving'."
        )
    if model.spread() < _LEAST_SPREAD:
        raise UserError(
            f"{path}: its codes are alike (spread {model.spread():.3f}), so that they tell nothing: train on."
        )
    tokenizer = CodebookTokenizer(model)
    tokenizer.origin = {
        "kind": "vitvq", "vocabulary": tokenizer.vocabulary, "file_sha256": file_sha256(path), "used": share,
        "perplexity": said.get("perplexity"),
    }  # fmt: skip
    return tokenizer


def _build(kind: str, encoder: VisionTransformer, tensors: dict[str, Tensor], path: str | Path) -> Tokenizer:
    if kind == "heads":
        return HeadTokenizer(encoder)
    width = encoder.embed_dim
    if kind == "kmeans":
        centroids = tensors.get("centroids", torch.empty(0))
        if centroids.ndim != 2 or len(centroids) < 2 or centroids.shape[1] != width:
            raise UserError(
                f"{path}: centroids {tuple(centroids.shape)}, expected (K, {width}), as the encoder's width."
            )
        return KMeansTokenizer(encoder, centroids.float())
    count = len(tensors.get("attention.token.bias", ())) // width
    attention = PartAttention(width, max(count, 1), encoder.patch_embed.proj.in_channels * encoder.patch_size**2)
    try:
        attention.load_state_dict({name.removeprefix("attention."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: attention of another encoder's width {width} or patches ({error}).") from None
    return AttentionTokenizer(encoder, attention)


_KINDS = {"kmeans": KMeansTokenizer, "heads": HeadTokenizer, "attention": AttentionTokenizer}


def usage(tokens: Tensor, vocabulary: int) -> tuple[float, float]:
    """Share of the vocabulary that occurs, and the perplexity of the tokens."""
    counts = torch.bincount(tokens.flatten(), minlength=vocabulary).double()
    shares = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(float(-(shares * shares.log()).sum()))
