"""GC ViT against numbers recorded from its reference: parts, stages, whole networks at any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.backbones.gcvit import GCBlock, GCStage, GCViT, QueryGenerator, Reduce, Stem, resize_bias_table
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that GC ViT does not compute.
    """
    checks = {
        "block": _block, "query_generator": _queries, "query_generator_dense": _queries, "stem": _part,
        "downsample": _part, "stage": _part, "network_classification": _classification, "network_dense": _dense,
        "bias_table": _bias_table,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _inputs(case: GoldenCase) -> dict[str, Tensor]:
    return {
        name: value.clone().requires_grad_() if value.is_floating_point() else value
        for name, value in case.group("input.").items()
        if not name.startswith("cotangent")
    }


def _compare(
    case: GoldenCase, module: nn.Module, inputs: dict[str, Tensor], total: Tensor, pairs: list[tuple[Tensor, Tensor]]
) -> CaseResult:
    """Outputs, and gradients of the sum of outputs times cotangents; of the parameters those that are recorded."""
    total.backward()
    theirs = case.group("grad.")
    ours = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and name in theirs}
    given = {f"input.{name}": value.grad for name, value in inputs.items() if value.grad is not None}
    ours |= {name: gradient for name, gradient in given.items() if name in theirs and gradient is not None}
    gradients, remark = compare_gradients(ours, theirs)
    outputs = largest_error(relative_error(*pair) for pair in pairs)
    return case.result({"outputs": outputs, "gradients": gradients}, remark)


def _block(case: GoldenCase) -> CaseResult:
    said, state = case.options, case.group("param.")
    inputs = _inputs(case)
    block = GCBlock(
        said["dim"], said["heads"], said["window"], "q_global" in inputs, said["mlp_ratio"],
        layer_scale=1.0 if "gamma1" in state else None,
    )  # fmt: skip
    block.load_state_dict(state)
    query = inputs["q_global"][:, 0] if "q_global" in inputs else None
    output = block.eval()(inputs["x"], query)
    total = (output * case.arrays["input.cotangent"]).sum()
    return _compare(case, block, inputs, total, [(output, case.arrays["output"])])


def _queries(case: GoldenCase) -> CaseResult:
    said, state = case.options, case.group("param.")
    blocks = len({name.split(".")[1] for name in state})
    stage = int(case.name[-1]) if case.name[-1].isdigit() else 1
    pools = {1: 3, 2: 2, 3: int("dense" in said["computes"]), 4: 0}[stage]
    generator = QueryGenerator(said["dim"], said["heads"], said["window"], pools)
    if max(pools, 1) != blocks:
        raise UserError(f"Case {case.name}: {blocks} blocks of the query generator, expected {max(pools, 1)}.")
    generator.load_state_dict(state)
    inputs = _inputs(case)
    output = generator(inputs["x"])[:, None]
    total = (output * case.arrays["input.cotangent"]).sum()
    return _compare(case, generator, inputs, total, [(output, case.arrays["output"])])


def _part(case: GoldenCase) -> CaseResult:
    said: Any = case.options
    inputs = _inputs(case)
    module: nn.Module
    if said["computes"] == "stem":
        module = Stem(inputs["images"].shape[1], said["dim"])
    elif said["computes"] == "downsample":
        module = Reduce(said["dim"], 2 * said["dim"])
    else:
        # The query generator of the second stage pools twice.
        module = GCStage(said["dim"], said["depth"], said["heads"], said["window"], 2, True, said["mlp_ratio"])
    module.load_state_dict(case.group("param."))
    output = module.eval()(next(iter(inputs.values())))
    if isinstance(module, GCStage) and module.downsample is not None:
        output = module.downsample(output)
    total = (output * case.arrays["input.cotangent"]).sum()
    return _compare(case, module, inputs, total, [(output, case.arrays["output"])])


def _network(case: GoldenCase, **options: Any) -> GCViT:
    said: Any = case.options
    model = GCViT(
        None, said["dim"], said["depths"], said["heads"], said["windows"], said["mlp_ratio"],
        layer_scale=1.0 if any(name.endswith("gamma1") for name in case.group("param.")) else None, **options,
    )  # fmt: skip
    model.load_state_dict(case.group("param."))
    return model.eval()


def _classification(case: GoldenCase) -> CaseResult:
    model, data = _network(case, num_classes=case.options["classes"]), case.arrays
    images = data["input.images"].clone().requires_grad_()
    logits = model(images)
    maps = model.forward_maps(images)
    levels: list[Any] = list(model.levels)
    after = [x if level.downsample is None else level.downsample(x) for x, level in zip(maps, levels, strict=True)]
    pairs = [(logits, data["output"]), (model.patch_embed(images), data["output.stem"])]
    pairs += [(value, data[f"output.level{i}"]) for i, value in enumerate(after)]
    pairs.append((model.forward_features(images).mean(dim=(1, 2)), data["output.features"]))
    total = (logits * data["input.cotangent"]).sum()
    return _compare(case, model, {"images": images}, total, pairs)


def _dense(case: GoldenCase) -> CaseResult:
    model, data = _network(case, stage3_pool=True, dense_norms=True), case.arrays
    images = data["input.images"].clone().requires_grad_()
    maps = [getattr(model, f"norm{i}")(x).permute(0, 3, 1, 2) for i, x in enumerate(model.forward_maps(images))]
    total = torch.stack([(x * data[f"input.cotangent{i}"]).sum() for i, x in enumerate(maps)]).sum()
    return _compare(case, model, {"images": images}, total, [(x, data[f"output.{i}"]) for i, x in enumerate(maps)])


def _bias_table(case: GoldenCase) -> CaseResult:
    ours = resize_bias_table(case.arrays["input.table"], case.options["window"])
    return case.result({"outputs": relative_error(ours, case.arrays["output.table"])})
