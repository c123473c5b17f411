from __future__ import annotations

import pytest
import torch

# Small tensors: one thread is the fastest, and the same on every machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: what a slow test would find is mostly found by them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
