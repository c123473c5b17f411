"""Options of the encoder, and the combinations that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from adpe.models.attention import RelativeQuery
from adpe.models.resampling import PosEmbedResize

Position = Literal["absolute", "relative", "relative_interpolated", "none"]
LearnedPosEmbed = bool | Literal["pretraining"]
Size = int | tuple[int, int]


def check_words(
    position: Any, relative_query: Any, pos_embed_resize: Any, learned_pos_embed: Any, norm_eps: float
) -> None:
    """Raise ValueError for a word that :class:`adpe.VisionTransformer` does not know, naming the option."""
    if position not in get_args(Position):
        raise ValueError(f"position must be one of {', '.join(get_args(Position))}; got {position!r}.")
    if relative_query not in get_args(RelativeQuery):
        raise ValueError(f"relative_query must be scaled or unscaled; got {relative_query!r}.")
    if pos_embed_resize not in (None, *get_args(PosEmbedResize)):
        renamed = " (timm was called resample in earlier versions)" if pos_embed_resize == "resample" else ""
        known = ", ".join(get_args(PosEmbedResize))
        raise ValueError(f"pos_embed_resize must be {known} or None; got {pos_embed_resize!r}{renamed}.")
    if learned_pos_embed not in (False, True, "pretraining") or (position == "none" and learned_pos_embed):
        raise ValueError(
            "learned_pos_embed must be False, True or 'pretraining', and False with position='none'; got "
            f"{learned_pos_embed!r} with position={position!r}."
        )
    if not 0 < norm_eps < 1:
        raise ValueError(f"norm_eps must lie between 0 and 1, got {norm_eps!r}.")


def check_shapes(
    embed_dim: int,
    depth: int,
    num_heads: int,
    class_token: bool,
    window_size: int,
    global_attn_indexes: Sequence[int],
) -> None:
    """Raise ValueError for widths that do not divide, and for windows that an encoder cannot have."""
    if embed_dim % num_heads or embed_dim % 4:
        raise ValueError(f"embed_dim {embed_dim} must be divisible by 4 and by num_heads {num_heads}.")
    if window_size and class_token:
        raise ValueError(f"window_size={window_size} needs class_token=False: window attention takes patches only.")
    bad = [i for i in global_attn_indexes if not 0 <= i < depth]
    if window_size < 0 or bad or (global_attn_indexes and not window_size):
        raise ValueError(
            f"global_attn_indexes={list(global_attn_indexes)} with window_size={window_size}: expected blocks "
            f"0..{depth - 1} and a window of at least one patch."
        )


def check_class_tokens(number: int, position: str) -> None:
    """Raise ValueError for a number of class tokens that there cannot be."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"num_class_tokens={number!r} must be a positive whole number; class_token=False has none.")
    if number > 1 and position.startswith("relative"):
        raise ValueError(f"num_class_tokens={number}: relative positions have a bucket for one class token.")
