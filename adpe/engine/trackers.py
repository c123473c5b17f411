"""Where curves and figures of a run go beside its own folder: TensorBoard, and W&B or MLflow if one is asked for.

All of them get what mmengine's visualizer gets: losses, rates and metrics by iteration (of a validation by epoch where
the training counts epochs), the adversary's scalars and the figures of `AdPEVisualizationHook`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env
from PIL import Image

from adpe.errors import UserError

_STEP = "iteration"
_PROJECT = "adpe"
# What --cfg-options tracker= takes: the name of the package, too.
TRACKERS = {"wandb": "AdPEWandbVisBackend", "mlflow": "AdPEMLflowVisBackend"}


def complete_trackers(cfg: Config, log: Callable[[str], None]) -> None:
    """Add the tracker that a config asks for with ``tracker``, and leave TensorBoard out where it is not installed.

    Args:
        cfg: changed in place: ``visualizer.vis_backends``.
        log: told what is left out.

    Raises:
        UserError: for an unknown tracker, or one whose package is not installed.
    """
    tracker = cfg.get("tracker")
    if tracker is not None and tracker not in TRACKERS:
        raise UserError(f"tracker = {tracker!r} is unknown; there are {', '.join(TRACKERS)}, and None.")
    if tracker and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"tracker = {tracker!r} needs the package {tracker}, which is not installed: pip install {tracker}"
        )
    if cfg.get("visualizer") is None and tracker:
        cfg.visualizer = ConfigDict(type="Visualizer", vis_backends=[ConfigDict(type="LocalVisBackend")])
    if not isinstance(cfg.get("visualizer"), dict):
        return
    backends = list(cfg.visualizer.get("vis_backends") or [])
    if importlib.util.find_spec("tensorboard") is None:
        kept = [backend for backend in backends if backend["type"] != "TensorboardVisBackend"]
        if len(kept) < len(backends):
            log("tensorboard is not installed: its curves are left out; those of the work directory remain")
        backends = kept
    if tracker and all(backend["type"] != TRACKERS[tracker] for backend in backends):
        backends.append(ConfigDict(type=TRACKERS[tracker]))
    cfg.visualizer["vis_backends"] = backends


class _Tracker(BaseVisBackend):
    """A backend that starts at the first thing written to it, and names the run as the record does.

    Args:
        save_dir: folder of the run's curves, ``<work_dir>/<time>/vis_data``.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self.run_name = Path(save_dir).absolute().parents[1].name

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """One value at an iteration (epoch)."""
        self.add_scalars({name: value}, step)


def _numbers(scalars: dict[str, Any]) -> dict[str, float]:
    """The scalars among what the visualizer is given, as floats."""
    kinds = (int, float, np.number, np.ndarray, torch.Tensor)
    return {name: float(value) for name, value in scalars.items() if isinstance(value, kinds) and np.size(value) == 1}


def _described(config: Config) -> dict[str, str]:
    """What tells runs apart in a tracker's table: the record's facts and the seed, as text."""
    facts = {**(config.get("record") or {}), "seed": (config.get("randomness") or {}).get("seed")}
    return {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in facts.items()}


@VISBACKENDS.register_module()
class AdPEWandbVisBackend(_Tracker):
    """Weights & Biases. mmengine's own counts its calls instead of iterations.

    ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and the other variables of wandb work as documented there.
    """

    def _init_env(self) -> None:
        import wandb

        os.makedirs(self._save_dir, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = wandb.init(dir=self._save_dir, project=project, name=self.run_name, reinit="create_new")
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        self._image = wandb.Image

    @property
    @force_init_env
    def experiment(self) -> Any:
        """wandb's run."""
        return self._run

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """The record's facts."""
        self._run.config.update(_described(config), allow_val_change=True)

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """A figure ``(H, W, 3)``, uint8."""
        self._run.log({name: self._image(image), _STEP: step})

    @force_init_env
    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Values at an iteration (epoch)."""
        self._run.log({**_numbers(scalar_dict), _STEP: step})

    def close(self) -> None:
        """Upload what is left."""
        if hasattr(self, "_run"):
            self._run.finish()


@VISBACKENDS.register_module()
class AdPEMLflowVisBackend(_Tracker):
    """MLflow. mmengine's own needs names of pictures with an ending, and copies its own files into itself.

    ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` work as documented there; without the first, runs are kept in
    the folder ``mlruns`` of the work directory.
    """

    def _init_env(self) -> None:
        # MLflow wants to be asked for its store of files; the other stores need a server or sqlalchemy.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        folder = Path(self._save_dir).absolute().parents[1] / "mlruns"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(number, run_name=self.run_name).info.run_id

    @property
    @force_init_env
    def experiment(self) -> Any:
        """MLflow's client."""
        return self._client

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """The record's facts as parameters, the whole config as a file."""
        for name, value in _described(config).items():
            self._client.log_param(self._id, name, value[:500])  # MLflow's limit
        self._client.log_text(self._id, config.pretty_text, "config.py")

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """A figure ``(H, W, 3)``, uint8."""
        self._client.log_image(self._id, Image.fromarray(image), f"{name}/{step:08d}.png")

    @force_init_env
    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Values at an iteration (epoch)."""
        for name, value in _numbers(scalar_dict).items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        if hasattr(self, "_id"):
            self._client.set_terminated(self._id)
