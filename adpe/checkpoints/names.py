"""Names of the parameters of a ViT in every framework, and conversion from and to ours.

Ours are those of :class:`adpe.MAE`: ``encoder.*`` (timm's ViT names), ``mask_token``, ``decoder.*`` and
``adversary.*``. Read: this project, the AdPE reference, MAE, timm's ViT and BEiT, mmpretrain (``VisionTransformer``,
``MAEViT``, ``BEiTViT``), mmsegmentation (``VisionTransformer``, ``MAE``, ``BEiT``), detectron2's ViTDet, DINO, DINOv2,
transformers and torchvision (`adpe.checkpoints.other_libraries`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from adpe.checkpoints.copies import one_encoder, unwrap, without_wrappers
from adpe.checkpoints.other_libraries import FROM_TIMM, for_transformers, from_other_libraries
from adpe.errors import UserError
from adpe.models.pos_embed import is_sincos, sincos_table, square_side
from adpe.models.vit import FORM

Framework = Literal[
    "adpe", "timm", "mae", "mmseg", "mmpretrain", "detectron2",
    "huggingface_vit", "huggingface_dinov2", "huggingface_vitmae",
]  # fmt: skip

# Every framework's names as timm's, in this order.
TO_TIMM = [
    (r"^layers\.", "blocks."),  # OpenMMLab
    (r"^(decoder_)?blocks\.\d+\.(\d+)\.", r"\1blocks.\2."),  # DINOv2: chunks of blocks, which keep their numbers
    (r"blocks\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),  # torch.nn.MultiheadAttention in mmseg's VisionTransformer
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # BEiT
    (r"\.(?:attn|ffn)\.gamma([12])\.weight$", r".ls\1.gamma"),  # mmpretrain
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(?:ln|norm)1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
]
TO_OURS = [
    (r"^decoder_blocks\.", "decoder.blocks."),
    (r"^decoder_(embed|norm|pred)\.", r"decoder.\1."),
    (r"^decoder_pos_embed$", "decoder.pos_embed"),
    (r"\.attn\.rpe_k\.lookup_table_weight$", ".attn.rel_pos_table"),  # the AdPE reference
]
# What stands beside the names of an encoder and is none of it.
NOT_OF_THE_ENCODER = re.compile(
    r"(?:decoder|adversary|mask_token|data_preprocessor|teacher|student|predictor|projector|center|logit_scale)(?:\.|$)"
    r"|\w*head(?:\.|_)"
)

_MMLAB = [
    (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^fc_norm\.", "ln2."),
]
_BEIT = [(r"\.ls([12])\.gamma$", r".gamma_\1")]
_FROM_OURS: dict[str, list[tuple[str, str]]] = {
    "adpe": [],
    "timm": [],
    "mae": [],
    "mmseg": [*_MMLAB, *_BEIT],
    "mmpretrain": [
        *_MMLAB,
        (r"\.ls1\.gamma$", ".attn.gamma1.weight"),
        (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
        (r"^(?!head\.)", "backbone."),
        (r"^head\.", "head.fc."),
    ],
    "detectron2": [(r"^", "backbone.net.")],
    **FROM_TIMM,
}


def to_our_names(
    state: Mapping[str, object], source: str = "checkpoint", dropped: dict[str, str] | None = None
) -> dict[str, Tensor]:
    """Translate a state dict of any known format.

    Args:
        state: raw names, possibly nested and with several copies, see :mod:`adpe.checkpoints.copies`.
        source: what error messages call it.
        dropped: takes name to reason of what is left out.

    Returns:
        tensors by our names; what no format explains is ``encoder.<its name>``, for the loader to complain of.

    Raises:
        UserError: if it holds no encoder.
    """
    dropped = {} if dropped is None else dropped
    raw = one_encoder(without_wrappers(unwrap(state, dropped), dropped), dropped, source)
    tensors: dict[str, Tensor] = {}
    for name, tensor in from_other_libraries(raw, dropped).items():
        for pattern, replacement in TO_TIMM:
            name = re.sub(pattern, replacement, name)
        if name.endswith("relative_position_index"):
            dropped[name] = "index of pairs, recomputed"
        else:
            tensors[name] = tensor
    _join_query_and_value_bias(tensors)
    _share_bias_table(tensors)
    translated: dict[str, Tensor] = {}
    apart = any(name.startswith("encoder.patch_embed.") for name in tensors)
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.attn\.rpe_k\.(adv_token|adv_shift|no_shift)", name)
        if match and match[3] != "no_shift":
            stage = "adversary.decoder" if match[1] else "adversary.encoder"
            stacks.setdefault(stage, {})[int(match[2])] = tensor.flatten()
        elif match is None:
            translated[_our_name(name, tensor, apart)] = (
                tensor.squeeze(0) if name.endswith("lookup_table_weight") else tensor
            )
    form = _form_of_relative_tables(tensors)
    if form is not None:
        translated[f"encoder.{FORM}"] = torch.tensor(form)
    for name, rows in stacks.items():
        translated[name] = torch.stack([rows[i] for i in sorted(rows)])
    if not any(name.startswith("encoder.blocks.") for name in translated):
        some = summarize(tensors or map(str, state)) or "nothing"
        raise UserError(
            f"{source} holds no ViT encoder: expected names such as blocks.0.attn.qkv.weight, found {some}."
        )
    return translated


def from_our_names(
    state: Mapping[str, Tensor], framework: Framework, img_size: int = 224, source: str = "checkpoint"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Translate our names into a framework's.

    The encoder, for "mae" with decoder and mask token, for "huggingface_vitmae" with MAE's, for "adpe" everything.
    Sine-cosine positions, which ours recomputes, are written out; mmseg gets LayerScale of ones where there is none,
    since it starts at 0.1 there. A relative-bias table with a key bias of zero makes it BEiT, whose biases of query and
    value stand apart.

    Args:
        state: from :func:`to_our_names`.
        framework: the target.
        img_size: pixels of the square image whose positions are written, if `state` has none.
        source: what error messages call it.

    Returns:
        the tensors, and name to reason of what was left out.

    Raises:
        UserError: for an unknown framework, or a tensor without which the target would compute something else.
    """
    if framework not in get_args(Framework):
        raise UserError(f"Unknown framework {framework!r}: expected {', '.join(get_args(Framework))}.")
    if framework == "adpe":
        return dict(state), {}
    encoder = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    left_out: dict[str, str] = {}
    rest: dict[str, Tensor] = {}
    decoded = framework == "mae" or (framework == "huggingface_vitmae" and _has_decoder_of_mae(state))
    for name, tensor in state.items():
        if decoded and name.startswith(("decoder.", "mask_token")):
            rest[re.sub(r"^decoder\.", "decoder_", name)] = tensor
        elif not name.startswith("encoder."):
            left_out[name] = "not part of the encoder"
    relative = [name for name in encoder if name.endswith(".attn.rel_pos_table")]
    if relative:
        raise UserError(
            f"{source} has the relative positions of AdPE ({summarize(relative)}), which {framework} does not know: "
            "its encoder would compute something else. Use it through this project (--to adpe), or convert one "
            "with position='absolute'."
        )
    key_biases = [t.chunk(3)[1] for name, t in encoder.items() if name.endswith(".attn.qkv.bias")]
    beit = any(name.endswith(".relative_position_bias_table") for name in encoder) and not any(
        bool(bias.any()) for bias in key_biases
    )
    if "pos_embed" not in encoder and not beit:
        width, patch = encoder["patch_embed.proj.weight"].shape[0], encoder["patch_embed.proj.weight"].shape[-1]
        if img_size % patch:
            raise UserError(f"img_size={img_size} is not divisible by the patch size {patch} of {source}.")
        side = img_size // patch
        encoder["pos_embed"] = sincos_table(side, side, width, torch.float32, torch.device("cpu")).clone()
    if framework in FROM_TIMM:
        for name in [name for name in encoder if re.match(r"(?:head|fc_norm)\.", name)]:
            del encoder[name]
            left_out[f"encoder.{name}"] = "head over the mean of the patch tokens"
        if rest:
            width, rows = state["decoder.embed.weight"].shape[0], encoder["pos_embed"].shape[1] - 1
            side = square_side(encoder["pos_embed"])
            if side <= 0:
                raise UserError(f"{source}: its pos_embed of {rows} patches is not square, as {framework}'s is.")
            table = sincos_table(side, side, width, torch.float32, torch.device("cpu")).clone()
            rest.setdefault("decoder_pos_embed", table)
        encoder |= rest
        rest = {}
        for_transformers(encoder, framework, source)
    if framework == "mmseg":
        for index in {name.split(".")[1] for name in encoder if name.startswith("blocks.")}:
            for branch in (1, 2):
                ones = torch.ones_like(encoder[f"blocks.{index}.norm1.weight"])
                encoder.setdefault(f"blocks.{index}.ls{branch}.gamma", ones)
    if beit:
        _split_query_and_value_bias(encoder)
    # mmpretrain's BEiT has the LayerScale names of BEiT, its ViT others.
    renames = [*(_BEIT if beit and framework != "detectron2" else []), *_FROM_OURS[framework]]
    translated: dict[str, Tensor] = {}
    for name, tensor in {**encoder, **rest}.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        translated[name] = tensor
    return translated, left_out


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


def _has_decoder_of_mae(state: Mapping[str, Tensor]) -> bool:
    """Whether mask tokens are known to enter before the decoder: MAE+'s enter before the encoder."""
    token, embed = state.get("mask_token"), state.get("decoder.embed.weight")
    if token is None or embed is None or not any(name.startswith("decoder.blocks.") for name in state):
        return False
    return bool(token.shape[-1] == embed.shape[0] != embed.shape[1])


def _join_query_and_value_bias(tensors: dict[str, Tensor]) -> None:
    """BEiT's biases of query and value as one of query, key (zero) and value: the same function."""
    for name in [name for name in tensors if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        if f"{block}v_bias" in tensors:
            query, value = tensors.pop(name), tensors.pop(f"{block}v_bias")
            tensors[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
            tensors.pop(f"{block}k_bias", None)  # a buffer of zeros in timm's


def _split_query_and_value_bias(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
        query, key, value = tensors[name].chunk(3)
        if not key.any():
            del tensors[name]
            block = name.removesuffix("qkv.bias")
            tensors[f"{block}q_bias"], tensors[f"{block}v_bias"] = query, value


def _share_bias_table(tensors: dict[str, Tensor]) -> None:
    """BEiT pretrains one relative-bias table for all blocks; each block gets its own, as its fine-tuning does."""
    table = tensors.pop("rel_pos_bias.relative_position_bias_table", None)
    if table is not None:
        for block in {name.split(".")[1] for name in tensors if name.startswith("blocks.")}:
            tensors[f"blocks.{block}.attn.relative_position_bias_table"] = table


def _form_of_relative_tables(tensors: Mapping[str, Tensor]) -> float | None:
    """1 for the interpolated form, 0 for the discrete one, None where nothing shows it: by the reference's names.

    A pretraining file of its coordinate adversary has shifts; one without shifts, known by its fixed table of absolute
    positions, is of the discrete form. Its fine-tuning trains that table and leaves the shifts out.
    """
    if not any(name.endswith(".rpe_k.lookup_table_weight") for name in tensors):
        return None
    if any(re.search(r"\.rpe_k\.(adv|no)_shift$", name) for name in tensors):
        return 1.0
    table = tensors.get("pos_embed")
    return 0.0 if table is not None and is_sincos(table) else None


def _our_name(name: str, tensor: Tensor, apart: bool) -> str:
    """`apart`: the encoder has its prefix, and what has another one is not of it."""
    if name == "adv_token":  # the reference's one name for two things, told apart by their rank
        return "adversary.token" if tensor.ndim == 3 else "adversary.shift"
    for pattern, replacement in TO_OURS:
        name = re.sub(pattern, replacement, name)
    if name.startswith(("encoder.", "head.")) or not (apart or NOT_OF_THE_ENCODER.match(name)):
        return f"encoder.{name.removeprefix('encoder.')}"
    return name
