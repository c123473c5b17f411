"""EoMT under mmseg: the segmentor, its optimiser's groups, its schedule and the annealing of masked attention."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from adpe.engine.mmengine_internals import accumulation
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.transfer.eomt.criterion import MaskCriterion, Target
from adpe.transfer.eomt.inference import class_scores, stitch, window_starts
from adpe.transfer.eomt.network import EoMTHead, Prediction
from adpe.transfer.eomt.rates import annealed, check_annealing, rates, two_stage

_IGNORED = 255
_WINDOWS = 16  # that pass through the network at once


@MODELS.register_module()
class AdPEEoMT(BaseSegmentor):
    """The encoder-only mask transformer (arXiv 2503.19108): the encoder, queries in its last blocks, no decoder.

    Args:
        backbone: config of an :class:`AdPEViT` with absolute positions; its final norm is used whatever it says.
        num_classes: C.
        num_queries: Q.
        joined_blocks: J, the last blocks, in which the queries take part.
        window: height and width of crops in training and of windows in testing, which `AdPEEoMTFit` scales for.
        criterion: options of :class:`adpe.transfer.eomt.criterion.MaskCriterion` beside the classes.
        drop_void: leave out points on unlabelled pixels and padding; as published they lie outside of all masks.
        data_preprocessor: config.
        options: of mmseg's BaseSegmentor.

    Raises:
        UserError: for options that are wrong, or an encoder in which queries have no place.
    """

    align_corners = False

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        num_queries: int = 100,
        joined_blocks: int = 4,
        window: tuple[int, int] = (512, 512),
        criterion: dict[str, Any] | None = None,
        drop_void: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_preprocessor, **{key: value for key, value in options.items() if value is not None})
        self.backbone: Any = MODELS.build({**backbone, "final_norm": True})
        self.decode_head = EoMTHead(
            self.backbone.embed_dim, self.backbone.patch_size, num_classes, num_queries, joined_blocks
        )
        self.decode_head.check(self.backbone)
        self.num_classes, self.window, self.drop_void = num_classes, (window[0], window[1]), drop_void
        if any(side % self.backbone.patch_size for side in self.window):
            raise UserError(f"AdPEEoMT: window = {self.window} is not divisible by patches of "
                            f"{self.backbone.patch_size} pixels.")  # fmt: skip
        self.criterion = MaskCriterion(num_classes, **(criterion or {}))

    def extract_feat(self, inputs: Tensor) -> Any:
        """Images to the encoder's maps, without queries."""
        return self.backbone(inputs)

    def encode_decode(self, inputs: Tensor, batch_data_samples: Any = None) -> Tensor:
        """Windows ``(B, 3, *window)`` to class scores ``(B, C, *window)``, without masked attention."""
        return class_scores(self._forward(inputs), self.window)

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Prediction:
        """The last prediction, as of a finished model: without masked attention."""
        return self.decode_head(self.backbone, inputs, masked=False)[-1]

    def loss(self, inputs: Tensor, data_samples: list[Any]) -> dict[str, Tensor]:
        """Losses of every prediction, weighted: ``loss_mask.0``, ... in the order of the blocks."""
        targets = [
            targets_of(sample.gt_sem_seg.data[0].to(inputs.device), self.num_classes, self.drop_void)
            for sample in data_samples
        ]
        predictions = self.decode_head(self.backbone, inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            precise = [Prediction(one.masks.float(), one.classes.float()) for one in predictions]
            losses = self.criterion(precise, targets)
        return {
            f"loss_{name}.{number}": self.criterion.weights[name] * value
            for number, part in enumerate(losses)
            for name, value in part.items()
        }

    def predict(self, inputs: Tensor, data_samples: list[Any] | None = None) -> list[Any]:
        """Class scores at every image's own size as ``seg_logits``, and their argmax as ``pred_sem_seg``.

        Raises:
            UserError: for an image whose shorter side does not fit the window.
        """
        samples = data_samples or [SegDataSample() for _ in inputs]
        for image, sample in zip(inputs, samples, strict=True):
            height, width = sample.metainfo.get("img_shape", image.shape[-2:])
            size = tuple(sample.metainfo.get("ori_shape", (height, width))[:2])
            scores = self._scores(image[:, :height, :width], size)
            flip = sample.metainfo.get("flip_direction") if sample.metainfo.get("flip") else None
            if flip:
                scores = scores.flip(2 if flip == "horizontal" else 1)
            labels = scores.argmax(dim=0, keepdim=True)
            sample.set_data({"seg_logits": PixelData(data=scores), "pred_sem_seg": PixelData(data=labels)})
        return samples

    def _scores(self, image: Tensor, size: tuple[int, ...]) -> Tensor:
        """``(C, *size)`` of an image ``(3, H, W)`` that is scaled for the windows."""
        height, width = image.shape[-2:]
        if (height != self.window[0] or width < self.window[1]) and (
            width != self.window[1] or height < self.window[0]
        ):
            raise UserError(
                f"AdPEEoMT: an image of {height} x {width} pixels does not fit windows of {self.window}: its shorter "
                f"side must. End the test pipeline's resizing with AdPEEoMTFit(window={self.window})."
            )
        starts = window_starts((height, width), self.window)
        cut = torch.stack([
            image[:, top : top + self.window[0], left : left + self.window[1]] for top, left in starts
        ])  # fmt: skip
        scores = torch.cat([self.encode_decode(part) for part in cut.split(_WINDOWS)])
        return stitch(scores, starts, (height, width), (size[0], size[1]))


def targets_of(labels: Tensor, num_classes: int, drop_void: bool = False) -> Target:
    """One mask for each class in a label map ``(H, W)``; 255 is of no class, outside of all masks or not counted."""
    classes = labels.unique()
    classes = classes[(classes != _IGNORED) & (classes >= 0) & (classes < num_classes)]
    return Target(labels == classes[:, None, None], classes.long(), labels != _IGNORED if drop_void else None)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdPEEoMTOptimWrapperConstructor:
    """Groups by learning rate, the encoder's apart (``encoder=True``); weight decay on every tensor.

    Args:
        optim_wrapper_cfg: ``optimizer`` holds torch's options; its ``lr`` is that of the heads.
        paramwise_cfg: ``layer_decay_rate``, and ``decay_joined=False`` to spare the joined blocks.

    Raises:
        UserError: for options that are missing or unknown.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.paramwise_cfg = dict(paramwise_cfg or {})
        unknown = sorted(set(self.paramwise_cfg) - {"layer_decay_rate", "decay_joined"})
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if unknown or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            problem = f"does not know {', '.join(unknown)}" if unknown else f"layer_decay_rate = {rate!r}"
            raise UserError(
                f"optim_wrapper.paramwise_cfg {problem}: expected dict(layer_decay_rate=..., decay_joined=True), the "
                "rate above 0 and at most 1."
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        whole: Any = unwrapped(model)
        encoder = whole.backbone
        inside = {id(parameter) for parameter in encoder.parameters()}
        found = rates(
            whole, encoder, self.optimizer_cfg["lr"], self.paramwise_cfg["layer_decay_rate"],
            self.paramwise_cfg.get("decay_joined", True), whole.decode_head.joined_blocks,
        )  # fmt: skip
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, parameter in whole.named_parameters():
            if parameter.requires_grad:
                key = id(parameter) in inside, found[name]
                label = f"{'encoder' if key[0] else 'heads'}, lr {key[1]:.4g}"
                group = {"name": label, "params": [], "lr": key[1], "encoder": key[0]}
                groups.setdefault(key, group)["params"].append(parameter)
        print_log(f"EoMT {self.paramwise_cfg}: {len(groups)} groups", logger="current")
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": [groups[key] for key in sorted(groups)]})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})


@PARAM_SCHEDULERS.register_module()
class AdPETwoStageScheduler(_ParamScheduler):
    """:func:`adpe.transfer.eomt.rates.two_stage` for groups with and without ``encoder=True``.

    Args:
        optimizer: or its wrapper.
        total: steps of the training.
        warmup: steps in which the encoder rests.
        encoder_warmup: steps of its own warm-up, which follows.
        power: of the fall.
        options: of mmengine's schedulers: ``by_epoch``, ``last_step``.

    Raises:
        UserError: for warm-ups that leave nothing.
    """

    def __init__(
        self, optimizer: Any, total: int, warmup: int, encoder_warmup: int, power: float = 0.9, **options: Any
    ) -> None:
        if min(warmup, encoder_warmup) < 0 or warmup + encoder_warmup >= total:
            raise UserError(
                f"param_scheduler: warmup = {warmup} and encoder_warmup = {encoder_warmup} of total = {total}: nothing "
                "is left after them."
            )
        self.total, self.warmup, self.power = total, (warmup, encoder_warmup), power
        # mmengine's wrapper has a further group, of the config's own rate.
        self.of_encoder = [bool(group.get("encoder")) for group in optimizer.param_groups]
        super().__init__(optimizer, "lr", **{"begin": 0, "end": INF, **options})

    def _get_value(self) -> list[float]:
        return [
            two_stage(self.last_step, self.total, self.warmup, encoder, base, self.power)
            for encoder, base in zip(self.of_encoder, self.base_values, strict=True)
        ]


@HOOKS.register_module()
class AdPEMaskAnnealingHook(Hook):
    """Sets the probability of masked attention of every joined block: 1 before its start, 0 from its end on.

    Args:
        starts: optimiser steps, for the joined blocks in their order.
        ends: likewise.
        power: of the fall.
    """

    def __init__(self, starts: list[int], ends: list[int], power: float = 0.9) -> None:
        self.starts, self.ends, self.power = list(starts), list(ends), power

    def before_train(self, runner: Any) -> None:
        if not all("encoder" in group for group in runner.optim_wrapper.optimizer.param_groups):
            raise UserError(
                "optim_wrapper.constructor: EoMT needs AdPEEoMTOptimWrapperConstructor, whose groups tell the "
                "encoder's rates from the others."
            )
        check_annealing(self.starts, self.ends, unwrapped(runner.model).decode_head.joined_blocks)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        done = runner.iter // accumulation(runner.optim_wrapper)
        values = [annealed(done, *ends, self.power) for ends in zip(self.starts, self.ends, strict=True)]
        with torch.no_grad():
            unwrapped(runner.model).decode_head.probabilities.copy_(torch.tensor(values))
