"""What every classifier shares under mmengine's Runner: mixup, the loss, predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from adpe.errors import UserError, require


class ImageClassifier(BaseModel):
    """A model of images with one label each. A class of it has :meth:`logits` and calls :meth:`set_loss`.

    Attributes:
        num_classes: of the logits.
        mixup: ``timm.data.Mixup``, or None.
        mixup_batch: images that share a draw of it; None for all that a process holds.
        loss: of logits and labels, or of soft targets with `mixup`.
    """

    def check_classes(self, num_classes: int) -> None:
        """Raise UserError for a number of classes that nothing can be learned of."""
        if not isinstance(num_classes, int) or num_classes < 2:
            raise UserError(f"{type(self).__name__}: num_classes must be at least 2, got {num_classes!r}.")

    def set_loss(self, num_classes: int, mixup: dict | None, mixup_batch: int | None, label_smoothing: float) -> None:
        """Cross-entropy, smoothed, of images that `mixup` mixes.

        Args:
            num_classes: of the logits.
            mixup: options of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``); None mixes nothing.
            mixup_batch: images that share one draw of `mixup` and are mixed with each other, however many a process
                holds at once: published recipes draw for each GPU's images. None draws once for all of them.
            label_smoothing: of the targets, mixed or not.

        Raises:
            UserError: for a `mixup_batch` that cannot be.
        """
        require("timm", "requirements/runtime.txt")
        from timm.data import Mixup
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        if mixup_batch is not None and (not mixup or mixup_batch < 2 or mixup_batch % 2):
            raise UserError(
                f"{type(self).__name__}: mixup_batch = {mixup_batch!r} must be an even number of images, beside "
                "model.mixup."
            )
        self.num_classes = num_classes
        smoothing = {"label_smoothing": label_smoothing, "num_classes": num_classes}
        self.mixup = Mixup(**mixup, **smoothing) if mixup else None
        self.mixup_batch = mixup_batch
        self.loss: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to ``(B, num_classes)``."""
        raise NotImplementedError

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


def predictions(scores: Tensor, data_samples: dict[str, Any]) -> list[dict[str, Any]]:
    """What the metric takes of every image: ``img_path``, ``index``, ``label`` and ``scores (num_classes,)``."""
    labels, indices = data_samples["label"].tolist(), data_samples["index"].tolist()
    return [
        {"img_path": path, "index": index, "label": label, "scores": row}
        for path, index, label, row in zip(data_samples["img_path"], indices, labels, scores.cpu(), strict=True)
    ]
