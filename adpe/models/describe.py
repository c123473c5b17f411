"""How an encoder's positions and attention work, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adpe.models.vit import VisionTransformer


def describe_positions(encoder: VisionTransformer) -> str:
    """How positions and attention work, in words: encoders that differ here are not the same entry of a table."""
    words = [_absolute(encoder)]
    attentions = encoder.attentions()
    if encoder.relative:
        words.append(f"{encoder.position} ({encoder.relative_query} query)")
    if any(attention.rel_pos_h is not None for attention in attentions):
        words.append("decomposed")
    if any(attention.relative_position_bias_table is not None for attention in attentions):
        words.append("bias")
    window = max((attention.window_size for attention in attentions), default=0)
    if window:
        whole = [str(i) for i, attention in enumerate(attentions) if not attention.window_size]
        words.append(f"windows of {window}, offsets within windows, global {' '.join(whole) or 'none'}")
    if encoder.cls_token is None:
        words.append("no class token")
    if encoder.num_prefix_tokens > 1:
        words.append(f"{encoder.num_prefix_tokens} class tokens")
    return ", ".join(words)


def _absolute(encoder: VisionTransformer) -> str:
    if encoder.position == "none":
        return "no absolute positions"
    rule, size = encoder.pos_embed_resize, encoder.pretrain_img_size
    learned = encoder.pos_embed is not None
    if rule == "recompute" and not learned:
        return "sincos recompute"
    origin = "" if size is None else f" from {size[0]}x{size[1]}"
    in_every_pass = " in every pass" if learned and encoder.table_size != encoder.img_size else ""
    return f"{'learned' if learned else 'sincos'} {rule}{origin}{in_every_pass}"
