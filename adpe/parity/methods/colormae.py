"""ColorMAE against numbers recorded from its reference: filtered noise, windows of a bank, masks."""

from __future__ import annotations

from adpe.errors import UserError
from adpe.methods.masks.masking import rank_mask
from adpe.methods.masks.rankings import color_noise, shared_windows
from adpe.parity.cases import CaseResult, GoldenCase, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that ColorMAE does not compute.
    """
    checks = {"filters": _filters, "windows": _windows, "windows_no_crop": _ready_windows}
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _filters(case: GoldenCase) -> CaseResult:
    white = case.arrays["input.white"].double()
    sigmas = {"white": (), **case.options["sigmas"]}
    pairs = [(color_noise(white, color, sigmas[color]), theirs) for color, theirs in case.group("output.").items()]
    return case.result({"outputs": largest_error(relative_error(*pair) for pair in pairs)})


def _windows(case: GoldenCase) -> CaseResult:
    said, outputs, exact = case.options, [], []
    colors = dict.fromkeys(name.split(".")[1] for name in case.arrays if name.startswith("input."))
    for color in colors:
        given = {name: case.arrays[f"input.{color}.{name}"] for name in ("bank", "offsets", "flips")}
        windows = shared_windows(given["bank"], said["window"], said["batch"], given["offsets"], given["flips"])
        outputs.append(relative_error(windows, case.arrays[f"output.{color}.windows"]))
        for ratio in said["mask_ratios"]:
            mask = rank_mask(-windows.flatten(1), ratio)
            theirs = {name: case.arrays[f"output.{color}.{name}.{ratio}"] for name in ("hidden", "visible_indices")}
            exact.append(relative_error(mask.hidden, theirs["hidden"]))
            exact.append(relative_error(mask.visible_indices, theirs["visible_indices"]))
    return case.result({"outputs": largest_error(outputs), "exact": largest_error(exact)})


def _ready_windows(case: GoldenCase) -> CaseResult:
    windows = case.arrays["input.windows"]
    divided = windows / windows.amax(dim=(1, 2), keepdim=True)
    mask = rank_mask(-divided.flatten(1), case.options["mask_ratio"])
    return case.result({
        "outputs": relative_error(divided, case.arrays["output.windows"]),
        "exact": relative_error(mask.hidden, case.arrays["output.hidden"]),
    })  # fmt: skip
