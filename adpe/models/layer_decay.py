"""Layer-wise learning-rate decay: the deeper a parameter, the closer its learning rate to the base one.

ELECTRA (arXiv 2003.10555), BEiT (arXiv 2106.08254). A backbone says of itself how deep a parameter lies, by
``layer_depth(name) -> (depth, number of depths)``, and what is not decayed, by ``no_weight_decay() -> set of names``;
no class name is looked at. What stands outside the backbone (neck, heads) begins anew and takes the full rate.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from adpe.errors import UserError

Compat = Literal["clean", "mmseg", "detectron2", "all"]

# What detectron2's `weight_decay_norm` means; its own channel LayerNorm of pyramids and heads is not among them.
TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def layer_decay_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay_rate: float, compat: Compat = "clean"
) -> list[dict[str, Any]]:
    """Parameter groups with ``lr * layer_decay_rate ** (number of depths - 1 - depth)``, one for each rate and decay.

    Learning rates are the same under every `compat`; weight decay is not:

    - "clean": none on 1-D tensors, biases, and what the backbone's ``no_weight_decay`` names.
    - "mmseg": none on 1-D tensors and biases. mmseg means to spare ``pos_embed`` and ``cls_token`` too, but compares
      these with full names, ``backbone.pos_embed``, and so decays them.
    - "detectron2" (ViTDet): none on parameters of torch's norms and on ``pos_embed``; biases are decayed, and so are
      channel norms that are not torch's. A ``cls_token``, which ViTDet's backbone does not have, is spared like
      ``pos_embed``.
    - "all": everything is decayed, as DINOv3's linear probe does with its head.

    Args:
        model: holds a backbone that describes itself (anywhere), or is one. Frozen parameters are left out.
        lr: learning rate of the last depth.
        weight_decay: of what is decayed.
        layer_decay_rate: above 0, at most 1 (no decay).
        compat: whose weight decay to reproduce.

    Returns:
        Groups for a torch optimizer, shallow ones first, with ``name``, ``lr_scale``, ``lr`` and ``weight_decay``.

    Raises:
        UserError: for options out of range, no backbone that describes itself, or a parameter that it does not know.
    """
    if not 0 < layer_decay_rate <= 1:
        raise UserError(f"layer_decay_rate must lie above 0 and be at most 1, got {layer_decay_rate!r}.")
    if compat not in get_args(Compat):
        raise UserError(f"layer decay: compat must be one of {', '.join(get_args(Compat))}, got {compat!r}.")
    backbones = describing_modules(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            name = f"{path}.{leaf}" if path else leaf
            scale, spared = _describe(name, backbones, layer_decay_rate)
            if compat == "detectron2":
                plain = isinstance(module, TORCH_NORMS) or leaf in ("pos_embed", "cls_token")
            elif compat == "all":
                plain = False
            else:
                plain = parameter.ndim <= 1 or leaf == "bias" or (compat == "clean" and spared)
            decay = 0.0 if plain else weight_decay
            if (scale, decay) not in groups:
                label = f"lr x {scale:.4g}, {'no decay' if plain else 'decay'}"
                values = {"lr_scale": scale, "lr": lr * scale, "weight_decay": decay}
                groups[scale, decay] = {"name": label, "params": [], **values}
            groups[scale, decay]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def describing_modules(model: nn.Module) -> dict[str, Any]:
    """The outermost modules with ``layer_depth``, by their path in the model (empty for the model itself).

    Raises:
        UserError: if there is none.
    """
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if hasattr(module, "layer_depth") and not any(_inside(path, outer) is not None for outer in found):
            found[path] = module
    if not found:
        backbone = type(getattr(model, "backbone", model)).__name__
        raise UserError(
            f"layer decay: {backbone} does not say how deep its parameters lie. Give it layer_depth(name) -> (depth, "
            "number of depths), use AdPEViT, or drop the constructor."
        )
    return found


def _describe(name: str, backbones: dict[str, Any], layer_decay_rate: float) -> tuple[float, bool]:
    """Share of the base learning rate, and whether the backbone spares the parameter from weight decay."""
    for path, backbone in backbones.items():
        own = _inside(name, path)
        if own is None:
            continue
        try:
            depth, depths = backbone.layer_depth(own)
        except KeyError:
            raise UserError(
                f"layer decay: {type(backbone).__name__}.layer_depth does not know its parameter {own!r}: its learning "
                "rate would be a guess. Teach layer_depth where it lies."
            ) from None
        if not 0 <= depth < depths:
            raise UserError(
                f"layer decay: {type(backbone).__name__}.layer_depth puts {own!r} at depth {depth}, outside "
                f"0..{depths - 1}."
            )
        spared = own in backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else False
        return layer_decay_rate ** (depths - 1 - depth), spared
    if "backbone" in name.split("."):
        raise UserError(
            f"layer decay: parameter {name!r} belongs to a backbone that does not say how deep it lies "
            f"(those that do: {', '.join(backbones)}). Give that backbone layer_depth(name)."
        )
    return 1.0, False


def _inside(name: str, path: str) -> str | None:
    """`name` relative to the module at `path`, or None if it is not inside."""
    if not path:
        return name
    return name[len(path) + 1 :] if name.startswith(path + ".") else None
