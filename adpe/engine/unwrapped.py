"""The model inside what distributes it."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The model that DistributedDataParallel or another of mmengine's wrappers holds, or the model itself."""
    return model.module if is_model_wrapper(model) else model
