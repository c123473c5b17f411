"""ViT-VQGAN's tokenizer (arXiv 2110.04627): an autoencoder of patches with a codebook between its halves.

Images are pixels in [0, 1], without mean and deviation. There is no official code; the form with tanh in every MLP is
that of a public one, for parity. Discriminator and perceptual network need weights or an optimiser of their own, and are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.quantizers import Quantised, Quantizer
from adpe.models.pos_embed import sincos_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Activation = Literal["gelu", "tanh"]


class VQAttention(nn.Module):
    """Attention without biases of queries, keys and values; the width of a head is an option of its own."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VQBlock(nn.Module):
    """Pre-norm block, LayerNorm eps 1e-5."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = VQAttention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = self.fc1(self.norm2(x))
        return x + self.fc2(hidden.tanh() if self.activation == "tanh" else F.gelu(hidden))


class VQTransformer(nn.Module):
    """Positions, blocks, norm; with ``two_layer_head`` two linear layers with tanh between behind it, as published."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, head_dim: int, hidden: int, activation: Activation,
        two_layer_head: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(VQBlock(dim, num_heads, head_dim, hidden, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim)) if two_layer_head else None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + sincos_table(*grid, x.shape[-1], x.dtype, x.device, 0)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if self.head is None else self.head(x)


class ViTVQ(PretrainingMethod):
    """The tokenizer and its training; encoder and decoder have the same sizes.

    Args:
        img_size: pixels of a side.
        patch_size: pixels.
        dim: width D.
        depth: blocks of each half.
        num_heads: heads.
        head_dim: width of a head.
        mlp_dim: hidden width of the MLPs.
        codes: K of the codebook.
        code_dim: c.
        beta: see :class:`adpe.methods.quantizers.Quantizer`.
        straight_through: likewise.
        mlp_activation: "gelu", or "tanh" (the public code).
        two_layer_head: of the published form.
        l1: weight of the absolute error.
        l2: of the squared one.
        codebook_weight: of the codebook's loss.

    Raises:
        ValueError: for sizes that do not go together.
    """

    unit_pixels: ClassVar[bool] = True
    export_name: ClassVar[str] = "tokenizer.safetensors"

    def __init__(
        self,
        img_size: int = 256,
        patch_size: int = 8,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int | None = None,
        codes: int = 8192,
        code_dim: int = 32,
        beta: float = 0.25,
        straight_through: Any = "normalised",
        mlp_activation: Activation = "gelu",
        two_layer_head: bool = True,
        l1: float = 0.0,
        l2: float = 1.0,
        codebook_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if img_size % patch_size or dim % 4 or mlp_activation not in ("gelu", "tanh"):
            raise ValueError(f"img_size={img_size}, patch_size={patch_size}, dim={dim}, {mlp_activation=}.")
        hidden = 4 * dim if mlp_dim is None else mlp_dim
        self.patch_size, self.img_size, self.weights = patch_size, img_size, (l1, l2, codebook_weight)
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        shape = (dim, depth, num_heads, head_dim, hidden, mlp_activation, two_layer_head)
        self.down_blocks = VQTransformer(*shape)  # type: ignore[arg-type]
        self.down = nn.Linear(dim, code_dim)
        self.quantizer = Quantizer(codes, code_dim, beta, True, straight_through)
        self.up = nn.Linear(code_dim, dim)
        self.up_blocks = VQTransformer(*shape)  # type: ignore[arg-type]
        self.to_pixels = nn.ConvTranspose2d(dim, 3, patch_size, stride=patch_size)
        self.register_buffer("used", torch.zeros(codes, dtype=torch.long))
        for module in (self.down_blocks, self.up_blocks):
            module.apply(_init)
        for convolution in (self.patch_embed, self.to_pixels):
            nn.init.xavier_uniform_(convolution.weight.flatten(1))
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> ViTVQ:
        """`model` is "vitvq": the tokenizer is no encoder of the suite."""
        if encoder_options.keys() - {"img_size"}:
            raise TypeError(f"the tokenizer has no option {', '.join(sorted(encoder_options.keys() - {'img_size'}))}.")
        return cls(**{**encoder_options, **options})

    used: Tensor

    @property
    def vocabulary(self) -> int:
        """Codes."""
        return self.quantizer.embedding.num_embeddings

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches ``(h, w)``.

        Raises:
            ValueError: for images that patches do not divide.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {height} x {width} pixels and patches of {self.patch_size}.")
        return height // self.patch_size, width // self.patch_size

    def latents(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to ``(B, L, c)``."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        return self.down(self.down_blocks(x, self.grid(images)))

    def encode(self, images: Tensor) -> Quantised:
        """Codes, indices and the codebook's loss."""
        return self.quantizer(self.latents(images))

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """``(B, L)`` indices."""
        return self.encode(images).indices

    def decode_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes ``(B, L, c)`` to pixels ``(B, 3, H, W)``, not clamped."""
        x = self.up_blocks(self.up(codes), grid)
        return self.to_pixels(x.transpose(1, 2).unflatten(2, grid))

    def decode(self, indices: Tensor, grid: tuple[int, int]) -> Tensor:
        """Indices ``(B, L)`` to pixels."""
        return self.decode_codes(self.quantizer.lookup(indices), grid)

    def parts(self, images: Tensor) -> tuple[Tensor, Quantised, dict[str, Tensor]]:
        """Reconstruction, lookup, and the losses ``l1``, ``l2`` and ``codebook`` before their weights."""
        found = self.encode(images)
        reconstruction = self.decode_codes(found.codes, self.grid(images))
        error = reconstruction - images
        return reconstruction, found, {"l1": error.abs().mean(), "l2": error.square().mean(), "codebook": found.loss}

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        _, found, parts = self.parts(images)
        self.used.add_(torch.bincount(found.indices.flatten(), minlength=self.vocabulary))
        return {f"loss_{name}": w * parts[name] for w, name in zip(self.weights, ("l1", "l2", "codebook"), strict=True)}

    def forward(self, images: Tensor) -> Tensor:
        """The loss."""
        _, _, parts = self.parts(images)
        return sum(
            (w * parts[n] for w, n in zip(self.weights, ("l1", "l2", "codebook"), strict=True)),
            start=images.new_zeros(()),
        )

    def parameter_groups(self, lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
        """One group: everything decays, the codebook too, whose codes are free in length."""
        if options:
            raise TypeError(f"ViTVQ has no paramwise_cfg {', '.join(sorted(options))}.")
        return [{"name": "decay", "params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    def collapse(self, progress: Progress) -> str | None:
        if int(self.used.sum()) > 100 * self.vocabulary and float((self.used > 0).double().mean()) < 0.05:
            return f"under 5 % of the {self.vocabulary} codes are used: take fewer, or a moving codebook."
        return None

    def scalars(self) -> dict[str, float]:
        return {"codes/used": float((self.used > 0).double().mean())}

    def exported(self) -> nn.Module:
        """The tokenizer: its blocks are not the suite's encoder, and it is no backbone."""
        return self

    def forward_features(self, images: Tensor) -> Tensor:
        return self.latents(images)

    @property
    def title(self) -> str:
        return "ViT-VQ tokenizer"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        with torch.no_grad():
            tokens = self.tokens(images)
            rebuilt = self.decode(tokens, self.grid(images)).clamp(0, 1)
        both = torch.stack([images[:3], rebuilt[:3]], dim=1).flatten(0, 1)
        codes = tokens[:3].repeat_interleave(2, dim=0).float()
        zero, one = (0.0,) * 3, (1.0,) * 3
        return {"reconstructions": draw_patch_maps(both, {"codes": codes}, self.grid(images), zero, one)}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
