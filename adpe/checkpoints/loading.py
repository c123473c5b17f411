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

from torch import Tensor, nn

from adpe.checkpoints.agreement import check_agreement, settle_options
from adpe.checkpoints.describing import Description, describe
from adpe.checkpoints.names import summarize, to_our_names
from adpe.checkpoints.reading import read_file
from adpe.checkpoints.tables import EXTRA_TOKENS, no_effect, resize_relative_tables, settle_positions
from adpe.errors import UserError, require
from adpe.files import atomic_write
from adpe.models.specification import KEY, ModelSpecification
from adpe.models.vit import FORM, VisionTransformer

# What to say of names (regular expressions) that do not fit.
HINTS = {
    r"cls_token$": "class_token=False for a checkpoint without one, as ViTDet's",
    "rel_pos_table": "position='relative' or 'relative_interpolated' for a checkpoint with relative positions",
    r"\.ls1\.": "LayerScale in both or in neither: init_values=",
    "relative_position_bias_table": "BEiT's relative bias in both or in neither: use_rel_pos_bias=",
    r"\.rel_pos_h": "ViTDet's decomposed relative positions in both or in neither: use_rel_pos=",
    EXTRA_TOKENS: "this encoder has no register and no distillation tokens, which take part in attention: take the "
    "checkpoint without registers or distillation",
    r"\.mlp\.w12": "SwiGLU is not supported: take a checkpoint with a GELU MLP",
}

_PATCHES = "patch_embed.proj.weight"


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
        new: names that are randomly initialised on purpose (a classification head).
        inferred: key of the model's specification to its value, where the checkpoint does not carry it or the model
            differs by choice.
        carried: the checkpoint carries a specification.
    """

    path: str
    matched: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    inferred: dict[str, str] = field(default_factory=dict)
    carried: bool = False

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
        if self.inferred:
            said = "; ".join(f"{key}: {value}" for key, value in self.inferred.items())
            label = "differs" if self.carried else "inferred"
            lines.append(f"  {label:<10}  {said}")
        texts = {
            "new": (self.new, "randomly initialised, as a new head is"),
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
        UserError: if the model contradicts what the checkpoint says of itself, a tensor has another shape, or coverage
            is not full beyond what is allowed. The model is untouched then.
    """
    report = LoadReport(str(path))
    with _shapes_of(path):
        raw = read_file(path)
        state = to_our_names(raw, str(path), report.dropped)
        described = describe(raw, state, path)
    report.carried = described.carried
    if isinstance(model, VisionTransformer):
        others = tuple(name.removesuffix(_PATCHES) for name in state if name.endswith(f".{_PATCHES}"))
        for name in [name for name in state if not name.startswith("encoder.")]:
            report.dropped[name] = (
                "another encoder; that of encoder is taken" if name.startswith(others) else "not part of the encoder"
            )
        state = {name.removeprefix("encoder."): state[name] for name in state if name.startswith("encoder.")}
    encoder: Any = model if isinstance(model, VisionTransformer) else model.encoder
    prefix = "" if encoder is model else "encoder."
    wanted = model.state_dict()
    check_agreement(encoder, described, path, report)
    size = described.specification.pretrain_img_size if described.known("pretrain_img_size") else None
    with _shapes_of(path):
        settle_positions(encoder, wanted, state, prefix, size, report)
        resize_relative_tables(encoder, wanted, state, report)
    for names in (wanted, state):  # what it says is compared above
        names.pop(f"{prefix}{FORM}", None)
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
            check_values(name, state[name], path)
            loaded[name] = state[name]
            if name not in report.resized:
                report.matched.append(name)
    for name in state:
        if name not in wanted:
            if re.match(rf"{prefix}(norm|head|fc_norm)\.", name):
                report.dropped[name] = "norm or head that this model does not have"
            elif name == f"{prefix}cls_token":
                report.dropped[name] = "class token, which this model does not have (class_token=False)"
            elif effect := no_effect(name, state[name]):
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
    if encoder.pretrain_img_size is None and size is not None:
        encoder.pretrain_img_size = size
    if verbose:
        print(report, flush=True)
    return report


def load_encoder(path: str | Path, verbose: bool = True, **options: Any) -> VisionTransformer:
    """The encoder of a checkpoint, built as the checkpoint says and loaded.

    Args:
        path: see :func:`read_checkpoint`. A file that carries no specification is built by what its tensors show.
        verbose: print the load report.
        options: of :class:`VisionTransformer`. What the checkpoint does not fix may be chosen (`img_size`,
            `learned_pos_embed`, `pos_embed_resize`, windows...); what its tensors do not show has to be given
            (`num_heads` of an unusual width, `position` of relative tables of unknown form).

    Raises:
        UserError: as :func:`load_checkpoint`; for options that contradict the checkpoint or do not go together.
    """
    described = describe_encoder(path)
    settled = {**described.specification.options(), **settle_options(options, described, path, "load_encoder")}
    if not described.known("pretrain_img_size") and "pretrain_img_size" not in options:
        del settled["pretrain_img_size"]
    try:
        encoder = VisionTransformer(**settled)
    except (TypeError, ValueError) as error:
        raise UserError(f"load_encoder: {path} with {options}: {error}") from None
    load_checkpoint(encoder, path, verbose=verbose)
    return encoder


def describe_encoder(path: str | Path) -> Description:
    """What a checkpoint says of its encoder, or what its tensors show.

    Raises:
        UserError: if it cannot be read, holds no encoder, or its specification is wrong or contradicts its tensors.
    """
    with _shapes_of(path):
        raw = read_file(path)
        return describe(raw, to_our_names(raw, str(path)), path)


def check_values(name: str, tensor: Tensor, path: str | Path) -> None:
    """Check that a tensor of a checkpoint holds weights.

    Raises:
        UserError: for integers, which a quantised file has, and for NaN or infinity, which a diverged run leaves.
    """
    if not tensor.is_floating_point():
        raise UserError(
            f"{path}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected floating-point weights. "
            "A quantised file cannot be trained from: take the one that it was made of."
        )
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise UserError(
            f"{path}: {bad} of {tensor.numel()} values of {name} are not finite (NaN or infinity): the run that wrote "
            "it had diverged. Take an earlier checkpoint."
        )


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


def save_checkpoint(
    state: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    specification: ModelSpecification | None = None,
) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        state: name to tensor, any device.
        path: ends in ``.safetensors``.
        metadata: strings kept in the header.
        specification: of the encoder, kept there too.
    """
    require("safetensors", "requirements/runtime.txt")
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    said = {KEY: specification.to_json()} if specification else {}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={**(metadata or {}), **said})


def _not_allowed(names: list[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
