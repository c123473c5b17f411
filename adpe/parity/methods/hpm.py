"""HPM against numbers recorded from its reference: masks, losses of the predictor, training steps with the teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.masks.hpm import HPM, normalised_loss, ranking_loss
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error
from adpe.parity.training import MAE_NAMES, compare_step, compare_trajectory, renamed, without_key_bias

_PREDICTOR = [
    ("decoder_blocks_losspred.", "predictor.blocks."), ("decoder_norm_losspred.", "predictor.norm."),
    ("decoder_pred_losspred.", "predictor.pred."),
]  # fmt: skip
_TEACHER = [
    *((f"teacher.{theirs}", f"teacher.{ours}") for theirs, ours in _PREDICTOR),
    ("teacher.decoder_embed.", "teacher.embed."), ("teacher.", "teacher.encoder."),
]  # fmt: skip
_ALL = renamed([*_TEACHER, *_PREDICTOR, *MAE_NAMES])
# The reference averages its whole model; ours what predicts losses.
_UNUSED = ("teacher.mask_token", "teacher.decoder_blocks.", "teacher.decoder_norm.", "teacher.decoder_pred.")


def _to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _ALL({name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)})


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that HPM does not compute.
    """
    checks = {
        "masks": _masks, "predictor_losses": _predictor_losses, "pretrain": _pretrain, "trajectory": _trajectory,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _masks(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["cases"].items():
        tiny = VisionTransformer(8, 4, embed_dim=8, depth=1, num_heads=2)
        model = HPM(tiny, said["mask_ratio"], decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
        predicted, noise = (case.arrays[f"input.{name}.{kind}"] for kind in ("predicted_loss", "noise"))
        masks = [model.hard_mask(predicted, noise, epoch, said["total_epochs"]).hidden for epoch in said["epochs"]]
        hard = [model.hard_patches(said["patches"], epoch, said["total_epochs"]) for epoch in said["epochs"]]
        errors.append(relative_error(torch.stack(masks), case.arrays[f"output.{name}.hidden"]))
        errors.append(relative_error(torch.tensor(hard), case.arrays[f"output.{name}.hard"]))
    return case.result({"exact": largest_error(errors)})


def _predictor_losses(case: GoldenCase) -> CaseResult:
    outputs, gradients = [], []
    for name, function in {"relative": ranking_loss, "absolute": normalised_loss}.items():
        predicted = case.arrays["input.predicted"].clone().requires_grad_()
        loss = function(predicted, case.arrays["input.target"])
        outputs.append(relative_error(loss, case.arrays[f"output.{name}"]))
        (gradient,) = torch.autograd.grad(loss, predicted)
        theirs = next(value for key, value in case.group("grad.").items() if name in key)
        gradients.append(relative_error(gradient, theirs))
    return case.result({"outputs": largest_error(outputs), "gradients": largest_error(gradients)})


def _model(case: GoldenCase) -> HPM:
    said = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    model = HPM(encoder, said["mask_ratio"], said["norm_pix_loss"], said["relative"], **decoder)
    state = _to_our_names(case.group("param."))
    if not any(name.startswith("teacher.") for name in state):
        state |= {
            f"teacher.{name.removeprefix('decoder.')}": tensor
            for name, tensor in state.items()
            if name.startswith(("encoder.", "predictor.", "decoder.embed."))
        }
    model.load_state_dict(state)
    return model.train()


def _pretrain(case: GoldenCase) -> CaseResult:
    said, data, model = case.options, case.arrays, _model(case)
    images = data["input.images"]
    harder = model.teacher(images)
    mask = model.hard_mask(harder, data["input.noise"], said["epoch"], said["total_epochs"])
    pixels, predictor, true, predicted = model.both_losses(images, mask)
    places = mask.hidden_indices.argsort(dim=1)  # raster order
    prediction = torch.take_along_dim(model.reconstruct_hidden(images, mask), places.unsqueeze(-1), dim=1)
    outputs = {
        "loss_pixels": (pixels, data["output.loss_pixels"]),
        "loss_predictor": (predictor, data["output.loss_predictor"]),
        "teacher": (harder, data["output.teacher_predicted_loss"]),
        "pred": (prediction, data["output.pred"]),
        "predicted_loss": (predicted.gather(1, places), data["output.predicted_loss"]),
        "patch_loss": (true.gather(1, places), data["output.patch_loss"]),
    }
    exact = {"hidden": (mask.hidden, data["output.hidden"])}
    return compare_step(case, model, pixels + predictor, _to_our_names, outputs, exact)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _model(case)
    pixel_losses, predictor_losses, masks = [], [], []

    def step(number: int, images: Tensor) -> Tensor:
        if number:
            model.teacher.follow(model.taught(), said["teacher_decays"][number - 1])
        noise = case.arrays[f"step.{number}.noise"]
        mask = model.hard_mask(model.teacher(images), noise, said["epochs"][number], said["total_epochs"])
        pixels, predictor, _, _ = model.both_losses(images, mask)
        pixel_losses.append(pixels.detach())
        predictor_losses.append(predictor.detach())
        masks.append(relative_error(mask.hidden, case.arrays[f"output.hidden.{number}"]))
        return pixels + predictor

    def at_the_end() -> None:
        model.teacher.follow(model.taught(), said["teacher_decays"][-1])

    result = compare_trajectory(case, model, step, _to_our_names, without_key_bias, at_the_end)
    # `losses` are those of the pixels alone.
    pairs = {"losses": pixel_losses, "predictor_losses": predictor_losses}
    losses = [relative_error(torch.stack(ours), case.arrays[f"output.{name}"]) for name, ours in pairs.items()]
    errors = {**result.errors, "trajectory losses": largest_error(losses), "exact": largest_error(masks)}
    return case.result(errors)
