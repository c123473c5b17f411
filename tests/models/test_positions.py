from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from specification import relative_rows

from adpe.models import pos_embed
from adpe.models.pos_embed import bucket_weights, piecewise_index, relative_logits, sincos, sincos_table

# f(0) .. f(20), worked out by hand: x up to 1.9, then 1.9 + ln(x / 1.9) / ln(8) * 1.9, at most 3.8 (from 15.2 on).
CONTINUOUS = [
    0, 1, 1.9469, 2.3173, 2.5802, 2.7841, 2.9507, 3.0915, 3.2135, 3.3212, 3.4174,
    3.5045, 3.5840, 3.6571, 3.7249, 3.7879, 3.8, 3.8, 3.8, 3.8, 3.8,
]  # fmt: skip
# Rounded beyond 1.9, at most 3.8, truncated: 2 and 3 patches share a bucket, 4 and more the last.
DISCRETE = [0, 1, 2, 2, *[3] * 17]
OFFSETS = torch.arange(-20, 21, dtype=torch.float64)


def both_sides(positive: list[float]) -> torch.Tensor:
    return torch.tensor([-value for value in positive[:0:-1]] + positive, dtype=torch.float64)


def test_piecewise_index_by_hand() -> None:
    torch.testing.assert_close(piecewise_index(OFFSETS), both_sides(CONTINUOUS), rtol=0, atol=5e-5)


def test_piecewise_index_between_patches() -> None:
    """Identity up to 1.9 without a jump, the bound reached at 15.2, on both sides."""
    x = torch.tensor([0.37, -1.5, 1.9, 1.9 + 1e-9, -1.9 - 1e-9, 15.2 - 1e-9, -15.3, 1e6, -1e6], dtype=torch.float64)
    f = torch.tensor([0.37, -1.5, 1.9, 1.9, -1.9, 3.8, -3.8, 3.8, -3.8], dtype=torch.float64)
    torch.testing.assert_close(piecewise_index(x), f, rtol=0, atol=1e-8)


def test_discrete_buckets_by_hand() -> None:
    weights = bucket_weights(OFFSETS, interpolate=False)
    assert torch.equal(weights.argmax(-1), both_sides(DISCRETE).long() + 3)
    assert torch.equal(weights.sum(-1), torch.ones(41, dtype=torch.float64))


def test_interpolated_buckets_by_hand() -> None:
    """The centre of bucket 3 + x lies at f = x * 3.8 / 3.5; half of what is read at the bound lies outside: zero."""
    weights = bucket_weights(torch.tensor([0.0, 1.0, -1.0, 3.0, 15.2, -20.0], dtype=torch.float64), interpolate=True)
    expected = torch.zeros(6, 7, dtype=torch.float64)
    expected[0, 3] = 1
    step = 3.5 / 3.8
    expected[1, 3:5] = torch.tensor([1 - step, step], dtype=torch.float64)
    expected[2, 2:4] = torch.tensor([step, 1 - step], dtype=torch.float64)
    sample = (1.9 + math.log(3 / 1.9) / math.log(8) * 1.9) * step  # 2.134
    expected[3, 5:7] = torch.tensor([3 - sample, sample - 2], dtype=torch.float64)
    expected[4, 6] = 0.5
    expected[5, 0] = 0.5
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("dense_tokens", [0, 10**6])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6), (18, 2)])
def test_relative_logits_are_the_equation(grid, interpolate, dense_tokens, monkeypatch) -> None:
    """Both ways of contracting agree with one row of the table for every pair (grid_sample, read transposed)."""
    monkeypatch.setattr(pos_embed, "DENSE_TOKENS", dense_tokens)
    generator = torch.Generator().manual_seed(0)
    n = 1 + grid[0] * grid[1]
    q = torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64)
    table = torch.randn(8, 50, generator=generator, dtype=torch.float64)
    expected = torch.einsum("bhid,dij->bhij", q, relative_rows(table, grid, interpolate))
    # The tables of a grid are made in float32.
    torch.testing.assert_close(relative_logits(q @ table, grid, interpolate), expected, rtol=0, atol=2e-5)


def test_interpolated_form_is_transposed() -> None:
    """A table that changes along its first axis acts on columns in the interpolated form, on rows in the discrete."""
    table = torch.zeros(1, 50)
    table[0, :49] = torch.arange(7.0).repeat_interleave(7)  # 7 * first + second
    q = torch.ones(1, 1, 10, 1)
    discrete = relative_logits(q @ table, (3, 3), False)[0, 0, 1:, 1:].view(3, 3, 3, 3)
    interpolated = relative_logits(q @ table, (3, 3), True)[0, 0, 1:, 1:].view(3, 3, 3, 3)
    assert torch.equal(discrete[1, 0, :, 0], torch.tensor([4.0, 3.0, 2.0]))  # rows above, same and below
    assert torch.equal(discrete[0, 1, 0, :], torch.tensor([3.0, 3.0, 3.0]))
    step = 3.5 / 3.8
    torch.testing.assert_close(interpolated[0, 1, 0, :], torch.tensor([3 + step, 3.0, 3 - step]))
    torch.testing.assert_close(interpolated[1, 0, :, 0], torch.full((3,), 3.0))


def test_sincos_by_hand() -> None:
    """Column first, then row; sines before cosines; frequencies 1 and 1 / 100 for a width of 8."""
    code = sincos(torch.tensor([2.0, 0.5], dtype=torch.float64), 8)
    expected = [f(c * w) for c in (2.0, 0.5) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    torch.testing.assert_close(code, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    table = sincos_table(2, 3, 8, torch.float64, torch.device("cpu"))
    assert table.shape == (1, 7, 8)
    assert torch.equal(table[0, 0], torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(table[0, 1 + 5], sincos(torch.tensor([2.0, 1.0], dtype=torch.float64), 8))


def test_sincos_needs_a_width_divisible_by_4() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos(torch.zeros(2), 6)


def test_gradcheck_piecewise_index() -> None:
    x = torch.tensor([-30.0, -7.3, -1.95, -1.8, -0.2, 0.0, 0.4, 1.85, 2.0, 5.5, 14.9, 40.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(piecewise_index, x.requires_grad_())
    slope = torch.autograd.grad(piecewise_index(x).sum(), x)[0]
    expected = [1.9 / math.log(8) / abs(v) if 1.9 < abs(v) < 15.2 else float(abs(v) < 15.2) for v in x.tolist()]
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64))


def test_gradcheck_bucket_weights() -> None:
    x = torch.tensor([-9.0, -1.3, 0.3, 2.6, 6.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda offset: bucket_weights(offset, interpolate=True), x)


@pytest.mark.parametrize("grid", [(4, 4), (5, 3)])
def test_tables_serve_training_after_inference_mode(grid) -> None:
    """A table first made in inference mode must not stay an inference tensor in the cache."""
    q = torch.randn(1, 1, 1 + grid[0] * grid[1], 4)
    table = torch.randn(4, 50, requires_grad=True)
    with torch.inference_mode():
        relative_logits(q @ table, grid, True)
    relative_logits(q @ table, grid, True).square().sum().backward()
    assert table.grad is not None
    assert table.grad.abs().max() > 0


def test_tables_made_under_autocast_serve_float32() -> None:
    """No value of a float32 table may have gone through bfloat16."""
    q, table = torch.randn(1, 1, 31, 8), torch.randn(8, 50)
    positions_before = F.normalize(q, dim=-1) @ table
    with torch.autocast("cpu", dtype=torch.bfloat16):
        relative_logits(positions_before, (5, 6), True)
    expected = torch.einsum(
        "bhid,dij->bhij", F.normalize(q, dim=-1).double(), relative_rows(table.double(), (5, 6), True)
    )
    torch.testing.assert_close(relative_logits(positions_before, (5, 6), True).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_the_sine_cosine_table_is_known_on_any_device(device) -> None:
    table = sincos_table(4, 4, 16, torch.float32, torch.device(device))
    assert pos_embed.is_sincos(table)
    assert not pos_embed.is_sincos(table + 0.01)
