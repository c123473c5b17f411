"""SemMAE against numbers recorded from its reference: masks by parts, losses, steps; and the k-means of its labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.methods.masks.masking import Mask
from adpe.methods.masks.semmae import SemMAE, flip_patches, part_mask, part_share
from adpe.methods.targets.kmeans import kmeans, nearest_centroid
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error
from adpe.parity.training import MAE_NAMES, compare_step, compare_trajectory, renamed, without_key_bias

# Hard-wired in the reference.
_EPOCHS, _SIDE = 800, 28
_to_our_names = renamed(MAE_NAMES)


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that SemMAE does not compute.
    """
    checks = {
        "masks": _masks, "schedule": _schedule, "pretrain": _pretrain, "trajectory": _trajectory, "flip": _flip,
        "kmeans_parts": _kmeans,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _masks(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["cases"].items():
        parts, noise, part_noise = (case.arrays[f"input.{name}.{kind}"] for kind in ("parts", "noise", "part_noise"))
        shares = [part_share(epoch, _EPOCHS) for epoch in said["epochs"]]
        hidden = torch.stack([part_mask(parts, noise, part_noise, said["mask_ratio"], s).hidden for s in shares])
        errors.append(relative_error(hidden, case.arrays[f"output.{name}.hidden"]))
        counts = torch.stack([(hidden & (parts == part)).sum(dim=-1) for part in range(part_noise.shape[1])], dim=-1)
        errors.append(relative_error(counts, case.arrays[f"output.{name}.hidden_per_part"]))
    return case.result({"exact": largest_error(errors)})


def _schedule(case: GoldenCase) -> CaseResult:
    theirs = case.arrays["output.lambda"]
    ours = torch.tensor([part_share(epoch, len(theirs)) for epoch in range(len(theirs))], dtype=torch.float64)
    return case.result({"outputs": relative_error(ours, theirs)})


def _model(case: GoldenCase) -> SemMAE:
    said: Any = case.options
    encoder = VisionTransformer(
        said["img_size"], said["patch_size"], embed_dim=said["embed_dim"], depth=said["depth"],
        num_heads=said["num_heads"],
    )  # fmt: skip
    decoder = {key: said[key] for key in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}
    model = SemMAE(encoder, mask_ratio=said["mask_ratio"], norm_pix_loss=said["norm_pix_loss"], **decoder)
    model.load_state_dict(_to_our_names(case.group("param.") or case.sibling("pretrain").group("param.")))
    return model.train()


def _mask(case: GoldenCase, prefix: str, epoch: int) -> Mask:
    parts, noise, part_noise = (case.arrays[f"{prefix}{name}"] for name in ("parts", "noise", "part_noise"))
    return part_mask(parts, noise, part_noise, case.options["mask_ratio"], part_share(epoch, _EPOCHS))


def _pretrain(case: GoldenCase) -> CaseResult:
    data, model = case.arrays, _model(case)
    mask = _mask(case, "input.", case.options["epoch"])
    index = data["input.position"].round().long()
    places = torch.stack([index % _SIDE, index // _SIDE], dim=-1).float()
    images = data["input.images"]
    outputs = {"pred": (model.predict_under(images, mask, places), data["output.pred"])}
    exact = {"hidden": (mask.hidden, data["output.hidden"])}
    return compare_step(case, model, model.loss_under(images, mask, places), _to_our_names, outputs, exact)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, model = case.options, _model(case)

    def step(number: int, images: Tensor) -> Tensor:
        return model.loss_under(images, _mask(case, f"step.{number}.", said["epochs"][number]))

    return compare_trajectory(case, model, step, _to_our_names, without_key_bias)


def _flip(case: GoldenCase) -> CaseResult:
    data = case.arrays
    side = math.isqrt(data["input.pixels"].shape[1] // 3)
    pixels, positions = flip_patches(data["input.pixels"], data["input.position"], side, _SIDE)
    errors = [relative_error(pixels, data["output.pixels"])]
    errors.append(relative_error(positions, data["output.position"].round()))
    return case.result({"exact": largest_error(errors)})


def _kmeans(case: GoldenCase) -> CaseResult:
    data = case.arrays
    centroids = kmeans(data["input.features"], data["input.initial"])
    features = data["input.image_features"]
    parts = nearest_centroid(features.flatten(0, 1), centroids).view(features.shape[:2])
    return case.result({
        "outputs": relative_error(centroids, data["output.centroids"]),
        "exact": relative_error(parts, data["output.parts"]),
    })  # fmt: skip
