"""Masked image modelling under mmengine's Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import HOOKS, MODELS
from torch import Tensor

from adpe.checkpoints.loading import save_checkpoint
from adpe.data.multicrop import IMAGENET_MEAN, IMAGENET_STD, normalize_crops
from adpe.engine.specifying import specification_of_run
from adpe.engine.unwrapped import unwrapped
from adpe.methods.factory import create_model


@MODELS.register_module()
class AdPECropsPreprocessor(BaseDataPreprocessor):
    """Move crops to the device and put the crops of an image on the batch axis.

    ``inputs`` is ``(B, K, 3, h, w)``, float32 normalised or uint8; uint8 crops are normalised here, on the device.

    Args:
        mean: of the three channels, for pixels in 0..1, for uint8 crops.
        std: likewise.
        non_blocking: copy to the device without waiting.
    """

    def __init__(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        inputs = self.cast_data(data["inputs"])
        crops = inputs.flatten(0, 1)
        if crops.dtype == torch.uint8:
            crops = normalize_crops(crops, self.mean, self.std)
        return {"inputs": crops, "data_samples": data.get("data_samples")}


@MODELS.register_module()
class AdPEPretraining(BaseModel):
    """A :class:`adpe.MaskedAutoencoder` as a model of mmengine.

    Args:
        model: name for :func:`adpe.create_model`.
        compile: compile the blocks with ``torch.compile``.
        data_preprocessor: config; :class:`AdPECropsPreprocessor` if None.
        options: of :func:`adpe.create_model`.

    Attributes:
        crop_size: (height, width) in pixels of the crops that it was last trained on; None before the first.
    """

    crop_size: tuple[int, int] | None = None

    def __init__(
        self, model: str, compile: bool = False, data_preprocessor: dict | None = None, **options: Any
    ) -> None:
        super().__init__(data_preprocessor or {"type": "AdPECropsPreprocessor"})
        self.model = create_model(model, **options)
        if compile:
            for block in [*self.model.encoder.blocks, *self.model.decoder.blocks]:
                block.compile()

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Crops ``(B * K, 3, h, w)``: ``{"loss"}`` in mode "loss", else features ``(B * K, 1 + L, D)``."""
        if mode == "loss":
            self.crop_size = (inputs.shape[-2], inputs.shape[-1])
            return {"loss": self.model(inputs)}
        return self.model.forward_features(inputs)


@HOOKS.register_module()
class AdPEExportHook(Hook):
    """Writes the encoder alone to ``<work_dir>/encoder.safetensors`` at the end of pretraining: transfer starts there.

    Neither mask token nor adversary nor decoder is in it; what the encoder is and where it comes from is
    (:class:`adpe.models.specification.ModelSpecification`).
    """

    @master_only
    def after_train(self, runner: Any) -> None:
        model = unwrapped(runner.model)
        path = Path(runner.work_dir) / "encoder.safetensors"
        state = {f"encoder.{name}": tensor for name, tensor in model.model.encoder.state_dict().items()}
        save_checkpoint(state, path, specification=specification_of_run(runner))
        runner.logger.info(f"The encoder is in {path}")
