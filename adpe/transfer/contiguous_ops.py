"""mmcv's compiled operators made safe for tensors in any memory layout, and for bfloat16.

The operators of ``mmcv.ops`` read the memory of their arguments as contiguous, and most do not check: channels-last
maps or a view of a permuted tensor give wrong numbers, or numbers from beyond the tensor (mmcv issue 2203). This is
what mmcv 2.3.6 does with non-contiguous arguments in those operators that mmdet 3.5 and mmseg 1.4 use, without the
guard below. For the CPU it is measured (contiguous against channels-last and reversed strides, every argument in turn,
outputs and gradients); for CUDA it is read from the launchers, which pass ``data_ptr`` on, and the Python around them.
*Wrong*: wrong numbers, nothing said. *Error*: refused. *Copied*: made contiguous by mmcv, nothing to guard. *None*:
there is no such operator or gradient.

=======================  ==========  ==============  =================  ===========================================
Operator                 CPU inputs  CUDA inputs     Output's gradient  Used by
=======================  ==========  ==============  =================  ===========================================
RoIAlign (map, boxes)    wrong       wrong           copied             two-stage detectors, mask targets
RoIPool                  none        wrong           wrong              any RoI extractor
RoIAlignRotated          wrong       wrong           copied             any RoI extractor
RiRoIAlignRotated        none        wrong           copied             any RoI extractor
DeformRoIPool            none        wrong           wrong              any RoI extractor
PrRoIPool                none        copied          copied             any RoI extractor
DeformConv2d             error       error           copied             DCN and SAC layers, RepPoints, VFNet, TOOD
ModulatedDeformConv2d    wrong       wrong           copied             DCNv2 layers, DyHead
MaskedConv2d             none        wrong           none               guided anchoring
CARAFE, CARAFENaive      none        wrong           copied             FPN-CARAFE, mask heads with CARAFE
PSAMask                  error       wrong           error, CUDA wrong  PSANet
MultiScaleDeformable-    PyTorch's   error           copied             DINO, Mask2Former, Deformable DETR
Attention
Sigmoid-, Softmax-       none        wrong           elementwise        focal losses
FocalLoss
SyncBatchNorm            none        wrong or error  wrong or error     ``norm_cfg=dict(type="MMSyncBN")``
nms, softnms, nms_match  copied      copied          none               every detector, HLR sampling
line_nms                 none        error           none               CLRNet
CornerPool, point_-      PyTorch's   PyTorch's       PyTorch's          CornerNet, PointRend, Mask2Former, CCNet,
sample, CrissCross-                                                     NAS-FPN
Attention, merge cells
=======================  ==========  ==============  =================  ===========================================

The guard takes every autograd function of ``mmcv.ops``, also those that neither framework uses, so that the list cannot
fall behind mmcv; what is not an autograd function there is right or refuses.

Hardly an operator has a kernel for bfloat16 (``expected scalar type Float but found BFloat16``), which maps and scores
are under autocast: the guarded functions compute in float32 and give maps back in the dtype that they came in.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function


def guard_operators() -> list[type[Function]]:
    """Let every autograd function of ``mmcv.ops`` see contiguous tensors, not of bfloat16, forward and backward.

    Classes, modules and functions that were imported from mmcv before are guarded too. A second call changes nothing.

    Returns:
        the guarded functions; none where mmcv is not installed or has no compiled operators.
    """
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return []
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("mmcv.ops.")]
    functions = {
        value: None
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Function) and value.__module__ == module.__name__
    }
    for function in functions:
        for direction in ("forward", "backward"):
            original = vars(function).get(direction)
            if isinstance(original, staticmethod) and not hasattr(original.__func__, "__wrapped_by_adpe__"):
                setattr(function, direction, staticmethod(_with_plain_tensors(original.__func__)))
    return list(functions)


def _with_plain_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original(ctx, *arguments)`` on contiguous float32 copies of those tensors that are strided or bfloat16.

    Where the first tensor is bfloat16, as a map of features is under autocast, float32 results are given back so.
    """

    @functools.wraps(original)
    def guarded(ctx: Any, *arguments: Any) -> Any:
        results = original(ctx, *[_plain(value) for value in arguments])
        first = next((value for value in arguments if isinstance(value, torch.Tensor)), None)
        if first is None or first.dtype != torch.bfloat16:
            return results
        return tuple(map(_rounded, results)) if isinstance(results, tuple) else _rounded(results)

    guarded.__wrapped_by_adpe__ = True  # type: ignore[attr-defined]
    return guarded


def _rounded(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if floating else value


def _plain(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or (value.is_contiguous() and value.dtype != torch.bfloat16):
        return value
    copy = value.contiguous()
    if copy.dtype == torch.bfloat16:
        copy = copy.float()
    # Some functions look at requires_grad to decide what to save for the backward pass; the copy, which is made without
    # a graph, has to say what the tensor said.
    return copy if copy.requires_grad == value.requires_grad else copy.requires_grad_(value.requires_grad)
