"""A pretraining method under mmengine's Runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import HOOKS, MODELS
from torch import Tensor

from adpe.data.views.device_crops import crop_on_device
from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD, normalize_crops
from adpe.engine.specifying import specification_of_run
from adpe.engine.unwrapped import unwrapped
from adpe.methods.base import Progress
from adpe.methods.factory import autoencoder_of, create_method


@MODELS.register_module()
class AdPECropsPreprocessor(BaseDataPreprocessor):
    """Moves the views of images to the device.

    ``inputs`` is ``(B, V, C, h, w)``, or a list of such groups of one size each; float32 normalised or uint8, which is
    normalised here, on the device. Images with boxes (:class:`adpe.data.dataset.AdPEImageDataset`, ``crop_on``) are
    cropped here first.

    Args:
        mean: of the channels, for pixels in 0..1, for uint8 crops.
        std: likewise.
        non_blocking: copy to the device without waiting.
        crops: `size` and `interpolation` of every group of crops, for images with boxes.
    """

    def __init__(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        non_blocking: bool = True,
        crops: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(non_blocking)
        self.mean, self.std = tuple(mean), tuple(std)
        # Private: where crops are made is no part of the protocol.
        self._crops = [(one["size"], one["interpolation"]) for one in crops]

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        inputs = self.cast_data(data["inputs"])
        if isinstance(inputs, dict):
            inputs = crop_on_device(inputs["images"], inputs["boxes"], self._crops)
        groups = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        views = [
            normalize_crops(group, self.mean, self.std) if group.dtype == torch.uint8 else group for group in groups
        ]
        return {"inputs": views, "data_samples": data.get("data_samples")}


@MODELS.register_module()
class AdPEPretraining(BaseModel):
    """A :class:`adpe.methods.base.PretrainingMethod` as a model of mmengine.

    Args:
        model: the encoder's name, for :func:`adpe.create_encoder`.
        method: name in :data:`adpe.methods.METHODS`; None is the masked autoencoder that `mask_tokens` and `adversary`
            stand for.
        compile: compile the blocks with ``torch.compile``.
        data_preprocessor: config; :class:`AdPECropsPreprocessor` if None.
        options: of the method and of the encoder.

    Attributes:
        crop_size: (height, width) in pixels of the first group of views that it was last trained on; None before.
    """

    crop_size: tuple[int, int] | None = None

    def __init__(
        self,
        model: str,
        method: str | None = None,
        compile: bool = False,
        data_preprocessor: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_preprocessor or {"type": "AdPECropsPreprocessor"})
        self.model = create_method(method or autoencoder_of(options), model, **options)
        if self.model.unit_pixels:
            channels = len(self.data_preprocessor.mean)
            self.data_preprocessor.mean, self.data_preprocessor.std = (0.0,) * channels, (1.0,) * channels
        if compile:
            for module in self.model.compiled():
                module.compile()

    def forward(self, inputs: Sequence[Tensor] | Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Views, see :class:`AdPECropsPreprocessor`: the method's losses in mode "loss".

        In other modes the features ``(B * V, 1 + L, D)`` of the first group, or of images ``(B, C, h, w)``.
        """
        if mode == "loss":
            views = [inputs.unsqueeze(1)] if isinstance(inputs, Tensor) else inputs
            self.crop_size = (views[0].shape[-2], views[0].shape[-1])
            return self.model.losses(views, training_progress())
        images = inputs if isinstance(inputs, Tensor) else inputs[0].flatten(0, 1)
        return self.model.forward_features(images)


def training_progress() -> Progress:
    """How far the Runner's training is, as its hook for runtime information says; the first step outside of one."""
    hub = MessageHub.get_current_instance()
    iteration, iterations, epoch, epochs = (
        int(hub.get_info(key) or 0) for key in ("iter", "max_iters", "epoch", "max_epochs")
    )
    return Progress(iteration, max(iterations, 1), epoch, max(epochs, 1))


@HOOKS.register_module()
class AdPEExportHook(Hook):
    """Writes the encoder alone to ``<work_dir>/encoder.safetensors`` at the end of pretraining, for transfer.

    Nothing else of the method is in it: no mask token, adversary, decoder or teacher. A method without an encoder of
    the suite writes a file of its own. The file says what the encoder is and where it comes from
    (:class:`adpe.models.specification.ModelSpecification`); the run's record names the frozen models of the method.
    """

    def before_train(self, runner: Any) -> None:
        made_with = unwrapped(runner.model).model.made_with()
        if made_with and runner.cfg.get("record"):
            runner.cfg.record.made_with = made_with

    @master_only
    def after_train(self, runner: Any) -> None:
        method = unwrapped(runner.model).model
        path = Path(runner.work_dir) / method.export_name
        method.export(path, specification_of_run(runner))
        runner.logger.info(f"The {path.stem} is in {path}")
