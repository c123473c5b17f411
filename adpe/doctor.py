"""What is installed, whether it works together, and what to do where it does not. Imports nothing heavy itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpe.files import ROOT

MINIMUM_PYTHON, BELOW_PYTHON = (3, 10), (3, 13)
LOW_DISK = 2e9  # bytes; a demo run with its checkpoints takes less than half of it

# The packages that the chain is made of, each after those that it imports.
CHAIN = {
    "torch": (),
    "torchvision": ("torch",),
    "timm": ("torch", "torchvision"),
    "mmengine": ("torch",),
    "mmcv": ("torch", "mmengine"),
    "mmseg": ("torch", "mmengine", "mmcv"),
    "mmdet": ("torch", "mmengine", "mmcv"),
}
# Import names by the requirements file that installs them.
PACKAGES = {
    "requirements/runtime.txt": "torch torchvision timm numpy safetensors rich PIL matplotlib skimage sklearn scipy",
    "requirements/mm.txt": "mmengine mmcv mmseg mmdet cv2 pycocotools tensorboard shapely terminaltables prettytable",
}
CRASH = "the interpreter crashed"
# Where the configs look for data, below ./data or $ADPE_DATA.
DATA = {"ADE20K": "ade/ADEChallengeData2016", "COCO": "coco", "ImageNet": "imagenet"}


@dataclass
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: ``"ok"``, ``"info"``, ``"warning"`` or ``"fault"``; with a fault the chain cannot run.
        detail: what was found.
        remedy: the one thing to do about a warning or fault, else empty.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def cache_folder() -> Path:
    """The folder for what is costly to make again: ``$ADPE_CACHE``, by default ``~/.cache/adpe``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "adpe"
    return Path(os.environ.get("ADPE_CACHE") or default).expanduser()


def check_ops(device: str) -> str:
    """Run two of mmcv's compiled ops on `device` and compare with values known by hand.

    Returns:
        What they were compiled for and run with.

    Raises:
        ImportError: mmcv has no compiled ops, or they were compiled for another torch.
        RuntimeError: they do not run on `device`, or their values are wrong.
    """
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms, roi_align

    # Intersection over union 81 / 119: the box with the lower score goes.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0]], device=device)
    kept = nms(boxes, torch.tensor([0.8, 0.9], device=device), 0.5)[1].tolist()
    if kept != [1]:
        raise RuntimeError(f"nms keeps the boxes {kept}, not [1]")
    ramp = torch.arange(16.0, device=device).view(1, 1, 4, 4)
    box = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]], device=device)
    pooled = roi_align(ramp, box, 2, 1.0, 1, "avg", True).flatten().tolist()
    if pooled != [2.5, 4.5, 10.5, 12.5]:
        raise RuntimeError(f"roi_align gives {pooled}, not [2.5, 4.5, 10.5, 12.5]")
    cuda = get_compiling_cuda_version()
    return f"nms and roi_align give the right values with torch {torch.__version__}; compiled for CUDA: {cuda}"


def probe(path: str) -> None:
    """Import the chain and run mmcv's ops, adding one JSON line to the file `path` before and after each step.

    Runs in a process of its own (see `run_probe`): compiled code of mismatched versions can crash the interpreter.
    """
    with open(path, "a", encoding="utf-8") as file:

        def step(name: str, function: Any) -> Any:
            print(json.dumps({"name": name}), file=file, flush=True)
            try:
                found = function()
            except BaseException as error:  # broken packages raise anything, SystemExit too
                text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                print(json.dumps({"name": name, "error": text}), file=file, flush=True)
                return None
            print(json.dumps({"name": name, "found": found}), file=file, flush=True)
            return found

        for name in CHAIN:
            if importlib.util.find_spec(name) is not None:
                step(name, lambda name=name: import_version(name))
        gpus = step("gpu", gpu_names) if "torch" in sys.modules else None
        if "mmcv" in sys.modules:
            step("ops on the CPU", lambda: check_ops("cpu"))
            if gpus:
                step("ops on the GPU", lambda: check_ops("cuda"))


def import_version(name: str) -> str:
    """Import a package of the chain, with the parts that load all that it needs; returns its version."""
    package = importlib.import_module(name)
    if name in ("mmseg", "mmdet"):
        importlib.import_module(f"{name}.datasets")
        importlib.import_module(f"{name}.models")
    return package.__version__


def gpu_names() -> list[str]:
    """Names and memory of the CUDA devices."""
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices]


def run_probe() -> dict[str, dict[str, Any]]:
    """`probe` in a process of its own: for each step ``{"found": value}`` or ``{"error": text}``."""
    # Not the working folder: a folder there that is named like a package is none.
    code = """import sys
sys.path[:] = [sys.argv[1], *filter(None, sys.path)]
from adpe.doctor import probe
probe(sys.argv[2])"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.jsonl"
        path.touch()
        command = [sys.executable, "-W", "ignore", "-c", code, str(ROOT), str(path)]
        end = subprocess.run(command, capture_output=True, text=True)
        steps: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            steps[record.pop("name")] = record
    for record in steps.values():
        if not record:
            record["error"] = f"{CRASH} (exit status {end.returncode})"
    return steps


def distributions() -> dict[str, list[str]]:
    """The installed distributions, as ``name version``, that provide each import name."""
    provided = importlib.metadata.packages_distributions()
    return {
        module: [f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))]
        for module, names in provided.items()
    }


def reinstall_remedy() -> str:
    """What puts broken or missing packages right in this environment."""
    if (Path(sys.prefix) / ".adpe").is_dir():
        return "run `make clean setup`; mmcv's built ops are kept and used again where they fit."
    return "run `make setup`, which makes a working environment in .venv, and use that (`make demo`, `make test`)."


def check_python() -> Check:
    """The interpreter is of a supported version."""
    detail = f"{sys.version.split()[0]} in {sys.prefix}"
    if MINIMUM_PYTHON <= sys.version_info[:2] < BELOW_PYTHON:
        return Check("Python", "ok", detail)
    return Check("Python", "fault", detail, "use Python 3.10, 3.11 or 3.12: make setup PYTHON=/path/to/python3.11.")


def shadowing_path(name: str) -> str | None:
    """The entry of PYTHONPATH that package `name` is imported from, if it is one."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).resolve().parent
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return next((entry for entry in entries if folder in (Path(entry).resolve(), Path(entry).resolve() / name)), None)


def check_package(name: str, steps: dict[str, dict[str, Any]], provided: list[str]) -> Check:
    """One package of the chain: installed, importable, and provided by one distribution."""
    if name not in steps:
        if crashed := [other for other in steps if CRASH in steps[other].get("error", "")]:
            return Check(name, "fault", "not tried", f"fix {crashed[0]} first, which ends the interpreter.")
        return Check(name, "fault", "not installed", reinstall_remedy())
    error = steps[name].get("error")
    broken = [other for other in CHAIN[name] if "found" not in steps.get(other, {})]
    if len(provided) > 1:
        names = " ".join(text.split()[0] for text in provided)
        remedy = f"they overwrite each other: `pip uninstall {names}`, then {reinstall_remedy()}"
        return Check(name, "fault", ", ".join(provided) + (f"; {error}" if error else ""), remedy)
    if error is None:
        return Check(name, "ok", f"{steps[name]['found']}" + (f" ({provided[0]})" if provided else ""))
    if broken:
        return Check(name, "fault", error, f"fix {broken[0]} first, which {name} imports.")
    if entry := shadowing_path(name):
        return Check(name, "fault", error, f"take {entry} off PYTHONPATH: its {name} hides the installed one.")
    return Check(name, "fault", error, reinstall_remedy())


def check_run_of_ops(steps: dict[str, dict[str, Any]]) -> Iterator[Check]:
    """The compiled ops of mmcv run, on the GPU too where there is one."""
    remedies = {
        "ops on the CPU": "they are missing or of another torch: run `python tools/build_mmcv.py` with this Python.",
        "ops on the GPU": "for CUDA ops, set CUDA_HOME to the toolkit of torch's CUDA version and run "
        "`python tools/build_mmcv.py` with this Python, or set CUDA_VISIBLE_DEVICES= to stay on the CPU.",
    }
    for name, remedy in remedies.items():
        if "error" in steps.get(name, {}):
            yield Check(f"mmcv's {name}", "fault", steps[name]["error"], remedy)
        elif name in steps:
            yield Check(f"mmcv's {name}", "ok", steps[name]["found"])


def check_others() -> Iterator[Check]:
    """The packages beside the chain are there."""
    for requirements, names in PACKAGES.items():
        others = [name for name in names.split() if name not in CHAIN]
        missing = [name for name in others if importlib.util.find_spec(name) is None]
        if missing:
            yield Check(requirements, "fault", f"not installed: {', '.join(missing)}", reinstall_remedy())
        else:
            yield Check(requirements, "ok", f"the {len(others)} other packages are installed")


def check_opencv(provided: list[str]) -> Iterator[Check]:
    """Not more than one build of OpenCV."""
    if len(provided) > 1:
        names = " ".join(text.split()[0] for text in provided)
        remedy = f"keep one: `pip uninstall {names}`, then install opencv-python-headless alone."
        yield Check("OpenCV", "warning", ", ".join(provided), remedy)


def check_disk(name: str, folder: Path) -> Check:
    """Free disk where `folder` lies or will lie."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LOW_DISK:
        return Check(name, "warning", detail, f"free at least {LOW_DISK / 1e9:.0f} GB there before a long run.")
    return Check(name, "ok", detail)


def check_data() -> Iterator[Check]:
    """Which data sets are found; none is needed for the demo."""
    chosen = os.environ.get("ADPE_DATA")
    root = Path(chosen or "data").expanduser()
    for name, folder in DATA.items():
        found = (root / folder).is_dir()
        yield Check(f"data: {name}", "ok" if found else "info", f"{'' if found else 'none in '}{root / folder}")
    if chosen and not root.is_dir():
        remedy = "set ADPE_DATA to the folder that holds the data sets, or unset it."
        yield Check("ADPE_DATA", "warning", f"{chosen} is no folder", remedy)


def check_gpu(steps: dict[str, dict[str, Any]]) -> Check:
    """The CUDA devices that torch sees; none is needed."""
    names = steps.get("gpu", {}).get("found")
    return Check("GPU", "ok" if names else "info", ", ".join(names) if names else "none: everything runs on the CPU")


def examine() -> list[Check]:
    """Everything that `make doctor` reports, in its order; takes the time of importing the chain."""
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return [check_python()]
    provided = distributions()
    steps = run_probe()
    return [
        check_python(),
        *(check_package(name, steps, provided.get(name, [])) for name in CHAIN),
        *check_run_of_ops(steps),
        *check_others(),
        *check_opencv(provided.get("cv2", [])),
        check_gpu(steps),
        check_disk("disk: here", Path.cwd()),
        check_disk("disk: cache", cache_folder()),
        *check_data(),
    ]


def missing_packages() -> list[str]:
    """What of requirements/runtime.txt and mm.txt is not installed, by import name; imports none of it."""
    missing = [name for name in " ".join(PACKAGES.values()).split() if importlib.util.find_spec(name) is None]
    spec = importlib.util.find_spec("mmcv")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if folders and not any(list(folder.glob("_ext*.so")) for folder in folders):
        missing.append("mmcv's compiled ops")
    return missing
