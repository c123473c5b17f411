"""Classification with the one encoder: fine-tuning, linear probe and k-NN under mmengine's Runner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import UserError, require
from adpe.evaluations.knn import GlobalPool, knn_votes, pool_tokens
from adpe.models.vit import VisionTransformer
from adpe.transfer.initialisation import options_of_start, start_encoder


class _EncoderModel(BaseModel):
    """An encoder that starts from a checkpoint or at random, pooled to one vector an image.

    Args:
        model: name for :func:`adpe.create_encoder`; None for the size of the checkpoint.
        global_pool: "avg", the mean of the patch tokens, or "token", the class token.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` loads through :func:`adpe.load_checkpoint`, which fails
            below full coverage of the encoder; ``allow_missing=[...]`` names what may keep its start. None starts at
            random.
        data_preprocessor: config; mmengine's, which moves a batch to the device, if None.
        options: of :class:`adpe.VisionTransformer`. What is left out, or None, is what the checkpoint says of itself.
    """

    def __init__(
        self,
        model: str | None,
        global_pool: GlobalPool,
        init_cfg: dict | None,
        data_preprocessor: dict | None,
        options: dict,
    ) -> None:
        super().__init__(data_preprocessor)
        self.init_cfg = dict(init_cfg) if init_cfg else None
        try:
            self.backbone = VisionTransformer(**options_of_start(model, options, init_cfg, type(self).__name__))
            pool_tokens(torch.zeros(1, 1, 1), self.backbone.num_prefix_tokens, global_pool)
        except (TypeError, ValueError) as error:
            raise UserError(f"{type(self).__name__}: {error}") from None
        self.global_pool = global_pool

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg` into the encoder, or keep the random initialisation, and log which."""
        start_encoder(self, self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to pooled features ``(B, D)`` after the encoder's final norm, if it has one."""
        tokens = self.backbone.forward_features(images)
        return pool_tokens(tokens, self.backbone.num_prefix_tokens, self.global_pool)

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> Tensor:
        """Features of an encoder that is not trained, ``(B, D)`` float32; what has two dimensions is features already.

        Features that were computed once stand in the place of images (`AdPEFeatureCacheHook`).
        """
        return images if images.ndim == 2 else self.features(images).float()


@MODELS.register_module()
class AdPEClassifier(_EncoderModel):
    """The encoder under a linear classifier: fine-tuned as a whole, or frozen under a linear probe.

    Fine-tuning pools and normalises as MAE (``fc_norm`` of the mean of the patch tokens in place of the final norm; the
    normed class token with ``global_pool="token"``). With ``frozen=True`` the encoder stays in evaluation mode and has
    no gradient; the head is a BatchNorm without affine parameters (eps 1e-6) and a linear layer, as in MAE's linear
    probe (arXiv 2111.06377, table 10), on pooled features after the final norm.

    Args:
        model: name for :func:`adpe.create_encoder`; None for the size of the checkpoint.
        num_classes: of the head.
        global_pool: "avg" or "token".
        frozen: train the head alone.
        mixup: options of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``); None mixes nothing.
        mixup_batch: images that share one draw of `mixup` and are mixed with each other, however many a process holds
            at once: published recipes draw for each GPU's images. None draws once for all that a process holds.
        label_smoothing: of the targets, mixed or not.
        head_init_std: of the linear layer's truncated normal start; MAE: 2e-5 for fine-tuning, 0.01 for the probe.
        init_cfg: see above; where the encoder starts.
        data_preprocessor: config.
        options: of :class:`adpe.VisionTransformer`, e.g. ``position``, ``drop_path_rate``.

    Raises:
        UserError: for options that do not go together.
    """

    def __init__(
        self,
        model: str | None,
        num_classes: int,
        global_pool: GlobalPool = "avg",
        frozen: bool = False,
        mixup: dict | None = None,
        mixup_batch: int | None = None,
        label_smoothing: float = 0.0,
        head_init_std: float = 2e-5,
        init_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(num_classes, int) or num_classes < 2:
            raise UserError(f"AdPEClassifier: num_classes must be at least 2, got {num_classes!r}.")
        # The encoder's own head is that of fine-tuning over the mean of the patch tokens.
        own = not frozen and global_pool == "avg"
        options = {**options, "num_classes": num_classes if own else 0}
        super().__init__(model, global_pool, init_cfg, data_preprocessor, options)
        require("timm", "requirements/runtime.txt")
        from timm.data import Mixup
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        self.num_classes = num_classes
        self.frozen = frozen
        self.norm: nn.Module = nn.Identity()
        self.head: nn.Linear | None = None
        if frozen:
            self.backbone.requires_grad_(False)
            self.norm = nn.BatchNorm1d(self.backbone.embed_dim, eps=1e-6, affine=False)
        if own:
            head = cast(nn.Linear, self.backbone.head)
        else:
            head = self.head = nn.Linear(self.backbone.embed_dim, num_classes)
            nn.init.zeros_(head.bias)
        nn.init.trunc_normal_(head.weight, std=head_init_std)
        if mixup and frozen:
            raise UserError("AdPEClassifier: mixup has no place in a linear probe (frozen=True).")
        if mixup_batch is not None and (not mixup or mixup_batch < 2 or mixup_batch % 2):
            raise UserError(
                f"AdPEClassifier: mixup_batch = {mixup_batch!r} must be an even number of images, beside model.mixup."
            )
        smoothing = {"label_smoothing": label_smoothing, "num_classes": num_classes}
        self.mixup = Mixup(**mixup, **smoothing) if mixup else None
        self.mixup_batch = mixup_batch
        self.loss: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images (or, frozen, ``(B, D)`` features) to ``(B, num_classes)``."""
        if self.head is None:
            return self.backbone(images)
        return self.head(self.norm(self.frozen_features(images) if self.frozen else self.features(images)))

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """``{"loss"}`` in mode "loss", a list of predictions in mode "predict", else logits ``(B, num_classes)``.

        Args:
            inputs: ``(B, 3, H, W)`` normalised.
            data_samples: dict with ``label`` (B,) int64 and, for predictions, ``index`` (B,) and ``img_path`` (B).
            mode: of mmengine.
        """
        if mode == "loss":
            labels = data_samples["label"]
            if self.mixup is not None:
                inputs, labels = self._mix(self.mixup, inputs, labels)
            return {"loss": self.loss(self.logits(inputs).float(), labels)}
        logits = self.logits(inputs)
        return predictions(logits.float().softmax(dim=1), data_samples) if mode == "predict" else logits

    def _mix(
        self, mixup: Callable[..., tuple[Tensor, Tensor]], inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, W)`` and soft targets ``(B, num_classes)``, one draw for every `mixup_batch` images."""
        if len(inputs) % 2:
            raise UserError(
                f"mixup mixes pairs, and a process holds {len(inputs)} images at once: make "
                "train_dataloader.batch_size even, or set model.mixup=None."
            )
        share = self.mixup_batch or len(inputs)
        if len(inputs) % share:
            raise UserError(
                f"model.mixup_batch = {share} images share a draw of mixup, but a process holds {len(inputs)} at once: "
                f"make train_dataloader.batch_size a multiple of {share} (and the processes fewer, if need be), or set "
                f"model.mixup_batch={len(inputs)}, which is another protocol."
            )
        mixed = [mixup(*part) for part in zip(inputs.split(share), labels.split(share), strict=True)]
        return torch.cat([images for images, _ in mixed]), torch.cat([targets for _, targets in mixed])

    def train(self, mode: bool = True) -> AdPEClassifier:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


@MODELS.register_module()
class AdPEKNNClassifier(_EncoderModel):
    """Weighted k-NN on frozen features (:func:`adpe.evaluations.knn.knn_votes`): nothing in it is trained.

    `AdPEFeatureBankHook` gives it the features of the training images before it predicts.

    Args:
        model: name for :func:`adpe.create_encoder`; None for the size of the checkpoint.
        num_classes: number of classes.
        global_pool: "avg" or "token".
        k: neighbours.
        temperature: of the votes.
        init_cfg: where the encoder starts, as of `AdPEClassifier`.
        data_preprocessor: config.
        options: of :class:`adpe.VisionTransformer`.

    Raises:
        UserError: for options that do not go together, or several processes.
    """

    def __init__(
        self,
        model: str | None,
        num_classes: int,
        global_pool: GlobalPool = "avg",
        k: int = 20,
        temperature: float = 0.07,
        init_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, global_pool, init_cfg, data_preprocessor, options)
        if get_world_size() > 1:
            raise UserError("AdPEKNNClassifier: k-NN has nothing to train and runs in one process: tools/train.py.")
        self.num_classes, self.k, self.temperature = num_classes, k, temperature
        self.backbone.requires_grad_(False)
        self.bank: tuple[Tensor, Tensor] | None = None

    def set_training_features(self, features: Tensor, labels: Tensor) -> None:
        """Take the training images' features ``(N, D)`` and labels ``(N,)``.

        Raises:
            UserError: if there are fewer than k.
        """
        if not 1 <= self.k <= len(features):
            raise UserError(f"model.k = {self.k} with {len(features)} training images: expected 1 to {len(features)}.")
        self.bank = F.normalize(features, dim=1), labels

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """A list of predictions in mode "predict", else features ``(B, D)``."""
        features = self.frozen_features(inputs)
        if mode != "predict":
            return features
        if self.bank is None:
            raise UserError("AdPEKNNClassifier has no training images to compare with: add AdPEFeatureBankHook.")
        bank, labels = (part.to(features.device) for part in self.bank)
        test = F.normalize(features, dim=1)
        return predictions(knn_votes(bank, labels, test, self.num_classes, self.k, self.temperature), data_samples)


def predictions(scores: Tensor, data_samples: dict[str, Any]) -> list[dict[str, Any]]:
    """What the metric takes of every image: ``img_path``, ``index``, ``label`` and ``scores (num_classes,)``."""
    labels, indices = data_samples["label"].tolist(), data_samples["index"].tolist()
    return [
        {"img_path": path, "index": index, "label": label, "scores": row}
        for path, index, label, row in zip(data_samples["img_path"], indices, labels, scores.cpu(), strict=True)
    ]
