"""Spatial frequencies: what masked frequency modelling (arXiv 2206.07706) removes, and how spectra are compared."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["batch", "image"]


def low_pass_filter(
    size: int, radius: float, outer_radius: float | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Frequencies that a low-pass filter keeps; the high-pass filter is the complement.

    Args:
        size: pixels S along a side.
        radius: frequencies nearer than this to zero frequency are kept.
        outer_radius: frequencies at least this far away are kept as well, which makes the removed part a band.
        device: of the result.

    Returns:
        ``(S, S)`` bool, in shifted order: zero frequency at row and column ``S // 2``.
    """
    axis = torch.arange(size, device=device) - size // 2
    squared = axis[:, None] ** 2 + axis**2
    kept = squared < radius**2
    return kept if outer_radius is None else kept | (squared >= outer_radius**2)


def filter_frequencies(images: Tensor, kept: Tensor) -> Tensor:
    """Images without some of their frequencies, in float32 whatever autocast says.

    Args:
        images: ``(B, C, S, S)``.
        kept: ``(B, S, S)`` bool, in shifted order.

    Returns:
        ``(B, C, S, S)`` float32, the real part; not clamped.
    """
    with torch.autocast(images.device.type, enabled=False):
        spectrum = torch.fft.fft2(images.float())
        return torch.fft.ifft2(spectrum * torch.fft.ifftshift(kept, dim=(-2, -1)).unsqueeze(1)).real


def spectrum_distance(
    prediction: Tensor,
    target: Tensor,
    gamma: float = 1.0,
    tiles: int = 1,
    average_spectrum: bool = False,
    weighted: bool = False,
    weight_gamma: float = 1.0,
    weight_log: bool = False,
    weight_over_batch: bool = False,
) -> Tensor:
    """Distance of two spectra at every frequency, ``sqrt(dRe^2 + dIm^2 + 1e-12) ** gamma``, orthonormal transform.

    Args:
        prediction: ``(B, C, S, S)``.
        target: likewise.
        gamma: power of the distance.
        tiles: cut the images in ``tiles * tiles`` pieces first.
        average_spectrum: average the spectra over the batch first.
        weighted: multiply by the detached distance itself, divided by its maximum over each image, tile and channel.
        weight_gamma: power of that weight.
        weight_log: take ``log(1 + weight)`` before the division.
        weight_over_batch: divide by the maximum over everything.

    Returns:
        ``(B, tiles * tiles, C, S / tiles, S / tiles)`` float32, zero frequency first; B is 1 after averaging.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        spectra = []
        for images in (prediction, target):
            pieces = torch.stack([tile for row in images.float().chunk(tiles, 2) for tile in row.chunk(tiles, 3)], 1)
            spectrum = torch.fft.fft2(pieces, norm="ortho")
            spectra.append(spectrum.mean(0, keepdim=True) if average_spectrum else spectrum)
        difference = torch.view_as_real(spectra[0] - spectra[1])
        squared = difference.square().sum(-1)
        distance = (squared + 1e-12).sqrt() ** gamma
        if weighted:
            weight = squared.detach().sqrt() ** weight_gamma
            weight = (weight + 1).log() if weight_log else weight
            largest = weight.max() if weight_over_batch else weight.amax((-2, -1), keepdim=True)
            distance = distance * (weight / largest).nan_to_num(0.0).clamp(0, 1)
        return distance


def removed_mean(distance: Tensor, kept: Tensor, reduction: Reduction = "batch") -> Tensor:
    """Mean of :func:`spectrum_distance` (of whole images) over the frequencies that were removed.

    Args:
        distance: ``(B, 1, C, S, S)``, zero frequency first.
        kept: ``(B, S, S)`` bool, in shifted order.
        reduction: "batch" pools the frequencies of all images (the published loss: an image that lost more weighs
            more), "image" averages within each image first.
    """
    removed = torch.fft.ifftshift(~kept, dim=(-2, -1))[:, None, None].to(distance.dtype)
    dims = (1, 2, 3, 4)
    total, count = (distance * removed).sum(dims), removed.sum(dims) * distance.shape[2]
    return total.sum() / count.sum() if reduction == "batch" else (total / count).mean()


# Degradations of the restoration tasks ------------------------------------------------------------------------------


def blur_kernel(
    kind: str, size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0, omega: float = 1.0
) -> Tensor:
    """A blur kernel ``(size, size)``, float64, whose sum is 1.

    Args:
        kind: "sinc", or "", "generalized_" or "plateau_" with "iso" or "aniso".
        size: odd, pixels.
        sigma_x: standard deviation along the first axis, pixels; the only one of isotropic kinds.
        sigma_y: along the second.
        theta: rotation, radians.
        beta: power of the generalised and plateau kinds.
        omega: cut-off of the sinc kernel, radians per pixel.

    Raises:
        ValueError: for an unknown kind.
    """
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    if kind == "sinc":
        r = (x**2 + y**2).sqrt()
        kernel = omega * torch.special.bessel_j1(omega * r) / (2 * torch.pi * r)
        kernel[r == 0] = omega**2 / (4 * torch.pi)
        return kernel / kernel.sum()
    family, _, shape = kind.rpartition("_")
    if shape not in ("iso", "aniso") or family not in ("", "generalized", "plateau"):
        raise ValueError(f"kind={kind!r} of blur is unknown: sinc, iso, aniso, generalized_iso, plateau_aniso, ...")
    if shape == "iso":
        q = (x**2 + y**2) / sigma_x**2
    else:
        cos, sin = torch.cos(torch.tensor(theta).double()), torch.sin(torch.tensor(theta).double())
        q = ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2
    power = 1.0 if family == "" else beta
    kernel = 1 / (1 + q**power) if family == "plateau" else torch.exp(-(q**power) / 2)
    return kernel / kernel.sum()


def blur(images: Tensor, kernels: list[Tensor]) -> Tensor:
    """Images ``(B, C, H, W)`` correlated with a kernel each; reflection at the border without repeating the edge."""
    blurred = []
    for image, kernel in zip(images, kernels, strict=True):
        half = kernel.shape[0] // 2
        padded = F.pad(image.unsqueeze(1), (half, half, half, half), mode="reflect")
        blurred.append(F.conv2d(padded, kernel.to(padded)[None, None]).squeeze(1))
    return torch.stack(blurred)


def down_and_up(images: Tensor, factor: int) -> Tensor:
    """Images ``(B, C, S, S)`` at a resolution lower by `factor`: bicubic (a = -0.75), no antialias, clamped twice."""
    size = images.shape[-1]
    small = F.interpolate(images, size=(size // factor,) * 2, mode="bicubic").clamp(0, 1)
    return F.interpolate(small, size=(size, size), mode="bicubic").clamp(0, 1)
