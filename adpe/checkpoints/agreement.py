"""Options of an encoder checked against its checkpoint: missing ones are filled in, contradictions refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from adpe.checkpoints.describing import Description
from adpe.errors import UserError
from adpe.models.specification import ModelSpecification
from adpe.models.vit import VisionTransformer

# What an encoder cannot have otherwise than its checkpoint. The other options are choices of a transfer: windows, drop
# path, the class token that ViTDet drops, the query that the reference's fine-tuning scales otherwise.
FIXED = (
    "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "position", "pretrain_img_size",
    "norm_eps",
)  # fmt: skip
# What an encoder has of its checkpoint unless it is told otherwise.
_TAKEN = (
    "class_token", "relative_query", "learned_pos_embed", "use_rel_pos", "use_rel_pos_bias", "window_size",
    "global_attn_indexes", "num_class_tokens",
)  # fmt: skip


def settle_options(
    given: Mapping[str, Any], described: Description, path: object, owner: str, sizes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Options of :class:`adpe.VisionTransformer` for an encoder that a checkpoint will be loaded into.

    Args:
        given: options that a config sets; None stands for one that it does not.
        described: of the checkpoint.
        path: of the checkpoint, for messages.
        owner: what holds the options, for messages, e.g. ``model.backbone``.
        sizes: options that ``model="adpe_vit_..."`` stands for; those `given` go before.

    Returns:
        `given` with what the checkpoint says of the rest.

    Raises:
        UserError: if an option contradicts the checkpoint, naming both values.
    """
    said = described.specification
    settled = {key: value for key, value in given.items() if value is not None}
    asked = {**(sizes or {}), **settled}
    for key in FIXED:
        if not described.known(key):
            if key == "position" and "position" not in asked:
                raise UserError(
                    f"{path} has relative positions and does not say which: set {owner}.position to relative or, for "
                    "one pretrained with the coordinate adversary, to relative_interpolated."
                )
            continue
        if key not in asked:
            settled[key] = getattr(said, key)
        elif not _agree(key, asked[key], said):
            _refuse(owner, key, asked[key], described, path)
    defaults = inspect.signature(VisionTransformer).parameters
    for key in _TAKEN:
        if key not in settled and getattr(said, key) != defaults[key].default:
            settled[key] = getattr(said, key)
    if said.position == "none":
        settled["learned_pos_embed"] = False
    if said.layer_scale:
        settled.setdefault("init_values", 1.0)
    if not described.known("num_heads") and "num_heads" not in asked:
        settled["num_heads"] = said.num_heads
    return settled


def check_agreement(encoder: VisionTransformer, described: Description, path: object, report: Any) -> None:
    """Raise UserError if an encoder that is there contradicts the checkpoint; write what differs by choice to `report`.

    Shapes are left to the comparison of tensors; a specification that names another position is told as such.
    """
    said = described.specification
    own = {
        "num_heads": encoder.num_heads,
        "norm_eps": encoder.norm_eps,
        "position": encoder.position,
        "pretrain_img_size": encoder.pretrain_img_size,
    }
    form_shown = described.carried or (encoder.relative and said.position.startswith("relative"))
    for key, value in own.items():
        same_width = key != "num_heads" or encoder.embed_dim == said.embed_dim
        if value is None or not described.known(key) or not same_width or _agree(key, value, said):
            continue
        if key == "position" and said.position == "none" and encoder.pos_embed is not None:
            continue  # a table of zeros
        if key != "position" or form_shown or said.position == "none":
            _refuse(type(encoder).__name__, key, value, described, path)
    report.inferred.update(described.inferred)
    if "position" in described.guesses and encoder.relative:
        report.inferred["position"] = f"{encoder.position} (it does not say which form; the model's is taken)"
    if "norm_eps" in described.guesses:
        report.inferred["norm_eps"] = f"{encoder.norm_eps:g} (it does not say; the model's is taken)"
    if "num_heads" in described.guesses:
        report.inferred["num_heads"] = f"{encoder.num_heads} (it does not say; the model's is taken)"
    if "pretrain_img_size" in described.guesses and encoder.position != "none":
        height, width = encoder.pretraining_size
        report.inferred["pretrain_img_size"] = (
            f"not known: positions are those of {height}x{width} pixels; set pretrain_img_size to those of pretraining"
        )
    if encoder.relative and encoder.relative_query != said.relative_query:
        report.inferred["relative_query"] = f"{encoder.relative_query} here, {said.relative_query} in the checkpoint"


def _agree(key: str, value: Any, said: ModelSpecification) -> bool:
    theirs = getattr(said, key)
    if key == "pretrain_img_size":
        value = (value, value) if isinstance(value, int) else tuple(value)
        return [side // said.patch_size for side in value] == [side // said.patch_size for side in theirs]
    if key == "mlp_ratio":
        return int(said.embed_dim * value) == int(said.embed_dim * theirs)
    return value == theirs


def _refuse(owner: str, key: str, value: Any, described: Description, path: object) -> None:
    theirs = getattr(described.specification, key)
    where = "its specification says" if described.carried else "its tensors show"
    raise UserError(
        f"{owner}: {key} = {value!r}, but of {path} {where} {theirs!r}. Leave {key} out, or set it to {theirs!r}."
    )
