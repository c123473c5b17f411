"""Pictures of the adversary: displaced positions, the mask token, and their drift over training. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from adpe.methods.adpe import AdPE
from adpe.methods.adversary import (
    Adversary,
    CoordinateAdversary,
    MaskTokenAdversary,
    OffsetAdversary,
    RelativeAdversary,
)
from adpe.models.pos_embed import sincos_table
from adpe.viz.figures import panels, show_heat

PATCH, MOVED = "#94a3b8", "#ea580c"

Curve = Sequence[tuple[float, float]]


def adversary_scalars(adversary: Adversary) -> dict[str, float]:
    """The adversary in a few numbers, to be followed over training.

    Shifts in patches for the coordinate modes (``adversary/shift_x``, or ``adversary/encoder_03_row`` for block 3 of a
    stack), norms for the embedding modes (``adversary/token_norm``, ``adversary/encoder_03_norm``).
    """
    if isinstance(adversary, CoordinateAdversary):
        x, y = adversary.shift.tolist()
        return {"adversary/shift_x": x, "adversary/shift_y": y}
    if isinstance(adversary, MaskTokenAdversary):
        return {"adversary/token_norm": adversary.token.norm().item()}
    scalars: dict[str, float] = {}
    for stage, stack in _stacks(adversary).items():
        for layer, row in enumerate(stack):
            values = (
                {"row": row[0], "column": row[1]} if isinstance(adversary, OffsetAdversary) else {"norm": row.norm()}
            )
            scalars |= {f"adversary/{stage}_{layer:02d}_{name}": value.item() for name, value in values.items()}
    return scalars


def draw_adversary(model: AdPE, grid: tuple[int, int] | None = None) -> Figure:
    """What the adversary does to the positions of a patch grid.

    Coordinate modes: the shifted coordinates of masked patches, drawn over the patches (relative positions: one panel
    per block, as the offsets that a masked query sees). Mask token: its cosine similarity to the code of every
    position. Relative embedding: the vector added to every bucket of masked keys, a row per block.

    Args:
        model: with an adversary.
        grid: ``(h, w)`` patches; those of the model's image size if None.

    Raises:
        ValueError: if the model has no adversary that learns.
    """
    adversary = model.adversary
    if not adversary.learns:
        raise ValueError("The model has no adversary that learns: the random control has none.")
    height, width = model.encoder.img_size
    h, w = grid or (height // model.encoder.patch_size, width // model.encoder.patch_size)
    if isinstance(adversary, CoordinateAdversary):
        figure, axes = panels(1, 1, 5.0, 5.0 * h / w, "Patches (grey), shifted coordinates of masked ones (orange)")
        x, y = adversary.shift.tolist()
        _draw_shift(axes[0][0], (h, w), x, y, reach=max(abs(x), abs(y)))
        return figure
    if isinstance(adversary, MaskTokenAdversary):
        codes = sincos_table(h, w, model.encoder.embed_dim, torch.float32, torch.device("cpu"))[0, 1:]
        alike = F.cosine_similarity(adversary.token.detach().cpu().float().flatten(), codes, dim=-1).view(h, w)
        figure, axes = panels(1, 1, 5.0, 4.6 * h / w, "Mask token and position codes: cosine")
        show_heat(figure, axes[0][0], alike, "column", "row")
        return figure
    stacks = _stacks(adversary)
    if not isinstance(adversary, OffsetAdversary):
        where = "keys" if getattr(adversary, "variant", "") == "masked_keys" else "queries"
        figure, axes = panels(len(stacks), 1, 7.5, 2.6, f"Vectors added to the buckets of masked {where}")
        for row, (stage, stack) in enumerate(stacks.items()):
            show_heat(figure, axes[row][0], stack, "channel of the head", f"{stage} block", aspect="auto")
        return figure
    shown = [(f"{stage} {layer}", row.tolist()) for stage, stack in stacks.items() for layer, row in enumerate(stack)]
    columns = min(len(shown), 5)
    figure, axes = panels(
        -(-len(shown) // columns), columns, 2.5, 2.6 * h / w,
        "Patches (grey) and their offsets as masked queries see them (orange), by block",
    )  # fmt: skip
    reach = max(stack.abs().max().item() for stack in stacks.values())
    for axis, panel in zip((axis for line in axes for axis in line), [*shown, *[None] * columns], strict=False):
        if panel is None:
            axis.set_axis_off()
        else:
            _draw_shift(axis, (h, w), panel[1][1], panel[1][0], reach, panel[0])
    return figure


def draw_drift(curves: Mapping[str, Curve]) -> Figure:
    """The adversary's scalars (:func:`adversary_scalars`) over training iterations.

    Args:
        curves: name to [(iteration, value)]; names without ``adversary/`` are left out.

    Raises:
        ValueError: if there is no such curve.
    """
    curves = {name.removeprefix("adversary/"): curve for name, curve in curves.items() if name.startswith("adversary/")}
    if not curves:
        raise ValueError("There are no scalars adversary/* to draw.")
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        stage, _, rest = name.partition("_")
        layer, _, kind = rest.partition("_")
        groups.setdefault(f"{stage}, {kind}" if kind else "", {})[str(int(layer)) if kind else name] = curve
    columns = min(len(groups), 2)
    figure, axes = panels(-(-len(groups) // columns), columns, 7.5 / columns + 1, 3.0, "The adversary over training")
    for axis, (group, lines) in zip((axis for line in axes for axis in line), groups.items(), strict=False):
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(lines))) if group else mpl.color_sequences["tab10"]
        for colour, (label, curve) in zip(colours, lines.items(), strict=False):
            marker = "o" if len(curve) < 3 else None
            axis.plot(*np.array(curve, dtype=float).reshape(-1, 2).T, color=colour, label=label, lw=1.5, marker=marker)
        axis.axhline(0, color="black", lw=0.6, alpha=0.5)
        axis.set_xlabel("iteration")
        axis.set_ylabel("norm" if "norm" in f"{group}{next(iter(lines))}" else "patches")
        axis.set_title(group and f"{group}, by block", fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7, ncols=2 if len(lines) > 6 else 1)
    return figure


def _stacks(adversary: Adversary) -> dict[str, Tensor]:
    assert isinstance(adversary, RelativeAdversary)
    return {stage: getattr(adversary, stage).detach().cpu().float() for stage in ("encoder", "decoder")}


def _draw_shift(axis: Axes, grid: tuple[int, int], x: float, y: float, reach: float, name: str = "") -> None:
    """A grid and the same moved by (x, y) patches; `reach` is the figure's largest shift, so that panels compare."""
    h, w = grid
    columns, rows = (values.ravel() for values in np.meshgrid(np.arange(w), np.arange(h)))
    for colour, dx, dy, width in ((PATCH, 0.0, 0.0, 2.0), (MOVED, x, y, 0.9)):
        axis.vlines(np.arange(w) + dx, dy, h - 1 + dy, color=colour, lw=width, alpha=0.75)
        axis.hlines(np.arange(h) + dy, dx, w - 1 + dx, color=colour, lw=width, alpha=0.75)
    axis.scatter(columns, rows, s=9, color="#64748b", zorder=3)
    if max(abs(x), abs(y)) > 1e-3:
        axis.quiver(columns, rows, x, y, angles="xy", scale_units="xy", scale=1, color=MOVED, width=0.006, zorder=4)
    margin = 0.6 + max(reach, 0.4)
    axis.set(xlim=(-margin, w - 1 + margin), ylim=(h - 1 + margin, -margin), aspect="equal")
    axis.set_title(f"{name}\n" * bool(name) + f"{x:+.3f} columns, {y:+.3f} rows", fontsize=8 if name else 10)
    axis.tick_params(labelsize=7)
    axis.set_xticks(range(0, w, max(1, w // 4)))
    axis.set_yticks(range(0, h, max(1, h // 4)))
