"""Training of a sequence model over the codes of a tokenizer, conditioned on nothing, classes or words (Parti)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adpe.data.captions import encode, numbers_of
from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.methods.base import PretrainingMethod, Progress
from adpe.methods.parti.sequences import TextToCodes, guided, sample
from adpe.methods.parti.vitvq import ViTVQ
from adpe.methods.targets.tokenizers import CodebookTokenizer, load_tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Condition = Literal["none", "class", "text"]
_KEY = "adpe.sequence"  # of the file's metadata


class ImageSequenceModel(PretrainingMethod):
    """Codes of images, one after the other, given a text of words, a class, or nothing.

    A class is a text of one word; nothing is the null text, which a share of the samples gets in training, so that
    samples can be guided.

    Args:
        tokenizer: file that ``method="vitvq"`` exported.
        condition: "none", "class" or "text".
        words: of the texts, or names of the classes; none without a condition.
        text_tokens: most words of a text.
        img_size: pixels of a side.
        dim: width.
        num_heads: heads.
        encoder_blocks: of the text.
        decoder_blocks: of the codes.
        mlp_dim: hidden width; 4 times the width if None.
        drop: share of samples whose text is dropped in training.

    Raises:
        ValueError: for options that do not go together.
    """

    unit_pixels: ClassVar[bool] = True
    export_name: ClassVar[str] = "sequence.safetensors"
    tokenizer: CodebookTokenizer

    def __init__(
        self,
        tokenizer: str | CodebookTokenizer | None = None,
        condition: Condition = "none",
        words: Sequence[str] = (),
        text_tokens: int = 16,
        img_size: int = 32,
        dim: int = 96,
        num_heads: int = 4,
        encoder_blocks: int = 2,
        decoder_blocks: int = 4,
        mlp_dim: int | None = None,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        if condition not in get_args(Condition) or bool(words) != (condition != "none"):
            raise ValueError(
                f"condition={condition!r} with {len(words)} words: none has none, class and text have some."
            )
        if not 0 <= drop < 1 or dim % num_heads:
            raise ValueError(f"drop={drop} must lie in [0, 1), and num_heads={num_heads} divide dim={dim}.")
        if tokenizer is None:
            raise UserError("model.tokenizer is not set: train one, e.g. with configs/tokenizer/demo_vitvq.py.")
        found = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        if not isinstance(found, CodebookTokenizer):
            raise UserError(f"{tokenizer} cannot be decoded: expected a file that method='vitvq' exported.")
        side, rest = divmod(img_size, found.patch_size)
        if rest:
            raise ValueError(f"img_size={img_size}: expected whole patches of {found.patch_size} pixels.")
        self.tokenizer, self.condition, self.grid, self.drop = found, condition, (side, side), drop
        self.words = list(words)
        self.numbers = numbers_of(words) if condition == "text" else {}
        self.text_tokens = text_tokens if condition == "text" else 1
        self.options = {
            "condition": condition, "words": self.words, "text_tokens": text_tokens, "img_size": img_size, "dim": dim,
            "num_heads": num_heads, "encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks,
            "mlp_dim": mlp_dim, "drop": drop,
        }  # fmt: skip
        self.network = TextToCodes(
            dim, num_heads, encoder_blocks, decoder_blocks, 4 * dim if mlp_dim is None else mlp_dim, self.text_tokens,
            1 + len(self.words), side * side, found.vocabulary,
        )  # fmt: skip

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> ImageSequenceModel:
        """`model` is "sequence": there is no encoder of the suite."""
        if model != "sequence":
            raise ValueError(f"model={model!r}: method='sequence' has no encoder of the suite, expected 'sequence'.")
        if encoder_options:
            raise TypeError(f"the sequence model has no option {', '.join(sorted(encoder_options))}.")
        return cls(**options)

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        text, lengths, codes = self.inputs(views)
        return {"loss": self.network.loss(text, lengths, codes, self.drop if self.training else 0.0)}

    def inputs(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts ``(B, T)``, their lengths and the codes ``(B, n)`` of views: crops, and words unless without condition.

        Raises:
            UserError: for images of another size, no words, or words that are not the model's.
        """
        images = views[0].flatten(0, 1)
        grid = self.tokenizer.encoder.grid(images)
        if grid != self.grid:
            raise UserError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels have {grid} patches, expected {self.grid}: "
                f"set crops.size={self.options['img_size']} or model.img_size."
            )
        codes = self.tokenizer.tokens_of_pixels(images)
        if self.condition == "none":
            text = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        elif len(views) != 2 or views[1].ndim != 2 or views[1].shape[0] != len(images):
            key = "labels=True" if self.condition == "class" else "captions=dict(file=..., words=..., length=...)"
            raise UserError(f"condition={self.condition!r} needs train_dataloader.dataset.{key} and one crop an image.")
        else:
            text = views[1]
        if text.shape[1] > self.text_tokens or int(text.max()) > len(self.words) or int(text.min()) < 0:
            raise UserError(
                f"texts of {text.shape[1]} words up to number {int(text.max())}: the model has {self.text_tokens} "
                f"places and {len(self.words)} words: give data set and model the same words and length."
            )
        return text, lengths_of(text), codes

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(B, T)`` int64 of texts, or of class names.

        Raises:
            UserError: for a word or class that the model does not know.
        """
        if self.condition == "none" and any(texts):
            raise UserError(f"the model has no condition, and cannot draw {texts[0]!r}.")
        if self.condition == "text":
            return torch.stack([encode(text, self.numbers, self.text_tokens) for text in texts])
        unknown = [text for text in texts if text and text not in self.words]
        if unknown:
            raise UserError(f"class {unknown[0]!r} is none of {', '.join(self.words[:30])}.")
        return torch.tensor([[1 + self.words.index(text) if text else 0] for text in texts])

    @torch.no_grad()
    def draw(
        self,
        text: Tensor,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Codes ``(B, n)`` and pictures ``(B, 3, H, W)`` in [0, 1], one of each text ``(B, T)``.

        Guidance comes first, then temperature, top-k and top-p; see :func:`adpe.methods.parti.sequences.sample`.
        """
        text = text.to(self.network.start.device)
        given = self.network.stepper(text, lengths_of(text))
        null = torch.zeros_like(text)
        free = None if guidance == 1 else self.network.stepper(null, lengths_of(null))

        def step(codes: Tensor) -> Tensor:
            codes = codes.to(text.device)
            logits = given(codes)
            return logits if free is None else guided(free(codes), logits, guidance)

        generator = torch.Generator().manual_seed(seed)
        length = self.grid[0] * self.grid[1]
        codes = sample(step, len(text), length, temperature, top_k, top_p, generator).to(text.device)
        return codes, self.tokenizer.pictures(codes, self.grid)

    # The engine --------------------------------------------------------------------------------------------------

    def compiled(self) -> Iterable[nn.Module]:
        return []

    def made_with(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.origin}

    def exported(self) -> nn.Module:
        """All of it: it is no encoder."""
        return self

    def export(self, path: Path, specification: Any = None) -> None:
        from safetensors.torch import save_file

        said = {"options": self.options, "tokenizer": self.tokenizer.encoder.options, "origin": self.tokenizer.origin}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {_KEY: json.dumps(said, sort_keys=True)})

    def forward_features(self, images: Tensor) -> Tensor:
        return self.tokenizer.encoder.latents(images)

    @property
    def title(self) -> str:
        return "image sequence model"

    @torch.no_grad()
    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        """The held images, what the tokenizer keeps of them, and samples of their texts; how much a text tells."""
        from adpe.viz.figures import draw_images

        text, lengths, codes = self.inputs(views)
        columns = {"image": views[0][:, 0], "its codes": self.tokenizer.pictures(codes, self.grid)}
        for scale in (1.0,) if self.condition == "none" else (1.0, 3.0):
            columns[f"sample, guidance {scale:g}"] = self.draw(text, scale, top_k=64)[1]
        right = float(self.network.loss(text, lengths, codes))
        other = float(self.network.loss(text.roll(1, 0), lengths.roll(1, 0), codes))
        said = "" if self.condition == "none" else f"; {other:.3f} given another image's {self.condition}"
        shown = {name: images.float().cpu() for name, images in columns.items()}
        return {"samples": draw_images(shown, f"loss {right:.3f} a code{said}")}


def lengths_of(text: Tensor) -> Tensor:
    """``(B,)`` words of texts ``(B, T)`` that are padded by 0; the null text has one."""
    return (text > 0).sum(dim=1).clamp(min=1)


def load_sequence_model(path: str | Path) -> ImageSequenceModel:
    """The model, with its tokenizer, of a file that ``method="sequence"`` exported, in evaluation mode.

    Raises:
        UserError: for another or a truncated file.
    """
    try:
        with safe_open(path, "pt") as opened:
            said = json.loads((opened.metadata() or {})[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        tokenizer = CodebookTokenizer(ViTVQ(**said["tokenizer"]))
        tokenizer.origin = said["origin"]
        model = ImageSequenceModel(tokenizer, **said["options"])
        model.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} is no sequence model ({type(error).__name__}: {str(error)[:200]}): expected sequence.safetensors "
            "of a training with method='sequence'."
        ) from None
    return model.eval()
