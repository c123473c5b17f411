#!/usr/bin/env python
"""Check this code on a GPU in one command: correctness, memory, speed and resume, in five minutes on one H100.

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --stages parity speed --out records.jsonl
    python benchmarks/gpu_check.py --reduced    # the same code on small models, on a CPU where there is no GPU

It needs torch, timm and mmengine, no network and none of mmcv, mmseg and mmdet. Every stage prints its results as they
come and appends them to a file, a line of JSON each with the card's name. A stage that fails does not stop the others;
the exit status is 1 if one did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.speed.machine import matmul_ceiling, peak_memory, pick_clock
from benchmarks.speed.pretraining_speed import VARIANTS, Step, alternate, build, matmul_flops, median
from benchmarks.speed.transfer_speed import encoder_step

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "gpu_check.jsonl"
CEILING_SHARE, RELATIVE_COST = 0.5, 0.15
NOT_NEEDED = ("mmcv", "mmseg", "mmdet", "pycocotools")  # packages that this check does without
Result = dict[str, Any]


class Setting(NamedTuple):
    """What a check runs on: the device, and whether models are small and repeats few."""

    device: torch.device
    reduced: bool


# Correctness ---------------------------------------------------------------------------------------------------------


def tests(setting: Setting) -> Iterator[Result]:
    """The tests marked gpu."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/models",
        "tests/methods",
    ]
    if setting.reduced:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    yield {"passed": done.returncode == 0, "pytest": (lines or done.stderr.splitlines() or [""])[-1]}
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:])


def parity(setting: Setting) -> Iterator[Result]:
    """The recorded numbers of the references, in float32 on the device."""
    systems = ROOT / "tests" / "goldens_systems"
    directories = [ROOT / "tests" / "goldens", *sorted(systems.iterdir() if systems.is_dir() else ())]
    for directory in directories[: 1 if setting.reduced else None]:
        yield compared(directory, setting.device)


def compared(directory: Path, device: torch.device) -> Result:
    """How far the cases of one directory are from the recorded numbers; those that need what is missing are named."""
    from adpe.parity.cases import check_case, read_directory

    meta, cases = read_directory(directory)
    worst: dict[str, float] = {}
    failed: dict[str, Any] = {}
    needs: dict[str, str] = {}
    for case in cases:
        try:
            result = check_case(directory, meta, case, device)
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            if package not in NOT_NEEDED:
                raise
            needs[case] = package
            continue
        except Exception as error:  # one case does not stop the others
            failed[case] = repr(error)[:300]
            continue
        for name, distance in result.errors.items():
            worst[name] = max(distance, worst.get(name, 0.0))
        if not result.passed:
            failed[case] = {k: e for k, e in result.errors.items() if not e <= result.tolerances[k]}
    agree = len(cases) - len(failed) - len(needs)
    return {
        "directory": directory.name, "cases": len(cases), "agree": agree, "worst": worst, "failed": failed,
        "not_compared_for_want_of": needs, "passed": agree > 0 and not failed,
    }  # fmt: skip


def resume(setting: Setting) -> Iterator[Result]:
    """A pretraining that is killed and resumed ends bit-equal to one that is not; and does one repeat itself?

    The first is asked of deterministic kernels: others may add in the order in which they finish.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        write_images(images, 64)
        first, second = (train(Path(folder, name), images) for name in ("first", "second"))
        whole = train(Path(folder, "whole"), images, "--deterministic")
        resumed = train(Path(folder, "killed"), images, "--deterministic", kill_at="epoch_8.pth")
        equal = same(whole, resumed)
        yield {"repeats": same(first, second), "resumes": equal, "deterministic": True, "passed": equal}


def write_images(folder: Path, count: int) -> None:
    """Images of random blocks, 64 pixels wide."""
    from PIL import Image

    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for i in range(count):
        blocks = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((64, 64)).save(folder / f"{i}.png")


def train(work_dir: Path, images: Path, *options: str, kill_at: str | None = None) -> Path:
    """Pretrain for 16 epochs of one iteration through the launcher; SIGKILL when a checkpoint appears, then resume."""
    command = [
        sys.executable, "tools/train.py", "configs/demo/pretrain.py", "--work-dir", str(work_dir), "--seed", "0",
        "--resume", *options, "--cfg-options", f"sources={images}", "epochs=16", "default_hooks.checkpoint.interval=8",
    ]  # fmt: skip
    if kill_at:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        while process.poll() is None and not (work_dir / kill_at).exists():
            time.sleep(0.01)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"pretraining ended with {process.returncode} before it could be killed at {kill_at}")
        written = (work_dir / kill_at).stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}"
        )
    # A run that began anew would end bit-equal too, but write this checkpoint again.
    if kill_at and (work_dir / kill_at).stat().st_mtime_ns != written:
        raise RuntimeError(f"the run was not resumed from {kill_at}: it wrote that checkpoint again")
    return work_dir / "encoder.safetensors"


def same(first: Path, second: Path) -> bool:
    """The tensors of two files are equal bit by bit."""
    from safetensors.torch import load_file

    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Memory and speed ----------------------------------------------------------------------------------------------------


def configs(setting: Setting) -> Iterator[Result]:
    """One step of every pretraining config at its own batch per GPU; configs that differ in length alone are one.

    Those that take a file of a frozen model or bands of several sensors are left out.
    """
    from adpe.engine.config import read_config

    groups: dict[str, tuple[list[str], Any]] = {}
    for path in sorted((ROOT / "configs" / "pretrain").rglob("*.py")):
        cfg = read_config(path)
        dataset = cfg.train_dataloader.dataset
        if "crops" not in dataset or any(cfg.model.get(role, "") is None for role in ("tokenizer", "parts")):
            continue  # bands of several sensors, or a frozen model of a file
        key = repr((cfg.model, cfg.train_dataloader.batch_size, dataset.crops, cfg.optim_wrapper.get("type")))
        groups.setdefault(key, ([], cfg))[0].append(path.stem)
    chosen = [group for group in groups.values() if not setting.reduced or group[0][0].startswith("cifar10")]
    for names, cfg in chosen[: 2 if setting.reduced else None]:
        try:
            yield {"configs": names, **one_step(cfg, setting), "passed": True}
        except Exception as error:
            yield {"configs": names, "passed": False, "error": repr(error)[:300]}
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def one_step(cfg: Any, setting: Setting) -> Result:
    """Two steps of a config's model and optimiser on random crops: seconds and peak memory of the second."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    import adpe.engine  # noqa: F401  registers what configs name

    batch = 2 if setting.reduced else cfg.train_dataloader.batch_size
    with setting.device:
        model = MODELS.build(cfg.model)
    model = model.to(setting.device).train()
    optimiser = build_optim_wrapper(model, cfg.optim_wrapper)
    crops = cfg.train_dataloader.dataset.crops
    inputs = [
        torch.randint(
            0, 256, (batch, group.get("num_crops", 1), 3, group["size"], group["size"]), dtype=torch.uint8,
            device=setting.device,
        )
        for group in (crops if isinstance(crops, (list, tuple)) else [crops])
    ]  # fmt: skip
    losses: dict[str, Tensor] = {}

    def step() -> None:
        losses.update(model.train_step({"inputs": inputs}, optimiser))

    step()
    clock = pick_clock(setting.device)
    start = clock()
    step()
    seconds = clock() - start
    values = {name: float(value.detach()) for name, value in losses.items()}
    if not all(np.isfinite(value) for value in values.values()):
        raise RuntimeError(f"a loss is not finite: {values}")
    memory = peak_memory(step, setting.device)
    return {"batch": batch, "seconds": seconds, "peak_gib": memory, "loss": values.get("loss")}


def speed(setting: Setting) -> Iterator[Result]:
    """ViT-B MAE+ on 4 crops of 112 in bfloat16, eager and compiled: images/s and the share of the matmul ceiling."""
    device, dtype = setting.device, torch.float32 if setting.reduced else torch.bfloat16
    model, images, steps = ("adpe_vit_tiny_patch8", 2, 2) if setting.reduced else ("adpe_vit_base_patch16", 128, 10)
    size, crops = (32, 2) if setting.reduced else (112, 4)
    ceiling = matmul_ceiling(device, dtype)
    batch = torch.randn(images * crops, 3, size, size, device=device)
    absolute: dict[bool, float] = {}
    for name in ("absolute", "absolute coordinate", "relative", "relative coordinate"):
        for compiled in (False, True)[: 1 if setting.reduced else 2]:
            network = build(model, VARIANTS[name], size).to(device)
            h, w = network.encoder.patch_embed.grid(batch)
            noise = torch.rand(len(batch), h * w, device=device)
            if compiled:
                for block in network.compiled():
                    block.compile()
            step = Step(network, batch, noise, dtype, fused=True)
            seconds = timed(step, steps, device)
            share = matmul_flops(network, len(batch), h * w) / seconds / ceiling
            result: Result = {
                "variant": name, "compiled": compiled, "images_per_s": images / seconds, "share_of_matmul": share,
                "matmul_tflops": ceiling / 1e12, "peak_gib": peak_memory(step, device),
            }  # fmt: skip
            if name == "absolute":
                absolute[compiled] = seconds
                result["aim_met"] = share >= CEILING_SHARE
            else:
                result["over_absolute"] = seconds / absolute[compiled] - 1
                result["aim_met"] = result["over_absolute"] <= RELATIVE_COST
            yield {**result, "passed": True}
            del network, step
            torch.compiler.reset()


def attention(setting: Setting) -> Iterator[Result]:
    """The encoder, forward and backward at 512 and 1024 pixels, against attention written out."""
    from adpe.models.factory import create_encoder

    device, dtype = setting.device, torch.float32 if setting.reduced else torch.bfloat16
    cases: list[tuple[int, int, dict[str, Any]]] = [
        (512, 8, {}),
        (512, 8, {"use_rel_pos_bias": True}),
        (1024, 4, {"window_size": 14, "global_attn_indexes": (2, 5, 8, 11), "class_token": False}),
        (1024, 4, {"window_size": 14, "global_attn_indexes": (2, 5, 8, 11), "class_token": False, "use_rel_pos": True}),
    ]
    for size, images, options in cases:
        name = "adpe_vit_base_patch16"
        if setting.reduced:
            size, images, options = size // 4, 1, {**options, "depth": 3, "embed_dim": 48, "num_heads": 3}
            if "window_size" in options:
                options |= {"window_size": 4, "global_attn_indexes": (2,)}
        encoder = create_encoder(name, img_size=size, **options).to(device).train()
        pixels = torch.randn(images, 3, size, size, device=device)

        step = partial(encoder_step, encoder, pixels, dtype)

        def written_out(step: Callable[[], None] = step) -> None:
            with sdpa_kernel(SDPBackend.MATH):
                step()

        repeats = 2 if setting.reduced else 5
        ours, theirs = timed(step, repeats, device), timed(written_out, repeats, device)
        yield {
            "size": size, "options": options, "images_per_s": images / ours, "times_as_fast": theirs / ours,
            "peak_gib": peak_memory(step, device), "written_out_peak_gib": peak_memory(written_out, device),
            "passed": True,
        }  # fmt: skip


def timed(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Median seconds of a step, after two to warm up."""
    for _ in range(2):
        step()
    return median(alternate({"step": step}, steps, device)["step"])


# The command ---------------------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[[Setting], Iterator[Result]]] = {
    "tests": tests, "parity": parity, "resume": resume, "speed": speed, "attention": attention, "configs": configs,
}  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, with the checkout first on the path of imports."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def run(setting: Setting, stages: list[str], out: Path) -> int:
    """Run stages, print and append their results; 1 if one did not pass."""
    card = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else platform.machine()
    failed = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for stage in stages:
            start = time.perf_counter()
            print(f"{stage}: {STAGES[stage].__doc__}", flush=True)
            try:
                for result in STAGES[stage](setting):
                    line = {
                        "stage": stage,
                        **result,
                        "device": card,
                        "torch": torch.__version__,
                        "reduced": setting.reduced,
                    }
                    file.write(json.dumps(line, default=float) + "\n")
                    file.flush()
                    print("  ", json.dumps(result, default=float), flush=True)
                    failed += [stage] * (not result["passed"])
            except Exception:
                traceback.print_exc()
                failed.append(stage)
            print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(dict.fromkeys(failed))}" if failed else f"all of {', '.join(stages)} passed; {out}")
    return int(bool(failed))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE",
                        help=f"of {', '.join(STAGES)} (default: all)")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=RECORDS, help="file the results are appended to (default: %(default)s)"
    )
    parser.add_argument("--reduced", action="store_true", help="small models and few repeats, on a CPU too")
    options = parser.parse_args(arguments)
    if not (options.reduced or torch.cuda.is_available()):
        parser.error("torch sees no CUDA device; --reduced runs on a CPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return run(Setting(device, options.reduced), options.stages, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
