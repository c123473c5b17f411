"""Which encoder of a file is taken: files hold averages beside weights, teachers beside students, and models in models.

Taken is what the loader of the file's own source takes; what is left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from adpe.checkpoints.other_libraries import PATCHES
from adpe.errors import UserError

# Prefixes that wrappers (DistributedDataParallel, torch.compile, a model that holds the model) put before names.
WRAPPERS = r"(?:(?:module|model)\.)*"
# What FSDP, activation checkpointing and torch.compile put before and into names.
_INNER_WRAPPERS = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."

# Keys under which trainers keep an average of the weights (EMA) beside the raw ones.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# Keys of weights, in the order in which they are taken: "module" is DeepSpeed's; of a teacher and a student, DINO and
# iBOT evaluate the teacher, of an encoder and a target encoder I-JEPA and MSN the target.
_RAW = ("state_dict", "model", "module", "model_state_dict", "teacher", "target_encoder", "student", "encoder")
_PREFERRED = {"teacher": ("student",), "target_encoder": ("encoder", "predictor")}
# Where encoders stand in flat names, in the order in which they are taken: our files, detectron2's and OpenMMLab's,
# MoCo v3 (its own loader takes the base encoder), then as above.
_ROOTS = (
    "", "encoder.", "backbone.net.", "backbone.", "base_encoder.", "encoder_q.", "teacher.backbone.", "teacher.",
    "teacher_backbone.", "target_encoder.", "student.backbone.", "student.", "student_backbone.",
)  # fmt: skip


def unwrap(
    state: Mapping[str, object], dropped: dict[str, str], averaged: Iterable[str] = ("state_dict_ema",)
) -> dict[str, Tensor]:
    """The tensors of a file, which may be nested, and which of several copies they are.

    Args:
        state: the file's contents.
        dropped: takes the name of each copy that is left out, to the reason.
        averaged: keys of averaged weights that are taken before the raw ones: timm's own loader takes
            ``state_dict_ema`` and ``model_ema``; the authors' fine-tuning of DeiT and ConvNeXt takes ``model``, and
            mmengine's ``state_dict`` holds what its EMA hook evaluates. An average that stands alone is taken.
    """
    for key in (*averaged, *_RAW, *AVERAGED):
        inner = state.get(key)
        if isinstance(inner, Mapping) and inner:
            for other in _PREFERRED.get(key, ()):
                if other in state:
                    dropped[other] = f"the weights of {key} are taken, which its authors evaluate"
            for other in (*AVERAGED, *_RAW[:4]):
                if other != key and isinstance(state.get(other), Mapping) and {key, other} & set(AVERAGED):
                    dropped[other] = f"{'averaged' if other in AVERAGED else 'raw'} weights; those of {key} are taken"
            return unwrap(inner, dropped, averaged)
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def without_wrappers(tensors: Mapping[str, Tensor], dropped: dict[str, str]) -> dict[str, Tensor]:
    """Names without what wrappers put before and into them, and without the counts of an average's updates."""
    kept = {}
    for full, tensor in tensors.items():
        name = re.sub(f"^{WRAPPERS}", "", re.sub(_INNER_WRAPPERS, "", full))
        if name in ("n_averaged", "steps") and tensor.numel() == 1:
            dropped[full] = "count of an average's updates"
        else:
            kept[name] = tensor
    return kept


def one_encoder(raw: Mapping[str, Tensor], dropped: dict[str, str], source: str) -> dict[str, Tensor]:
    """The tensors of one encoder by the names that it has itself, with the decoder and head that belong to it.

    What else the file holds keeps its name where the encoder stands under ``encoder.``, as ours do, whose methods may
    have a teacher. It is left out otherwise.

    Args:
        raw: of :func:`without_wrappers`.
        dropped: takes name to reason of what is left out.
        source: what error messages call it.

    Raises:
        UserError: if the file holds several encoders and nothing says which its authors take.
    """
    roots = {match[1] or "" for match in map(re.compile(rf"(.+?\.)??{PATCHES}").fullmatch, raw) if match}
    if not roots:
        roots = {"backbone." if any(name.startswith("backbone.") for name in raw) else ""}
    known = [root for root in _ROOTS if root in roots]
    if not known and len(roots) > 1:
        raise UserError(
            f"{source} holds {len(roots)} encoders, under {', '.join(sorted(roots)[:6])}: save the one that is meant "
            "alone, its state_dict()."
        )
    root = known[0] if known else next(iter(roots))
    others = tuple(other for other in roots - {root} if other and not root.startswith(other))
    tensors = {}
    for name, tensor in raw.items():
        decoder = re.match(r"neck\.(?=decoder_|mask_token$)", name)
        head = re.match(r"head\.(?:fc|layers\.head)\.", name)
        if root == "encoder.":
            tensors[name] = tensor
        elif others and name.startswith(others) and not (root and name.startswith(root)):
            dropped[name] = f"another encoder; that of {root or 'the top level'} is taken"
        elif root == "":
            tensors[name] = tensor
        elif name.startswith(root):
            tensors[name.removeprefix(root)] = tensor
        elif decoder:
            tensors[name[decoder.end() :]] = tensor
        elif re.match(r"neck\.ln1\.", name) and "neck.decoder_embed.weight" in raw:
            tensors[name.replace("neck.ln1.", "decoder_norm.")] = tensor
        elif head:
            tensors[f"head.{name[head.end() :]}"] = tensor
        elif re.match(r"(?:decoder\.(?:decoder_|mask_token$)|classifier\.|layernorm\.)", name):  # of transformers
            tensors[name] = tensor
        else:
            dropped[name] = "not part of the backbone"
    return tensors
