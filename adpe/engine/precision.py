"""bfloat16 autocast on whichever device is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class AdPEAutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward passes run under bfloat16 autocast, on a CPU or a GPU.

    bfloat16 has float32's exponent, so no loss scaling takes place. mmengine's ``AmpOptimWrapper``, which scales
    losses and asks for a GPU, serves float16.

    Args:
        dtype: must be ``"bfloat16"``.
        **kwargs: of mmengine's ``OptimWrapper`` (optimizer, accumulative_counts, clip_grad).

    Raises:
        ValueError: for another dtype.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs: Any) -> None:
        if dtype != "bfloat16":
            raise ValueError(
                f"AdPEAutocastOptimWrapper computes in bfloat16, got dtype={dtype!r}; float16 needs loss scaling: "
                "use type='AmpOptimWrapper', dtype='float16' on a GPU."
            )
        super().__init__(**kwargs)
        self.device_type = "cuda" if torch.cuda.is_available() else "cpu"

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, torch.bfloat16):
            yield
