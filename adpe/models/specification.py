"""What a checkpoint says of the encoder in it: enough to build the encoder, and to know where it comes from.

A specification is JSON in the metadata of ``.safetensors`` under `KEY`, and under the same key beside the tensors of
our ``.pth`` files (in ``meta`` where a framework has one). What is read is taken for what a stranger wrote: size,
version, names, types and ranges are checked before anything is built.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from adpe.errors import UserError
from adpe.models.attention import RelativeQuery
from adpe.models.options import Position
from adpe.models.vit import VisionTransformer

KEY = "adpe_specification"
VERSION = 1
# Characters of a specification; one of ours has about a thousand.
LONGEST = 2**16


@dataclass(frozen=True)
class ModelSpecification:
    """The encoder of a file, and its origin.

    Attributes:
        patch_size: pixels.
        in_chans: image channels.
        embed_dim: width D.
        depth: blocks.
        num_heads: heads H, which no tensor shows.
        mlp_ratio: hidden width of the MLP over D.
        position: kind of positions, see :class:`adpe.VisionTransformer`.
        relative_query: query that the relative tables were trained with.
        learned_pos_embed: `pos_embed` is trained, and in the file; else it is the fixed sine-cosine table.
        pretrain_img_size: (height, width) in pixels whose patch grid the absolute positions are of.
        class_token: there is one.
        layer_scale: the blocks have LayerScale.
        use_rel_pos: decomposed relative positions (ViTDet).
        use_rel_pos_bias: a relative position bias (BEiT).
        window_size: patches along a side of attention windows; 0 has none.
        global_attn_indexes: blocks that attend to the whole image all the same.
        norm_eps: of every LayerNorm.
        mean: of the channels, for pixels in 0..1, that images are normalised with; None if that is not known.
        std: likewise.
        method: name of the method that made the weights.
        recipe: config that it was run with.
        seed: of that run.
        config_sha256: hash of what that config computes, see :func:`adpe.engine.hooks.recording.config_sha256`.
        epochs: length of that run; None if it counts iterations.
        iterations: optimiser steps done.
        num_class_tokens: where there are any.
    """

    patch_size: int
    in_chans: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    position: Position
    relative_query: RelativeQuery
    learned_pos_embed: bool
    pretrain_img_size: tuple[int, int]
    class_token: bool
    layer_scale: bool
    use_rel_pos: bool
    use_rel_pos_bias: bool
    window_size: int
    global_attn_indexes: tuple[int, ...]
    norm_eps: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    method: str | None = None
    recipe: str | None = None
    seed: int | None = None
    config_sha256: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    num_class_tokens: int = 1

    def to_json(self) -> str:
        """The text that a file carries."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)

    def options(self) -> dict[str, Any]:
        """Options of :class:`adpe.VisionTransformer` that build the encoder as the file has it, at its own size."""
        names = (
            "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "position", "relative_query",
            "learned_pos_embed", "pretrain_img_size", "class_token", "use_rel_pos", "use_rel_pos_bias", "window_size",
            "global_attn_indexes", "norm_eps", "num_class_tokens",
        )  # fmt: skip
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**values, "img_size": self.pretrain_img_size, "init_values": 1.0 if self.layer_scale else None}


def specification_of(
    encoder: VisionTransformer, pretrain_img_size: tuple[int, int] | None = None, **origin: Any
) -> ModelSpecification:
    """The specification of an encoder that is there.

    Args:
        pretrain_img_size: (height, width) in pixels of the images it was trained with; by default that of its table.
        origin: ``method``, ``recipe`` and so on, of :class:`ModelSpecification`.
    """
    first: Any = encoder.blocks[0]
    learned = encoder.pos_embed is not None
    attentions = encoder.attentions()
    size = pretrain_img_size or (encoder.table_size if learned else encoder.pretraining_size)
    height, width = (side // encoder.patch_size * encoder.patch_size for side in size)
    windows = [attention.window_size for attention in attentions]
    return ModelSpecification(
        patch_size=encoder.patch_size,
        in_chans=encoder.patch_embed.proj.in_channels,
        embed_dim=encoder.embed_dim,
        depth=len(encoder.blocks),
        num_heads=encoder.num_heads,
        mlp_ratio=first.mlp.fc1.out_features / encoder.embed_dim,
        position=encoder.position,
        relative_query=encoder.relative_query,
        learned_pos_embed=learned,
        pretrain_img_size=(height, width),
        class_token=encoder.cls_token is not None,
        layer_scale=hasattr(first.ls1, "gamma"),
        use_rel_pos=any(attention.rel_pos_h is not None for attention in attentions),
        use_rel_pos_bias=any(attention.bias_grid is not None for attention in attentions),
        window_size=max(windows),
        global_attn_indexes=tuple(i for i, window in enumerate(windows) if max(windows) and not window),
        norm_eps=encoder.norm_eps,
        num_class_tokens=max(encoder.num_prefix_tokens, 1),
        **origin,
    )


def read_json(text: Any, source: str) -> ModelSpecification:
    """The specification that a file carries as text.

    Args:
        source: the file, for messages.

    Raises:
        UserError: if it is not the JSON of a specification of this version; `source` and the key are named.
    """
    remedy = "Take a file as this project wrote it, or one without specification."
    if not isinstance(text, str) or len(text) > LONGEST:
        found = f"{len(text)} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise UserError(f"{source}: {KEY} is {found}, expected JSON of at most {LONGEST} characters. {remedy}")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise UserError(f"{source}: {KEY} is not readable JSON ({reason}). {remedy}") from None
    if not isinstance(said, dict):
        raise UserError(f"{source}: {KEY} is a {type(said).__name__}, expected an object. {remedy}")
    version = said.pop("version", None)
    if not _integer(version) or version < 1:
        raise UserError(f"{source}: {KEY}.version is {_short(version)}, expected an integer from 1 on. {remedy}")
    if version > VERSION:
        raise UserError(
            f"{source}: {KEY}.version is {version}, this version of adpe reads up to {VERSION}: update adpe, or export "
            "the encoder again with this one."
        )
    known = {field.name for field in fields(ModelSpecification)}
    required = {name for name in known if name not in _OPTIONAL}
    for problem, names in (("lacks", required - said.keys()), ("has the unknown", said.keys() - known)):
        if names:
            raise UserError(f"{source}: {KEY} {problem} {', '.join(_short(n, 40) for n in sorted(names))}. {remedy}")
    for name, value in said.items():
        expected = _CHECKS[name](value)
        if expected:
            raise UserError(f"{source}: {KEY}.{name} is {_short(value)}, expected {expected}. {remedy}")
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    specification = ModelSpecification(**said)
    _check_together(specification, source, remedy)
    return specification


def _check_together(said: ModelSpecification, source: str, remedy: str) -> None:
    faults = {
        "num_heads": said.embed_dim % said.num_heads and f"a divisor of embed_dim {said.embed_dim}",
        "embed_dim": said.embed_dim % 4 and "a multiple of 4",
        "mean": said.mean and len(said.mean) != said.in_chans and f"{said.in_chans} numbers, as in_chans says",
        "std": said.std and len(said.std) != said.in_chans and f"{said.in_chans} numbers, as in_chans says",
        "pretrain_img_size": any(s % said.patch_size for s in said.pretrain_img_size)
        and f"multiples of patch_size {said.patch_size}",
        "global_attn_indexes": any(i >= said.depth for i in said.global_attn_indexes)
        and f"blocks below depth {said.depth}",
        "learned_pos_embed": said.position == "none" and said.learned_pos_embed and "false with position none",
        "window_size": said.window_size and said.class_token and "0 with a class token",
    }
    for name, expected in faults.items():
        if expected:
            value = getattr(said, name)
            raise UserError(f"{source}: {KEY}.{name} is {_short(value)}, expected {expected}. {remedy}")


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _in(low: int, high: int) -> Any:
    return lambda value: "" if _integer(value) and low <= value <= high else f"an integer in {low}..{high}"


def _one_of(words: tuple[str, ...]) -> Any:
    return lambda value: "" if isinstance(value, str) and value in words else f"one of {', '.join(words)}"


def _number(low: float, high: float) -> Any:
    def check(value: Any) -> str:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return "" if good and low < value <= high else f"a number above {low:g}, at most {high:g}"

    return check


def _list_of(item: Any, lengths: range) -> Any:
    def check(value: Any) -> str:
        if isinstance(value, list) and len(value) in lengths and not any(item(part) for part in value):
            return ""
        count = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        return f"a list of {count}, each {item(None)}"

    return check


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _or_null(check: Any) -> Any:
    return lambda value: "" if value is None else (found := check(value)) and f"{found}, or null"


def _text(value: Any) -> str:
    good = isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()
    return "" if good else "printable text of 1 to 1024 characters"


def _hash(value: Any) -> str:
    return "" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else "64 hexadecimal digits"


_OPTIONAL = ("mean", "std", "method", "recipe", "seed", "config_sha256", "epochs", "iterations", "num_class_tokens")
_CHECKS: dict[str, Any] = {
    "patch_size": _in(1, 1024),
    "in_chans": _in(1, 1024),
    "embed_dim": _in(4, 65536),
    "depth": _in(1, 1024),
    "num_heads": _in(1, 1024),
    "mlp_ratio": _number(0, 64),
    "position": _one_of(get_args(Position)),
    "relative_query": _one_of(get_args(RelativeQuery)),
    "learned_pos_embed": _flag,
    "pretrain_img_size": _list_of(_in(1, 65536), range(2, 3)),
    "class_token": _flag,
    "layer_scale": _flag,
    "use_rel_pos": _flag,
    "use_rel_pos_bias": _flag,
    "window_size": _in(0, 1024),
    "global_attn_indexes": _list_of(_in(0, 1023), range(1025)),
    "norm_eps": _number(0, 0.5),
    "mean": _or_null(_list_of(_number(-1e6, 1e6), range(1, 1025))),
    "std": _or_null(_list_of(_number(0, 1e6), range(1, 1025))),
    "method": _or_null(_text),
    "recipe": _or_null(_text),
    "seed": _or_null(_in(0, 2**63 - 1)),
    "config_sha256": _or_null(_hash),
    "epochs": _or_null(_in(0, 2**63 - 1)),
    "iterations": _or_null(_in(0, 2**63 - 1)),
    "num_class_tokens": _in(1, 1024),
}
