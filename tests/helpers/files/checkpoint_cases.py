"""Small encoders and autoencoders, and the reference's weights, for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adpe
from adpe.errors import UserError

GOLDENS = Path(__file__).resolve().parents[2] / "goldens"
TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def encoder(seed: int = 0, **options) -> adpe.VisionTransformer:
    torch.manual_seed(seed)
    model = adpe.VisionTransformer(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def autoencoder(seed: int = 0, position: str = "absolute", **options) -> adpe.MAE:
    return adpe.masked_autoencoder(encoder(seed, position=position), **DECODER, **options)


def randomized(model: Any) -> Any:
    """`model` in evaluation mode with every parameter away from its start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    model.eval()  # which returns None for mmseg's
    return model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def reference(case: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / f"{case}.npz") as archive:
        names = [name for name in archive.files if name.startswith("param.")]
        return {name.removeprefix("param."): torch.from_numpy(archive[name]) for name in names}


def fails(path: Path, message: str, model: torch.nn.Module | None = None, **options) -> str:
    """Loading raises a UserError that names the file and matches `message`; the model stays as it was."""
    model = model or encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        adpe.load_checkpoint(model, path, **options)
    assert str(path) in str(caught.value)
    assert same(before, model.state_dict())
    return str(caught.value)
