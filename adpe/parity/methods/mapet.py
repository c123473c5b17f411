"""MaPeT against numbers recorded from its reference: masks, losses, steps, fine-tuning, k-means tokens, schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.mapet import MaPeT, Order
from adpe.methods.schedules import seamed_cosine
from adpe.methods.targets.kmeans import kmeans, nearest_centroid
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error
from adpe.parity.training import compare_step, without_key_bias

# With which the bytes of the trajectory were normalised.
_MEAN, _STD = 0.45, 0.25


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that MaPeT does not compute.
    """
    checks = {
        "masks": _masks, "pretrain": _pretrain, "trajectory": _trajectory, "finetune": _finetune, "kmeans": _kmeans,
        "schedule": _schedule,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference has queries apart from keys and values."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*attn)\.(q|kv)\.(\w+)", name)
        if match and match[2] == "kv":
            continue
        new = name if name.startswith(("mask_positional_token", "decoder.")) else f"encoder.{name}"
        if match:
            joined = torch.cat([tensor, state[f"{match[1]}.kv.{match[3]}"]])
            found[f"encoder.{match[1]}.qkv.{match[3]}"] = joined
        else:
            found[new] = tensor
    return found


def _masks(case: GoldenCase) -> CaseResult:
    errors = []
    for name in [key.split(".")[1] for key in case.arrays if key.endswith(".permutation")]:
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        permutation = case.arrays[f"input.{name}.permutation"].long()
        order = Order.of(permutation, numbers[1], numbers[2] if len(numbers) > 2 else None)
        content, query = order.masks(numbers[1])
        flags = torch.zeros(permutation.shape, dtype=torch.bool)
        ours = {"content": content, "query": query, "predicted": flags.scatter(1, order.predicted, True)}
        ours["scored"] = flags.scatter(1, order.predicted, order.scored)
        for kind, value in ours.items():
            theirs = case.arrays.get(f"output.{name}.{kind}")
            if theirs is None and (bits := case.arrays.get(f"output.{name}.{kind}_bits")) is not None:
                unpacked = np.unpackbits(bits.cpu().numpy().astype(np.uint8), axis=-1)[..., : value.shape[-1]]
                theirs = torch.from_numpy(unpacked)
            if theirs is not None:
                errors.append(relative_error(value, theirs))
    return case.result({"exact": largest_error(errors)})


def _model(case: GoldenCase) -> MaPeT:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], learned_pos_embed=True, init_values=said["init_values"],
        drop_path_rate=said.get("drop_path", 0.0),
    )  # fmt: skip
    model = MaPeT(encoder, None, said["ntoken"], said["least_number"], said.get("upper_limit"), True)
    state = case.group("param.") or case.sibling("pretrain").group("param.")
    missing, unexpected = model.load_state_dict(to_our_names(state), strict=False)
    if unexpected or [name for name in missing if name != "used"]:
        raise UserError(f"Case {case.name}: parameters {unexpected} are unknown, {missing} missing.")
    return model.train()


def _pretrain(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    # The case with an upper limit has its images and tokens in `pretrain`.
    given = data if "input.images" in data else case.sibling("pretrain").arrays
    images, tokens = given["input.images"], given["input.tokens"].long()
    permutation = (data if "input.permutation" in data else given)["input.permutation"].long()
    order = Order.of(permutation, said["least_number"], said.get("upper_limit"))
    wanted = tokens.gather(1, order.predicted - 1)
    if "input.keep" in data:
        _replay_drop_path(model, list(data["input.keep"]))
        logits = model.predict(images, order)
        outputs = {}
    else:
        content, query = model.streams(images, order)
        logits = model.decoder(query)
        outputs = {name: (value, data[f"output.{name}"]) for name, value in (("content", content), ("query", query))
                   if f"output.{name}" in data}  # fmt: skip
    outputs["logits"] = (logits.transpose(1, 2), data["output.logits"])
    flags = torch.zeros(permutation.shape, dtype=torch.bool)
    found = {"predicted": flags.scatter(1, order.predicted, True), "targets": wanted,
             "scored": flags.scatter(1, order.predicted, order.scored)}  # fmt: skip
    exact = {name: (v, data[f"output.{name}"]) for name, v in found.items() if f"output.{name}" in data}
    loss = model.compare(logits, wanted, order)
    return compare_step(case, model, loss, to_our_names, outputs, exact, recorded_only="upper_limit" in said)


def _replay_drop_path(model: MaPeT, draws: list[Tensor]) -> None:
    class Replayed(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, x: Tensor) -> Tensor:
            return x * draws.pop(0).view(-1, 1, 1).to(x.dtype) / (1 - self.rate)

    blocks: Any = model.encoder.blocks
    for block in blocks:
        if block.drop_path.rate:
            block.drop_path = Replayed(block.drop_path.rate)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    groups = model.parameter_groups(said["lr"], said["weight_decay"])
    optimizer = torch.optim.AdamW(groups, betas=tuple(said["betas"]), eps=said["eps"])
    losses, norms = [], []
    for number in range(len(said["losses"])):
        images = (data[f"step.{number}.images"].float() / 255 - _MEAN) / _STD
        order = Order.of(data[f"step.{number}.permutation"].long(), said["least_number"], said.get("upper_limit"))
        wanted = data[f"step.{number}.tokens"].long().gather(1, order.predicted - 1)
        loss = model.compare(model.predict(images, order), wanted, order)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), said["clip_grad"]))
        optimizer.step()
        losses.append(loss.detach())
    pairs = {"losses": losses, "grad_norms": norms}
    error = largest_error(relative_error(torch.stack(v), data[f"output.{name}"]) for name, v in pairs.items())
    state, values = model.state_dict(), []
    for name, theirs in to_our_names(case.group("final.")).items():
        both = [without_key_bias(name, tensor) for tensor in (state[name], theirs)]
        values.append(
            relative_error(*(t if k is None else k for t, k in zip((state[name], theirs), both, strict=True)))
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    exempt = {names[id(p)] for group in groups if group["name"] == "no_decay" for p in group["params"]}
    theirs_exempt = {
        re.sub(r"attn\.(q|kv)\.bias", "attn.qkv.bias", n if n.startswith(("decoder", "mask_")) else f"encoder.{n}")
        for n in said["no_decay"]
    }
    return case.result({
        "trajectory losses": error, "trajectory parameters": largest_error(values),
        "exact": 0.0 if exempt == theirs_exempt else float("inf"),
    })  # fmt: skip


def _finetune(case: GoldenCase) -> CaseResult:
    said: Any = case.options
    data, average = case.arrays, said["global_pool"] == "avg"
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], learned_pos_embed=True, init_values=said["init_values"],
        num_classes=said["num_classes"] if average else 0,
    )  # fmt: skip
    state = {name.removeprefix("encoder."): t for name, t in to_our_names(case.group("param.")).items()}
    if average:
        encoder.load_state_dict(state)
        logits = encoder(data["input.images"])
    else:
        head = nn.Linear(said["embed_dim"], said["num_classes"])
        head.load_state_dict({name: state.pop(f"head.{name}") for name in ("weight", "bias")})
        encoder.load_state_dict(state)
        logits = head(encoder.forward_features(data["input.images"])[:, 0])
    loss = F.cross_entropy(logits, torch.arange(len(logits)))
    pairs = {"logits": logits, "loss": loss}
    return case.result({"outputs": largest_error(relative_error(v, data[f"output.{n}"]) for n, v in pairs.items())})


def _kmeans(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    x, start = data["input.features"], data["input.initial"]
    objectives = []
    for iteration in range(said["iterations"]):
        moved = kmeans(x, start, iteration)
        labels = nearest_centroid(x, moved)
        objectives.append((x - moved[labels]).square().sum())
    centroids = kmeans(x, start, said["iterations"])
    theirs = data["output.objective"]
    new = data["input.new_features"]
    tokens = nearest_centroid(new.flatten(0, 1), centroids).view(new.shape[:2])
    distance = (new - centroids[tokens]).square().sum(dim=-1)
    outputs = [
        relative_error(centroids, data["output.centroids"]), relative_error(distance, data["output.distance"]),
        relative_error(torch.stack(objectives)[: len(theirs)], theirs),
    ]  # fmt: skip
    exact = [
        relative_error(nearest_centroid(x, centroids), data["output.assignment"]),
        relative_error(tokens, data["output.tokens"]),
    ]
    return case.result({"outputs": largest_error(outputs), "exact": largest_error(exact)})


def _schedule(case: GoldenCase) -> CaseResult:
    said, theirs = case.options, case.arrays["output.lr"]
    ours = [
        1e3 * seamed_cosine(
            epoch, said["epochs"], said["warmup_epochs"], said["lr"], said["warmup_lr"], said["min_lr"], 0
        )
        for epoch in range(said["epochs"] + said["cooldown_epochs"])
    ]  # fmt: skip
    return case.result({"outputs": relative_error(torch.tensor(ours, dtype=torch.float64), theirs)})
