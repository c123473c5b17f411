"""GC ViT as a backbone of mmsegmentation and mmdetection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.checkpoints.loading import LoadReport
from adpe.errors import UserError
from adpe.models.backbones.gcvit import GCViT, resize_bias_table
from adpe.transfer.backbones.initialisation import starting_checkpoint
from adpe.transfer.backbones.network_loading import start_network

_TABLE = "relative_position_bias_table"
# Of a classifier: the index is computed anew for any window, the head is not used, the norm is of the last map alone.
_LEFT_OUT = re.compile(r"(.*\.relative_position_index|head\..*|norm\..*)$")
_NEW = re.compile(r"norm[0-3]\.")


@MODELS.register_module()
class AdPEGCViT(BaseModule):
    """Four maps of strides 4, 8, 16, 32, each with a norm of its own; for images of any size from one pixel on.

    Attributes:
        channels: of the maps, in the order of `out_indices`.
        strides: pixels of the image for a pixel of the maps.

    Args:
        variant: of :data:`adpe.models.backbones.gcvit.VARIANTS`; None with ``dim``, ``depths`` and ``heads``.
        window_size: sides of the windows: 24 in all stages as published for dense prediction.
        pretrain_window_size: sides that a checkpoint's tables are of, if not those of `window_size`; they are resized.
        out_indices: stages whose maps are given.
        stage3_pool: see :class:`GCViT`; True as published for dense prediction.
        frozen_stages: stages, with the stem, that are not trained; -1 trains all.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)``: a local file of the authors' names or of a run of this
            backbone, which must cover everything but the norms of the maps. None is random initialisation.
        options: of :class:`GCViT`.

    Raises:
        UserError: for sizes that do not go together, or a checkpoint that does not cover the backbone.
    """

    def __init__(
        self,
        variant: str | None = "tiny",
        window_size: int | Sequence[int] = 24,
        pretrain_window_size: int | Sequence[int] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        stage3_pool: bool = True,
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.init_cfg = dict(init_cfg) if init_cfg else None
        self.out_indices = tuple(i % 4 if -4 <= i < 4 else i for i in out_indices)
        if any(not 0 <= i < 4 for i in self.out_indices) or not self.out_indices:
            raise UserError(f"AdPEGCViT: out_indices={tuple(out_indices)}: expected some of the stages 0 to 3.")
        options = {"window_size": window_size, "stage3_pool": stage3_pool, "dense_norms": True, **options}
        try:
            self.net = GCViT(variant, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"AdPEGCViT: {error}") from None
        # mmdet's NumClassCheckHook compares the attribute of every module with the data's classes.
        del self.net.num_classes
        self.pretrain_window_size = pretrain_window_size
        self.channels = tuple(self.net.channels[i] for i in self.out_indices)
        self.strides = tuple(4 << i for i in self.out_indices)
        self.frozen_stages = frozen_stages
        for i in {0, 1, 2, 3} - {*self.out_indices}:
            getattr(self.net, f"norm{i}").requires_grad_(False)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """The stem and what belongs to frozen stages."""
        if self.frozen_stages < 0:
            return []
        levels = list(self.net.levels[: self.frozen_stages])
        return [self.net.patch_embed, *levels, *(getattr(self.net, f"norm{i}") for i in range(len(levels)))]

    def train(self, mode: bool = True) -> AdPEGCViT:
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg` with a line in the log, or keep the random initialisation."""
        path = starting_checkpoint(self)
        if path is not None:
            start_network(self.net, path, fit_bias_tables, _LEFT_OUT, _NEW, "Choose the variant that it is of.")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` normalised images to contiguous maps ``(B, channels[i], h, w)``."""
        maps = self.net.forward_maps(images)
        chosen = [getattr(self.net, f"norm{i}")(maps[i]) for i in self.out_indices]
        return tuple(x.permute(0, 3, 1, 2).contiguous() for x in chosen)

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of depths; see :meth:`GCViT.layer_depth`."""
        return self.net.layer_depth(name.removeprefix("net."))

    def no_weight_decay(self) -> set[str]:
        """See :meth:`GCViT.no_weight_decay`."""
        return {f"net.{name}" for name in self.net.no_weight_decay()}


def fit_bias_tables(net: nn.Module, state: dict[str, Tensor], report: LoadReport) -> None:
    """Resize the bias tables of a file to the windows of a :class:`GCViT`, in place."""
    own = net.state_dict()
    for name in [name for name in state if name.endswith(_TABLE) and name in own]:
        if state[name].shape != own[name].shape and state[name].ndim == 2:
            window = (round(own[name].shape[0] ** 0.5) + 1) // 2
            state[name] = resize_bias_table(state[name].float(), window)
            report.resized[name] = f"bias table, to windows of {net.windows}"
