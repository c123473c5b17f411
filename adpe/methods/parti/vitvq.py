"""ViT-VQGAN's tokenizer (arXiv 2110.04627): an autoencoder of patches with a codebook between its halves.

Images are pixels in [0, 1], without mean and deviation. There is no official code; the form with tanh in every MLP is
that of a public one, for parity. Discriminator and perceptual network need weights or an optimiser of their own, and
are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.parti.networks import Activation, VQBlock, VQTransformer, init_xavier
from adpe.methods.parti.quantizers import MovingQuantizer, Quantised, Quantizer, StraightThrough

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Codebook = Literal["gradient", "moving"]
EPS = 0.1  # of the logit-Laplace distribution, which is not defined at 0 and 1
LEAST_USED = 0.05  # share of the codes, over a pass


class ViTVQ(PretrainingMethod):
    """The tokenizer and its training; encoder and decoder have the same sizes.

    Args:
        img_size: pixels of a side.
        patch_size: pixels.
        dim: width D.
        depth: blocks of each half.
        num_heads: heads.
        head_dim: width of a head.
        mlp_dim: hidden width of the MLPs; 4 D if None.
        codes: K of the codebook.
        code_dim: c.
        codebook: "gradient" (published) or "moving" averages; None is the latter up to 1024 codes.
        beta: of the first, see :class:`adpe.methods.parti.quantizers.Quantizer`.
        straight_through: likewise.
        restart: of the second, see :class:`adpe.methods.parti.quantizers.MovingQuantizer`.
        mlp_activation: "gelu", or "tanh" (the public code).
        two_layer_head: behind encoder and decoder, as published.
        l1: weight of the absolute error.
        l2: of the squared one.
        laplace: of the logit-Laplace likelihood; with it the decoder predicts means and scales of logits.
        codebook_weight: of the codebook's loss.

    Attributes:
        used: ``(K,)`` how often each code occurred in this pass over the data; `last_used` in the one before.

    Raises:
        ValueError: for sizes that do not go together.
    """

    unit_pixels: ClassVar[bool] = True
    export_name: ClassVar[str] = "tokenizer.safetensors"
    used: Tensor
    last_used: Tensor
    number_of_pass: Tensor

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
        codebook: Codebook | None = None,
        beta: float = 0.25,
        straight_through: StraightThrough = "normalised",
        restart: float = 0.1,
        mlp_activation: Activation = "gelu",
        two_layer_head: bool = True,
        l1: float = 0.0,
        l2: float = 1.0,
        laplace: float = 0.0,
        codebook_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if img_size % patch_size or dim % 4 or codes < 2:
            raise ValueError(
                f"img_size={img_size} of patches of {patch_size}, dim={dim}, codes={codes}: expected whole patches, a "
                "multiple of 4, and at least 2."
            )
        if mlp_activation not in ("gelu", "tanh") or codebook not in (None, "gradient", "moving"):
            raise ValueError(f"mlp_activation={mlp_activation!r}, codebook={codebook!r}: unknown.")
        if min(l1, l2, laplace, codebook_weight) < 0 or l1 + l2 + laplace == 0:
            raise ValueError(f"l1={l1}, l2={l2}, laplace={laplace}: expected weights, one of them above 0.")
        hidden = 4 * dim if mlp_dim is None else mlp_dim
        self.patch_size, self.img_size = patch_size, img_size
        self.weights = {"l1": l1, "l2": l2, "laplace": laplace, "codebook": codebook_weight}
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        shape = (dim, depth, num_heads, head_dim, hidden, mlp_activation, two_layer_head)
        self.down_blocks = VQTransformer(*shape)
        self.down = nn.Linear(dim, code_dim)
        moving = codes <= 1024 if codebook is None else codebook == "moving"
        self.quantizer: Quantizer | MovingQuantizer = (
            MovingQuantizer(codes, code_dim, restart=restart, commitment_weight=beta)
            if moving
            else Quantizer(codes, code_dim, beta, True, straight_through)
        )
        self.up = nn.Linear(code_dim, dim)
        self.up_blocks = VQTransformer(*shape)
        self.to_pixels = nn.ConvTranspose2d(dim, 6 if laplace else 3, patch_size, stride=patch_size)
        self.register_buffer("used", torch.zeros(codes, dtype=torch.long))
        self.register_buffer("last_used", torch.zeros(codes, dtype=torch.long))
        self.register_buffer("number_of_pass", torch.zeros((), dtype=torch.long))
        for module in (self.down_blocks, self.up_blocks):
            module.apply(init_xavier)
        for convolution in (self.patch_embed, self.to_pixels):
            nn.init.xavier_uniform_(convolution.weight.flatten(1))
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> ViTVQ:
        """`model` is "vitvq": the tokenizer has no encoder of the suite."""
        if model != "vitvq":
            raise ValueError(f"model={model!r}: method='vitvq' has an encoder of its own, expected model='vitvq'.")
        if encoder_options:
            raise TypeError(f"the tokenizer has no option {', '.join(sorted(encoder_options))}.")
        return cls(**options)

    @property
    def vocabulary(self) -> int:
        """Codes."""
        return len(self.used)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches ``(h, w)``.

        Raises:
            UserError: for images that patches do not divide, or of other than three channels.
        """
        channels, height, width = images.shape[-3:]
        p = self.patch_size
        if height % p or width % p or channels != 3:
            raise UserError(
                f"images of {channels} x {height} x {width}: the tokenizer's patches of {p} pixels need 3 channels and "
                f"sides that {p} divides."
            )
        return height // p, width // p

    def latents(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to ``(B, L, c)``."""
        grid = self.grid(images)
        return self.down(self.down_blocks(self.patch_embed(images).flatten(2).transpose(1, 2), grid))

    def encode(self, images: Tensor) -> Quantised:
        """Codes, indices and the codebook's loss."""
        return self.quantizer(self.latents(images))

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """``(B, L)`` indices."""
        return self.encode(images).indices

    def decode_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes ``(B, L, c)`` to the decoder's output ``(B, 3 or 6, H, W)``; pixels are not clamped."""
        x = self.up_blocks(self.up(codes), grid)
        return self.to_pixels(x.transpose(1, 2).unflatten(2, grid))

    def decode(self, indices: Tensor, grid: tuple[int, int]) -> Tensor:
        """Indices ``(B, L)`` to pixels ``(B, 3, H, W)``, not clamped."""
        return self.picture(self.decode_codes(self.quantizer.lookup(indices), grid))

    def picture(self, output: Tensor) -> Tensor:
        """Pixels of the decoder's output."""
        if not self.weights["laplace"]:
            return output
        return (output[:, :3].float().sigmoid() - EPS) / (1 - 2 * EPS)

    def parts(self, images: Tensor) -> tuple[Tensor, Quantised, dict[str, Tensor]]:
        """Reconstruction, lookup, and the losses by the names of `weights`, before their weights."""
        found = self.encode(images)
        output = self.decode_codes(found.codes, self.grid(images))
        reconstruction = self.picture(output)
        error = reconstruction.float() - images
        parts = {"l1": error.abs().mean(), "l2": error.square().mean(), "codebook": found.loss}
        if self.weights["laplace"]:
            parts["laplace"] = logit_laplace(images, *output.float().chunk(2, dim=1)).mean()
        return reconstruction, found, parts

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        _, found, parts = self.parts(images)
        if self.training:
            self._count(found.indices, progress.epoch)
        losses = {f"loss_{name}": self.weights[name] * value for name, value in parts.items() if self.weights[name]}
        return {**losses, "error_l2": parts["l2"].detach()}

    @torch.no_grad()
    def _count(self, indices: Tensor, epoch: int) -> None:
        if int(self.number_of_pass) != epoch:
            self.last_used.copy_(self.used)
            self.used.zero_()
            self.number_of_pass.fill_(epoch)
        self.used.add_(torch.bincount(indices.flatten(), minlength=self.vocabulary))

    def forward(self, images: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)``."""
        _, _, parts = self.parts(images)
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()

    # The engine --------------------------------------------------------------------------------------------------

    def parameter_groups(self, lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
        """One group: everything decays, the codebook too, whose codes are free in length."""
        if options:
            raise TypeError(f"ViTVQ has no paramwise_cfg {', '.join(sorted(options))}.")
        return [{"name": "decay", "params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]

    def compiled(self) -> Iterable[nn.Module]:
        return [module for module in self.modules() if isinstance(module, VQBlock)]

    def usage(self) -> tuple[float, float]:
        """Share of the codes that occurred in the last whole pass, or in this one if it is the first; perplexity."""
        counts = (self.last_used if int(self.last_used.sum()) else self.used).double()
        shares = counts[counts > 0] / counts.sum().clamp(min=1)
        return len(shares) / self.vocabulary, math.exp(float(-(shares * shares.log()).sum()))

    def spread(self) -> float:
        """Of the codes, as unit vectors weighted by their use: 0 if all are alike, near 1 in random directions."""
        counts = (self.last_used if int(self.last_used.sum()) else self.used).double()
        table = F.normalize(self.quantizer.table().detach().double(), dim=-1)
        mean = (counts[:, None] * table).sum(dim=0) / counts.sum().clamp(min=1)
        return math.sqrt(max(1 - float(mean.square().sum()), 0.0))

    def collapse(self, progress: Progress) -> str | None:
        seen = int((self.last_used if int(self.last_used.sum()) else self.used).sum())
        share, perplexity = self.usage()
        if seen > 100 * self.vocabulary and share < LEAST_USED:
            return (
                f"{share:.1%} of the {self.vocabulary} codes occur, perplexity {perplexity:.1f}: set fewer "
                "model.codes, or model.codebook='moving'."
            )
        return None

    def scalars(self) -> dict[str, float]:
        share, perplexity = self.usage()
        return {"codes/used": share, "codes/perplexity": perplexity, "codes/spread": self.spread()}

    def exported(self) -> nn.Module:
        """The tokenizer: its blocks are not the suite's encoder, and it is no backbone."""
        return self

    def export(self, path: Path, specification: Any = None) -> None:
        from adpe.methods.targets.tokenizers import save_autoencoder

        save_autoencoder(path, self)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.latents(images)

    @property
    def title(self) -> str:
        return "ViT-VQ tokenizer"

    @torch.no_grad()
    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.figures import draw_images

        images = views[0][:, 0]
        tokens, grid = self.tokens(images), self.grid(images)
        rebuilt = self.decode(tokens, grid).float().clamp(0, 1)
        # Neighbouring codes are unrelated: every code has a random colour.
        colours = torch.rand(self.vocabulary, 3, generator=torch.Generator().manual_seed(0))[tokens.cpu()]
        codes = colours.transpose(1, 2).unflatten(2, grid).repeat_interleave(self.patch_size, 2)
        columns = {
            "image": images.float().cpu(), "reconstruction": rebuilt.cpu(),
            "error": (rebuilt - images).abs().clamp(0, 1).cpu(), "codes": codes.repeat_interleave(self.patch_size, 3),
        }  # fmt: skip
        share, perplexity = self.usage()
        return {"reconstructions": draw_images(columns, f"{share:.0%} of codes used, perplexity {perplexity:.0f}")}


def logit_laplace(images: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """Negative log-likelihood of pixels in [0, 1] (DALL-E, arXiv 2102.12092, appendix A.3).

    Of ``y = (1 - 2 eps) x + eps``, whose logit has a Laplace distribution of mean `mu` and scale ``exp(log_b)``; all of
    one shape.
    """
    y = (1 - 2 * EPS) * images + EPS
    return math.log(2) + log_b + (y * (1 - y)).log() + (torch.logit(y) - mu).abs() * (-log_b).exp()
