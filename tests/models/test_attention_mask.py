"""A mask of attention: None changes nothing, and what a token may not see has no influence on it."""

from __future__ import annotations

import pytest
import torch

from adpe.models.layers import Block


def _block(**options) -> Block:
    torch.manual_seed(0)
    return Block(16, 2, **options).eval()


def test_an_open_mask_changes_no_more_than_rounding_and_none_changes_nothing():
    block, x = _block(), torch.randn(2, 5, 16)
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    assert torch.equal(block(x), block(x, None, None, None))
    assert torch.allclose(block(x), block(x, None, None, allowed), atol=1e-6)


def test_a_hidden_token_has_no_influence_on_those_that_may_not_see_it():
    block, x = _block(), torch.randn(2, 5, 16)
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    allowed[1, 0, :3, 4] = False
    other = x.clone()
    other[:, 4] += torch.randn(16)
    changed = (block(x, None, None, allowed) - block(other, None, None, allowed)).abs().amax(-1) > 1e-6
    assert changed.tolist() == [[True] * 5, [False] * 3 + [True] * 2]


def test_relative_positions_refuse_a_mask():
    block = _block(bias_grid=(2, 2))
    with pytest.raises(ValueError, match="mask"):
        block(torch.randn(1, 5, 16), None, (2, 2), torch.ones(1, 1, 5, 5, dtype=torch.bool))
