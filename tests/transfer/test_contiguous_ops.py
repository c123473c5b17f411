"""mmcv's operators on tensors in other memory layouts: as on contiguous ones, and as torchvision's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.autograd import Function

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmcv.ops.nms import NMSop, SoftNMSop
from mmcv.ops.psa_mask import psa_mask
from mmengine.registry import MODELS

import adpe.engine  # noqa: F401  guards
from adpe.transfer.contiguous_ops import guard_operators

MAP = (2, 8, 7, 9)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2) * 16
    return torch.cat([corners, corners + 4 + torch.rand(count, 2) * 14], 1)


def rois() -> Tensor:
    return torch.cat([torch.tensor([[0.0], [1.0], [0.0]]), boxes(3)], 1)


def rotated() -> Tensor:
    return torch.tensor([[0, 12.0, 12, 20, 18, 0.3], [1, 13.0, 9, 20, 15, -0.5]])


def pyramid_shapes() -> tuple[Tensor, Tensor]:
    return torch.tensor([[7, 9], [3, 4]]), torch.tensor([0, 63])


# Operator: a call, its tensors, and how many of these, from the first, have a gradient.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], Sequence[Tensor]], int]] = {
    "RoIAlign": (lambda x, r: ops.roi_align(x, r, (3, 4), 0.25, 0, "avg", True), lambda: [torch.randn(MAP), rois()], 1),
    "RoIAlign, max": (
        lambda x, r: ops.roi_align(x, r, (3, 4), 0.25, 2, "max", True),
        lambda: [torch.randn(MAP), rois()],
        1,
    ),
    "RoIPool": (lambda x, r: ops.roi_pool(x, r, (3, 4), 0.25), lambda: [torch.randn(MAP), rois()], 1),
    "RoIAlignRotated": (
        lambda x, r: ops.roi_align_rotated(x, r, (3, 4), 0.25, 2, True, False),
        lambda: [torch.randn(MAP), rotated()],
        1,
    ),
    "RiRoIAlignRotated": (
        lambda x, r: ops.riroi_align_rotated(x, r, (3, 4), 0.25, 2, 8, False),
        lambda: [torch.randn(MAP), rotated()],
        1,
    ),
    "PrRoIPool": (lambda x, r: ops.prroi_pool(x, r, (3, 4), 0.25), lambda: [torch.randn(MAP), rois()], 1),
    "DeformRoIPool": (
        lambda x, r: ops.deform_roi_pool(x, r, None, (3, 4), 0.25, 2, 0.1),
        lambda: [torch.randn(MAP), rois()],
        1,
    ),
    "DeformConv2d": (
        lambda x, offset, weight: ops.deform_conv2d(x, offset, weight, 1, 1),
        lambda: [torch.randn(MAP), torch.randn(2, 18, 7, 9), torch.randn(4, 8, 3, 3)],
        3,
    ),
    "ModulatedDeformConv2d": (
        lambda x, offset, mask, weight, bias: ops.modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1),
        lambda: [
            torch.randn(MAP),
            torch.randn(2, 18, 7, 9),
            torch.rand(2, 9, 7, 9),
            torch.randn(4, 8, 3, 3),
            torch.randn(4),
        ],
        5,
    ),
    "MaskedConv2d": (
        lambda x, mask, weight, bias: ops.masked_conv2d(x, mask, weight, bias, 1),
        lambda: [torch.randn(1, 8, 7, 9), (torch.randn(1, 7, 9) > 0).float(), torch.randn(4, 8, 3, 3), torch.randn(4)],
        0,
    ),
    "CARAFE": (
        lambda x, masks: ops.carafe(x, masks, 3, 1, 2),
        lambda: [torch.randn(MAP), torch.randn(2, 9, 14, 18)],
        2,
    ),
    "CARAFENaive": (
        lambda x, masks: ops.carafe_naive(x, masks, 3, 1, 2),
        lambda: [torch.randn(MAP), torch.randn(2, 9, 14, 18)],
        2,
    ),
    "PSAMask": (lambda x: psa_mask(x, 0, (3, 5)), lambda: [torch.randn(2, 15, 3, 5)], 1),
    "MultiScaleDeformableAttention": (
        lambda value, locations, weights: MultiScaleDeformableAttnFunction.apply(
            value, *(shape.to(value.device) for shape in pyramid_shapes()), locations, weights, 64
        ),
        lambda: [torch.randn(2, 75, 2, 8), torch.rand(2, 5, 2, 2, 4, 2), torch.rand(2, 5, 2, 2, 4)],
        3,
    ),
    "SigmoidFocalLoss": (
        lambda x, labels: ops.sigmoid_focal_loss(x, labels, 2.0, 0.25, None, "none"),
        lambda: [torch.randn(6, 3), torch.randint(0, 3, (6,))],
        1,
    ),
    "SoftmaxFocalLoss": (
        lambda x, labels: ops.softmax_focal_loss(x, labels, 2.0, 0.25, None, "none"),
        lambda: [torch.randn(6, 3), torch.randint(0, 3, (6,))],
        1,
    ),
    "nms": (lambda b, s: NMSop.apply(b, s, 0.5, 0, 0.0, -1), lambda: [boxes(40), torch.rand(40)], 0),
    "softnms": (
        lambda b, s: SoftNMSop.apply(b, s, 0.5, 0.5, 1e-3, 1, 0)[0],
        lambda: [boxes(40), torch.rand(40)],
        0,
    ),
    "nms_match": (
        lambda b: torch.tensor([int(i) for group in ops.nms_match(b, 0.5) for i in (*group, -1)]),
        lambda: [torch.cat([boxes(40), torch.rand(40, 1)], 1)],
        0,
    ),
}


def channels_last(x: Tensor) -> Tensor:
    """The same values with the second axis innermost in memory; of matrices and vectors as `reversed_strides`."""
    if x.ndim < 3:
        return reversed_strides(x)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def reversed_strides(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.repeat_interleave(3)[::3] if x.ndim == 1 else x.permute(axes).contiguous().permute(axes)


def results(call: Any, tensors: Sequence[Tensor], differentiable: int, layout: Any = None) -> list[Tensor]:
    """The output and the gradients, for an output gradient in `layout`."""
    tensors = [x.detach().requires_grad_(i < differentiable) for i, x in enumerate(tensors)]
    output = call(*tensors)
    if not differentiable:
        return [output]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(output)
    gradient = layout(gradient) if layout else gradient
    return [output.detach(), *torch.autograd.grad(output, tensors[:differentiable], gradient)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_every_layout_of_every_argument_gives_the_same(name: str, device: str) -> None:
    call, make, differentiable = CASES[name]
    torch.manual_seed(0)
    tensors = [x.to(device) for x in make()]
    try:
        expected = results(call, tensors, differentiable)
    except RuntimeError as error:
        if "implementation for device" not in str(error):
            raise
        pytest.skip(f"{name} has no operator for {device}")
    for layout in (channels_last, reversed_strides):
        for changed in range(len(tensors)):
            other = [layout(x) if i == changed else x for i, x in enumerate(tensors)]
            if tensors[changed].numel() > 1:
                assert not other[changed].is_contiguous()
            for one, two in zip(results(call, other, differentiable), expected, strict=True):
                torch.testing.assert_close(one, two)
        for one, two in zip(results(call, tensors, differentiable, layout), expected, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in CASES if name != "nms_match"])  # not an autograd function: refuses
def test_bfloat16_is_computed_in_float32(name: str, device: str) -> None:
    """As on the same numbers in float32; what comes from a map, and its gradient, is bfloat16 again."""
    call, make, differentiable = CASES[name]
    torch.manual_seed(0)
    low = [x.to(device, torch.bfloat16 if x.is_floating_point() else x.dtype) for x in make()]
    try:
        expected = results(call, [x.float() if x.is_floating_point() else x for x in low], differentiable)
    except RuntimeError as error:
        if "implementation for device" not in str(error):
            raise
        pytest.skip(f"{name} has no operator for {device}")
    for one, two in zip(results(call, low, differentiable), expected, strict=True):
        assert one.dtype == (torch.bfloat16 if two.is_floating_point() else two.dtype)
        torch.testing.assert_close(one.to(two.dtype), two, rtol=2e-2, atol=2e-2)
    if name in ("RoIAlign", "nms"):
        mixed = [low[0].float(), low[1]] if name == "nms" else [low[0], low[1].float()]
        assert torch.equal(call(*mixed), call(*low))


@pytest.mark.parametrize("layout", [channels_last, reversed_strides])
def test_against_torchvision(layout: Any) -> None:
    """RoIAlign and the modulated deformable convolution, which are wrong without the guard."""
    torch.manual_seed(0)
    call, make, differentiable = CASES["RoIAlign"]
    x, r = make()
    theirs = results(lambda x, r: torchvision.ops.roi_align(x, r, (3, 4), 0.25, -1, True), [x, r], 1)
    for one, two in zip(results(call, [layout(x), layout(r)], 1, layout), theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    call, make, differentiable = CASES["ModulatedDeformConv2d"]
    tensors = make()
    theirs = results(
        lambda x, offset, mask, weight, bias: torchvision.ops.deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask),
        tensors, differentiable,
    )  # fmt: skip
    for one, two in zip(results(call, [layout(x) for x in tensors], 5, layout), theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_every_function_of_mmcv_is_guarded_once() -> None:
    guarded = guard_operators()
    theirs = {one for one in Function.__subclasses__() if one.__module__.startswith("mmcv.ops.")}
    assert theirs == set(guarded)
    before = {one: (one.forward, one.backward) for one in guarded}
    assert {one: (one.forward, one.backward) for one in guard_operators()} == before


def test_a_channels_last_model_with_a_deformable_convolution() -> None:
    """A layer of the registry under ``model.to(memory_format=torch.channels_last)``, and DCN, which refuses."""
    torch.manual_seed(0)
    for kind in ("DCN", "DCNv2"):
        layer = MODELS.build({"type": kind, "in_channels": 8, "out_channels": 4, "kernel_size": 3, "padding": 1})
        torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
        x = torch.randn(MAP)
        expected = layer(x)
        layer.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected)
