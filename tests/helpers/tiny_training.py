"""A regression small enough to train in a test, through mmengine's own BaseModel, datasets and loops."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "configs" / "_base_" / "runtime.py"


@DATASETS.register_module()
class TinyDataset:
    """Points with a jitter drawn from torch's, numpy's and Python's generators, as augmentations do."""

    METAINFO: dict[str, Any] = {"classes": ("a", "b")}

    def __init__(self, length: int = 24, jitter: float = 0.1, data_root: str = "", bad: int = -1) -> None:
        generator = torch.Generator().manual_seed(3)
        self.points = torch.randn(length, 4, generator=generator)
        self.jitter = jitter
        self.bad = bad
        self.metainfo = self.METAINFO

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import random

        noise = torch.randn(4) + float(np.random.randn()) + random.random()
        inputs = self.points[index] + self.jitter * noise
        if index == self.bad:
            inputs = inputs * float("nan")
        return {"inputs": inputs, "data_samples": {"img_path": f"images/{index:03d}.jpg", "index": index}}


@MODELS.register_module()
class TinyModel(BaseModel):
    """Linear regression with dropout and a random target, so that training draws random numbers."""

    def __init__(
        self, random_target: float = 0.1, dropout: float = 0.1, norm_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(dropout)
        self.random_target = random_target
        self.norm_cfg = norm_cfg

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        x = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
        y = self.linear(self.dropout(x))
        target = x[:, :3] * 2 + self.random_target * torch.randn_like(y)
        if mode == "loss":
            return {"loss": (y - target).square().mean()}
        return list((y - x[:, :3] * 2).square().mean(1))


@METRICS.register_module()
class TinyMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        torch.rand(1)  # an evaluation may draw random numbers too
        self.results += [float(error) for error in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"error": float(np.mean(results))}


@HOOKS.register_module()
class KillHook(Hook):
    """Sends one process a signal after an iteration, once; notes what each iteration saw and each rank ended with."""

    priority = "NORMAL"

    def __init__(self, at: int, number: int = signal.SIGKILL, rank: int = 0, parent: bool = False) -> None:
        self.at, self.number, self.rank, self.parent = at, number, rank, parent

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        names = (
            data_batch["data_samples"]["img_path"]
            if isinstance(data_batch["data_samples"], dict)
            else [sample["img_path"] for sample in data_batch["data_samples"]]
        )
        first = float(data_batch["inputs"][0][0])
        with open(Path(runner.work_dir, f"seen.txt.{runner.rank}"), "a") as file:
            file.write(f"{runner.iter + 1} {first!r} {' '.join(names)}\n")
        flag = Path(runner.work_dir, "killed")
        if runner.iter + 1 == self.at and runner.rank == self.rank and not flag.exists():
            flag.touch()
            if self.parent:
                os.kill(os.getppid(), self.number)
            else:
                signal.raise_signal(self.number)  # arrives before the next iteration, as one by os.kill may not

    def after_train(self, runner: Any) -> None:
        model = getattr(runner.model, "module", runner.model)
        torch.save(model.state_dict(), Path(runner.work_dir, f"final_rank_{runner.rank}.pt"))


_numbers = itertools.count()


def config(folder: Path, *, name: str = "", by_epoch: bool = False, extra: str = "", **values: Any) -> Path:
    """Write a config into `folder`; `values` are top-level variables, `extra` is code that comes last."""
    known = {"iterations": 12, "batch_size": 4, "workers": 0, "length": 24, "interval": 5, "kill_at": -1} | values
    lines = [f"{key} = {value!r}" for key, value in known.items()]
    train_cfg = (
        "dict(by_epoch=True, max_epochs=iterations, val_interval=1)"
        if by_epoch
        else "dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=4)"
    )
    sampler = "DefaultSampler" if by_epoch else "InfiniteSampler"
    text = f"""
_base_ = [{str(RUNTIME)!r}]
custom_imports = dict(imports=["adpe.engine", "tiny_training"], allow_failed_imports=False)
{chr(10).join(lines)}
model = dict(type="TinyModel")
train_dataloader = dict(batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0,
    dataset=dict(type="TinyDataset", length=length), sampler=dict(type="{sampler}", shuffle=True))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(type="TinyDataset", length=8),
    sampler=dict(type="DefaultSampler", shuffle=False))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type="TinyMetric")
val_cfg = test_cfg = dict()
train_cfg = {train_cfg}
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.05))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch={by_epoch}, T_max=iterations, end=iterations)]
default_hooks = dict(checkpoint=dict(interval=interval, by_epoch={by_epoch}), logger=dict(interval=2))
custom_hooks = [dict(type="KillHook", at=kill_at)]
log_processor = dict(by_epoch={by_epoch})
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(vis_backends=vis_backends)
record = dict(method="tiny", task="pretrain", dataset="points")
{extra}
"""
    # mmengine keeps loggers by the name of the config and the second.
    path = folder / (name or f"tiny_{next(_numbers)}.py")
    path.write_text(text)
    return path


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PORT": "", "NNODES": ""}  # fmt: skip


def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script of tools/ in a process of its own."""
    script, *rest = map(str, arguments)
    command = [sys.executable] if script.endswith(".py") else ["bash"]
    return subprocess.run(
        [*command, str(ROOT / "tools" / script), *rest],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
