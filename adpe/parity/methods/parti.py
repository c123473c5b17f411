"""The ViT-VQ tokenizer and the sequence models against numbers recorded from public codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.methods.parti.public_decoders import ClassToCodes, TextDecoder
from adpe.methods.parti.quantizers import MovingQuantizer, Quantizer, adversarial_losses
from adpe.methods.parti.sequences import TextToCodes, guided, keep_top_k
from adpe.methods.parti.vitvq import ViTVQ
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error
from adpe.parity.training import compare_step, compare_trajectory

_TOKENIZER = [
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.0\.norm\.", r"\1_blocks.blocks.\2.norm1."),
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"\1_blocks.blocks.\2.attn.qkv."),
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.0\.fn\.to_out\.", r"\1_blocks.blocks.\2.attn.proj."),
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.1\.norm\.", r"\1_blocks.blocks.\2.norm2."),
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"\1_blocks.blocks.\2.fc1."),
    (r"^(encoder|decoder)\.transformer\.layers\.(\d+)\.1\.fn\.net\.2\.", r"\1_blocks.blocks.\2.fc2."),
    (r"^(encoder|decoder)\.transformer\.norm\.", r"\1_blocks.norm."),
    (r"^encoder\.to_patch_embedding\.0\.", "patch_embed."), (r"^decoder\.to_pixel\.1\.", "to_pixels."),
    (r"^pre_quant\.", "down."), (r"^post_quant\.", "up."),
    (r"^encoder_blocks", "down_blocks"), (r"^decoder_blocks", "up_blocks"),
]  # fmt: skip
_TEXT = [
    (r"\.rel_pos_bias\.pos_bias\.", ".pos_bias."), (r"\.(to_q|to_kv|to_out)\.1\.", r".\1."),
]  # fmt: skip


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that these models do not compute.
    """
    checks = {
        "quantizer": _quantizer, "autoencoder": _autoencoder, "trajectory": _trajectory, "adversarial": _adversarial,
        "ema_codebook": _ema, "sequence_class": _sequence_class, "sequence_class_sampling": _sampling,
        "sequence_text": _sequence_text, "sequence_encoder_decoder": _encoder_decoder,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _renamed(state: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def _quantizer(case: GoldenCase) -> CaseResult:
    outputs, gradients, exact = [], [], []
    for kind in dict.fromkeys(name.split(".")[1] for name in case.arrays if name.startswith("input.")):
        data = {name: case.arrays[f"input.{kind}.{name}"] for name in ("z", "codebook", "cotangent")}
        codes, code_dim = data["codebook"].shape
        quantizer = Quantizer(codes, code_dim, case.options["beta"], kind == "normalised", "latent")
        quantizer.embedding.load_state_dict({"weight": data["codebook"]})
        z = data["z"].clone().requires_grad_()
        found = quantizer(z)
        (found.loss + (found.codes * data["cotangent"]).sum()).backward()
        outputs.append(relative_error(found.codes, case.arrays[f"output.{kind}.quantised"]))
        outputs.append(relative_error(found.loss, case.arrays[f"output.{kind}.loss"]))
        exact.append(relative_error(found.indices, case.arrays[f"output.{kind}.indices"]))
        assert z.grad is not None and quantizer.embedding.weight.grad is not None
        pairs = {"z": z.grad, "codebook": quantizer.embedding.weight.grad}
        gradients += [relative_error(value, case.arrays[f"grad.{kind}.{name}"]) for name, value in pairs.items()]
    return case.result({
        "outputs": largest_error(outputs), "gradients": largest_error(gradients), "exact": largest_error(exact),
    })  # fmt: skip


def _to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, _TOKENIZER)


def _tokenizer(case: GoldenCase) -> ViTVQ:
    said: Any = case.options
    weights = said["weights"]
    model = ViTVQ(
        said["img_size"], said["patch_size"], said["dim"], said["depth"], said["heads"], said["dim_head"],
        said["mlp_dim"], said["codes"], said["code_dim"], straight_through="latent", mlp_activation="tanh",
        two_layer_head=False, l1=weights["l1"], l2=weights["l2"], codebook_weight=weights["codebook"],
        codebook="gradient",
    )  # fmt: skip
    missing, unexpected = model.load_state_dict(_to_our_names(case.group("param.")), strict=False)
    missing = [name for name in missing if name not in ("used", "last_used", "number_of_pass")]
    if unexpected or missing:
        raise UserError(f"Case {case.name}: parameters {unexpected[:3]} are unknown, {missing[:3]} missing.")
    return model.train()


def _autoencoder(case: GoldenCase) -> CaseResult:
    data, model = case.arrays, _tokenizer(case)
    images = data["input.images"]
    reconstruction, found, parts = model.parts(images)
    loss = model(images)
    ours = {
        "latent": model.latents(images), "reconstruction": reconstruction, "codebook_loss": parts["codebook"],
        "l1": parts["l1"], "l2": parts["l2"],
        "decoded_from_indices": model.decode(found.indices, model.grid(images)),
    }  # fmt: skip
    outputs = {name: (value, data[f"output.{name}"]) for name, value in ours.items()}
    return compare_step(case, model, loss, _to_our_names, outputs, {"indices": (found.indices, data["output.indices"])})


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _tokenizer(case)
    used: list[int] = []
    seen: list[Tensor] = []

    def step(number: int, images: Tensor) -> Tensor:
        if seen:
            used.append(len(model.tokens(seen[-1]).unique()))
        seen.append(images)
        return model(images)

    def at_the_end() -> None:
        used.append(len(model.tokens(seen[-1]).unique()))

    result = compare_trajectory(case, model, step, _to_our_names, at_the_end=at_the_end)
    exact = 0.0 if used == said["used_codes_after"] else float("inf")
    return case.result({**result.errors, "exact": exact})


def _adversarial(case: GoldenCase) -> CaseResult:
    errors = []
    for kind in dict.fromkeys(name.split(".")[1] for name in case.arrays if name.startswith("output.")):
        losses = adversarial_losses(kind, case.arrays["input.real"], case.arrays["input.fake"])
        for name, loss in zip(("discriminator", "generator"), losses, strict=True):
            errors.append(relative_error(loss, case.arrays[f"output.{kind}.{name}"]))
    return case.result({"outputs": largest_error(errors)})


def _ema(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    codes, code_dim = data["input.codebook"].shape
    quantizer = MovingQuantizer(codes, code_dim, said["decay"], said["commitment_weight"], said["smoothing"])
    state = {name: data[f"input.{name}"] for name in ("codebook", "cluster_size", "embed_avg")}
    quantizer.load_state_dict(state)
    # The public code has the two projections, which are the tokenizer's here, inside the codebook.
    leaves = {**case.group("param."), "x": data["input.x"]}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
    found = quantizer.train()(F.linear(leaves["x"], leaves["project_in.weight"], leaves["project_in.bias"]))
    quantised = F.linear(found.codes, leaves["project_out.weight"], leaves["project_out.bias"])
    (found.loss + (quantised * data["input.cotangent"]).sum()).backward()
    ours: dict[str, Tensor] = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    gradients, remark = compare_gradients(ours, case.group("grad."))
    pairs = {"quantised": quantised, "loss": found.loss, **{name: getattr(quantizer, name) for name in state}}
    return case.result({
        "outputs": largest_error(relative_error(value, data[f"output.{name}"]) for name, value in pairs.items()),
        "exact": relative_error(found.indices, data["output.indices"]), "gradients": gradients,
    }, remark)  # fmt: skip


def _class_model(case: GoldenCase, said: Any) -> ClassToCodes:
    model = ClassToCodes(
        said["embed_dim"], said["heads"], said["blocks"], said["conditions"], said["condition_tokens"],
        said["image_tokens"], said["vocabulary"],
    )  # fmt: skip
    model.load_state_dict(case.group("param."))
    return model


def _sequence_class(case: GoldenCase) -> CaseResult:
    data, model = case.arrays, _class_model(case, case.options)
    codes = data["input.codes"].long()
    logits = model(data["input.condition"].long(), codes)
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    return _compare(case, model, {"loss": loss, "logits": logits}, lambda state: {
        name: tensor for name, tensor in state.items() if not name.endswith("attn.key.bias")
    })  # fmt: skip


def _compare(case: GoldenCase, model: nn.Module, outputs: dict[str, Tensor], rename: Any) -> CaseResult:
    """Outputs, and the gradients of the loss."""
    outputs["loss"].backward()
    ours = rename({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    gradients, remark = compare_gradients(ours, rename(case.group("grad.")))
    errors = largest_error(relative_error(value, case.arrays[f"output.{name}"]) for name, value in outputs.items())
    return case.result({"outputs": errors, "gradients": gradients}, remark)


def _sampling(case: GoldenCase) -> CaseResult:
    said, data = case.options, case.arrays
    trained = case.sibling("sequence_class")
    model = _class_model(trained, trained.options)
    condition = data["input.condition"].long()
    errors = []
    for kind in ("top_k", "top_p"):
        logits = model(condition, data[f"output.{kind}.codes"].long(), parity=True) / said["temperature"]
        ours = keep_top_k(logits, said["top_k"]) if kind == "top_k" else logits
        theirs = data[f"output.{kind}.logits"]
        removed = theirs < -1e29
        if not torch.equal(removed, ours < -1e29):
            errors.append(float("inf"))
        errors.append(relative_error(ours.masked_fill(removed, 0.0), theirs.masked_fill(removed, 0.0)))
    return case.result({"outputs": largest_error(errors)})


def _sequence_text(case: GoldenCase) -> CaseResult:
    said: Any = case.options
    data = case.arrays
    model = TextDecoder(
        said["dim"], said["depth"], said["heads"], said["dim_head"], said["text_dim"], said["grid"],
        said["vocabulary"],
    )  # fmt: skip
    model.load_state_dict(_renamed(case.group("param."), _TEXT))
    ids, text, mask = data["input.ids"].long(), data["input.text"], data["input.text_mask"].bool()
    none = torch.zeros_like(mask)
    dropped = mask & (data["input.drop_uniform"] < 0.5)[:, None]
    outputs = {
        "loss": model.loss(ids, text, mask), "loss_without_text": model.loss(ids, text, none),
        "loss_dropped": model.loss(ids, text, dropped), "logits": model(ids[:, :-1], text, mask),
        "logits_without_text": model(ids[:, :-1], text, none),
    }  # fmt: skip
    for name in [name for name in data if name.startswith("output.guided.")]:
        scale = float(name.removeprefix("output.guided."))
        outputs[f"guided.{name.removeprefix('output.guided.')}"] = guided(
            outputs["logits_without_text"], outputs["logits"], scale
        )
    generation = said["generation"]
    # The public code does not pass the guidance on that it is asked for, and uses 3.
    generated = model.generate(
        text, mask, data["input.generation_uniform"], 3.0, generation["filter_thres"], generation["temperature"]
    )
    result = _compare(case, model, outputs, lambda state: _renamed(state, _TEXT))
    exact = relative_error(generated, data["output.generated"])
    return case.result({**result.errors, "exact": exact}, result.remark)


def _encoder_decoder(case: GoldenCase) -> CaseResult:
    said: Any = case.options
    data = case.arrays
    model = TextToCodes(
        said["dim"], said["heads"], said["encoder_blocks"], said["decoder_blocks"], said["mlp"], said["text_tokens"],
        said["text_vocabulary"], said["image_tokens"], said["vocabulary"],
    )  # fmt: skip
    model.load_state_dict(case.group("param."))
    text, codes, lengths = data["input.text"].long(), data["input.codes"].long(), torch.tensor(said["text_lengths"])
    logits, null = model.train()(text, lengths, codes), model.of_null(text, codes)
    outputs = {"logits": logits, "logits_null": null, "loss": model.loss(text, lengths, codes)}
    for name in [name for name in data if name.startswith("output.guided.")]:
        scale = name.removeprefix("output.guided.")
        outputs[f"guided.{scale}"] = guided(null, logits, float(scale))
    return _compare(case, model, outputs, _without_key_bias)


def _without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        if name.endswith("in_proj_bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        found[name] = tensor
    return found
