"""Position tables of a checkpoint fitted to the grid of a model, each as the framework it comes from does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError, require
from adpe.models.pos_embed import is_sincos, sincos_table, square_side
from adpe.models.resampling import resample_pos_embed
from adpe.models.vit import VisionTransformer

BEIT_TABLE = ".relative_position_bias_table"
# Tokens beside patches and class token, of DINOv2 with registers, DINOv3 and distilled DeiT.
EXTRA_TOKENS = r"(?:reg_token|register_tokens?|storage_tokens?|dist_token)$"
_RULES = {"bicubic": "bicubic", "timm": "bicubic with antialias, as timm", "dino": "bicubic by scale factors, as DINO"}


def settle_positions(
    encoder: VisionTransformer,
    wanted: Mapping[str, Tensor],
    state: dict[str, Tensor],
    prefix: str,
    pretrain_size: tuple[int, int] | None,
    report: Any,
) -> None:
    """Give a model with a trained table the checkpoint's, resized; drop fixed tables that the model makes itself.

    Args:
        encoder: of the model.
        wanted: the model's state.
        state: the checkpoint's, by the model's names; changed in place.
        prefix: of the encoder's names in both.
        pretrain_size: (height, width) in pixels of the images that the checkpoint's positions are of, if known.
        report: takes what is done, in ``resized``, ``dropped`` and ``inferred``.

    Raises:
        UserError: for a table that cannot be fitted, or that the model does not have.
    """
    name = f"{prefix}pos_embed"
    _refuse_rows_of_other_tokens(name, state, report)
    _add_class_row(name, state, report)
    _drop_fixed("decoder.pos_embed", wanted, state, report)
    table = state.get(name)
    fixed = table is None or is_sincos(table)
    if encoder.position == "none":
        if table is not None and (fixed or bool(table.any())):
            raise UserError(f"{report.path}: {name} is a table of absolute positions, and position='none' adds none.")
        state.pop(name, None)
        return
    if name not in wanted:
        if not fixed:
            raise UserError(
                f"{report.path}: {name} is a learned table, not the sine-cosine one: set learned_pos_embed=True."
            )
        _drop_fixed(name, wanted, state, report)
        return
    new = encoder.grid_of(encoder.table_size)
    if table is None and any(key.endswith(BEIT_TABLE) for key in state):
        state[name] = torch.zeros_like(wanted[name])
        report.resized[name] = "zeros, as BEiT has no absolute positions"
        return
    rule = encoder.pos_embed_resize
    if rule == "recompute" and not fixed:
        raise UserError(
            f"{report.path}: {name} is a learned table, which pos_embed_resize='recompute' cannot make anew: choose "
            "bicubic, timm or dino."
        )
    if table is None or rule == "recompute":
        old = new if rule == "recompute" or pretrain_size is None else encoder.grid_of(pretrain_size)
        table = sincos_table(*old, encoder.embed_dim, torch.float32, torch.device("cpu"))
        report.resized[name] = f"sine-cosine of {old[0]}x{old[1]} patches, the start of a trained table"
        if old != new:
            report.resized[name] += f"; {_RULES[rule]} to {new[0]}x{new[1]}"
    else:
        old = _grid_of_table(table, name, encoder, pretrain_size, new, report)
        if old == new:
            return
        report.resized[name] = f"{_RULES[rule]}, {old[0]}x{old[1]} to {new[0]}x{new[1]} patches"
    state[name] = resample_pos_embed(table, old, new, rule)


def _grid_of_table(
    table: Tensor,
    name: str,
    encoder: VisionTransformer,
    pretrain_size: tuple[int, int] | None,
    new: tuple[int, int],
    report: Any,
) -> tuple[int, int]:
    """The patch grid (h, w) of a table with a class token's row."""
    rows = table.shape[1] - 1 if table.ndim == 3 else 0
    said = encoder.grid_of(pretrain_size) if pretrain_size else None
    side = square_side(table)
    for grid in (said, new, (side, side)):
        if grid and side >= 0 and rows > 0 and rows == grid[0] * grid[1]:
            return grid
    raise UserError(
        f"{report.path}: {name} has shape {tuple(table.shape)}: without a square grid and at most a class token it "
        f"cannot be resized to {new[0]}x{new[1]} patches. Set img_size to that of the checkpoint."
    )


def _refuse_rows_of_other_tokens(name: str, state: Mapping[str, Tensor], report: Any) -> None:
    table = state.get(name)
    tokens = [key for key in state if re.search(EXTRA_TOKENS, key)]
    if table is not None and tokens and square_side(table) <= 0:
        raise UserError(
            f"{report.path}: {name} has shape {tuple(table.shape)} with rows for {', '.join(tokens)}, which this "
            "encoder does not have and which take part in attention. Take the checkpoint without registers or "
            "distillation."
        )


def _add_class_row(name: str, state: dict[str, Tensor], report: Any) -> None:
    table = state.get(name)
    side = round(table.shape[1] ** 0.5) if table is not None and table.ndim == 3 else 0
    if table is not None and side > 1 and table.shape[1] == side**2:  # timm's no_embed_class
        state[name] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        report.resized[name] = "a row of zeros added for the class token, which has no position"


def _drop_fixed(name: str, wanted: Mapping[str, Tensor], state: dict[str, Tensor], report: Any) -> None:
    table = state.get(name)
    if table is not None and name not in wanted and is_sincos(table):
        del state[name]
        report.resized.pop(name, None)
        report.dropped[name] = "fixed sine-cosine table, which the model makes itself"


def resize_relative_tables(
    encoder: VisionTransformer, wanted: Mapping[str, Tensor], state: dict[str, Tensor], report: Any
) -> None:
    """Fit BEiT's and ViTDet's relative tables to windows of another size, each as its framework does."""
    grid = encoder.grid_of(encoder.img_size)
    for name, table in state.items():
        if name not in wanted or table.shape == wanted[name].shape or table.ndim != wanted[name].ndim:
            continue
        if table.shape[-1] != wanted[name].shape[-1]:
            continue
        old, new = len(table), len(wanted[name])
        if name.endswith((".rel_pos_h", ".rel_pos_w")):
            resized = F.interpolate(table.float().T[None], size=new, mode="linear")[0].T
            state[name], report.resized[name] = resized.to(table.dtype), f"linear, {old} to {new} offsets (as ViTDet)"
        elif name.endswith(BEIT_TABLE):
            side, extra = _offsets(old)
            window = next((w for w in (grid, ((_offsets(new)[0] + 1) // 2,) * 2) if _length(w) + extra == new), None)
            if not side or window is None:
                continue
            require("timm", "requirements/runtime.txt")
            from timm.layers import resize_rel_pos_bias_table

            state[name] = resize_rel_pos_bias_table(table, window, tuple(wanted[name].shape)).to(table.dtype)
            how = f"bicubic on a geometric grid (as BEiT), {(side + 1) // 2}x{(side + 1) // 2} to "
            report.resized[name] = f"{how}{window[0]}x{window[1]} windows"


def _length(window: tuple[int, int]) -> int:
    """Offsets within a window of (h, w) patches."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def _offsets(length: int) -> tuple[int, int]:
    """Side of a square table of offsets, and its rows for pairs with the class token (3 or none); (0, 0) if neither."""
    for extra in (3, 0):
        side = round((length - extra) ** 0.5)
        if side % 2 and side**2 == length - extra:
            return side, extra
    return 0, 0


def no_effect(name: str, tensor: Tensor) -> str | None:
    """Why a tensor that the model lacks may be left out without changing what the encoder computes."""
    if re.search(r"\.ls[12]\.gamma$", name) and bool((tensor == 1).all()):
        return "LayerScale of ones, without effect"
    if name.endswith((BEIT_TABLE, ".rel_pos_h", ".rel_pos_w")) and not tensor.any():
        return "relative positions of zeros, without effect"
    return None
