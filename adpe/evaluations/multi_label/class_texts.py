"""The text side of dual prompts: for every class a vector of its absence and one of its presence.

Three sides, which results must name: "clip" learns contexts before a frozen text transformer of CLIP out of a local
file; "random" does so before a frozen transformer of random weights, which reads names as identifiers and knows nothing
of their meaning; "table" learns the vectors themselves, which is dual prototypes and not DualCoOp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, require
from adpe.evaluations.heads.dual_prompts import DualPrompts, TextEncoder
from adpe.leaderboard.records import file_sha256

CLIP_LENGTH = 77  # tokens of a sentence, arXiv 2103.00020
_HEAD_WIDTH = 64  # of every CLIP: its files do not say how many heads there are
_BYTES = 256  # the start token, and the end token one more


class PromptTexts(nn.Module):
    """Learned contexts before a frozen text encoder.

    Args:
        prompts: contexts and the embeddings around them, of C classes.
        encoder: frozen here.
        ends: ``(2 C,)`` int64, places of the end tokens.
    """

    def __init__(self, prompts: DualPrompts, encoder: TextEncoder, ends: Tensor) -> None:
        super().__init__()
        self.prompts, self.encoder = prompts, encoder.requires_grad_(False)
        self.register_buffer("ends", ends)
        self.joint = encoder.text_projection.shape[1]

    def forward(self) -> Tensor:
        """``(2 C, D)`` float32, the negative ones first."""
        return self.encoder(self.prompts(), self.ends)


class TableTexts(nn.Module):
    """Learned vectors.

    Args:
        vectors: ``(2 C, D)`` to start from, the negative ones first.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.joint = vectors.shape[1]

    def forward(self) -> Tensor:
        """``(2 C, D)`` float32, the negative ones first."""
        return self.vectors


@dataclass(frozen=True)
class ClipText:
    """CLIP's text transformer out of a local file, with OpenAI's names, as open_clip's files have them too.

    Attributes:
        checkpoint: a state dict (``.pt``, ``.safetensors``); the image side in it is not read.
        contexts: learned vectors n of every prompt; 16 published.
        class_specific: vectors of their own for each class.
        heads: of attention; None for one in 64 channels, as every CLIP has.
    """

    checkpoint: str
    contexts: int = 16
    class_specific: bool = False
    heads: int | None = None

    def told(self) -> str:
        """What a protocol calls it, with the first digits of the file's SHA-256."""
        return f"clip {file_sha256(self.checkpoint)[:12]}" if Path(self.checkpoint).is_file() else "clip"

    def build(self, names: Sequence[str], width: int, seed: int) -> PromptTexts:
        """Of C classes; `width` and `seed` change nothing.

        Raises:
            UserError: for a file that holds no text side of CLIP, or names too long for it.
        """
        state = _clip_state(self.checkpoint)
        table = state.pop("token_embedding.weight")
        encoder = _clip_encoder(state, table, self.heads, self.checkpoint)
        require("mmseg", "requirements/mm.txt")
        from mmseg.utils.tokenizer import SimpleTokenizer

        tokenizer = SimpleTokenizer()
        start, end = (tokenizer.encoder[f"<{word}_of_text>"] for word in ("start", "end"))
        if len(table) != tokenizer.vocab_size:
            raise UserError(
                f"{self.checkpoint}: token_embedding.weight has {len(table)} rows, CLIP's vocabulary has "
                f"{tokenizer.vocab_size}."
            )
        sentences = {name: tokenizer.encode(sentence(name)) for name in names}
        return _prompts(sentences, table, (start, end), encoder, self.contexts, self.class_specific)


@dataclass(frozen=True)
class RandomText:
    """A frozen causal transformer of random weights over the bytes of names, drawn by the run's seed.

    Attributes:
        width: channels T.
        blocks: how many.
        heads: of attention; divides the width.
        joint: width D of what is compared.
        contexts: learned vectors n of every prompt.
        class_specific: vectors of their own for each class.
    """

    width: int = 64
    blocks: int = 2
    heads: int = 2
    joint: int = 64
    contexts: int = 16
    class_specific: bool = False

    def told(self) -> str:
        """What a protocol calls it."""
        return "random"

    def build(self, names: Sequence[str], width: int, seed: int) -> PromptTexts:
        """Of C classes; `width` changes nothing.

        Raises:
            UserError: for names too long.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = TextEncoder(self.width, self.blocks, self.heads, self.joint, CLIP_LENGTH)
            table = torch.randn(_BYTES + 2, self.width) * 0.02  # CLIP's start
        sentences = {name: list(sentence(name).encode()) for name in names}
        return _prompts(sentences, table, (_BYTES, _BYTES + 1), encoder, self.contexts, self.class_specific)


@dataclass(frozen=True)
class TableText:
    """A learned vector for each class and sign: dual prototypes.

    Attributes:
        joint: width D of what is compared; None for the encoder's, or the file's.
        checkpoint: ``.safetensors`` of a vector ``(D,)`` by class name, made by any model of words, where both vectors
            of a class start; None for random ones of length 1. As they start alike, no label is certain at first.
    """

    joint: int | None = None
    checkpoint: str | None = None

    def told(self) -> str:
        """What a protocol calls it, with the first digits of the file's SHA-256."""
        known = self.checkpoint and Path(self.checkpoint).is_file()
        return f"table {file_sha256(self.checkpoint)[:12]}" if known else "table"  # type: ignore[arg-type]

    def build(self, names: Sequence[str], width: int, seed: int) -> TableTexts:
        """Of C classes, for an encoder of `width` channels.

        Raises:
            UserError: for a file without a class, or with vectors of several widths or another one than `joint`.
        """
        if self.checkpoint is None:
            generator = torch.Generator().manual_seed(seed)
            rows = F.normalize(torch.randn(len(names), self.joint or width, generator=generator), dim=1)
            return TableTexts(torch.cat([rows, rows]))
        found = read_file(self.checkpoint)
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(
                f"{self.checkpoint}: no vector of {len(missing)} of {len(names)} classes ({', '.join(missing[:8])}); "
                f"it has {', '.join(sorted(map(str, found))[:8])}. Vectors are found by the class names of the data."
            )
        vectors = {name: found[name] for name in names}
        joint = self.joint or next((v.numel() for v in vectors.values() if isinstance(v, Tensor)), 0)
        for name, vector in vectors.items():
            if not isinstance(vector, Tensor) or vector.shape != (joint,) or not bool(vector.isfinite().all()):
                shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
                raise UserError(
                    f"{self.checkpoint}: the vector of {name} is {shape}, expected {joint} finite numbers "
                    f"({'evaluation.text.joint' if self.joint else 'as the first class has'})."
                )
        rows = torch.stack([vector.float() for vector in vectors.values() if isinstance(vector, Tensor)])
        return TableTexts(torch.cat([rows, rows]))


ClassText = ClipText | RandomText | TableText
TEXTS: dict[str, type[Any]] = {"clip": ClipText, "random": RandomText, "table": TableText}


def text_side(options: Mapping[str, Any]) -> ClassText:
    """The text side that ``dict(type=..., ...)`` names.

    Raises:
        ValueError: for another type, another option, or numbers that are not positive.
    """
    given = dict(options)
    kind = given.pop("type", None)
    if kind not in TEXTS:
        raise ValueError(f"text.type = {kind!r} is none of {', '.join(TEXTS)}.")
    try:
        side: ClassText = TEXTS[kind](**given)
    except TypeError as error:
        raise ValueError(f"text (type={kind}): {error}") from None
    for name, value in vars(side).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"text.{name} = {value}: expected a positive number.")
    if isinstance(side, RandomText) and side.width % side.heads:
        raise ValueError(f"text.width = {side.width} with text.heads = {side.heads}: heads divide the width.")
    return side


def sentence(name: str) -> str:
    """What a prompt ends in: the name with spaces for underscores, and a full stop."""
    return f"{name.replace('_', ' ')}."


def _prompts(
    sentences: Mapping[str, Sequence[int]],
    table: Tensor,
    ends: tuple[int, int],
    encoder: TextEncoder,
    contexts: int,
    class_specific: bool,
) -> PromptTexts:
    """Prompts of classes by their tokens, of embeddings ``(V, T)``, with start and end tokens around them."""
    longest = max(sentences, key=lambda name: len(sentences[name]))
    most, length = len(sentences[longest]) + 1, len(encoder.positional_embedding)
    if 1 + contexts + most > length:
        raise UserError(
            f"evaluation.text.contexts = {contexts}: the prompt of {longest!r} has {1 + contexts + most} tokens, the "
            f"text encoder takes {length}. Take fewer contexts, or a shorter name."
        )
    start, end = ends
    rows = torch.zeros(len(sentences), most, table.shape[1])
    for row, tokens in zip(rows, sentences.values(), strict=True):
        row[: len(tokens) + 1] = table[[*tokens, end]].float()
    first = table[start].float().expand(len(sentences), 1, -1)
    places = torch.tensor([1 + contexts + len(tokens) for tokens in sentences.values()])
    prompts = DualPrompts((first.clone(), first.clone()), (rows, rows.clone()), contexts, class_specific)
    return PromptTexts(prompts, encoder, torch.cat([places, places]))


def _clip_state(path: str) -> dict[str, Tensor]:
    """The text side's tensors by OpenAI's names."""
    raw = read_file(path)
    nested = raw.get("state_dict")
    found = {str(name): value for name, value in (nested if isinstance(nested, Mapping) else raw).items()}
    wanted = r"(token_embedding\.weight|positional_embedding|text_projection|(transformer\.resblocks|ln_final)\..+)"
    state = {name: value for name, value in found.items() if re.fullmatch(wanted, name) and isinstance(value, Tensor)}
    needed = ("token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight", "ln_final.bias")
    lacking = [name for name in (*needed, "transformer.resblocks.0.attn.in_proj_weight") if name not in state]
    if lacking:
        raise UserError(
            f"{path}: no text side of CLIP, {', '.join(lacking)} is missing. Expected a state dict with OpenAI's "
            f"names, as CLIP and open_clip write; it has {', '.join(list(found)[:4]) or 'nothing'}."
        )
    return state


def _clip_encoder(state: Mapping[str, Tensor], table: Tensor, heads: int | None, path: str) -> TextEncoder:
    width, joint = table.shape[-1], state["text_projection"].shape[-1]
    if heads is None and width % _HEAD_WIDTH:
        raise UserError(f"{path}: a width of {width} is no multiple of {_HEAD_WIDTH}: set evaluation.text.heads.")
    heads = heads or width // _HEAD_WIDTH
    if width % heads:
        raise UserError(f"evaluation.text.heads = {heads} with a width of {width} in {path}: heads divide the width.")
    numbers = {int(name.split(".")[2]) for name in state if name.startswith("transformer.resblocks.")}
    encoder = TextEncoder(width, len(numbers), heads, joint, len(state["positional_embedding"]))
    ours = encoder.state_dict()
    theirs = {name.removeprefix("transformer."): tensor.float() for name, tensor in state.items()}
    wrong = [name for name in {*ours, *theirs} if _shape(theirs, name) != _shape(ours, name)]
    if wrong:
        name = min(wrong)
        told = [_shape(theirs, name) or "missing", _shape(ours, name) or "none such"]
        raise UserError(
            f"{path}: {name} is {told[0]}, expected {told[1]} beside token_embedding.weight of width {width} and "
            f"{len(numbers)} blocks."
        )
    encoder.load_state_dict(theirs)
    return encoder


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
