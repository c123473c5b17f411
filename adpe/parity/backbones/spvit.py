"""SP-ViT against numbers recorded from its reference: the prior, blocks, stem, network, token labelling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.backbones.spatial_prior import offsets
from adpe.models.backbones.spvit import ConvStem, PriorAttention, SPBlock, SPViT, token_label_loss
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that SP-ViT does not compute.
    """
    checks = {
        "attention": _attention, "block": _block, "stem": _stem, "network": _network, "dense_and_mixtoken": _dense,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _finish(
    case: GoldenCase, module: nn.Module, total: Tensor, inputs: dict[str, Tensor], pairs: list[tuple[Tensor, Tensor]]
) -> CaseResult:
    """Outputs, and those gradients that are recorded."""
    errors = {"outputs": largest_error(relative_error(*pair) for pair in pairs)}
    theirs, remark = case.group("grad."), ""
    if theirs:
        total.backward()
        ours = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and name in theirs}
        given = {f"input.{name}": x.grad for name, x in inputs.items() if f"input.{name}" in theirs}
        ours |= {name: gradient for name, gradient in given.items() if gradient is not None}
        errors["gradients"], remark = compare_gradients(ours, theirs)
    return case.result(errors, remark)


def _attention(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    grid = (said["grid"][0], said["grid"][1])
    layer = PriorAttention(said["dim"], said["heads"])
    layer.load_state_dict(case.group("param."))
    x = data["input.x"].clone().requires_grad_()
    output = layer(x, grid)
    pairs = [
        (output, data["output"]), (layer.weights(x, grid), data["output.attention"]),
        (layer.multiplier(grid), data["output.multiplier"]), (offsets(*grid), data["output.offsets"]),
    ]  # fmt: skip
    return _finish(case, layer, (output * data["input.cotangent"]).sum(), {"x": x}, pairs)


def _block(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    block = SPBlock(
        said["dim"], said["heads"], not said["class_token"], said["mlp_ratio"], said["skip_lam"]
    )  # fmt: skip
    block.load_state_dict(case.group("param."))
    x = data["input.x"].clone().requires_grad_()
    output = block.eval()(x, (said["grid"][0], said["grid"][1]))
    return _finish(case, block, (output * data["input.cotangent"]).sum(), {"x": x}, [(output, data["output"])])


def _stem(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    images = data["input.images"].clone().requires_grad_()
    stem = ConvStem(said["patch"], images.shape[1], said["dim"], said["filters"])
    stem.load_state_dict(case.group("param."), strict=False)
    output = stem.eval()(images)
    total = (output * data["input.cotangent"]).sum()
    return _finish(case, stem, total, {"images": images}, [(output, data["output"])])


def _model(case: GoldenCase) -> SPViT:
    said: Any = case.options
    model = SPViT(
        None, said["img_size"], said["patch_size"], said["mlp_ratio"], said["num_classes"],
        said.get("return_dense", False), embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], prior_blocks=said["local_up_to_layer"], skip_lam=said["skip_lam"],
        drop_path_rate=said["drop_path_rate"],
    )  # fmt: skip
    model.load_state_dict(case.group("param."))
    return model.eval()


def _network(case: GoldenCase) -> CaseResult:
    data, model = case.arrays, _model(case)
    images = data["input.images"].clone().requires_grad_()
    logits = model(images)
    x, grid = model.embed(images)
    blocks = model.block_tokens(x, grid)
    pairs = [(logits, data["output"]), (model.norm(blocks[-1]), data["output.tokens"])]
    pairs += [(tokens, data[f"output.block{i}"]) for i, tokens in enumerate(blocks)]
    return _finish(case, model, (logits * data["input.cotangent"]).sum(), {"images": images}, pairs)


def _dense(case: GoldenCase) -> CaseResult:
    data, model = case.arrays, _model(case)
    images = data["input.images"]
    top, left, bottom, right = (int(x) for x in data["input.box"])
    box = (top, left, bottom, right)
    evaluated = model(images)
    class_logits, patch_logits = model.train().forward_mixed(images, box)
    grid = model.embed(images)[1]
    # The recorded loss has a weight of 0.5 for the patches.
    loss = token_label_loss(class_logits, patch_logits, data["input.target"], box, grid, 0.5)
    pairs = [
        (evaluated, data["output.eval_logits"]), (class_logits, data["output.train_class_logits"]),
        (patch_logits, data["output.train_token_logits"]), (loss, data["output.loss"]),
    ]  # fmt: skip
    return _finish(case, model, loss, {}, pairs)
