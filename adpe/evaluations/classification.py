"""Classification with the one encoder under mmengine's Runner: fine-tuning, and the linear probe with augmentation."""

from __future__ import annotations

from typing import Any, cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.features.frozen_encoder import GlobalPool, PooledEncoder
from adpe.evaluations.image_classifier import ImageClassifier


@MODELS.register_module()
class AdPEClassifier(ImageClassifier, PooledEncoder):
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
        mixup: see :meth:`ImageClassifier.set_loss`.
        mixup_batch: likewise.
        label_smoothing: likewise.
        head_init_std: of the linear layer's truncated normal start; MAE: 2e-5 for fine-tuning, 0.01 for the probe.
        init_cfg: see above; where the encoder starts.
        data_preprocessor: config.
        options: of :class:`adpe.VisionTransformer`, e.g. ``position``, ``drop_path_rate``, and of
            :class:`PooledEncoder`: with ``saliency`` the blocks see the patches alone that a chooser keeps.

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
        self.check_classes(num_classes)
        # The encoder's own head is that of fine-tuning over the mean of the patch tokens.
        own = not frozen and global_pool == "avg"
        options = {**options, "num_classes": num_classes if own else 0}
        super().__init__(model, global_pool, init_cfg, data_preprocessor, **options)
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
        self.set_loss(num_classes, mixup, mixup_batch, label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images to ``(B, num_classes)``."""
        if self.head is None:
            return self.backbone(images)
        if not self.frozen:
            return self.head(self.norm(self.features(images)))
        with torch.no_grad():
            features = self.features(images).float()
        return self.head(self.norm(features))

    def train(self, mode: bool = True) -> AdPEClassifier:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self
