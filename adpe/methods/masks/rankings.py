"""Rankings that decide which patches stay visible: the ``mask`` of the masked autoencoders.

A ranking gives every patch a number; those of the smallest numbers stay visible. Uniform noise is MAE's random mask,
filtered noise ColorMAE's (arXiv 2407.13036), one number for a block of patches Pixio's (arXiv 2512.15715).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError

Ranking = Callable[..., Tensor]

COLORS = ("white", "red", "blue", "green", "purple")


class UniformRanking:
    """MAE's: uniform noise."""

    def __call__(
        self, count: int, grid: tuple[int, int], device: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """``(count, h * w)`` numbers for the patches of a grid ``(h, w)``, in raster order."""
        return torch.rand(count, grid[0] * grid[1], device=device, generator=generator)


class BlockRanking:
    """One number for every block of `side` x `side` patches, which stay visible or hidden together.

    Args:
        side: patches along a side of a block; blocks tile the grid from its top left corner.

    Raises:
        ValueError: if it is no positive whole number, or (called) does not divide the grid.
    """

    def __init__(self, side: int) -> None:
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise ValueError(f"mask: side = {side!r} must be a positive whole number of patches.")
        self.side = side

    def __call__(
        self, count: int, grid: tuple[int, int], device: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        h, w = self.blocks(grid)
        return self.spread(torch.rand(count, h * w, device=device, generator=generator), grid)

    def blocks(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Blocks per column and row of a grid of patches."""
        if grid[0] % self.side or grid[1] % self.side:
            raise ValueError(f"mask: blocks of {self.side} x {self.side} patches do not tile {grid[0]} x {grid[1]}.")
        return grid[0] // self.side, grid[1] // self.side

    def spread(self, noise: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, blocks)`` to ranks ``(B, h * w)`` that keep blocks whole: as many visible patches as blocks allow."""
        h, w = self.blocks(grid)
        # Ranks, so that blocks of equal noise are not cut into each other.
        order = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True).to(torch.float32).view(-1, h, w)
        return order.repeat_interleave(self.side, 1).repeat_interleave(self.side, 2).flatten(1)

    def visible(self, patches: int, mask_ratio: float) -> int:
        """Visible patches: whole blocks, ``int(blocks * (1 - mask_ratio))`` of them."""
        area = self.side**2
        return int(patches // area * (1 - mask_ratio)) * area


class ColorRanking:
    """Filtered Gaussian noise, drawn anew for every image; the largest values stay visible.

    Args:
        color: ``white`` (as drawn), ``red`` (low-pass: large blobs), ``blue`` (high-pass: evenly spread), ``green``
            (band-pass: clusters of a typical size, the paper's best) or ``purple`` (band-stop).
        sigma: standard deviation of the blur in patches; two, growing, for green and purple. The published ones could
            not be read; ours are 1, and (1, 2).

    Raises:
        ValueError: for another colour or number of deviations.
    """

    def __init__(self, color: str, sigma: float | Sequence[float] | None = None) -> None:
        if color not in COLORS:
            raise ValueError(f"mask: color = {color!r} is none of {', '.join(COLORS)}.")
        wanted = {"white": 0, "red": 1, "blue": 1}.get(color, 2)
        given = (1.0, 2.0)[:wanted] if sigma is None else (sigma,) if isinstance(sigma, (int, float)) else tuple(sigma)
        if len(given) != wanted or any(not s > 0 for s in given) or list(given) != sorted(set(given)):
            raise ValueError(f"mask: sigma = {sigma!r}: {color} takes {wanted} positive, growing deviation(s).")
        self.color, self.sigma = color, tuple(map(float, given))

    def __call__(
        self, count: int, grid: tuple[int, int], device: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        # A margin as wide as the kernel, so that no pattern wraps around or ends at a border.
        margin = max((_radius(s) for s in self.sigma), default=0)
        noise = torch.randn(count, grid[0] + 2 * margin, grid[1] + 2 * margin, device=device, generator=generator)
        pattern = color_noise(noise, self.color, self.sigma)
        return -pattern[:, margin : margin + grid[0], margin : margin + grid[1]].flatten(1)


class BankRanking:
    """Crops of ready-made patterns, as the reference of ColorMAE draws them.

    Args:
        bank: an ``.npz`` whose first array is ``(P, M, M)``, or that array.
        shared: draw one crop and one pair of flips for the whole batch, give image b pattern ``b mod P`` and divide by
            the largest value, as the reference does; else a pattern, crop and flips for every image.

    Raises:
        UserError: for a file that is no such bank.
        ValueError: (called) for a grid that is not square or larger than the patterns.
    """

    def __init__(self, bank: str | Tensor, shared: bool = False) -> None:
        self.bank = bank if isinstance(bank, Tensor) else read_bank(bank)
        self.shared = shared

    def __call__(
        self, count: int, grid: tuple[int, int], device: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        patterns, side = self.bank.shape[0], self.bank.shape[1]
        if grid[0] != grid[1] or grid[0] > side:
            raise ValueError(f"mask: patterns of {side} x {side} give square grids up to that size, not {grid}.")
        draw = {"device": device, "generator": generator}
        draws = -(-count // patterns) if self.shared else count
        offsets = torch.randint(side - grid[0] + 1, (draws, 2), **draw)
        flips = torch.rand(draws, 2, **draw) < 0.5
        bank = self.bank.to(device or "cpu")
        if self.shared:
            return -shared_windows(bank, grid[0], count, offsets, flips).flatten(1)
        chosen = bank[torch.randint(patterns, (count,), **draw)]
        return -cut_windows(chosen, grid[0], offsets, flips).flatten(1)


def color_noise(white: Tensor, color: str, sigma: Sequence[float]) -> Tensor:
    """White noise ``(B, H, W)`` filtered to a colour of ColorMAE; each pattern to mean 0 and deviation 1.

    The blur is periodic, its kernel ``exp(-x^2 / (2 s^2))`` cut at ``int(4 s + 0.5)`` and normalised.
    """
    if color == "white":
        pattern = white
    elif color == "red":
        pattern = gaussian_blur(white, sigma[0])
    elif color == "blue":
        pattern = white - gaussian_blur(white, sigma[0])
    else:
        band = gaussian_blur(white, sigma[0]) - gaussian_blur(white, sigma[1])
        pattern = band if color == "green" else white - band
    deviation, mean = torch.std_mean(pattern, dim=(1, 2), correction=0, keepdim=True)
    return (pattern - mean) / deviation


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """``(B, H, W)`` blurred along both axes with periodic borders."""
    radius = _radius(sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = (-0.5 * (at / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).to(x)
    x = x.unsqueeze(1)
    for shape, pad in (((1, 1, 1, -1), (radius, radius, 0, 0)), ((1, 1, -1, 1), (0, 0, radius, radius))):
        x = F.conv2d(_wrapped(x, pad), kernel.view(shape))
    return x.squeeze(1)


def _wrapped(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Periodic padding, of borders wider than the pattern too."""
    left, right, top, bottom = pad
    columns = torch.arange(-left, x.shape[-1] + right, device=x.device) % x.shape[-1]
    rows = torch.arange(-top, x.shape[-2] + bottom, device=x.device) % x.shape[-2]
    return x[:, :, rows][..., columns]


def _radius(sigma: float) -> int:
    return int(4 * sigma + 0.5)


def cut_windows(bank: Tensor, side: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """A window ``(P, side, side)`` of every pattern ``(P, M, M)``.

    Args:
        bank: patterns.
        side: of the windows.
        offsets: ``(P or 1, 2)`` row and column.
        flips: ``(P or 1, 2)`` bool, horizontal and vertical.
    """
    at = torch.arange(side, device=bank.device)
    places = [
        torch.where(flips[:, 1 - axis, None], side - 1 - at, at) + offsets[:, axis, None] for axis in (0, 1)
    ]  # rows are turned round by the vertical flip, columns by the horizontal one
    rows, columns = (place.expand(len(bank), -1) for place in places)
    numbers = torch.arange(len(bank), device=bank.device)
    return bank[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]


def shared_windows(bank: Tensor, side: int, count: int, offsets: Tensor, flips: Tensor, divide: bool = True) -> Tensor:
    """Windows ``(count, side, side)`` as ColorMAE's reference cuts them: one draw for each pass over the bank.

    Dividing by the largest value turns the order of a window round that is negative everywhere, as released.
    """
    windows = [
        cut_windows(bank[: count - start], side, offsets[number : number + 1].long(), flips[number : number + 1].bool())
        for number, start in enumerate(range(0, count, len(bank)))
    ]
    found = torch.cat(windows)
    return found / found.amax(dim=(1, 2), keepdim=True) if divide else found


def read_bank(path: str) -> Tensor:
    """Patterns ``(P, M, M)`` float32 of the first array of an ``.npz``.

    Raises:
        UserError: for a file that is none, or another shape.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as archive:
            array = np.asarray(archive[archive.files[0]])
    except (OSError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"mask: {path} is not a readable .npz of patterns ({error}).") from None
    if array.ndim != 3 or array.shape[1] != array.shape[2] or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"mask: {path} holds {array.dtype} {array.shape}, expected floats (patterns, side, side).")
    return torch.from_numpy(array.astype(np.float32))


def build_ranking(options: Mapping[str, Any] | None) -> Ranking:
    """The ranking of a config's ``mask``: None or ``dict(type="uniform")``, ``color``, ``block`` or ``bank``.

    Raises:
        ValueError: for an unknown type or option.
    """
    given = dict(options or {})
    kinds: dict[str, Callable[..., Ranking]] = {
        "uniform": UniformRanking, "color": ColorRanking, "block": BlockRanking, "bank": BankRanking,
    }  # fmt: skip
    kind = given.pop("type", "uniform")
    if kind not in kinds:
        raise ValueError(f"mask: type = {kind!r} is none of {', '.join(kinds)}.")
    try:
        return kinds[kind](**given)
    except TypeError as error:
        raise ValueError(f"mask ({kind}): {error}") from None


def equal_neighbours(hidden: Tensor, grid: tuple[int, int]) -> float:
    """Share of neighbouring patches of equal state in masks ``(B, h * w)``: 0.625 where independent and 0.75 hidden."""
    state = hidden.view(-1, *grid)
    pairs = [state[:, 1:] == state[:, :-1], state[:, :, 1:] == state[:, :, :-1]]
    return float(sum(pair.sum() for pair in pairs)) / math.fsum(pair.numel() for pair in pairs)
