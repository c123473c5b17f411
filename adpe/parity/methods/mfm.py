"""MFM against numbers recorded from its reference: filters, damage, losses, training steps, schedule, fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.mfm import MFM, NOISE
from adpe.methods.schedules import seamed_cosine
from adpe.methods.targets.spectra import (
    blur,
    blur_kernel,
    down_and_up,
    filter_frequencies,
    low_pass_filter,
    removed_mean,
    spectrum_distance,
)
from adpe.models.layer_decay import layer_decay_groups
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error

# Options of the reference's loss by our names.
LOSS_OPTIONS = {
    "loss_gamma": "gamma", "with_matrix": "weighted", "matrix_gamma": "weight_gamma", "log_matrix": "weight_log",
    "batch_matrix": "weight_over_batch", "ave_spectrum": "average_spectrum", "patch_factor": "tiles",
}  # fmt: skip


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that MFM does not compute.
    """
    checks: dict[str, Callable[[GoldenCase], CaseResult]] = {
        "filters": _filters, "corruption": _corruption, "loss": _loss, "blur_kernels": _blur_kernels,
        "pretrain_vit": _pretrain, "restore": _restore, "pretrain_resnet": _pretrain_resnet,
        "pretrain_resnet_result": _pretrain_resnet, "trajectory": _trajectory, "schedule": _schedule,
        "finetune": _finetune,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's parameters, or their gradients, by our names; its attention has no bias of the keys."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = re.sub(r"^decoder\.(pred\.)?0\.", "head.pred.", name)
        new = re.sub(r"^decoder\.", "head.", new)
        new = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", new)
        renamed[new] = tensor
    for name in [name for name in renamed if name.endswith(".q_bias")]:
        prefix = name.removesuffix("q_bias")
        query, value = renamed.pop(name), renamed.pop(f"{prefix}v_bias")
        renamed[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return renamed


def _parameters(case: GoldenCase) -> dict[str, Tensor]:
    return to_our_names(case.group("param.") or case.sibling("pretrain_vit").group("param."))


def _model(case: GoldenCase, task: Any = "mfm", **options: Any) -> MFM:
    said = case.options
    state = _parameters(case)
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], learned_pos_embed=True, init_values=said.get("init_values"),
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads") if key in said}
    model = MFM(
        encoder, task, said["mask_radius1"], said.get("mask_radius2"), gamma=said.get("gamma", 1.0),
        all_frequencies=said.get("target") == "normal", **decoder, **options,
    )  # fmt: skip
    model.load_state_dict(state)
    return model.train()


def _step(
    case: GoldenCase, model: MFM, loss: Tensor, prediction: Tensor, **outputs: tuple[Tensor, Tensor]
) -> CaseResult:
    """Loss, prediction and gradients of a forward and backward pass, and further pairs of ours and theirs."""
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients, remark = compare_gradients(ours, to_our_names(case.group("grad.")))
    pairs = {"loss": (loss, case.arrays["output.loss"]), "pred": (prediction, case.arrays["output.pred"]), **outputs}
    return case.result(
        {"outputs": largest_error(relative_error(*pair) for pair in pairs.values()), "gradients": gradients}, remark
    )


def _filters(case: GoldenCase) -> CaseResult:
    errors = []
    for name, theirs in case.group("output.").items():
        size, _, kind = name.partition("_")
        radii = re.match(r"(?:r|ring)(\d+)(?:_(\d+))?\.", kind)
        assert radii is not None
        disc = low_pass_filter(int(size), int(radii[1]), int(radii[2]) if radii[2] else None)
        errors.append(relative_error(disc if name.endswith("low_pass") else ~disc, theirs))
    return case.result({"exact": max(errors)})


def _corruption(case: GoldenCase) -> CaseResult:
    images, radius = case.arrays["input.images"], case.options["mask_radius1"]
    model = MFM(VisionTransformer(images.shape[-1], 4, embed_dim=8, depth=1, num_heads=2), radius=radius)
    kept = model.filters(images, case.arrays["input.low_pass"])
    raw = filter_frequencies(images, kept)
    damaged, _ = model.damage(images, case.arrays["input.low_pass"])
    ours = {"raw": raw, "clamped": raw.clamp(0, 1), "normalised": damaged, "target": model.normalize(images)}
    errors = [relative_error(value, case.arrays[f"output.{name}"]) for name, value in ours.items()]
    return case.result({"exact": relative_error(kept, case.arrays["output.mask"]), "outputs": largest_error(errors)})


def _loss(case: GoldenCase) -> CaseResult:
    outputs, gradients = [], []
    for variant, said in case.options["variants"].items():
        prediction = case.arrays["input.pred"].clone().requires_grad_()
        options = {LOSS_OPTIONS[key]: value for key, value in said.items()}
        distance = spectrum_distance(prediction, case.arrays["input.target"], **options)
        losses = {"mean": distance.mean()}
        if f"output.{variant}.masked" in case.arrays:
            losses["masked"] = removed_mean(distance, case.arrays["input.mask"].bool())
        for name, loss in losses.items():
            outputs.append(relative_error(loss, case.arrays[f"output.{variant}.{name}"]))
            (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
            gradients.append(relative_error(gradient, case.arrays[f"output.{variant}.{name}_grad_pred"]))
        if f"output.{variant}.map" in case.arrays:
            shifted = torch.fft.fftshift(distance, dim=(-2, -1))
            outputs.append(relative_error(shifted, case.arrays[f"output.{variant}.map"]))
    return case.result({"outputs": largest_error(outputs), "gradients": largest_error(gradients)})


def _blur_kernels(case: GoldenCase) -> CaseResult:
    errors = []
    for name, theirs in case.group("output.").items():
        kind = name.rstrip("0123456789_")
        said = dict(case.options["parameters"][name.removeprefix(f"{kind}_")])
        errors.append(relative_error(blur_kernel(kind, **said), theirs))
    return case.result({"outputs": largest_error(errors)})


def _pretrain(case: GoldenCase) -> CaseResult:
    model, images = _model(case), case.arrays["input.images"]
    damaged, kept = model.damage(images, torch.tensor(case.options["low_pass"]))
    assert kept is not None
    prediction = model.predict(damaged)
    loss = model.compare(prediction, model.normalize(images), kept)
    return _step(case, model, loss, prediction, mask=(kept, case.arrays["input.mask"]))


def _restore(case: GoldenCase) -> CaseResult:
    task = case.name.removeprefix("restore_").partition("_")[0]
    model, images = _model(case, task), case.arrays["input.images"]
    count = range(len(images))
    if task == "sr":
        degraded = down_and_up(images, case.options["sr_factor"])
        theirs = case.arrays["output.encoder_input"]
        ours = model.normalize(degraded)
    elif task == "deblur":
        sigma = case.options["sigma"]
        kernels = [blur_kernel("iso", size, sigma, sigma) for size in case.options["kernel_sizes"]]
        ours = degraded = blur(images.double(), kernels).float()
        theirs = case.arrays["input.degraded"]
    else:
        noise = torch.stack([case.arrays[f"input.unit_noise{i}"].permute(2, 0, 1) for i in count])
        ours = degraded = images + NOISE * noise
        theirs = case.arrays["input.degraded"]
    prediction = model.predict(model.normalize(degraded))
    loss = model.compare(prediction, model.normalize(images), None)
    return _step(case, model, loss, prediction, degraded=(ours, theirs))


def _pretrain_resnet(case: GoldenCase) -> CaseResult:
    """Inputs and parameters are in one file, what comes out in another: either name runs the pair."""
    from timm.models.resnet import Bottleneck, ResNet

    inputs = case if "input.images" in case.arrays else case.sibling("pretrain_resnet")
    results = case.sibling("pretrain_resnet_result")
    said, images = inputs.options, inputs.arrays["input.images"]
    block: Any = Bottleneck
    encoder = ResNet(block, said["blocks"], channels=said["channels"], num_classes=0, global_pool="")
    model = MFM(encoder, radius=said["mask_radius1"])
    state = to_our_names(inputs.group("param."))
    model.load_state_dict({**state, **inputs.group("buffer.")}, strict=False)
    damaged, kept = model.train().damage(images, torch.tensor(said["low_pass"]))
    prediction = model.predict(damaged)
    loss = model.compare(prediction, model.normalize(images), kept)
    buffers = dict(model.named_buffers())
    outputs = {name: (buffers[name], value) for name, value in results.group("output.buffer.").items()}
    return _step(results, model, loss, prediction, **outputs)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _model(case)
    optimizer = torch.optim.AdamW(model.parameter_groups(said["lr"], said["weight_decay"]), betas=tuple(said["betas"]))
    losses, norms = [], []
    for step in range(len(said["losses"])):
        images = case.arrays[f"step.{step}.images"].float() / 255
        loss = model(images, case.arrays[f"step.{step}.low_pass"])
        optimizer.zero_grad()
        loss.backward()
        # The reference has no bias of the keys; ours has rounding for its gradient.
        for block in model.encoder.blocks:
            block.attn.qkv.bias.grad.chunk(3)[1].zero_()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), said["clip_grad"]))
        optimizer.step()
        losses.append(loss.detach())
    pairs = {"losses": losses, "grad_norms": norms}
    error = largest_error(relative_error(torch.stack(v), case.arrays[f"output.{n}"]) for n, v in pairs.items())
    state = model.state_dict()
    final = [relative_error(state[name], value) for name, value in to_our_names(case.group("final.")).items()]
    return case.result({"trajectory losses": error, "trajectory parameters": largest_error(final)})


def _schedule(case: GoldenCase) -> CaseResult:
    said = case.options
    share, length = said["batch"] / 512, said["iterations_per_epoch"]
    rates = [
        seamed_cosine(
            step, said["epochs"] * length, said["warmup_epochs"] * length, said["base_lr"] * share,
            said["warmup_lr"] * share, said["min_lr"] * share,
        )
        for step in range(said["epochs"] * length)
    ]  # fmt: skip
    theirs = case.arrays["output.lr"].double() * float(said.get("unit", 1))
    return case.result({"outputs": (torch.tensor(rates).double() / theirs - 1).abs().max().item()})


def _finetune(case: GoldenCase) -> CaseResult:
    said = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"], learned_pos_embed=True, num_classes=said["num_classes"],
    )  # fmt: skip
    encoder.load_state_dict(to_our_names(case.group("param.")))
    logits = encoder(case.arrays["input.images"])
    loss = F.cross_entropy(logits, case.arrays["input.labels"].long())
    loss.backward()
    ours = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    gradients, remark = compare_gradients(ours, to_our_names(case.group("grad.")))
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = layer_decay_groups(encoder, 1.0, 0.0, said["layer_decay"])
    scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    theirs = {re.sub(r"\.[qv]_bias$", ".qkv.bias", name): scale for name, scale in said["lr_scale"].items()}
    rates = 0.0 if scales.keys() == theirs.keys() else float("inf")
    rates = max([rates, *(abs(scales[name] / scale - 1) for name, scale in theirs.items() if name in scales)])
    pairs = {"logits": logits, "loss": loss}
    outputs = [relative_error(value, case.arrays[f"output.{name}"]) for name, value in pairs.items()]
    return case.result({"outputs": largest_error([*outputs, rates]), "gradients": gradients}, remark)
