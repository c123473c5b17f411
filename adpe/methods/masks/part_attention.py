"""Part tokens that are trained to explain an image, after the description of SemMAE's first stage (arXiv 2206.10207).

The paper's stage was not released and its loss weights could not be read; the details here are ours, and its parts are
not the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.targets.pixels import patchify
from adpe.models.pos_embed import sincos_table

# Weight of the mean cosine similarity of two parts' maps, and the width of a part's appearance.
_OVERLAP, _APPEARANCE = 0.1, 64


class PartAttention(nn.Module):
    """Maps of K parts from the class token and the patch tokens of a frozen encoder, and a decoder that needs them.

    A part's token is a linear map of the class token; its map is the correlation with the patches' keys, softmax over
    parts. The decoder predicts every patch from its position and the mixture of the parts' appearances there.

    Args:
        dim: width D of the encoder.
        count: K.
        patch_dim: pixels and channels of a patch.
    """

    def __init__(self, dim: int, count: int, patch_dim: int) -> None:
        super().__init__()
        self.count = count
        self.token = nn.Linear(dim, count * dim)
        self.key = nn.Linear(dim, dim)
        self.appearance = nn.Linear(dim, count * _APPEARANCE)
        self.mix = nn.Linear(_APPEARANCE, dim)
        self.decoder = nn.Sequential(nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, patch_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, K + L, D)``, one class token first, to maps ``(B, count, L)`` that sum to 1 over parts."""
        parts = self.token(tokens[:, 0]).unflatten(-1, (self.count, -1))
        scores = parts @ self.key(tokens[:, 1:]).transpose(1, 2) * parts.shape[-1] ** -0.5
        return scores.softmax(dim=1)

    def loss(self, tokens: Tensor, images: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
        """Mean squared error of the pixels plus a tenth of the mean cosine similarity of different maps."""
        maps = self(tokens)
        appearance = self.appearance(tokens[:, 0]).unflatten(-1, (self.count, -1))
        table = sincos_table(*grid, tokens.shape[-1], tokens.dtype, tokens.device)[:, 1:]
        pixels = self.decoder(table + self.mix(maps.transpose(1, 2) @ appearance))
        unit = F.normalize(maps, dim=-1)
        similar = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - self.count
        overlap = similar.mean() / (self.count * (self.count - 1))
        return F.mse_loss(pixels, patchify(images, patch_size)) + _OVERLAP * overlap


def train_parts(
    tokens: Tensor, images: Tensor, patch_size: int, count: int, steps: int = 500, batch: int = 64, seed: int = 0
) -> PartAttention:
    """AdamW steps at 1e-3 on tokens ``(N, 1 + L, D)`` of images ``(N, 3, H, W)``.

    Raises:
        ValueError: for tokens without a class token.
    """
    grid = (images.shape[-2] // patch_size, images.shape[-1] // patch_size)
    if tokens.shape[1] != 1 + grid[0] * grid[1]:
        raise ValueError(f"parts by attention: {tokens.shape[1]} tokens of {grid} patches, expected one class token.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PartAttention(tokens.shape[-1], count, images.shape[1] * patch_size**2).to(tokens.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch,)).to(tokens.device)
            optimizer.zero_grad()
            model.loss(tokens[chosen], images[chosen], patch_size, grid).backward()
            optimizer.step()
    return model.eval()
