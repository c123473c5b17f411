"""EP's and CAPI's attentive probes against numbers recorded from their references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.heads.attentive_heads import (
    AttentiveHead,
    EfficientPooling,
    EfficientProbe,
    MAELars,
    ManyHeads,
    capi_factors,
    capi_split,
    mae_probe_rate,
)
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that these probes do not compute.
    """
    checks = {
        "efficient_probing": _efficient, "ep_trajectory": _ep_trajectory, "attn_pool": _attn_pool,
        "many_heads": _many_heads, "many_heads_result": _many_heads, "capi_schedule": _schedule, "split": _split,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("cls_token", "queries"): tensor for name, tensor in state.items()}


def _probe(case: GoldenCase) -> EfficientProbe:
    said: Any = case.options
    probe = EfficientProbe(said["width"], said["classes"], said["queries"], said.get("d_out", 1))
    probe.load_state_dict(_to_our_names(case.group("param.")), strict=False)
    return probe


def _efficient(case: GoldenCase) -> CaseResult:
    data, probe = case.arrays, _probe(case)
    tokens = data["input.tokens"].clone().requires_grad_()
    evaluated = probe.eval()(tokens).detach()
    logits = probe.train()(tokens)
    loss = F.cross_entropy(logits, data["input.labels"].long())
    loss.backward()
    ours = {name: p.grad for name, p in probe.named_parameters() if p.grad is not None}
    assert tokens.grad is not None
    gradients, remark = compare_gradients({**ours, "tokens": tokens.grad}, _to_our_names(case.group("grad.")))
    buffers = dict(probe.named_buffers())
    pooling = cast(EfficientPooling, probe[0])
    pairs = [
        (logits, data["output.train_logits"]), (loss, data["output.loss"]), (pooling(tokens), data["output.pooled"]),
        (pooling.attention(tokens), data["output.attention"]), (evaluated, data["output.eval_logits"]),
        *((buffers[name], value) for name, value in case.group("after.").items()),
    ]  # fmt: skip
    trained = sum(p.numel() for p in probe.parameters())
    exact = 0.0 if trained == case.options["trainable_parameters"] else float("inf")
    outputs = largest_error(relative_error(*pair) for pair in pairs)
    return case.result({"outputs": outputs, "gradients": gradients, "exact": exact}, remark)


def _ep_trajectory(case: GoldenCase) -> CaseResult:
    said, data, probe = case.options, case.arrays, _probe(case).train()
    optimizer = MAELars(probe.parameters(), 0.0, said["weight_decay"], said["momentum"], said["trust_coefficient"])
    losses, rates = [], []
    batches = len(data["input.tokens"])
    for step in range(len(said["losses"])):
        epoch = step / said["iterations_per_epoch"]
        rates.append(mae_probe_rate(epoch, said["lr"], said["epochs"], said["warmup_epochs"], said["min_lr"]))
        optimizer.param_groups[0]["lr"] = rates[-1]
        loss = F.cross_entropy(probe(data["input.tokens"][step % batches]), data["input.labels"][step % batches].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    state = probe.state_dict()
    final = [relative_error(state[name], value) for name, value in _to_our_names(case.group("final.")).items()]
    theirs = data["output.lr"]
    return case.result({
        "trajectory losses": relative_error(torch.tensor(losses), torch.tensor(said["losses"])),
        "trajectory parameters": largest_error(final),
        "outputs": relative_error(torch.tensor(rates, dtype=theirs.dtype), theirs),
    })  # fmt: skip


def _attn_pool(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    head = AttentiveHead(said["width"], said["classes"])
    head.load_state_dict(case.group("param."))
    tokens = data["input.tokens"].clone().requires_grad_()
    logits = head(tokens)
    loss = F.cross_entropy(logits, data["input.labels"].long())
    loss.backward()
    ours: dict[str, Tensor] = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    assert tokens.grad is not None
    ours["tokens"] = tokens.grad
    theirs = case.group("grad.")
    ours = _with_rows(ours, theirs)
    for side in (ours, theirs):
        side["kv.bias"] = side["kv.bias"].chunk(2)[1]
    gradients, remark = compare_gradients(ours, theirs)
    pairs = [(logits, data["output.logits"]), (loss, data["output.loss"])]
    return case.result(
        {"outputs": largest_error(relative_error(*pair) for pair in pairs), "gradients": gradients}, remark
    )


def _many_heads(case: GoldenCase) -> CaseResult:
    """Inputs and parameters are in one file, what comes out in another: either name runs the pair."""
    inputs = case if "input.map" in case.arrays else case.sibling("many_heads")
    results = case.sibling("many_heads_result")
    said, data = inputs.options, inputs.arrays
    parts = [key.split("@") for key in said["heads"]]
    sources, rates, decays = (list(dict.fromkeys(part[i] for part in parts)) for i in range(3))
    model = ManyHeads(said["width"], said["classes"], sources, [*map(float, rates)], [*map(float, decays)])
    model.heads.load_state_dict(inputs.group("param."))
    groups = model.parameter_groups(said["batch_size_for_the_rate"])
    optimizer = torch.optim.AdamW(groups, betas=tuple(said["betas"]))
    factors = capi_factors(said["iterations"], said["warmup_iters"])
    patches = data["input.map"].flatten(2, 3) if data["input.map"].shape[-1] == said["width"] else None
    if patches is None:
        raise UserError(f"Case {case.name}: input.map is no (steps, batch, rows, columns, width).")
    losses, after_two = [], {}
    outputs, gradients, remark = [], 0.0, ""
    for step in range(said["iterations"]):
        at = step % len(patches)
        for group in optimizer.param_groups:
            group["lr"] = factors[step] * group["base_lr"]
        logits = model(data["input.class_token"][at], patches[at])
        loss = model.loss(logits, data["input.labels"][at].long())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            outputs.append(relative_error(logits, data["output.logits"]))
            ours = {name: p.grad for name, p in model.heads.named_parameters() if p.grad is not None}
            ours, theirs = _without_key_bias(ours), _without_key_bias(results.group("grad."))
            # Of keys and values the gradients of the biases alone are recorded.
            ours = {name: gradient for name, gradient in ours.items() if name in theirs or "kv.weight" not in name}
            gradients, remark = compare_gradients(ours, theirs)
        optimizer.step()
        losses.append(float(loss))
        if step == 1:
            after_two = {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}
    outputs.append(relative_error(torch.from_numpy(factors).to(data["output.schedule"].dtype), data["output.schedule"]))
    final = _without_key_bias(model.heads.state_dict())
    pairs = [(final[name], value) for name, value in _without_key_bias(results.group("final.")).items()]
    after = _without_key_bias(after_two)
    pairs += [(after[name], value) for name, value in _without_key_bias(results.group("after_two.")).items()]
    return case.result({
        "outputs": largest_error(outputs), "gradients": gradients,
        "trajectory losses": relative_error(torch.tensor(losses), torch.tensor(said["losses"])),
        "trajectory parameters": largest_error(relative_error(*pair) for pair in pairs),
    }, remark)  # fmt: skip


def _with_rows(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Evenly spaced rows of a matrix, from the first, where that is what is recorded, as ``<name>.rows``."""
    found = {}
    for name, tensor in ours.items():
        recorded = theirs.get(f"{name}.rows")
        if recorded is None:
            found[name] = tensor
        else:
            found[f"{name}.rows"] = tensor[:: -(-len(tensor) // len(recorded))]
    return found


def _without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.chunk(2)[1] if name.endswith("kv.bias") else t for name, t in state.items()}


def _schedule(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["curves"].items():
        factors = capi_factors(said["iterations"], said["warmup_iters"])
        chosen = factors[case.arrays[f"input.{name}.iteration"].cpu().numpy().astype(int)]
        errors.append(float(np.abs(chosen - case.arrays[f"output.{name}.factor"].cpu().numpy()).max()))
    return case.result({"schedule": largest_error(errors)})


def _split(case: GoldenCase) -> CaseResult:
    theirs = case.arrays["output.permutation"]

    ours = torch.from_numpy(np.concatenate(capi_split(len(theirs))))
    return case.result({"exact": relative_error(ours, theirs)})
