"""Loading checkpoints of any known format with a report that can fail, and writing ours.

The files are read by `adpe.checkpoints.reading`, which executes nothing of them; their names are translated by
`adpe.checkpoints.names`. What is loaded, resized, left out or missing is in the report, tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.checkpoints.names import summarize, to_our_names
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, require
from adpe.files import atomic_write
from adpe.models.pos_embed import sincos_table
from adpe.models.vit import VisionTransformer, resample_pos_embed

BEIT_TABLE = ".relative_position_bias_table"
# What to say of names (regular expressions) that do not fit.
HINTS = {
    r"cls_token$": "class_token=False for a checkpoint without one, as ViTDet's",
    "rel_pos_table": "position='relative' or 'relative_interpolated' for a checkpoint with relative positions",
    r"\.ls1\.": "LayerScale in both or in neither: init_values=",
    "relative_position_bias_table": "BEiT's relative bias in both or in neither: use_rel_pos_bias=",
    r"\.rel_pos_h": "ViTDet's decomposed relative positions in both or in neither: use_rel_pos=",
    "reg_token|register_token|storage_token": "this encoder has no register tokens, which take part in attention: "
    "take the checkpoint without registers",
    r"\.mlp\.w12": "SwiGLU is not supported: take a checkpoint with a GELU MLP",
}


@dataclass
class LoadReport:
    """What became of every parameter when a checkpoint was loaded.

    Attributes:
        path: the checkpoint.
        matched: names loaded as they are.
        resized: name to how it was resized.
        dropped: name in the checkpoint to why it is not needed.
        missing: names of the model that the checkpoint lacks.
        unexpected: names of the checkpoint that the model lacks.
        new: names that start at random on purpose (a classification head).
    """

    path: str
    matched: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    @property
    def coverage(self) -> float:
        """Share of the model's tensors that came from the checkpoint, in percent; `new` ones do not count."""
        found = len(self.matched) + len(self.resized)
        return 100.0 * found / max(found + len(self.missing), 1)

    def __str__(self) -> str:
        return f"loaded {self.path}\n{self.details()}"

    def details(self) -> str:
        """Coverage, then a line for each kind of tensor that was not simply loaded; layers of a kind are counted."""
        found = len(self.matched) + len(self.resized)
        lines = [f"  coverage    {self.coverage:.1f}% ({found} of {found + len(self.missing)} tensors)"]
        for label, group in (("resized", self.resized), ("dropped", self.dropped)):
            reasons: dict[str, list[str]] = {}
            for name, reason in group.items():
                reasons.setdefault(reason, []).append(name)
            lines += [f"  {label:<10}  {summarize(names)}: {reason}" for reason, names in reasons.items()]
        texts = {
            "new": (self.new, "start at random, as a new head does"),
            "missing": (self.missing, "the checkpoint lacks them"),
            "unexpected": (self.unexpected, "the model lacks them"),
        }
        lines += [f"  {label:<10}  {summarize(names)}: {text}" for label, (names, text) in texts.items() if names]
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file in our names.

    Args:
        path: see :func:`adpe.checkpoints.reading.read_file`; names: see :mod:`adpe.checkpoints.names`.

    Raises:
        UserError: if the file is missing, empty, truncated, not a checkpoint, holds code, or no encoder.
    """
    with _shapes_of(path):
        return to_our_names(read_file(path), str(path))


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    verbose: bool = True,
) -> LoadReport:
    """Load a checkpoint into an encoder or a masked autoencoder, and account for every tensor.

    Args:
        model: :class:`VisionTransformer` (takes the encoder) or :class:`MAE` (takes everything).
        path: see :func:`read_checkpoint`.
        allow_missing: shell patterns of our names that may keep their start, e.g. ``"blocks.*.attn.rel_pos_table"``.
        allow_unexpected: shell patterns of checkpoint names that may be left out.
        verbose: print the report.

    Raises:
        UserError: if a tensor has another shape, or coverage is not full beyond what is allowed. The model is
            untouched then.
    """
    report = LoadReport(str(path))
    with _shapes_of(path):
        state = to_our_names(read_file(path), str(path), report.dropped)
    if isinstance(model, VisionTransformer):
        for name in [name for name in state if not name.startswith("encoder.")]:
            report.dropped[name] = "not part of the encoder"
        state = {name.removeprefix("encoder."): state[name] for name in state if name.startswith("encoder.")}
    encoder: Any = model if isinstance(model, VisionTransformer) else model.encoder
    prefix = "" if encoder is model else "encoder."
    wanted = model.state_dict()
    with _shapes_of(path):
        _settle_positions(encoder, wanted, state, prefix, report)
        _resize_relative_tables(encoder, wanted, state, report)
    if f"{prefix}fc_norm.weight" in wanted and f"{prefix}fc_norm.weight" not in state:
        for name in [name for name in state if name.startswith(f"{prefix}head.")]:
            del state[name]
            report.dropped[name] = "head over the class token; ours is over the mean of the patch tokens"

    loaded: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        if name not in state:
            fresh = re.match(rf"{prefix}(head|fc_norm)\.", name)
            (report.new if fresh else report.missing).append(name)
        elif state[name].shape != tensor.shape:
            if re.match(rf"{prefix}head\.", name):
                report.new.append(name)
                report.dropped[name] = "head of another number of classes"
                continue
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model expects {tuple(tensor.shape)}. "
                "The checkpoint is of another width, depth, patch size or head; choose the model it was made with."
            )
        else:
            loaded[name] = state[name]
            if name not in report.resized:
                report.matched.append(name)
    for name in state:
        if name not in wanted:
            if re.match(rf"{prefix}(norm|head|fc_norm)\.", name):
                report.dropped[name] = "norm or head that this model does not have"
            elif name == f"{prefix}cls_token":
                report.dropped[name] = "class token, which this model does not have (class_token=False)"
            elif effect := _no_effect(name, state[name]):
                report.dropped[name] = effect
            else:
                report.unexpected.append(name)
    missing = _not_allowed(report.missing, allow_missing)
    unexpected = _not_allowed(report.unexpected, allow_unexpected)
    if missing or unexpected or not report.matched:
        hints = [text for part, text in HINTS.items() if any(re.search(part, name) for name in missing + unexpected)]
        raise UserError(
            f"{path} does not fit the model, which is left as it was.\n{report.details()}\n"
            f"Set the model to what the checkpoint holds{''.join(f' ({hint})' for hint in hints)}, or allow the "
            "difference with allow_missing=/allow_unexpected= (shell patterns)."
        )
    model.load_state_dict(loaded, strict=False)
    if verbose:
        print(report, flush=True)
    return report


@contextmanager
def _shapes_of(path: str | Path) -> Iterator[None]:
    """Tell in a sentence that tensors cannot be joined or resized, for they have not the shapes of their names."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(
            f"{path}: its tensors do not have the shapes that their names promise ({reason}). Write or download it "
            "again."
        ) from error


def save_checkpoint(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        state: name to tensor, any device.
        path: ends in ``.safetensors``.
        metadata: strings kept in the header.
    """
    require("safetensors", "requirements/runtime.txt")
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata or {}))


def _settle_positions(
    encoder: VisionTransformer, wanted: Mapping[str, Tensor], state: dict[str, Tensor], prefix: str, report: LoadReport
) -> None:
    """Drop fixed tables that the model recomputes, after checking them by value; resize learned ones."""
    if f"{prefix}pos_embed" in set(wanted) - set(state) and any(name.endswith(BEIT_TABLE) for name in state):
        state[f"{prefix}pos_embed"] = torch.zeros_like(wanted[f"{prefix}pos_embed"])
        report.resized[f"{prefix}pos_embed"] = "zeros, as BEiT has no absolute positions"
    for name in (f"{prefix}pos_embed", "decoder.pos_embed"):
        table = state.get(name)
        if table is None:
            continue
        side = round(table.shape[1] ** 0.5) if table.ndim == 3 else 0
        if side > 1 and table.shape[1] == side**2:  # timm's no_embed_class: nothing is added to the class token
            table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
            state[name] = table
            report.resized[name] = "a row of zeros added for the class token, which has no position"
        side = round(max(table.shape[1] - 1, 0) ** 0.5) if table.ndim == 3 else 0
        square = side > 0 and table.shape[1] == 1 + side**2
        if name in wanted:
            grid = (encoder.img_size[0] // encoder.patch_size, encoder.img_size[1] // encoder.patch_size)
            if table.ndim == 3 and table.shape[1] == 1 + grid[0] * grid[1]:
                continue
            if not square:
                raise UserError(
                    f"{report.path}: {name} has shape {tuple(table.shape)}: without a square grid and at most a class "
                    f"token it cannot be resized to {grid[0]}x{grid[1]} patches. Set img_size to that of the "
                    "checkpoint."
                )
            state[name] = resample_pos_embed(table, (side, side), grid)
            report.resized[name] = f"bicubic, {side}x{side} to {grid[0]}x{grid[1]} patches"
        elif square and _is_sincos(table, side):
            del state[name]
            report.resized.pop(name, None)
            report.dropped[name] = "fixed sine-cosine table, recomputed for any grid"
        elif name != "decoder.pos_embed":
            raise UserError(
                f"{report.path}: {name} is a learned table, not the sine-cosine one: set learned_pos_embed=True."
            )


def _resize_relative_tables(
    encoder: VisionTransformer, wanted: Mapping[str, Tensor], state: dict[str, Tensor], report: LoadReport
) -> None:
    """Fit BEiT's and ViTDet's relative tables to windows of another size, each as its framework does."""
    grid = (encoder.img_size[0] // encoder.patch_size, encoder.img_size[1] // encoder.patch_size)
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


def _no_effect(name: str, tensor: Tensor) -> str | None:
    """Why a tensor that the model lacks may be left out without changing what the encoder computes."""
    if re.search(r"\.ls[12]\.gamma$", name) and bool((tensor == 1).all()):
        return "LayerScale of ones, without effect"
    if name.endswith((BEIT_TABLE, ".rel_pos_h", ".rel_pos_w")) and not tensor.any():
        return "relative positions of zeros, without effect"
    return None


def _is_sincos(table: Tensor, side: int) -> bool:
    if table.shape[2] % 4:
        return False
    exact = sincos_table(side, side, table.shape[2], torch.float32, torch.device("cpu"))
    # Half-precision copies are rounded to 1/256.
    return torch.allclose(exact, table.float(), atol=1e-5 if table.dtype == torch.float32 else 4e-3)


def _not_allowed(names: list[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
