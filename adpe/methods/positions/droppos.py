"""DropPos (arXiv 2309.03576): hide most patches, drop the positions of most of the others, and classify them.

The encoder sees a quarter of the patches, of which a quarter keep their position; a small decoder without positions
tells the place of each of the rest among all places, from appearance and context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.mae import Decoder
from adpe.methods.masks.masking import Mask, rank_mask
from adpe.methods.targets.pixels import normalize_patches, patchify
from adpe.models.layers import Block, LayerNorm, init_linear, run_blocks
from adpe.models.pos_embed import grid_coordinates, sincos_table
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dropped = Literal["param", "zeros", "wrong_pos"]
Smoothing = Literal["row", "reference"]

_TEMPERATURE = 0.1
# Largest deviation over patches of scores that are constant but for rounding.
_CONSTANT = 1e-5


class Draw(NamedTuple):
    """Which patches are seen, and which of them without their positions.

    Attributes:
        mask: of the patches.
        dropped: ``(B, K)`` bool, in the order of the visible patches.
        dropped_order: ``(B, K)`` the visible patches by their position noise: those that keep their position first.
        kept: how many keep it.
    """

    mask: Mask
    dropped: Tensor
    dropped_order: Tensor
    kept: int


class PlaceDecoder(nn.Module):
    """Linear, blocks without positions, norm, linear to one class for each place.

    Args:
        encoder_dim: D.
        places: classes L.
        embed_dim: its width.
        depth: blocks.
        num_heads: heads.
    """

    def __init__(self, encoder_dim: int, places: int, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, places)
        self.apply(init_linear)

    def forward(self, tokens: Tensor, grad_checkpointing: bool = False) -> Tensor:
        """Tokens ``(B, 1 + K, D)``, class token first, to scores ``(B, K, L)``."""
        x = run_blocks(self.blocks, self.embed(tokens), [None] * len(self.blocks), grad_checkpointing)
        return self.pred(self.norm(x))[:, 1:]


class DropPos(PretrainingMethod):
    """Classification of dropped positions.

    Args:
        encoder: a :class:`VisionTransformer` with a class token and absolute positions; crops have its `img_size`.
        mask_ratio: share of the patches that is hidden.
        pos_mask_ratio: share of the visible patches whose position is dropped.
        sigma: smoothing of the target at the start, in patches; it falls to 0 linearly over the epochs. 0 has none.
        smoothing: "row" divides the target of a place by its sum; "reference" by the sum of the class's row, so that
            targets near a border do not add up to 1.
        attn_guide: weigh patches by their similarity to the class token on the whole image (about four more passes of
            the student's).
        dropped_token: what stands for a dropped position: "param" a learned vector, "zeros" nothing, "wrong_pos"
            another dropped position of the image.
        multi_task: weight of the loss of places beside that of a masked autoencoder's decoder on the same tokens; 0
            has no such decoder.
        decoder_embed_dim: width of the decoders.
        decoder_depth: blocks of each.
        decoder_num_heads: heads of each.

    Raises:
        ValueError: for options that do not go together.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        mask_ratio: float = 0.75,
        pos_mask_ratio: float = 0.75,
        sigma: float = 1.0,
        smoothing: Smoothing = "row",
        attn_guide: bool = True,
        dropped_token: Dropped = "param",
        multi_task: float = 0.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 2,
        decoder_num_heads: int = 16,
    ) -> None:
        super().__init__()
        if not (0 < mask_ratio < 1 and 0 < pos_mask_ratio <= 1):
            raise ValueError(f"mask_ratio={mask_ratio} and pos_mask_ratio={pos_mask_ratio} must lie between 0 and 1.")
        if dropped_token not in get_args(Dropped) or smoothing not in get_args(Smoothing):
            raise ValueError(f"dropped_token={dropped_token!r} or smoothing={smoothing!r} is not known.")
        if encoder.num_prefix_tokens != 1 or encoder.num_classes or encoder.needs_grid or encoder.relative:
            raise ValueError("DropPos needs one class token, no classes, no windows and absolute positions.")
        if sigma < 0 or multi_task < 0:
            raise ValueError(f"sigma={sigma} and multi_task={multi_task} must not be negative.")
        self.encoder: VisionTransformer = encoder
        self.mask_ratio, self.pos_mask_ratio = mask_ratio, pos_mask_ratio
        self.sigma, self.smoothing, self.attn_guide = sigma, smoothing, attn_guide
        self.dropped_token, self.multi_task = dropped_token, multi_task
        self.grid = encoder.grid_of(encoder.img_size)
        places = self.grid[0] * self.grid[1]
        width = encoder.embed_dim
        self.decoder = PlaceDecoder(width, places, decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.mask_pos_token: nn.Parameter | None = None
        if dropped_token == "param":
            self.mask_pos_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pixels: Decoder | None = None
        self.mask_token: nn.Parameter | None = None
        if multi_task:
            patch_dim = encoder.patch_embed.proj.in_channels * encoder.patch_size**2
            self.pixels = Decoder(width, patch_dim, decoder_embed_dim, decoder_depth, decoder_num_heads, False)
            self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_embed_dim) * 0.02)
        self._spread: Tensor | None = None  # of the scores over the last batch's patches

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        sigma = self.sigma * (1 - progress.epoch / max(progress.epochs, 1))
        draw = self.draw(images)
        tokens = self.encode(images, draw)
        scores = self.decoder(tokens, self.encoder.grad_checkpointing)
        self._spread = scores.detach().float().flatten(0, 1).std(dim=0).max()
        loss, accuracy = self.place_loss(scores, draw, images, sigma)
        if self.pixels is None:
            return {"loss": loss, "accuracy": accuracy}
        return {"loss": self.multi_task * loss, "loss_pixels": self.pixel_loss(tokens, draw, images)[0],
                "accuracy": accuracy}  # fmt: skip

    def draw(self, images: Tensor, noise: Tensor | None = None, position_noise: Tensor | None = None) -> Draw:
        """Which patches are seen, and which with their positions: those of smallest noise ``(B, L)`` and ``(B, K)``.

        Raises:
            ValueError: for images of another grid than the classes'.
        """
        grid = self.encoder.patch_embed.grid(images)
        if grid != self.grid:
            raise ValueError(f"DropPos has a class for each of {self.grid} places, and is given {grid}.")
        if noise is None:
            noise = torch.rand(len(images), grid[0] * grid[1], device=images.device)
        mask = rank_mask(noise, self.mask_ratio)
        visible = mask.visible_indices.shape[1]
        if position_noise is None:
            position_noise = torch.rand(len(images), visible, device=images.device)
        kept = int(visible * (1 - self.pos_mask_ratio))
        order = position_noise.argsort(dim=1, stable=True)
        dropped = torch.ones_like(position_noise, dtype=torch.bool).scatter_(1, order[:, :kept], False)
        return Draw(mask, dropped, order, kept)

    def encode(
        self, images: Tensor, draw: Draw, permutation: Tensor | None = None, shuffle: Tensor | None = None
    ) -> Tensor:
        """Tokens ``(B, 1 + K, D)`` of the visible patches, in the order of their noise, after the final norm.

        Args:
            images: ``(B, 3, H, W)``.
            draw: what is seen.
            permutation: of the dropped patches, for "wrong_pos"; drawn if None, one for the batch.
            shuffle: ``(B, K)`` order in which the encoder sees the patches; it changes nothing but rounding.
        """
        encoder = self.encoder
        assert encoder.cls_token is not None
        table = encoder.position_table(self.grid, encoder.cls_token)
        patches = draw.mask.visible_of(encoder.patch_embed(images))
        positions = draw.mask.visible_of(table[:, 1:].expand(len(images), -1, -1))
        x = patches + self._positions(positions, draw, permutation)
        if shuffle is not None:
            x = torch.take_along_dim(x, shuffle.unsqueeze(-1), dim=1)
        cls = (encoder.cls_token + table[:, :1]).expand(len(images), -1, -1)
        terms = [None] * len(encoder.blocks)
        x = run_blocks(encoder.blocks, torch.cat([cls, x], dim=1), terms, encoder.grad_checkpointing)
        x = encoder.norm(x)
        if shuffle is not None:
            back = shuffle.argsort(dim=1).unsqueeze(-1)
            x = torch.cat([x[:, :1], torch.take_along_dim(x[:, 1:], back, dim=1)], dim=1)
        return x

    def _positions(self, positions: Tensor, draw: Draw, permutation: Tensor | None) -> Tensor:
        dropped = draw.dropped.unsqueeze(-1)
        if self.mask_pos_token is not None:
            return torch.where(dropped, self.mask_pos_token, positions)
        if self.dropped_token == "zeros":
            return torch.where(dropped, 0.0, positions)
        without = draw.dropped_order[:, draw.kept :]
        if permutation is None:
            permutation = torch.randperm(without.shape[1], device=positions.device)
        source = torch.take_along_dim(positions, without[:, permutation].unsqueeze(-1), dim=1)
        return positions.scatter(1, without.unsqueeze(-1).expand_as(source), source)

    def place_loss(self, scores: Tensor, draw: Draw, images: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy of scores ``(B, K, L)`` over the batch's dropped patches, weighted."""
        weight = draw.dropped.float()
        if self.attn_guide:
            weight = weight * self.attention(images, draw.mask)[1]
        table = smoothed_places(self.grid, sigma, self.smoothing, scores.device)
        target = table[draw.mask.visible_indices]
        entropy = -(target * scores.float().log_softmax(dim=-1)).sum(dim=-1)
        right = (scores.argmax(dim=-1) == draw.mask.visible_indices).float()
        total = weight.sum()
        return (weight * entropy).sum() / total, (weight * right).sum() / total

    @torch.no_grad()
    def attention(self, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Similarity ``(B, L)`` of patches to the class token on whole images, and its share ``(B, K)`` of the seen."""
        tokens = F.normalize(self.encoder.forward_features(images).float(), dim=-1)
        affinity = ((tokens[:, 1:] @ tokens[:, :1].transpose(1, 2)).squeeze(-1) / _TEMPERATURE).softmax(dim=1)
        seen = affinity.gather(1, mask.visible_indices)
        return affinity, seen / seen.sum(dim=1, keepdim=True)

    def pixel_loss(
        self, tokens: Tensor, draw: Draw, images: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss over hidden patches and prediction ``(B, L, p * p * 3)`` of the second decoder.

        Args:
            tokens: of the encoder.
            draw: what was seen.
            images: as seen.
            places: ``(B, K)`` where the decoder puts the visible tokens, if not where they belong.
        """
        decoder, token = self.pixels, self.mask_token
        assert decoder is not None and token is not None
        x = decoder.embed(tokens).to(token.dtype)  # autocast rounds what is linear
        places = draw.mask.visible_indices if places is None else places
        patches = token.expand(*draw.mask.hidden.shape, -1)
        patches = patches.scatter(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x[:, 1:])
        x = torch.cat([x[:, :1], patches], dim=1) + sincos_table(*self.grid, x.shape[-1], x.dtype, x.device)
        x = run_blocks(decoder.blocks, x, [None] * len(decoder.blocks), self.encoder.grad_checkpointing)
        prediction = decoder.pred(decoder.norm(x))[:, 1:]
        target = normalize_patches(patchify(images, self.encoder.patch_size))[0]
        return (draw.mask.hidden_of(prediction) - draw.mask.hidden_of(target)).square().mean(), prediction

    def forward(self, images: Tensor) -> Tensor:
        """The loss of dropped positions at the start of a training."""
        return self.losses([images.unsqueeze(1)])["loss"]

    def collapse(self, progress: Progress) -> str | None:
        if self._spread is None or self._spread > _CONSTANT:
            return None
        return "the decoder scores the places of all patches alike, whatever they show."

    @property
    def title(self) -> str:
        return "DropPos"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        images = views[0][:, 0]
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(len(images), self.grid[0] * self.grid[1], generator=generator).to(images.device)
        visible = int(noise.shape[1] * (1 - self.mask_ratio))
        position_noise = torch.rand(len(images), visible, generator=generator).to(images.device)
        with torch.no_grad():
            draw = self.draw(images, noise, position_noise)
            scores = self.decoder(self.encode(images, draw))
        seen = (~draw.mask.hidden).float()
        right = (scores.argmax(-1) == draw.mask.visible_indices).float()
        state = torch.where(draw.dropped, 1 + right, 3.0)  # 1 wrong, 2 right, 3 kept its position
        told = torch.zeros_like(seen).scatter(1, draw.mask.visible_indices, state)
        distance = self._distance(scores.argmax(-1), draw.mask.visible_indices)
        far = torch.zeros_like(seen).scatter(1, draw.mask.visible_indices, distance * draw.dropped)
        maps = {"1 wrong, 2 right, 3 kept": told, "distance to the place, patches": far}
        return {"places": draw_patch_maps(images, maps, self.grid, mean, std)}

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        places = grid_coordinates(*self.grid, torch.float32, one.device)
        return (places[one] - places[other]).norm(dim=-1)


def smoothed_places(grid: tuple[int, int], sigma: float, smoothing: Smoothing = "row", device: Any = None) -> Tensor:
    """Targets ``(L, L)``: a row for each true place, a column for each class, ``exp(-distance^2 / sigma^2)``.

    Args:
        grid: ``(h, w)``.
        sigma: in patches; 0 gives the identity.
        smoothing: see :class:`DropPos`.
        device: of the result.
    """
    places = grid_coordinates(*grid, torch.float32, device)
    if sigma <= 0:
        return torch.eye(len(places), device=device)
    weight = (-(places.unsqueeze(1) - places).square().sum(dim=-1) / sigma**2).exp()
    return weight / weight.sum(dim=0 if smoothing == "reference" else 1, keepdim=True)
