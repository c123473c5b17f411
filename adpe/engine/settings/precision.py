"""Which floating-point format a run computes in: float32, bfloat16 autocast, or what is measured to be faster."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from adpe.errors import UserError

# How many times as fast as in float32 a CPU's matrix products have to be for bfloat16: autocast also casts.
WORTHWHILE = 1.2
_WRAPPERS = {"float32": "OptimWrapper", "bfloat16": "AdPEAutocastOptimWrapper", "float16": "AmpOptimWrapper"}


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


def precision_of(optim_wrapper: Mapping[str, Any]) -> str:
    """float32, bfloat16 or float16: what a config's ``optim_wrapper`` computes in."""
    kind = optim_wrapper.get("type", "OptimWrapper")
    if kind == "AmpOptimWrapper":
        return str(optim_wrapper.get("dtype", "float16"))
    return "bfloat16" if kind == "AdPEAutocastOptimWrapper" else "float32"


def request_precision(cfg: Config, amp: str | None = None) -> None:
    """Let ``cfg.precision`` or the command line's ``--amp`` decide the type of ``cfg.optim_wrapper``.

    Args:
        cfg: changed in place. ``precision`` is None (as ``optim_wrapper`` says), "float32", "bfloat16", "float16" or
            "auto", which stays until :func:`settle_precision`.
        amp: "bf16" or "fp16", in place of the config's.

    Raises:
        UserError: for another precision, float16 without a GPU, or an ``optim_wrapper`` of another kind.
    """
    wanted = {"bf16": "bfloat16", "fp16": "float16"}.get(amp or "") or cfg.get("precision")
    if wanted is None:
        return
    if wanted not in ("auto", *_WRAPPERS):
        raise UserError(f"precision = {wanted!r}: expected one of auto, {', '.join(_WRAPPERS)}.")
    if wanted == "float16" and not torch.cuda.is_available():
        raise UserError(f"{'--amp fp16' if amp else 'precision=float16'} needs a GPU; on a CPU use bfloat16.")
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    if kind not in _WRAPPERS.values():
        raise UserError(
            f"{'--amp' if amp else f'precision = {wanted!r}'} replaces {' or '.join(_WRAPPERS.values())}, but "
            f"optim_wrapper.type = {kind!r}: set the precision there."
        )
    cfg.precision = wanted
    if wanted != "auto":
        _use(cfg, wanted)


def settle_precision(cfg: Config) -> str | None:
    """Decide ``precision="auto"``, on all processes alike.

    A GPU computes in bfloat16 if it can. On a CPU half a second of matrix products decides: bfloat16 where they are
    `WORTHWHILE` times as fast. No random numbers are drawn, and a resumed run keeps the precision of its checkpoint, so
    that a seed's results are those of its precision. What was found goes into the run's record.

    Returns:
        a sentence for the log; None where nothing was to be decided.
    """
    if cfg.get("precision") != "auto":
        return None
    decision: list[Any] = [_decide() if is_main_process() else None]
    broadcast_object_list(decision)
    precision, reason = decision[0]
    _use(cfg, precision)
    if cfg.get("record"):
        cfg.record.precision_reason = reason
    return f"precision {precision}: {reason}"


def bfloat16_speed(seconds: float = 0.5) -> float:
    """How many times as fast as in float32 matrix products are in bfloat16 on this CPU, measured in `seconds`."""
    left = torch.linspace(-1, 1, 512 * 384).view(512, 384)
    right = torch.linspace(-1, 1, 384 * 768).view(384, 768)
    pairs = {dtype: (left.to(dtype), right.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    for one, other in pairs.values():
        one @ other  # the first product also prepares its kernel
    fastest = dict.fromkeys(pairs, math.inf)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or math.inf in fastest.values():
        for dtype, (one, other) in pairs.items():
            begin = time.perf_counter()
            one @ other
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - begin)
    return fastest[torch.float32] / fastest[torch.bfloat16]


def _decide() -> tuple[str, str]:
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has it") if able else ("float32", "this GPU has no bfloat16")
    ratio = bfloat16_speed()
    return (
        "bfloat16" if ratio >= WORTHWHILE else "float32",
        f"matrix products in bfloat16 are {ratio:.2f} times as fast as in float32 on this CPU, measured at start",
    )


def _use(cfg: Config, precision: str) -> None:
    cfg.precision = precision
    for of_amp in ("dtype", *(() if precision == "float16" else ("loss_scale", "use_fsdp"))):
        cfg.optim_wrapper.pop(of_amp, None)
    cfg.optim_wrapper.type = _WRAPPERS[precision]
    if precision != "float32":
        cfg.optim_wrapper.dtype = precision
