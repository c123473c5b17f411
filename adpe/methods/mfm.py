"""MFM (arXiv 2206.07706): remove spatial frequencies of an image, predict the image, compare the spectra there.

The encoder sees every patch of the damaged image and no mask token; a linear head predicts pixels. The restoration
tasks of the same paper (super-resolution, deblurring, denoising) share encoder, head and recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.errors import require
from adpe.methods.base import PretrainingMethod, Progress, decay_groups
from adpe.methods.targets.spectra import (
    Reduction,
    blur,
    blur_kernel,
    down_and_up,
    filter_frequencies,
    low_pass_filter,
    removed_mean,
    spectrum_distance,
)
from adpe.models.factory import create_encoder
from adpe.models.layers import Block, LayerNorm
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = Literal["mfm", "sr", "deblur", "denoise"]
BLUR_SIGMA, BLUR_SIZES = 5.0, range(7, 22, 2)
NOISE = 75 / 255


class PixelHead(nn.Module):
    """Tokens to pixels: optionally a transformer, then a 1x1 convolution and a pixel shuffle.

    Args:
        dim: width D of the encoder.
        stride: pixels along a side that a token predicts.
        tokens: places of the encoder, the class token included, for the transformer's learned positions.
        depth: blocks of the transformer; 0 has none.
        embed_dim: its width.
        num_heads: its heads.
    """

    def __init__(self, dim: int, stride: int, tokens: int, depth: int, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        width = embed_dim if depth else dim
        self.embed = nn.Linear(dim, width) if depth else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width)) if depth else None
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = LayerNorm(width) if depth else nn.Identity()
        self.pred = nn.Conv2d(width, 3 * stride**2, 1)
        self.shuffle = nn.PixelShuffle(stride)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens ``(B, 1 + L, D)``, class token first, to pixels ``(B, 3, H, W)``."""
        if self.embed is not None:
            assert self.pos_embed is not None
            tokens = self.embed(tokens) + self.pos_embed
            for block in self.blocks:
                tokens = block(tokens)
        patches = self.norm(tokens)[:, 1:]
        return self.shuffle(self.pred(patches.transpose(1, 2).unflatten(2, grid)))


class MFM(PretrainingMethod):
    """Masked frequency modelling, or a restoration task.

    Args:
        encoder: a :class:`VisionTransformer` without classes, or a network of timm with `forward_features` to a map.
        task: "mfm", "sr", "deblur" or "denoise".
        radius: of the disc of low frequencies; None is 16 at 224 pixels, in proportion to the crop.
        outer_radius: end of the band that is removed; None removes all beyond `radius`.
        low_pass_probability: of keeping the disc instead of the rest, drawn per image (0.5 for ViT, 0.3 for ResNet-50).
        gamma: power of the spectral distance.
        reduction: "batch" (published) or "image"; see :func:`removed_mean`.
        all_frequencies: compare everywhere, not only where frequencies were removed; always so for restoration.
        sr_factor: of the task "sr".
        decoder_depth: blocks of a transformer between encoder and head; 0 has none (published).
        decoder_embed_dim: its width.
        decoder_num_heads: its heads.

    Raises:
        ValueError: for an unknown task, or a radius of at least half the crop.
    """

    unit_pixels: ClassVar[bool] = True
    mean: Tensor
    std: Tensor
    own_normalisation: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        encoder: nn.Module,
        task: Task = "mfm",
        radius: float | None = None,
        outer_radius: float | None = None,
        low_pass_probability: float = 0.5,
        gamma: float = 1.0,
        reduction: Reduction = "batch",
        all_frequencies: bool = False,
        sr_factor: int = 8,
        decoder_depth: int = 0,
        decoder_embed_dim: int = 512,
        decoder_num_heads: int = 16,
    ) -> None:
        super().__init__()
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}; got {task!r}.")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be batch or image; got {reduction!r}.")
        if not 0 <= low_pass_probability <= 1:
            raise ValueError(f"low_pass_probability must lie in 0..1; got {low_pass_probability}.")
        self.encoder = encoder
        self.task, self.gamma, self.reduction = task, gamma, reduction
        self.radius, self.outer_radius = radius, outer_radius
        self.low_pass_probability, self.sr_factor = low_pass_probability, sr_factor
        self.all_frequencies = all_frequencies or task != "mfm"
        if isinstance(encoder, VisionTransformer):
            tokens = 1 + (encoder.img_size[0] // encoder.patch_size) * (encoder.img_size[1] // encoder.patch_size)
            if encoder.cls_token is None or encoder.num_classes:
                raise ValueError("MFM needs an encoder with a class token and without classes: set num_classes=0.")
            self.stride, dim = encoder.patch_size, encoder.embed_dim
        elif decoder_depth:
            raise ValueError(f"decoder_depth={decoder_depth} needs a vision transformer.")
        else:
            info: Any = encoder.feature_info
            self.stride, dim, tokens = info[-1]["reduction"], encoder.num_features, 0  # type: ignore[assignment]
        self.head = PixelHead(dim, self.stride, tokens, decoder_depth, decoder_embed_dim, decoder_num_heads)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.reset_parameters()

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> MFM:
        if model.startswith("adpe_"):
            return cls(create_encoder(model, **{"learned_pos_embed": True, **encoder_options}), **options)
        require("timm", "requirements/runtime.txt")
        import timm

        return cls(timm.create_model(model, num_classes=0, global_pool="", **encoder_options), **options)

    def reset_parameters(self) -> None:
        """The reference's initialisation of a ViT: normal of 0.02 cut at one deviation, residual branches scaled down.

        Networks of timm, and the 1x1 head, keep their own.
        """
        if not isinstance(self.encoder, VisionTransformer):
            return
        for module in [*self.encoder.modules(), *self.head.blocks.modules()]:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for tensor in (self.encoder.pos_embed, self.encoder.cls_token, self.head.pos_embed):
            if tensor is not None:
                nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
        with torch.no_grad():
            for index, block in enumerate(self.encoder.blocks, start=1):
                for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                    layer.weight.div_((2 * index) ** 0.5)  # type: ignore[union-attr, operator]

    # The objective -----------------------------------------------------------------------------------------------

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        return {"loss": self(views[0].flatten(0, 1))}

    def forward(self, images: Tensor, low_pass: Tensor | None = None) -> Tensor:
        """The loss of images ``(B, 3, S, S)``, pixels in [0, 1].

        Args:
            images: square.
            low_pass: ``(B,)`` bool, whether low frequencies are kept; drawn if None.
        """
        damaged, kept = self.damage(images, low_pass)
        return self.compare(self.predict(damaged), self.normalize(images), kept)

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] to ImageNet's mean and deviation."""
        return (images - self.mean) / self.std

    def filters(self, images: Tensor, low_pass: Tensor | None = None) -> Tensor:
        """The frequencies kept of each image, ``(B, S, S)`` bool, in shifted order.

        Raises:
            ValueError: for images that are not square, or a radius of at least half their size.
        """
        size = images.shape[-1]
        radius = 16 * size / 224 if self.radius is None else self.radius
        if images.shape[-2] != size or not 0 < radius < size / 2:
            raise ValueError(
                f"radius={radius:g} on images of {tuple(images.shape[-2:])}: expected a square, below half."
            )
        if low_pass is None:
            low_pass = torch.rand(len(images), device=images.device) < self.low_pass_probability
        disc = low_pass_filter(size, radius, self.outer_radius, images.device)
        return torch.where(low_pass.bool().view(-1, 1, 1), disc, ~disc)

    def damage(self, images: Tensor, low_pass: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the encoder sees, normalised ``(B, 3, S, S)``, and the frequencies kept (None for restoration)."""
        images = images.float()
        kept = None
        if self.task == "mfm":
            kept = self.filters(images, low_pass)
            images = filter_frequencies(images, kept).clamp(0, 1)
        elif self.task == "sr":
            images = down_and_up(images, self.sr_factor)
        elif self.task == "deblur":
            chosen = torch.randint(len(BLUR_SIZES), (len(images),)).tolist()
            images = blur(images, [blur_kernel("iso", BLUR_SIZES[i], BLUR_SIGMA, BLUR_SIGMA) for i in chosen])
        else:
            images = images + NOISE * torch.randn_like(images)
        return self.normalize(images), kept

    def predict(self, damaged: Tensor) -> Tensor:
        """Pixels in normalised units, ``(B, 3, S, S)``, from normalised damaged images."""
        features = self.encoder.forward_features(damaged)
        if features.ndim == 4:
            return self.head.shuffle(self.head.pred(features))
        return self.head(features, self.encoder.patch_embed.grid(damaged))

    def compare(self, prediction: Tensor, target: Tensor, kept: Tensor | None) -> Tensor:
        """The loss: spectral distance over the removed frequencies, or over all of them."""
        distance = spectrum_distance(prediction, target, self.gamma)
        if self.all_frequencies or kept is None:
            return distance.mean()
        return removed_mean(distance, kept, self.reduction)

    def parameter_groups(self, lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
        """MAE's groups, with the learned positions and the class token among those without decay."""
        if options:
            return super().parameter_groups(lr, weight_decay, **options)
        exempt = {n: p for n, p in self.named_parameters() if n.rpartition(".")[2] in ("pos_embed", "cls_token")}
        groups = decay_groups(self, lr, weight_decay, without=exempt)
        groups[1]["params"] += list(exempt.values())
        return groups

    # What people look at -----------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "MFM" if self.task == "mfm" else f"MFM {self.task}"

    @torch.no_grad()
    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.figures import draw_images

        images = views[0][:, 0]
        low_pass = torch.arange(len(images), device=images.device) % 2 == 0
        damaged, _ = self.damage(images, low_pass)
        prediction = self.predict(damaged)
        normalized = {"image": self.normalize(images), "damaged": damaged, "predicted": prediction}
        columns = {
            name: (values.float() * self.std + self.mean).clamp(0, 1).cpu() for name, values in normalized.items()
        }
        title = "low and high frequencies kept, in turn" if self.task == "mfm" else self.title
        return {"predictions": draw_images(columns, title)}
