"""A short trial of a pretraining config on this machine: images per second and memory for a few sizes and batches.

It runs in a process of its own, which prints a line of JSON for each measurement: running out of memory ends that
process and not the one that asked, and the random state of the training to come is not touched.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import adpe
from adpe.engine.config import mistake_in_config, read_config
from adpe.engine.runner import AdPERunner
from adpe.engine.settings.activation_checkpointing import checkpoint_activations
from adpe.engine.settings.device import fit_to_device
from adpe.engine.settings.precision import precision_of, request_precision, settle_precision
from adpe.errors import EXIT_MISTAKE, UserError

SECONDS = 3.0  # of measurement, for each size and batch
# Iterations before it: the first ones choose kernels, allocate, and wait for the loader's workers to start.
_WARM_UP = 2
_SHARE_OF_MEMORY = 0.8
# A larger batch is worth its memory where it is this many times as fast.
_FASTER = 1.05


@dataclass(frozen=True)
class Measured:
    """One size and batch.

    Attributes:
        model: name of the encoder.
        batch_size: images of an iteration.
        images_per_s: loading, forward and backward pass and optimiser step.
        iterations: measured.
        memory: peak in bytes, of the GPU if there is one, otherwise of the process.
    """

    model: str
    batch_size: int
    images_per_s: float
    iterations: int
    memory: int


def run_trial(plan: dict[str, Any], told: Callable[[Measured], None]) -> tuple[list[Measured], str]:
    """Measure in another process.

    Args:
        plan: of :func:`measure_all`, as JSON.
        told: called with every measurement as it is made.

    Returns:
        the measurements, and the precision they were made in.

    Raises:
        UserError: if the config cannot be built, or not even the smallest batch fits.
    """
    path = os.pathsep.join(filter(None, (str(Path(adpe.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    found, precision, mistake = [], "float32", None
    command, variables = [sys.executable, "-m", __name__, json.dumps(plan)], {**os.environ, "PYTHONPATH": path}
    # A file, since a full pipe would stop the process.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if not line.startswith("{"):  # what libraries print
                    continue
                said = json.loads(line)
                mistake, precision = said.pop("mistake", mistake), said.pop("precision", precision)
                if said:
                    found.append(Measured(**said))
                    told(found[-1])
            child.wait()
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        errors = log.read().strip().splitlines()
    if mistake:
        raise UserError(mistake)
    if not found:
        reason = errors[-1][:300] if errors else f"its process ended with status {child.returncode}"
        raise UserError(
            f"the trial of {plan['config']} on {plan['options']['data_root']} measured nothing ({reason}): try a "
            "smaller batch or encoder, --cfg-options train_dataloader.batch_size=8."
        )
    return found, precision


def measure_all(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure sizes in their order, with batches that grow for as long as that is faster and fits.

    Args:
        plan: ``config`` and its ``options``; ``amp``; ``models``, names of encoders; ``batches``, growing; ``needed``,
            images per second below which no larger encoder is tried; ``seconds`` for each measurement.

    Yields:
        ``precision``, then the fields of :class:`Measured`.

    Raises:
        UserError: if the config cannot be built.
    """
    cfg = read_config(plan["config"], plan["options"])
    init_default_scope(cfg.get("default_scope", "mmengine"))
    request_precision(cfg, plan["amp"])
    settle_precision(cfg)
    fit_to_device(cfg, "none", lambda line: None)
    yield {"precision": precision_of(cfg.optim_wrapper)}
    limit = _SHARE_OF_MEMORY * available_memory()
    for model in plan["models"]:
        best = 0.0
        for batch in plan["batches"]:
            measured = _measure(cfg, model, batch, plan["seconds"])
            if measured is None:
                break
            yield asdict(measured)
            faster = measured.images_per_s > _FASTER * best
            best = max(best, measured.images_per_s)
            if not faster or 2 * measured.memory > limit:
                break
        if best < plan["needed"]:
            break


def _measure(cfg: Config, model: str, batch: int, seconds: float) -> Measured | None:
    """One size and batch; None if it does not fit into the GPU's memory."""
    cfg = Config(cfg.to_dict())
    cfg.model.model, cfg.train_dataloader.batch_size, cfg.train_dataloader.drop_last = model, batch, True
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    built = MODELS.build(cfg.model).to(get_device()).train()
    if cfg.get("activation_checkpointing"):
        checkpoint_activations(built, cfg.activation_checkpointing)
    wrapper = build_optim_wrapper(built, cfg.optim_wrapper)
    batches = itertools.chain.from_iterable(itertools.repeat(AdPERunner.build_dataloader(cfg.train_dataloader, seed=0)))
    count, begin, end = 0, 0.0, 0.0
    try:
        for data in batches:
            built.train_step(data, wrapper)
            if cuda:
                torch.cuda.synchronize()
            count, end = count + 1, time.perf_counter()
            if count == _WARM_UP:
                begin = end
            if count > _WARM_UP and end - begin >= seconds:
                break
    except torch.cuda.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_reserved() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    iterations = count - _WARM_UP
    return Measured(model, batch, round(iterations * batch / (end - begin), 3), iterations, int(peak))


def available_memory() -> int:
    """Bytes that a training may take: what is free on the GPU, or in the machine and the process's control group."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        found += [1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"]
    if (group / "memory.max").is_file() and (group / "memory.max").read_text().strip().isdigit():
        taken = int((group / "memory.current").read_text())
        found.append(int((group / "memory.max").read_text()) - taken)
    return max(min(found), 0)


def main() -> int:
    """Measure as the plan in the first argument says, a line of JSON on standard output each."""
    plan = json.loads(sys.argv[1])
    try:
        for said in measure_all(plan):
            print(json.dumps(said), flush=True)
    except Exception as error:
        mistake = error if isinstance(error, UserError) else mistake_in_config(error)
        if mistake is None:
            raise
        print(json.dumps({"mistake": str(mistake)}), flush=True)
        return EXIT_MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
