"""The number of classes of heads and losses, held against that of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from adpe.data.checks.inspection import first
from adpe.errors import UserError

# Parts of a model whose `num_classes` is not that of the data: the RPN tells objects from background, the encoder has
# the classes of pretraining, HTC's semantic head those of COCO-stuff, STDC's detail head edges.
_OTHER_PARTS = ("backbone", "rpn_head", "semantic_head", "data_preprocessor", "mixup")
_OTHER_TYPES = ("FusedSemanticHead", "STDCHead")


def check_outputs(model: nn.Module, metainfo: Mapping[str, Any], where: str) -> None:
    """Check the heads of a classifier, segmentor or detector, and their losses.

    Args:
        model: as it is trained or tested.
        metainfo: of the data set; without ``classes``, or with the ``thing_classes`` of panoptic data, whose heads
            share them out, nothing is checked.
        where: the data set's key in the config.

    Raises:
        UserError: if a head has another number of classes than the data, if a softmax over one class would learn
            nothing, or if there are not as many class weights as classes.
    """
    classes = tuple(metainfo.get("classes") or ())
    if not classes or "thing_classes" in metainfo:
        return
    heads = list(_heads(model))
    wrong = [(name, head.num_classes) for name, head in heads if head.num_classes != len(classes)]
    if wrong:
        names = first([f"{name or 'model'}.num_classes = {number}" for name, number in wrong], 4)
        raise UserError(
            f"{where} has {len(classes)} classes ({first(classes, 8)}), but {names}. Set num_classes={len(classes)}, "
            "or correct the classes of the data set."
        )
    for name, head in heads:
        _check_one_class(name, head)
        _check_class_weights(name, head, len(classes))


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        if type(number) is not int or number < 1 or type(module).__name__ in _OTHER_TYPES:
            continue
        if any(part in _OTHER_PARTS or part.startswith("loss") for part in name.split(".")):
            continue
        if not getattr(module, "class_agnostic", False):
            yield name, module


def _losses(head: nn.Module, prefix: str) -> list[Any]:
    found: list[Any] = []
    for name, module in head.named_children():
        if name.startswith(prefix):
            found += module if isinstance(module, nn.ModuleList) else [module]
    return found


def _check_one_class(name: str, head: Any) -> None:
    """mmseg's heads: a softmax over one output is 1 whatever the output, and its loss 0."""
    losses = _losses(head, "loss_decode")
    if not losses:
        return
    softmax = any(getattr(loss, "use_sigmoid", None) is False for loss in losses)
    if head.num_classes == 1 or (getattr(head, "out_channels", None) == 1 and softmax):
        raise UserError(
            f"{name}: one class alone (num_classes = {head.num_classes}, out_channels = {head.out_channels}"
            f"{', a softmax loss' if softmax else ''}) has nothing to be told apart from and learns nothing. Make the "
            "background a class: reduce_zero_label=False and classes=[background, ...] in the data sets and their "
            "pipelines, num_classes=2; with out_channels=1 also loss_decode.use_sigmoid=True."
        )


def _check_class_weights(name: str, head: nn.Module, classes: int) -> None:
    for loss in _losses(head, "loss"):
        weights = getattr(loss, "class_weight", None)
        # Detectors, and segmentors that predict a set of masks, have a class for "no object" after the others.
        if (
            isinstance(weights, Sequence)
            and not isinstance(weights, str)
            and len(weights) not in (classes, classes + 1)
        ):
            raise UserError(
                f"{name}: {len(weights)} values of class_weight in {type(loss).__name__} for {classes} classes. Give "
                f"{classes} (or {classes + 1}, with one for no object)."
            )
