"""What a checkpoint states about its encoder, and what its tensors imply where it states nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from adpe.checkpoints.copies import unwrap
from adpe.checkpoints.reading import read_metadata, training_config
from adpe.checkpoints.tables import BEIT_TABLE
from adpe.data.views.multicrop import first_group
from adpe.errors import UserError
from adpe.models.attention import RelativeQuery
from adpe.models.factory import SIZES, encoder_options
from adpe.models.pos_embed import is_sincos, square_side
from adpe.models.specification import KEY, ModelSpecification, read_json
from adpe.models.vit import FORM


@dataclass(frozen=True)
class Description:
    """The specification of a file's encoder.

    Attributes:
        specification: carried by the file, or inferred.
        carried: the file has one.
        inferred: key to where its value comes from, for what an uncarried specification does not take from a shape.
        guesses: keys among these whose value the file does not show: what a config says goes before.
    """

    specification: ModelSpecification
    carried: bool
    inferred: dict[str, str]
    guesses: frozenset[str]

    def known(self, key: str) -> bool:
        """Whether the file itself says or shows the value of a key."""
        return key not in self.guesses


def describe(raw: Mapping[str, object], state: Mapping[str, Tensor], path: str | Path) -> Description:
    """What the contents of a checkpoint say of its encoder.

    Args:
        raw: of :func:`adpe.checkpoints.reading.read_file`.
        state: their tensors by our names, see :func:`adpe.checkpoints.names.to_our_names`.
        path: where they come from.

    Raises:
        UserError: if the specification is wrong or contradicts the tensors, or there is no patch embedding.
    """
    tensors = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    text = read_metadata(path, raw).get(KEY)
    if text is None:
        return _infer(tensors, training_config(raw), str(path), _usual_eps(raw))
    said = read_json(text, str(path))
    _check_tensors(said, tensors, str(path))
    return Description(said, True, {}, frozenset())


def _check_tensors(said: ModelSpecification, tensors: Mapping[str, Tensor], path: str) -> None:
    """Raise UserError where a specification is not that of the tensors beside it."""
    shown = _shapes(tensors, path)
    shown["class_token"] = "cls_token" in tensors
    shown["num_class_tokens"] = _class_tokens(tensors)
    shown["layer_scale"] = "blocks.0.ls1.gamma" in tensors
    shown["use_rel_pos"] = "blocks.0.attn.rel_pos_h" in tensors
    shown["use_rel_pos_bias"] = f"blocks.0.attn{BEIT_TABLE}" in tensors
    heads = _heads(tensors, shown["embed_dim"])
    if heads is not None:
        shown["num_heads"] = heads
    relative = "blocks.0.attn.rel_pos_table" in tensors
    if relative != said.position.startswith("relative"):
        shown["position"] = "relative or relative_interpolated" if relative else "absolute or none"
    elif FORM in tensors:
        shown["position"] = "relative_interpolated" if bool(tensors[FORM].any()) else "relative"
    table = tensors.get("pos_embed")
    if table is None or not is_sincos(table):  # a learned table may be as it started
        shown["learned_pos_embed"] = table is not None
    for key, value in shown.items():
        if getattr(said, key) != value:
            raise UserError(
                f"{path}: {KEY}.{key} is {getattr(said, key)!r}, but its tensors show {value!r}. Write or download it "
                "again."
            )
    if table is not None:
        grid = [side // said.patch_size for side in said.pretrain_img_size]
        rows = table.shape[1] if table.ndim == 3 else 0
        if rows - grid[0] * grid[1] not in (0, said.num_class_tokens):
            raise UserError(
                f"{path}: {KEY}.pretrain_img_size is {list(said.pretrain_img_size)}, {grid[0]}x{grid[1]} patches, but "
                f"its pos_embed has {rows} rows. Write or download it again."
            )


def _class_tokens(tensors: Mapping[str, Tensor]) -> int:
    token = tensors.get("cls_token")
    return int(token.shape[1]) if token is not None and token.ndim == 3 and token.shape[1] else 1


def _usual_eps(raw: Mapping[str, object]) -> tuple[float, str]:
    """The eps of LayerNorm in models of a file's names, and whose it is: see Hugging Face's ``ViTConfig``."""
    if any(".layernorm_before." in name for name in unwrap(raw, {})):
        return 1e-12, "the default of Hugging Face's ViT, ViTMAE and BEiT; it does not say"
    return 1e-6, "of MAE, DeiT, BEiT, DINO and timm's ViT; it does not say"


def _infer(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str, usual_eps: tuple[float, str]
) -> Description:
    """What tensors without a specification show, what the config of a training checkpoint says, and guesses."""
    values = _shapes(tensors, path)
    inferred: dict[str, str] = {}
    guesses: set[str] = set()

    def guess(key: str, value: Any, reason: str) -> Any:
        inferred[key] = f"{value} ({reason})"
        guesses.add(key)
        return value

    width, patch = values["embed_dim"], values["patch_size"]
    given = _training_options(config, width)
    heads = _heads(tensors, width) or given.get("num_heads")
    if not isinstance(heads, int) or not 0 < heads <= width:
        known = {size["embed_dim"]: size["num_heads"] for size in SIZES.values()}
        heads = guess("num_heads", known.get(width, max(width // 64, 1)), f"usual for a width of {width}")
    table, beit = tensors.get("pos_embed"), f"blocks.0.attn{BEIT_TABLE}" in tensors
    side = square_side(table)
    fixed = table is not None and is_sincos(table)
    position: Any
    if "blocks.0.attn.rel_pos_table" in tensors:
        form = tensors.get(FORM)
        if form is not None:
            position = "relative_interpolated" if bool(form.any()) else "relative"
            inferred["position"] = f"{position} (its {FORM})"
        else:
            position = _word(given.get("position"), ("relative", "relative_interpolated"))
            if given.get("adversary") in ("coordinate", "random"):
                position = "relative_interpolated"
            position = guess("position", position, "its tables are read by either form, and it does not say by which")
    else:
        ours = given.get("type") in ("AdPEViT", "AdPEClassifier")
        position = "none" if beit and table is None and not ours else "absolute"
        inferred["position"] = f"{position} ({'no' if table is None else 'a'} pos_embed, no relative tables)"
    if table is not None and side:
        pretrain = (side * patch, side * patch)
        inferred["pretrain_img_size"] = f"{pretrain[0]} (a table of {side}x{side} patches)"
    elif size := _crop(config, patch) or _side(given.get("pretrain_img_size") or given.get("img_size"), patch):
        pretrain = (size, size)
        inferred["pretrain_img_size"] = f"{size} (of its training config)"
    elif position == "none":
        pretrain = (224 // patch * patch or patch,) * 2
        guesses.add("pretrain_img_size")
    else:
        pretrain = guess("pretrain_img_size", (224 // patch * patch or patch,) * 2, "a guess: it has no square table")
    norm = given.get("norm_cfg")
    eps = given.get("norm_eps") or (norm.get("eps") if isinstance(norm, Mapping) else None)
    if not isinstance(eps, float) or not 0 < eps < 1:
        eps = guess("norm_eps", *usual_eps)
    window, whole = given.get("window_size"), given.get("global_attn_indexes")
    window = window if isinstance(window, int) and window > 0 and "cls_token" not in tensors else 0
    return Description(
        ModelSpecification(
            **values,
            num_heads=heads,
            position=position,
            relative_query=_word(given.get("relative_query"), get_args(RelativeQuery)),
            learned_pos_embed=table is not None and not fixed,
            pretrain_img_size=pretrain,
            class_token="cls_token" in tensors,
            num_class_tokens=_class_tokens(tensors),
            layer_scale="blocks.0.ls1.gamma" in tensors,
            use_rel_pos="blocks.0.attn.rel_pos_h" in tensors,
            use_rel_pos_bias=beit,
            window_size=window,
            global_attn_indexes=tuple(whole) if window and isinstance(whole, (list, tuple)) else (),
            norm_eps=eps,
        ),
        False,
        inferred,
        frozenset(guesses),
    )


def _shapes(tensors: Mapping[str, Tensor], path: str) -> dict[str, Any]:
    """What the shapes of an encoder's tensors show."""
    patches, hidden = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if patches is None or patches.ndim != 4 or patches.shape[2] != patches.shape[3] or not patches.numel():
        shape = "none" if patches is None else tuple(patches.shape)
        raise UserError(f"{path}: patch_embed.proj.weight is {shape}, expected (width, channels, patch, patch).")
    width = len(patches)
    numbers = [int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.").match, tensors) if match]
    return {
        "patch_size": patches.shape[2],
        "in_chans": patches.shape[1],
        "embed_dim": width,
        "depth": 1 + max(numbers, default=-1),
        "mlp_ratio": 4.0 if hidden is None or hidden.ndim != 2 else len(hidden) / width,
    }


def _heads(tensors: Mapping[str, Tensor], width: int) -> int | None:
    """Heads, where a table of the first block shows them."""
    for name, axis in (("rel_pos_table", 0), ("rel_pos_h", 1)):
        table = tensors.get(f"blocks.0.attn.{name}")
        if table is not None and table.ndim == 2 and table.shape[axis]:
            return width // table.shape[axis]
    bias = tensors.get(f"blocks.0.attn{BEIT_TABLE}")
    return bias.shape[1] if bias is not None and bias.ndim == 2 else None


def _training_options(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Options of the encoder in the config of a training checkpoint; empty if that is of another width or framework."""
    model = config.get("model") or {}
    given = model.get("backbone") or model
    if not isinstance(given, Mapping):
        return {}
    given = {**_named_sizes(given.get("model")), **given}
    return given if width in (given.get("embed_dim"), given.get("embed_dims")) else {}


def _crop(config: Mapping[str, Any], patch: int) -> int:
    """Pixels of the crops of a pretraining config of ours; 0 if it does not say."""
    node: Any = config.get("train_dataloader")
    for key in ("dataset", "crops"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return _side(first_group(node).get("size"), patch)


def _side(size: Any, patch: int) -> int:
    """Pixels of whole patches along a side of a square; 0 for anything else."""
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size // patch * patch if isinstance(size, int) and size >= patch else 0


def _word(value: Any, words: tuple[Any, ...]) -> Any:
    """`value` if it is one of the words, else the first of them."""
    return value if isinstance(value, str) and value in words else words[0]


def _named_sizes(name: Any) -> dict[str, Any]:
    try:
        return dict(encoder_options(name)) if isinstance(name, str) else {}
    except ValueError:
        return {}
