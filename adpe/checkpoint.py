"""One reader for every checkpoint format, and a load report that can fail.

Our names are those of :class:`adpe.MaskedAutoencoder`: ``encoder.*`` (timm's ViT names), ``mask_token``, ``decoder.*``
and ``adversary.*``. The reader translates checkpoints of this project (pretraining and fine-tuning), of the AdPE
reference (absolute and relative), of MAE and of timm's ViTs, unwrapped from ``model``, ``state_dict``, ``module.`` and
``backbone.``. Nothing in a checkpoint is executed: pickles are read by torch's ``weights_only`` reader, which knows
tensors and plain containers alone.
"""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError, require
from adpe.files import atomic_write
from adpe.positions import sincos_table
from adpe.vit import VisionTransformer, resample_pos_embed

# Prefixes that DistributedDataParallel, torch.compile and a model that holds the model put before names, in any order.
WRAPPERS = r"(?:(?:module|_orig_mod|model)\.)*"

RENAMES = [
    (r"decoder_blocks\.", "decoder.blocks."),
    (r"decoder_(embed|norm|pred)\.", r"decoder.\1."),
    (r"(.*)\.attn\.rpe_k\.lookup_table_weight", r"\1.attn.rel_pos_table"),
    (r"(cls_token|pos_embed|patch_embed|blocks|norm|fc_norm|head)(\.|$)", r"encoder.\1\2"),
    (r"decoder_pos_embed$", "decoder.pos_embed"),
]


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


def summarize(names: Iterable[str]) -> str:
    """Names of tensors in a few words: ``decoder.* (22), blocks.*.attn.rel_pos_table (12), mask_token``."""
    parts: dict[str, dict[str, int]] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts = parts.setdefault(name.partition(".")[0], {})
        counts[pattern] = counts.get(pattern, 0) + 1
    words: list[tuple[str, int]] = []
    for first, counts in parts.items():
        words += counts.items() if len(counts) <= 3 else [(f"{first}.*", sum(counts.values()))]
    text = ", ".join(f"{word} ({count})" if count > 1 else word for word, count in words[:6])
    return text + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file in our names.

    Args:
        path: ``.safetensors``, or anything that ``torch.save`` wrote.

    Raises:
        UserError: if the file is missing, empty, truncated, not a checkpoint, holds code, or no encoder.
    """
    return to_our_names(_read_file(Path(path)), str(path))


def read_model_config(path: str | Path) -> dict[str, Any] | None:
    """The ``model`` of the config that a training checkpoint carries as text in its ``meta``; None if it has none.

    The text is parsed as literals and calls of ``dict``; nothing in it is executed.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    meta = _read_file(Path(path)).get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return None
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["model"]:
                model = ast.literal_eval(_DictCalls().visit(node.value))
                return model if isinstance(model, dict) else None
    except (SyntaxError, ValueError):
        pass
    return None


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` to ``{"a": 1}``, as ``ast.literal_eval`` wants it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != "dict" or node.args:
            return node
        keys: list[ast.expr | None] = [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    verbose: bool = True,
) -> LoadReport:
    """Load a checkpoint into an encoder or a masked autoencoder, and account for every tensor.

    Args:
        model: :class:`VisionTransformer` (takes the encoder) or :class:`MaskedAutoencoder` (takes everything).
        path: see :func:`read_checkpoint`.
        allow_missing: shell patterns of our names that may keep their start, e.g. ``"blocks.*.attn.rel_pos_table"``.
        allow_unexpected: shell patterns of checkpoint names that may be left out.
        verbose: print the report.

    Raises:
        UserError: if a tensor has another shape, or coverage is not full beyond what is allowed. The model is
            untouched then.
    """
    state = read_checkpoint(path)
    report = LoadReport(str(path))
    if isinstance(model, VisionTransformer):
        for name in [name for name in state if not name.startswith("encoder.")]:
            report.dropped[name] = "not part of the encoder"
        state = {name.removeprefix("encoder."): state[name] for name in state if name.startswith("encoder.")}
    encoder: Any = model if isinstance(model, VisionTransformer) else model.encoder
    prefix = "" if encoder is model else "encoder."
    _settle_positions(encoder, model, state, prefix, report)

    wanted = model.state_dict()
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
            else:
                report.unexpected.append(name)
    missing = _not_allowed(report.missing, allow_missing)
    unexpected = _not_allowed(report.unexpected, allow_unexpected)
    if missing or unexpected or not report.matched:
        hint = "Set the model to what the checkpoint holds"
        if any("rel_pos_table" in name for name in missing + unexpected):
            hint += " (position='relative' or 'relative_interpolated' for a checkpoint with relative positions)"
        raise UserError(
            f"{path} does not fit the model, which is left as it was.\n{report.details()}\n"
            f"{hint}, or allow the difference with allow_missing=/allow_unexpected= (shell patterns)."
        )
    model.load_state_dict(loaded, strict=False)
    if verbose:
        print(report, flush=True)
    return report


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


def to_our_names(state: Mapping[str, object], source: str = "checkpoint") -> dict[str, Tensor]:
    """Translate a state dict of any known format.

    Args:
        state: raw names, possibly nested under ``model`` or ``state_dict``.
        source: what error messages call it.

    Raises:
        UserError: if it holds no encoder.
    """
    tensors = {_unwrap_name(name): tensor for name, tensor in _unwrap(state).items()}
    if any(name.startswith("backbone.") for name in tensors):
        # A fine-tuned detector or segmentor: the rest are its heads.
        tensors = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    translated: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.attn\.rpe_k\.(adv_token|adv_shift|no_shift)", name)
        if match and match[3] != "no_shift":
            stage = "adversary.decoder" if match[1] else "adversary.encoder"
            stacks.setdefault(stage, {})[int(match[2])] = tensor.flatten()
        elif match is None:
            translated[_rename(name, tensor)] = tensor.squeeze(0) if name.endswith("lookup_table_weight") else tensor
    for name, rows in stacks.items():
        translated[name] = torch.stack([rows[i] for i in sorted(rows)])
    if not any(name.startswith("encoder.blocks.") for name in translated):
        some = summarize(tensors or map(str, state)) or "nothing"
        raise UserError(
            f"{source} holds no ViT encoder: expected names such as blocks.0.attn.qkv.weight, found {some}."
        )
    return translated


def _rename(name: str, tensor: Tensor) -> str:
    if name == "adv_token":  # the reference's one name for two things, told apart by their rank
        return "adversary.token" if tensor.ndim == 3 else "adversary.shift"
    for pattern, replacement in RENAMES:
        name = re.sub(rf"^{pattern}", replacement, name)
    return name


def _unwrap(state: Mapping[str, object]) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        inner = state.get(key)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _unwrap_name(name: str) -> str:
    return re.sub(f"^{WRAPPERS}", "", name)


def _settle_positions(
    encoder: VisionTransformer, model: nn.Module, state: dict[str, Tensor], prefix: str, report: LoadReport
) -> None:
    """Drop fixed tables that the model recomputes, after checking them by value; resize learned ones."""
    for name in (f"{prefix}pos_embed", "decoder.pos_embed"):
        table = state.get(name)
        if table is None:
            continue
        side = round(max(table.shape[1] - 1, 0) ** 0.5) if table.ndim == 3 else 0
        square = side > 0 and table.shape[1] == 1 + side**2
        if name in model.state_dict():
            grid = (encoder.img_size[0] // encoder.patch_size, encoder.img_size[1] // encoder.patch_size)
            if table.ndim == 3 and table.shape[1] == 1 + grid[0] * grid[1]:
                continue
            if not square:
                raise UserError(
                    f"{report.path}: {name} has shape {tuple(table.shape)}: without a class token and a square grid it "
                    f"cannot be resized to {grid[0]}x{grid[1]} patches. Set img_size to that of the checkpoint."
                )
            state[name] = resample_pos_embed(table, (side, side), grid)
            report.resized[name] = f"bicubic, {side}x{side} to {grid[0]}x{grid[1]} patches"
        elif square and _is_sincos(table, side):
            del state[name]
            report.dropped[name] = "fixed sine-cosine table, recomputed for any grid"
        elif name != "decoder.pos_embed":
            raise UserError(
                f"{report.path}: {name} is a learned table, not the sine-cosine one: set learned_pos_embed=True."
            )


def _is_sincos(table: Tensor, side: int) -> bool:
    if table.shape[2] % 4:
        return False
    exact = sincos_table(side, side, table.shape[2], torch.float32, torch.device("cpu"))
    # Half-precision copies are rounded to 1/256.
    return torch.allclose(exact, table.float(), atol=1e-5 if table.dtype == torch.float32 else 4e-3)


def _read_file(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise UserError(f"Checkpoint {path} does not exist: give the path of a .pth, .pt or .safetensors file.")
    if path.stat().st_size == 0:
        raise UserError(f"Checkpoint {path} is empty (0 bytes): write or download it again.")
    try:
        if path.suffix == ".safetensors":
            require("safetensors", "requirements/runtime.txt")
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)", str(error))
        what = f"{found[1]}, which is code and is not run" if found else "no tensors that can be read safely"
        raise UserError(f"Checkpoint {path} holds {what}. Save its state_dict() alone, or convert it.") from None
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint, or it is truncated ({reason}).") from None
    if not isinstance(state, Mapping):
        raise UserError(f"Checkpoint {path} holds a {type(state).__name__}, expected a dict of tensors.")
    return state


def _not_allowed(names: list[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
