"""Golden cases, and how far an implementation is from them."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpe.errors import UserError
from adpe.parity import SYSTEMS

# Largest relative errors where meta.json sets none.
TOLERANCES = {
    "loss": 1e-5,
    "outputs": 1e-5,
    "gradients": 1e-4,
    "trajectory": 1e-4,
    "trajectory losses": 1e-5,
    "trajectory parameters": 1e-3,
    "exact": 0.0,
}

CPU = torch.device("cpu")

# A gradient this far below the largest of the model is float32 rounding: its digits and its sign are arbitrary, and so
# is the step that AdamW, which normalises it, makes of it.
NOISE = 1e-6


@dataclass
class CaseResult:
    """Largest relative errors of one case.

    Attributes:
        case: name of the case.
        errors: quantity (of `TOLERANCES` or of the directory's own) to its largest relative error.
        remark: what was not compared, and why; or what is missing.
        tolerances: quantity to the largest error that passes.
    """

    case: str
    errors: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    tolerances: dict[str, float] = field(default_factory=lambda: dict(TOLERANCES))

    @property
    def passed(self) -> bool:
        """Every error is finite and within its tolerance, and there is one."""
        return bool(self.errors) and all(error <= self.tolerances[name] for name, error in self.errors.items())


@dataclass(frozen=True)
class GoldenCase:
    """One case of a directory.

    Attributes:
        name: of the case.
        file: its arrays.
        meta: the whole of ``meta.json``.
        device: of the arrays, and of the models that are compared with them.
    """

    name: str
    file: Path
    meta: Mapping[str, Any]
    device: torch.device = CPU

    @property
    def options(self) -> Mapping[str, Any]:
        """What ``meta.json`` says of this case; empty for a file that it does not name."""
        return self.meta["cases"].get(self.name) or {}

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """The recorded arrays.

        Raises:
            UserError: if the file is missing or cannot be read.
        """
        if not self.file.is_file():
            raise UserError(f"{self.file} does not exist, but meta.json names the case {self.name}.")
        try:
            with np.load(self.file, allow_pickle=False) as archive:
                arrays = {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.file} is not a readable .npz of numbers, or it is truncated ({error}).") from None
        return {key: array.to(self.device) for key, array in arrays.items()}

    def sibling(self, name: str) -> GoldenCase:
        """Another case of the directory, whose arrays this one uses."""
        return GoldenCase(name, self.file.with_name(f"{name}.npz"), self.meta, self.device)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def result(self, errors: dict[str, float], remark: str = "") -> CaseResult:
        """The result of this case, with the tolerances of its directory."""
        own = self.meta.get("tolerance")
        numbers = own.items() if isinstance(own, Mapping) else ()
        given = {name: float(value) for name, value in numbers if isinstance(value, (int, float))}
        return CaseResult(self.name, errors, remark, {**TOLERANCES, **given})


def check_directory(directory: str | Path, device: str | torch.device = "cpu") -> list[CaseResult]:
    """Run every case of a directory of goldens: those that ``meta.json`` names and those that have a file.

    Args:
        directory: with ``meta.json`` and an ``.npz`` a case.
        device: that computes.

    Raises:
        UserError: if there is no case, the system is unknown, ``meta.json`` or a case's file is missing, unreadable or
            incomplete, or a case has an unknown name.
    """
    meta, cases = read_directory(directory)
    return [check_case(Path(directory), meta, case, device) for case in cases]


def read_directory(directory: str | Path) -> tuple[dict[str, Any], list[str]]:
    """``meta.json`` of a directory of goldens, and the names of its cases.

    Raises:
        UserError: if there is no case, or ``meta.json`` is missing or unreadable.
    """
    directory = Path(directory)
    meta_file = directory / "meta.json"
    if not meta_file.is_file():
        raise UserError(
            f"{meta_file} does not exist: expected a directory of goldens with meta.json and one .npz a case."
        )
    try:
        meta = json.loads(meta_file.read_text())
        cases = dict.fromkeys(meta["cases"])
        dict(meta["cases"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{meta_file} cannot be read ({error!r}): expected JSON with config and cases.") from None
    for file in sorted(directory.glob("*.npz")):
        short = file.stem.removeprefix("pretrain_")
        cases.setdefault(file.stem if file.stem in cases or "system" in meta else short)
    if not cases:
        raise UserError(f"{meta_file} names no case, and {directory} holds no .npz: there is nothing to check.")
    return meta, list(cases)


def check_case(directory: Path, meta: Mapping[str, Any], name: str, device: str | torch.device = "cpu") -> CaseResult:
    """Run one case; see :func:`check_directory`."""
    system = meta.get("system", "adpe")
    if system not in SYSTEMS:
        raise UserError(f"{directory / 'meta.json'}: unknown system {system!r}; known are {', '.join(SYSTEMS)}.")
    # The first goldens named cases of pretraining without the prefix of their files.
    file = directory / f"{name}.npz"
    older = directory / f"pretrain_{name}.npz"
    case = GoldenCase(name, older if older.is_file() and not file.is_file() else file, meta, torch.device(device))
    case.arrays  # noqa: B018  a missing file is told first
    try:
        with case.device:
            return import_module(SYSTEMS[system]).check_case(case)
    except KeyError as error:
        raise UserError(f"Case {name}: neither {file} nor meta.json holds {error}, which this case needs.") from None


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude of `theirs`; NaN if either has one, infinite for another shape."""
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = ours.detach().double().cpu(), theirs.double().cpu()
    difference = (ours - theirs).abs().max().item()
    return difference / (theirs.abs().max().item() or 1e-30)


def largest_error(errors: Iterable[float]) -> float:
    """The largest error; infinite if one is not finite, or if there is none: what was not compared does not agree."""
    errors = list(errors)
    return max(errors) if errors and all(map(math.isfinite, errors)) else math.inf


def compare_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """Largest relative error of gradients by name, and a remark on what was not compared.

    A gradient that only one side has is an infinite error; one that is rounding on both sides is left out.
    """
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    noisy = sorted(name for name, gradient in theirs.items() if gradient.abs().max() < NOISE * largest)
    unmatched = sorted(theirs.keys() ^ ours.keys())
    large = [name for name in noisy if name in ours and not ours[name].abs().max() < NOISE * largest]
    if unmatched or large:
        return math.inf, f"only one side has a gradient: {', '.join(unmatched + large)}"
    error = largest_error(relative_error(ours[n], theirs[n]) for n in theirs.keys() - {*noisy})
    return error, f"gradient is rounding noise on both sides, digits not compared: {', '.join(noisy)}" if noisy else ""
