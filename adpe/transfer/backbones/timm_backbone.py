"""Any model of timm as a backbone of mmsegmentation and mmdetection."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.checkpoints.copies import unwrap, without_wrappers
from adpe.checkpoints.loading import check_values
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, require
from adpe.transfer.backbones.initialisation import starting_checkpoint

# Of timm's models, what lets them take images of any size: transformers are built for one.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


# Keys of averaged weights that timm's own loader takes before the raw ones.
TIMMS_AVERAGES = ("state_dict_ema", "model_ema")
# What may stand before the names of a model, outermost first; of several, the first is taken, as for plain ViTs.
_PREFIXES = (
    "base_encoder.", "encoder_q.", "teacher.", "student.", "image_encoder.", "visual.", "trunk.", "backbone.",
    "encoder.", "net.",
)  # fmt: skip


@MODELS.register_module()
class AdPETimmBackbone(BaseModule):
    """A model of timm by its name, giving feature maps at chosen depths, in the place of `AdPEViT`.

    In our configs this is one line. A plain ViT keeps the neck; `out_channels` is the width that the neck expects::

        _base_ = "./ade20k_upernet_vitb.py"
        model = dict(backbone=dict(_delete_=True, type="AdPETimmBackbone", name="vit_small_patch16_224",
                                   out_indices=(3, 5, 7, 11), out_channels=768))

        _base_ = "./coco_maskrcnn_vitb.py"
        model = dict(backbone=dict(_delete_=True, type="AdPETimmBackbone", name="vit_base_patch16_224",
                                   out_indices=(-1,)))

    Hierarchical models (ConvNeXt, Swin, ResNet) have a pyramid of strides 4, 8, 16, 32 of their own and go without the
    neck that makes one, or under mmdet's FPN::

        model = dict(neck=None, backbone=dict(_delete_=True, type="AdPETimmBackbone", name="convnext_tiny",
                                              out_channels=768))

        model = dict(neck=dict(_delete_=True, type="FPN", in_channels=[96, 192, 384, 768], out_channels=256,
                               num_outs=5),
                     backbone=dict(_delete_=True, type="AdPETimmBackbone", name="swin_tiny_patch4_window7_224"))

    The same on the command line: ``--cfg-options model.neck=None model.backbone._delete_=True
    model.backbone.type=AdPETimmBackbone model.backbone.name=convnext_tiny model.backbone.out_channels=768``.

    Attributes:
        channels: of the maps, in the order of `out_indices`.
        strides: pixels of the image for a pixel of the maps.

    Args:
        name: of a timm model, e.g. ``convnext_tiny``.
        out_indices: timm's, of ``forward_intermediates``: blocks of a plain transformer, stages of others (ResNet's
            stem counts as one); of ``features_only`` for models without. Negative from the end.
        out_channels: a 1x1 convolution brings every map to so many channels; None leaves them as timm has them.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` reads a local file of timm's or the authors' weights, as
            timm reads it (names, image sizes, averaged weights), or of a run of this backbone; it must hold every
            parameter. None is random initialisation.
        options: of the model, e.g. ``drop_path_rate``; ``img_size`` for those few that take one size alone, such as
            BEiT. With ``pretrained=True`` timm downloads its own weights.

    Raises:
        UserError: for a model that timm does not have or cannot take features from, options that it does not know, or
            a checkpoint that does not cover it.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        out_channels: int | None = None,
        init_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        timm = require("timm", "requirements/runtime.txt")
        self.init_cfg = dict(init_cfg) if init_cfg else None
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3))
            hint = f" Did you mean: {near}?" if near else ""
            raise UserError(f"AdPETimmBackbone: timm {timm.__version__} has no model {name!r}.{hint}")
        try:
            with torch.device("meta"):
                whole = timm.create_model(name, **{**options, "pretrained": False})
            known = inspect.signature(type(whole).__init__).parameters
            options = {**{key: value for key, value in _ANY_SIZE.items() if key in known}, **options}
            if hasattr(whole, "forward_intermediates"):
                options["feature_cls"] = "getter"
            self.net = timm.create_model(name, features_only=True, out_indices=tuple(out_indices), **options)
        except (TypeError, AssertionError, IndexError, RuntimeError) as error:
            raise UserError(f"AdPETimmBackbone: {name} with out_indices={tuple(out_indices)}: {error}") from None
        _remove_head(self.net, whole)
        self.name = name
        size = {key: value for key, value in options.items() if key not in ("feature_cls", "pretrained")}
        # Not a submodule: made anew where a checkpoint is read.
        self._whole = partial(timm.create_model, name, **size)
        self.channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())
        embedding = getattr(whole, "patch_embed", None)
        patch_size = getattr(embedding, "patch_size", (1, 1))
        self.patch_size: tuple[int, int] = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size,) * 2
        self.projections = nn.ModuleList()
        if out_channels is not None:
            self.projections.extend(nn.Conv2d(channels, out_channels, 1) for channels in self.channels)
            self.channels = (out_channels,) * len(self.channels)
        self._own_names = _own_names(self.net, whole)
        self._depths = _depths(whole, self._own_names)
        self._no_weight_decay = set(whole.no_weight_decay()) if hasattr(whole, "no_weight_decay") else set()

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, or keep timm's start."""
        path = starting_checkpoint(self, f"{self.name} starts as timm made it")
        if path is None:
            return
        dropped: dict[str, str] = {}
        own = self.net.state_dict()
        state = _without_prefixes(without_wrappers(unwrap(read_file(path), dropped, TIMMS_AVERAGES), dropped), own)
        if not set(own) <= set(state):  # else a run of this backbone wrote it
            state = self._as_timm_reads(state, path)
        wanted = {name: name if name in state else _name_in_timm(name, state) for name in own}
        lost = [n for n, t in wanted.items() if t not in state]
        wrong = [n for n, t in wanted.items() if t in state and state[t].shape != own[n].shape]
        if lost or wrong:
            size = " Set img_size to the size that it was made for." if wrong and not lost else ""
            raise UserError(
                f"{path}: {len(lost)} of {len(own)} tensors of {self.name} are missing and {len(wrong)} of another "
                f"shape ({', '.join([*lost, *wrong][:3])}): it is not a checkpoint of this timm model.{size}"
            )
        for name, theirs in wanted.items():
            if own[name].is_floating_point():
                check_values(theirs, state[theirs], path)
        self.net.load_state_dict({name: state[theirs] for name, theirs in wanted.items()})
        left = "".join(f"; {name} left out: {reason}" for name, reason in dropped.items())
        print_log(f"AdPETimmBackbone: {len(own)} of {len(own)} tensors from {path}{left}", logger="current")

    def _as_timm_reads(self, state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """Authors' names and other image sizes, by the filter that timm has beside the model."""
        from timm.models import model_entrypoint

        module = sys.modules[model_entrypoint(self.name).__module__]
        convert = getattr(module, "checkpoint_filter_fn", None)
        if convert is None:
            return state
        try:
            return dict(convert(dict(state), self._whole()))
        except (KeyError, IndexError, RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: timm cannot read it as {self.name} ({type(error).__name__}: {str(error)[:120]}). Take timm's "
                "or the authors' weights of this model, and set img_size to the size of their images."
            ) from None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` normalised images to contiguous maps ``(B, channels[i], H / strides[i], W / strides[i])``,
        rounded up or down as the model does it. Images are padded to whole patches.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size[1], 0, -height % self.patch_size[0]))
        maps = self.net(images)
        if self.projections:
            maps = [projection(y) for projection, y in zip(self.projections, maps, strict=True)]
        return tuple(y.contiguous() for y in maps)

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, and the number of depths.

        The depths are timm's own (``group_matcher``, as its ``layer_decay`` counts): 0 for the stem, then block by
        block, what stands between stages with the block that follows it, and a norm at the end with the last block.
        The projections to `out_channels` begin anew and are at the last depth, with the heads.

        Raises:
            KeyError: if the backbone has no such parameter.
            UserError: if timm does not say how deep the model's parameters lie.
        """
        if not self._depths:
            raise UserError(f"layer decay: timm's {self.name} has no group_matcher: drop the constructor.")
        last = max(self._depths.values()) + 1
        if name.startswith("projections."):
            return last, last + 1
        return self._depths[name.removeprefix("net.")], last + 1

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's own recipes do not decay, beside 1-D tensors."""
        return {f"net.{own}" for own, theirs in self._own_names.items() if theirs in self._no_weight_decay}


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what segmentors, detectors, self-supervised methods and this backbone put before them."""
    for prefix in _PREFIXES:
        inner = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if inner and not any(name.startswith(prefix) for name in own):
            state = inner
    return state


def _remove_head(net: nn.Module, whole: nn.Module) -> None:
    """Take out what stands before the classifier, such as ConvNeXt's last norm: it would never have a gradient."""
    classifier = (getattr(whole, "pretrained_cfg", None) or {}).get("classifier") or ()
    for path in [classifier] if isinstance(classifier, str) else classifier:
        head = path.split(".")[0]
        if hasattr(getattr(net, "model", None), head):
            setattr(net.model, head, nn.Identity())


def _own_names(net: nn.Module, whole: nn.Module) -> dict[str, str]:
    """Names of the parameters in timm's feature extractor to those in the whole model."""
    names = dict(whole.named_parameters())
    return {own: _name_in_timm(own, names) for own, _ in net.named_parameters()}


def _name_in_timm(name: str, names: dict[str, Any]) -> str:
    """Undo what timm's extractors do to names: ``model.`` in front, or ``stages_0.`` for ``stages.0.``."""
    first, _, rest = name.partition(".")
    if first == "model" and rest in names:
        return rest
    if name in names:
        return name
    return f"{'.'.join(first.rsplit('_', 1))}.{rest}"


def _depths(whole: Any, own_names: dict[str, str]) -> dict[str, int]:
    """Depth of every parameter of the extractor as timm groups them; empty if it does not."""
    from timm.models import group_parameters

    if not hasattr(whole, "group_matcher"):
        return {}
    groups = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    return {own: groups[theirs] for own, theirs in own_names.items()}
