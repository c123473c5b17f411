"""MaPeT (arXiv 2306.07346): predict the tokens of permuted patches, with the positions of what is not seen.

Patches are put in a random order. The first quarter is context; the token of every later patch is predicted from all
before it. What a row may not see as content it sees as position, so that every row has as many keys as in fine-tuning.
Both streams run in one pass: queries behind the tokens that they may attend to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.base import PretrainingMethod, Progress, decay_groups
from adpe.methods.masks.rectangles import rectangles
from adpe.methods.targets.pixels import jitter_colors
from adpe.methods.targets.tokenizers import load_tokenizer, usage
from adpe.models.factory import create_encoder
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Order(NamedTuple):
    """An order of prediction of the tokens of a batch, the class token's first.

    Attributes:
        rank: ``(B, N)`` place of every token.
        predicted: ``(B, P)`` predicted tokens, in raster order.
        scored: ``(B, P)`` bool, whether they count in the loss.
    """

    rank: Tensor
    predicted: Tensor
    scored: Tensor

    @classmethod
    def of(cls, permutation: Tensor, least: int, upper: int | None = None) -> Order:
        """Of permutations ``(B, N)`` of token numbers: `least` of them are context.

        Raises:
            ValueError: if that leaves nothing to predict, or to score.
        """
        count = permutation.shape[1]
        if not 1 <= least < count:
            raise ValueError(
                f"least={least} of {count} tokens: expected at least the class token, and some to predict."
            )
        if upper is not None and upper < least:
            raise ValueError(f"upper={upper}: every predicted token has at least {least} predecessors: none counts.")
        rank = permutation.argsort(dim=1)
        predicted = permutation[:, least:].sort(dim=1).values
        scored = torch.ones_like(predicted, dtype=torch.bool)
        if upper is not None:
            scored = rank.gather(1, predicted) <= upper
        return cls(rank, predicted, scored)

    def masks(self, least: int) -> tuple[Tensor, Tensor]:
        """Who sees whom: content rows ``(B, N + P, N + P)`` and query rows ``(B, P, N + P)``, True where they do.

        Keys are the N tokens and the P positions of predicted ones.
        """
        rank, predicted = self.rank, self.predicted
        batch, count = rank.shape
        context = (rank < least).unsqueeze(1)  # (B, 1, N)
        before = rank.unsqueeze(1) < rank.unsqueeze(2)  # row i sees token j
        own = torch.eye(count, dtype=torch.bool, device=rank.device)
        content = context | before | own
        rows = predicted.unsqueeze(2).expand(-1, -1, count)
        queries = (context | before).gather(1, rows)
        columns = predicted.unsqueeze(1)
        positions = ~content.gather(2, columns.expand(-1, count, -1))
        asked = ~queries.gather(2, columns.expand(-1, predicted.shape[1], -1))
        auxiliary = torch.cat([context.expand(-1, predicted.shape[1], -1), torch.ones_like(asked)], dim=2)
        stream = torch.cat([torch.cat([content, positions], dim=2), auxiliary], dim=1)
        assert stream.shape == (batch, count + predicted.shape[1], count + predicted.shape[1])
        return stream, torch.cat([queries, asked], dim=2)


class MaPeT(PretrainingMethod):
    """Permuted prediction of visual tokens.

    Args:
        encoder: a :class:`VisionTransformer` with one class token and learned positions.
        tokenizer: file of ``tools/make_centroids.py``; None takes tokens as they are given to :meth:`forward`.
        vocabulary: different tokens; that of the tokenizer if None.
        least: tokens of context, the class token included; ``ceil(N / 4)`` if None.
        upper: predicted patches with more predecessors leave the loss; None has no such limit.
        decay_positional_token: decay the learned vector of auxiliary tokens, as the reference does.
        order: "random", or "blockwise" (ours): the predicted patches are a union of rectangles, see
            :func:`adpe.methods.masks.rectangles.rectangles`.
        color_jitter: strength of brightness, contrast and saturation on what the encoder sees; tokens are those of the
            clean crop.

    Raises:
        ValueError: for options that do not go together.
    """

    used: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        tokenizer: str | None = None,
        vocabulary: int | None = None,
        least: int | None = None,
        upper: int | None = None,
        decay_positional_token: bool = False,
        order: Literal["random", "blockwise"] = "random",
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder.num_prefix_tokens != 1 or encoder.needs_grid or encoder.relative or encoder.num_classes:
            raise ValueError("MaPeT needs one class token, no windows, no classes and absolute positions.")
        self.encoder: VisionTransformer = encoder
        self.tokenizer = None if tokenizer is None else load_tokenizer(tokenizer)
        if self.tokenizer is not None:
            if vocabulary not in (None, self.tokenizer.vocabulary):
                raise ValueError(f"vocabulary={vocabulary}, but {tokenizer} has {self.tokenizer.vocabulary} tokens.")
            if self.tokenizer.patch_size != encoder.patch_size:
                raise ValueError(
                    f"{tokenizer}: patches of {self.tokenizer.patch_size} pixels, the encoder's {encoder.patch_size}."
                )
            vocabulary = self.tokenizer.vocabulary
        if order not in ("random", "blockwise"):
            raise ValueError(f"order={order!r} is neither random nor blockwise.")
        if not 0 <= color_jitter < 1:
            raise ValueError(f"color_jitter={color_jitter} must be at least 0 and below 1.")
        if encoder.pos_embed is None:
            raise ValueError("MaPeT needs learned positions: set learned_pos_embed=True.")
        if not vocabulary or vocabulary < 2:
            raise ValueError(f"vocabulary={vocabulary}: set model.tokenizer, or a number of tokens.")
        self.vocabulary, self.least, self.upper = vocabulary, least, upper
        self.decay_positional_token, self.order, self.color_jitter = decay_positional_token, order, color_jitter
        self.mask_positional_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, encoder.embed_dim), std=0.02))
        self.decoder = nn.Linear(encoder.embed_dim, vocabulary)
        encoder.apply(_init)  # and not the tokenizer
        self.decoder.apply(_init)
        encoder.patch_embed.proj.reset_parameters()
        assert encoder.cls_token is not None
        nn.init.normal_(encoder.cls_token, std=1e-6)
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
        self.register_buffer("used", torch.zeros(vocabulary, dtype=torch.long))

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> MaPeT:
        own = {"learned_pos_embed": True, "init_values": 0.1}
        return cls(create_encoder(model, **{**own, **encoder_options}), **options)

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        images = views[0].flatten(0, 1)
        if self.tokenizer is None:
            raise UserError("MaPeT: model.tokenizer is not set: make the file by tools/make_centroids.py.")
        tokens = self.tokenizer.tokens(images)
        self.used.scatter_add_(0, tokens.flatten(), torch.ones_like(tokens).flatten())
        order = self.draw(images)
        if self.color_jitter:
            images = jitter_colors(images, self.color_jitter)
        logits = self.predict(images, order)
        wanted = tokens.gather(1, order.predicted - 1)
        right = (logits.argmax(dim=-1) == wanted).float().mean()
        return {"loss": self.compare(logits, wanted, order), "accuracy": right}

    def draw(self, images: Tensor, noise: Tensor | None = None) -> Order:
        """An order of prediction for each image, by ``(B, L)`` noise."""
        h, w = self.encoder.patch_embed.grid(images)
        least = self.context_of(1 + h * w)
        if noise is None:
            noise = torch.rand(len(images), h * w, device=images.device)
            if self.order == "blockwise":
                noise = noise + rectangles(torch.rand_like(noise), (h, w), 1 + h * w - least)
        elif noise.shape != (len(images), h * w):
            raise ValueError(f"noise must be {(len(images), h * w)}, one number per patch; got {tuple(noise.shape)}.")
        first = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        permutation = torch.cat([first, 1 + noise.argsort(dim=1, stable=True)], dim=1)
        return Order.of(permutation, least, self.upper)

    def context_of(self, tokens: int) -> int:
        """Tokens of context among so many."""
        return math.ceil(0.25 * tokens) if self.least is None else self.least

    def streams(self, images: Tensor, order: Order) -> tuple[Tensor, Tensor]:
        """Content ``(B, N + P, D)`` and queries ``(B, P, D)`` after the final norm."""
        encoder = self.encoder
        tokens, grid = encoder.embed(images)
        table = encoder.position_table(grid, encoder.patch_embed.proj.weight).expand(len(images), -1, -1)
        places = order.predicted.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        auxiliary = self.mask_positional_token + table.gather(1, places)
        x = torch.cat([tokens, auxiliary, auxiliary], dim=1)
        mask = torch.cat(order.masks(self.context_of(tokens.shape[1])), dim=1).unsqueeze(1)
        keys = mask.shape[-1]
        for block in encoder.blocks:
            x = _block(block, x, keys, mask)
        x = encoder.norm(x)
        return x[:, :keys], x[:, keys:]

    def predict(self, images: Tensor, order: Order) -> Tensor:
        """Logits ``(B, P, V)`` of the predicted patches, in raster order."""
        return self.decoder(self.streams(images, order)[1])

    def compare(self, logits: Tensor, wanted: Tensor, order: Order) -> Tensor:
        """Mean cross-entropy over the patches that count."""
        losses = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return (losses * order.scored.flatten()).sum() / order.scored.sum()

    def forward(self, images: Tensor, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss for tokens ``(B, L)`` that are given.

        Raises:
            ValueError: for tokens of another grid, or outside the vocabulary.
        """
        h, w = self.encoder.patch_embed.grid(images)
        if tokens.shape != (len(images), h * w):
            raise ValueError(f"tokens must be {(len(images), h * w)}, one a patch; got {tuple(tokens.shape)}.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocabulary:
            raise ValueError(
                f"tokens {int(tokens.min())} to {int(tokens.max())} leave the vocabulary {self.vocabulary}."
            )
        order = self.draw(images, noise)
        return self.compare(self.predict(images, order), tokens.gather(1, order.predicted - 1), order)

    def parameter_groups(self, lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
        """As the default, and positions and the class token do not decay."""
        if options:
            raise TypeError(f"MaPeT has no paramwise_cfg {', '.join(sorted(options))}.")
        names = {"encoder.pos_embed", "encoder.cls_token"}
        if not self.decay_positional_token:
            names.add("mask_positional_token")
        exempt = [p for name, p in self.named_parameters() if name in names and p.requires_grad]
        groups = decay_groups(self, lr, weight_decay, names)
        groups[1]["params"] += exempt
        return groups

    def collapse(self, progress: Progress) -> str | None:
        if int(self.used.sum()) > 100 * self.vocabulary and float((self.used > 0).float().mean()) < 0.5:
            return f"under half of the {self.vocabulary} tokens occur: make a tokenizer of fewer."
        return None

    def made_with(self) -> dict[str, Any]:
        return {} if self.tokenizer is None else {"tokenizer": self.tokenizer.origin}

    def scalars(self) -> dict[str, float]:
        total = self.used.sum().clamp(min=1).double()
        shares = self.used[self.used > 0].double() / total
        entropy = float(-(shares * shares.log()).sum()) if len(shares) else 0.0
        return {"tokens/used": float((self.used > 0).float().mean()), "tokens/entropy": entropy}

    @property
    def title(self) -> str:
        return "MaPeT"

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.viz.patch_maps import draw_patch_maps

        if self.tokenizer is None:
            return {}
        images = views[0][:, 0]
        tokens = self.tokenizer.tokens(images)
        noise = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
        order = self.draw(images, noise)
        with torch.no_grad():
            found = self.predict(images, order).argmax(dim=-1)
        right = (found == tokens.gather(1, order.predicted - 1)).float()
        shown = torch.full_like(tokens, 2, dtype=torch.float32).scatter(1, order.predicted - 1, right)
        grid = self.encoder.patch_embed.grid(images)
        share, perplexity = usage(tokens, self.vocabulary)
        maps = {
            f"tokens (perplexity {perplexity:.0f}, {share:.0%} used)": tokens.float(),
            "0 wrong, 1 right, 2 context": shown,
        }
        return {"tokens": draw_patch_maps(images, maps, grid, mean, std)}


def _block(block: Any, x: Tensor, keys: int, mask: Tensor) -> Tensor:
    """A block of the encoder on rows of which the first `keys` are attended to; drop path has one draw for both."""
    y = block.norm1(x)
    attention = block.attn
    heads = (attention.num_heads, x.shape[-1] // attention.num_heads)
    width = x.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(y, weight[:width], bias[:width]).unflatten(-1, heads).transpose(1, 2)
    pair = F.linear(y[:, :keys], weight[width:], bias[width:]).unflatten(-1, (2, *heads))
    key, value = pair.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x + block.drop_path(block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2))))
    return x + block.drop_path(block.ls2(block.mlp(block.norm2(x))))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
