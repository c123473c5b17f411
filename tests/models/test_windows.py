"""Windows, relative positions inside them, and attention that works in pieces."""

from __future__ import annotations

import pytest
import torch
from test_vit import TINY, images, randomized
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

import adpe
from adpe.models import fused_attention
from adpe.models.attention import partition, unpartition
from adpe.models.fused_attention import Bias, attend, expand_decomposed, with_decomposed
from adpe.models.pos_embed import decomposed_scores, expand_bias

WINDOWS = {"class_token": False, "window_size": 3, "global_attn_indexes": (1,)}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grid", [(6, 9), (4, 7), (2, 2)])
def test_partition(grid) -> None:
    """Window (i, j) holds the patches of rows 3 i.. and columns 3 j..; beyond the grid lies the padding."""
    h, w = grid
    x, padding = random(2, h * w, 5), random(5, seed=1)
    windows = partition(x, grid, 3, padding)
    across = -(-w // 3)
    assert windows.shape == (2 * -(-h // 3) * across, 9, 5)
    for image in range(2):
        for row in range(-(-h // 3) * 3):
            for column in range(across * 3):
                window = windows.view(2, -1, 9, 5)[image, row // 3 * across + column // 3]
                expected = x[image, row * w + column] if row < h and column < w else padding
                assert torch.equal(window[row % 3 * 3 + column % 3], expected)
    assert torch.equal(unpartition(windows, grid, 3), x)


@pytest.mark.parametrize("position", ["relative", "relative_interpolated"])
def test_relative_positions_in_a_window_are_those_of_an_image_of_its_size(position) -> None:
    """A grid of whole windows: each window's patches get what the same patches get as an image of their own."""
    model = randomized(adpe.VisionTransformer(img_size=24, position=position, **WINDOWS, use_rel_pos=True, **TINY))
    attention = model.double().blocks[0].attn
    assert attention.window_size == 3
    x = random(2, 36, 32)
    ours = attention(x, model.relative_terms((6, 6))[0], (6, 6))
    windows = partition(x, (6, 6), 3, x[0, 0])
    attention.window_size = 0
    alone = attention(windows, model.relative_term((3, 3)), (3, 3))
    torch.testing.assert_close(ours, unpartition(alone, (6, 6), 3), rtol=0, atol=1e-12)
    with torch.no_grad():
        attention.rel_pos_table.zero_()
    assert (attention(windows, model.relative_term((3, 3)), (3, 3)) - alone).abs().max() > 1e-3


def test_a_windowed_block_does_not_see_other_windows() -> None:
    model = randomized(adpe.VisionTransformer(img_size=24, position="relative", **WINDOWS, **TINY)).eval()
    x = images(24, 24)
    y = x.clone()
    y[:, :, 12:, 12:] += 1  # the last window of 3 x 3 patches
    for block, seen in ((0, 9), (1, 36)):
        maps = [model.forward_intermediates(z, indices=[block], intermediates_only=True)[0] for z in (x, y)]
        changed = (maps[0] - maps[1]).abs().amax((0, 1)) > 1e-6
        assert changed.sum() == seen


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("piece", [2**17, 64, 7])
@pytest.mark.parametrize("kind", ["decomposed", "bias", "both"])
def test_streamed_attention(kind, piece, class_token, monkeypatch) -> None:
    """Values and all gradients against the softmax written out, in float64, for pieces of many sizes."""
    monkeypatch.setattr(fused_attention, "PIECE", piece)
    (h, w), heads, d = (3, 4), 2, 5
    n = h * w + class_token
    q, k, v = (random(3, heads, n, d, seed=i).requires_grad_() for i in range(3))
    rows, columns = random(3, heads, n, h, seed=3).requires_grad_(), random(3, heads, n, w, seed=4).requires_grad_()
    table = random(5 * 7 + 3, heads, seed=5).requires_grad_()
    inputs = [q, k, v]
    logits = q @ k.transpose(-2, -1)
    decomposed, bias = None, None
    if kind != "bias":
        decomposed, inputs = (rows, columns), [*inputs, rows, columns]
        extra = torch.zeros_like(logits)
        for key in range(h * w):
            extra[..., key + class_token] = rows[..., key // w] + columns[..., key % w]
        logits = logits + extra
    if kind != "decomposed":
        bias, inputs = Bias(table, (h, w), (h, w), class_token), [*inputs, table]
        logits = logits + expand_bias(table, (h, w), (h, w), class_token)
    expected = logits.softmax(-1) @ v
    out = attend(q, k, v, None, decomposed, bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    direction = random(*expected.shape, seed=6)
    ours, theirs = (torch.autograd.grad((y * direction).sum(), inputs) for y in (out, expected))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_decomposed_terms_as_channels_are_the_same_logits() -> None:
    """What a GPU and a compiled model use; the width is a multiple of 8 there."""
    q, k, rows, columns = random(2, 3, 13, 5), random(2, 3, 13, 5, seed=1), random(2, 3, 13, 3), random(2, 3, 13, 4)
    wide_q, wide_k = with_decomposed(q, k, rows, columns)
    assert wide_q.shape[-1] == 16
    expected = q @ k.transpose(-2, -1) + expand_decomposed(rows, columns)
    torch.testing.assert_close(wide_q @ wide_k.transpose(-2, -1), expected, rtol=0, atol=1e-12)


def test_streamed_attention_in_bfloat16() -> None:
    q, k, v = (random(2, 2, 12, 8, seed=i).bfloat16() for i in range(3))
    rows, columns = random(2, 2, 12, 3, seed=3).bfloat16(), random(2, 2, 12, 4, seed=4).bfloat16()
    out = attend(q, k, v, None, (rows, columns))
    exact = (q.double() @ k.double().transpose(-2, -1) + expand_decomposed(rows.double(), columns.double())).softmax(-1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact @ v.double(), rtol=0, atol=0.05)


def test_decomposed_scores() -> None:
    """Against the definition, with a table of another size resized linearly as detectron2 does."""
    q, table = random(1, 2, 12, 5), random(5, 5, seed=1)
    rows, columns = decomposed_scores(q, table, random(7, 5, seed=2), (3, 4))
    for query in range(12):
        for row in range(3):
            expected = q[0, :, query] @ table[query // 4 - row + 2]
            torch.testing.assert_close(rows[0, :, query, row], expected)
        for column in range(4):
            expected = q[0, :, query] @ random(7, 5, seed=2)[query % 4 - column + 3]
            torch.testing.assert_close(columns[0, :, query, column], expected)
    resized = torch.nn.functional.interpolate(table.T[None], size=9, mode="linear")[0].T
    other = random(1, 2, 10, 5, seed=3)
    ours, theirs = (decomposed_scores(other, one, random(3, 5), (5, 2))[0] for one in (table, resized))
    torch.testing.assert_close(ours, theirs)


def test_bias_of_another_size_is_timms() -> None:
    table = random(7 * 7 + 3, 2)
    theirs = resize_rel_pos_bias_table_simple(table, (6, 6), (11 * 11 + 3, 2))
    ours = expand_bias(table, (4, 4), (6, 6), True)
    torch.testing.assert_close(ours, expand_bias(theirs, (6, 6), (6, 6), True))
    assert torch.equal(ours[:, 1:, 1:], expand_bias(table, (4, 4), (6, 6), False))
    first, column, corner = table[-3:]
    assert torch.equal(ours[:, 0, 1:], first[:, None].expand(2, 36))
    assert torch.equal(ours[:, 1:, 0], column[:, None].expand(2, 36))
    assert torch.equal(ours[:, 0, 0], corner)
