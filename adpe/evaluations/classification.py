"""Classification with the one encoder under mmengine's Runner: fine-tuning, and the linear probe with augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import UserError, require
from adpe.evaluations.features.frozen_encoder import GlobalPool, PooledEncoder


@MODELS.register_module()
class AdPEClassifier(PooledEncoder):
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
        super().__init__(model, global_pool, init_cfg, data_preprocessor, **options)
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
        """``(B, 3, H, W)`` images to ``(B, num_classes)``."""
        if self.head is None:
            return self.backbone(images)
        if not self.frozen:
            return self.head(self.norm(self.features(images)))
        with torch.no_grad():
            features = self.features(images).float()
        return self.head(self.norm(features))

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


def predictions(scores: Tensor, data_samples: dict[str, Any]) -> list[dict[str, Any]]:
    """What the metric takes of every image: ``img_path``, ``index``, ``label`` and ``scores (num_classes,)``."""
    labels, indices = data_samples["label"].tolist(), data_samples["index"].tolist()
    return [
        {"img_path": path, "index": index, "label": label, "scores": row}
        for path, index, label, row in zip(data_samples["img_path"], indices, labels, scores.cpu(), strict=True)
    ]
