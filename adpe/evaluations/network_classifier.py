"""Classification with networks of their own head, GC ViT and SP-ViT, under mmengine's Runner."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.checkpoints.loading import LoadReport
from adpe.errors import UserError
from adpe.evaluations.image_classifier import ImageClassifier
from adpe.models.backbones.gcvit import GCViT
from adpe.models.backbones.spvit import SPViT
from adpe.transfer.backbones.gcvit_backbone import fit_bias_tables
from adpe.transfer.backbones.initialisation import starting_checkpoint
from adpe.transfer.backbones.network_loading import start_network
from adpe.transfer.backbones.spvit_backbone import check_positions


@dataclass(frozen=True)
class Network:
    """A network with a head, and how files of it are read.

    Attributes:
        build: the class; takes ``num_classes`` beside its own options.
        fit: brings tensors of a file to the network's sizes.
        left_out: names of a file that the classifier does not need.
    """

    build: Callable[..., nn.Module]
    fit: Callable[[nn.Module, dict[str, Tensor], LoadReport], None]
    left_out: str


# The index of GC ViT is computed anew for any window, and the norms of its maps are those of a dense backbone. SP-ViT's
# dense head is built on request.
NETWORKS = {
    "gcvit": Network(GCViT, fit_bias_tables, r".*\.relative_position_index|norm[0-3]\..*"),
    "spvit": Network(SPViT, check_positions, r"aux_head\..*"),
}


@MODELS.register_module()
class AdPENetworkClassifier(ImageClassifier):
    """A network under its own head; logits are those of its ``forward``, for images of any size.

    Images are padded with zeros, right and below, to whole patches where the network has patches of one size (SP-ViT).
    Layer-wise decay goes by the network's ``layer_depth``.

    Args:
        network: name in :data:`NETWORKS`.
        num_classes: of the head.
        mixup: see :meth:`ImageClassifier.set_loss`.
        mixup_batch: likewise.
        label_smoothing: likewise.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)``: a local file of the authors' names, or of a run of this
            classifier or of the dense backbone, which must cover the network; ``allow_missing=["head.*"]`` names (shell
            patterns) what keeps its start, whatever the file has under that name: a head of other classes, for a dense
            backbone's file ``"norm.*"`` too. None is random initialisation.
        data_preprocessor: config; mmengine's, which moves a batch to the device, if None.
        options: of :class:`adpe.models.backbones.gcvit.GCViT` or :class:`adpe.models.backbones.spvit.SPViT`.

    Raises:
        UserError: for an unknown network, or options that do not go together.
    """

    def __init__(
        self,
        network: str,
        num_classes: int,
        mixup: dict | None = None,
        mixup_batch: int | None = None,
        label_smoothing: float = 0.0,
        init_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_preprocessor)
        if network not in NETWORKS:
            raise UserError(f"AdPENetworkClassifier: network={network!r} is none of {', '.join(NETWORKS)}.")
        self.check_classes(num_classes)
        self.init_cfg = dict(init_cfg) if init_cfg else None
        self.network = network
        try:
            self.backbone = NETWORKS[network].build(num_classes=num_classes, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"AdPENetworkClassifier: {error}") from None
        if not hasattr(self.backbone, "head"):
            raise UserError("AdPENetworkClassifier: dense_norms=True is of dense backbones, which have no head.")
        self.set_loss(num_classes, mixup, mixup_batch, label_smoothing)

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, or keep the random initialisation, and log which."""
        path = starting_checkpoint(self, "the network starts at random")
        if path is None:
            return
        assert self.init_cfg is not None
        known = NETWORKS[self.network]
        new = [translate(pattern) for pattern in self.init_cfg.get("allow_missing", ())]
        started = re.compile("|".join(new)) if new else None

        def fit(net: nn.Module, state: dict[str, Tensor], report: LoadReport) -> None:
            for name in [name for name in state if started and started.match(name)]:
                del state[name]
                report.dropped[name] = "allow_missing: the network's own start is kept"
            known.fit(net, state, report)

        hint = (
            f"Choose the options that it is of; a head of other classes than {self.num_classes} is left out by "
            'init_cfg.allow_missing=["head.*"].'
        )
        start_network(self.backbone, path, fit, re.compile(known.left_out), started, hint)

    def logits(self, images: Tensor) -> Tensor:
        patch = getattr(self.backbone, "patch_size", 1)
        images = F.pad(images, (0, -images.shape[-1] % patch, 0, -images.shape[-2] % patch))
        return self.backbone(images)
