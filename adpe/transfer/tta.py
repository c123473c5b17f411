"""Test-time augmentation of semantic segmentation: several scales and their mirror images, averaged."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import Tensor

from adpe.errors import UserError


@MODELS.register_module()
class AdPESegmentationTTA(BaseTTAModel):
    """Mean of a segmentor's class probabilities over the augmentations of an image, at the image's own size.

    The segmentor turns every prediction back (mirroring, size) and slides its window at every scale by itself. The
    mean is that of the MAE and BEiT recipes' multi-scale test. mmseg's ``SegTTAModel`` keeps the logits of all
    augmentations until the last, 12 x 150 float32 maps for ADE20K; this one adds them up as they come.

    Args:
        module: the segmentor or its config.
        data_preprocessor: in place of the segmentor's own.
    """

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """One prediction an image from ``{"inputs": ..., "data_samples": ...}``, lists over augmentations of batches.

        Returns:
            the data samples of the first augmentation, with ``seg_logits`` the mean probabilities (C, H, W) and
            ``pred_sem_seg`` (1, H, W) int64.
        """
        count = len(data["inputs"])
        merged: list[Any] = []
        sums: list[Tensor] = []
        for index in range(count):
            samples = self.module.test_step({key: values[index] for key, values in data.items()})
            probabilities = [self._probabilities(sample.seg_logits.data) for sample in samples]
            if index == 0:
                merged, sums = samples, probabilities
                continue
            for total, one in zip(sums, probabilities, strict=True):
                total += one
        return self.merge_preds([(sample, total / count) for sample, total in zip(merged, sums, strict=True)])

    def merge_preds(self, data_samples_list: list[tuple[Any, Tensor]]) -> list[Any]:
        """Write mean probabilities (C, H, W) and the classes that follow into the data samples they come with."""
        for sample, mean in data_samples_list:
            if len(mean) > 1:
                labels = mean.argmax(dim=0, keepdim=True)
            else:
                labels = (mean > self.module.decode_head.threshold).long()
            sample.set_data({"seg_logits": PixelData(data=mean), "pred_sem_seg": PixelData(data=labels)})
        return [sample for sample, _ in data_samples_list]

    @staticmethod
    def _probabilities(logits: Tensor) -> Tensor:
        """Of a prediction (C, H, W); with one class the segmentor has taken the sigmoid already."""
        return logits.float().softmax(dim=0) if len(logits) > 1 else logits.float()


def use_tta(cfg: Config) -> None:
    """Put the config's `tta_pipeline` and `tta_model` in place of the test's, as OpenMMLab's ``--tta`` does.

    Raises:
        UserError: if the config has none.
    """
    missing = [name for name in ("tta_model", "tta_pipeline") if not cfg.get(name)]
    if missing:
        raise UserError(f"--tta: config {cfg.filename} has no {' and no '.join(missing)}.")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict({**cfg.tta_model, "module": cfg.model})
