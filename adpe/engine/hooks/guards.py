"""A loss that is not finite ends the run and leaves what is needed to find out why."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.hooks import Hook, LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement

from adpe.errors import UserError
from adpe.files import atomic_write


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class _Check(NamedTuple):
    """A loss whose value may still be on its way from the GPU."""

    iteration: int
    losses: dict[str, torch.Tensor]
    lr: dict[str, list[float]]
    data_batch: Any
    arrived: torch.cuda.Event | None

    def finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.losses.values())


@HOOKS.register_module()
class AdPEFiniteLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite.

    On a GPU the value is copied without waiting and looked at once it has arrived, usually one or two iterations
    later; before a checkpoint is saved, all outstanding values are waited for, so none is saved after a bad loss.

    Raises:
        NonFiniteLossError: naming iteration, losses, learning rates, the batch's images and the file
            ``<work_dir>/nonfinite_iter_<n>.pt`` with the batch (``torch.load(..., weights_only=True)``).
    """

    priority = "NORMAL"

    def __init__(self) -> None:
        self.pending: deque[_Check] = deque()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        losses = {name: value.detach() for name, value in (outputs or {}).items() if isinstance(value, torch.Tensor)}
        arrived = None
        if any(value.is_cuda for value in losses.values()):
            losses = {name: value.to("cpu", non_blocking=True) for name, value in losses.items()}
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(_Check(runner.iter + 1, losses, runner.optim_wrapper.get_lr(), data_batch, arrived))
        self._check_loss(runner, wait=False)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._check_loss(runner, wait=True)

    def after_train(self, runner: Any) -> None:
        self._check_loss(runner, wait=True)

    def _check_loss(self, runner: Any, wait: bool) -> None:
        while self.pending:
            check = self.pending[0]
            if check.arrived is not None:
                if not wait and not check.arrived.query():
                    return
                check.arrived.synchronize()
            self.pending.popleft()
            if not check.finite():
                self._stop(runner, check)

    def _stop(self, runner: Any, check: _Check) -> None:
        rank = f"_rank_{runner.rank}" if runner.world_size > 1 else ""
        path = Path(runner.work_dir, f"nonfinite_iter_{check.iteration}{rank}.pt")
        paths = list(_image_paths(check.data_batch))
        with atomic_write(path) as temporary:
            torch.save({"batch": _plain_batch(check.data_batch), "img_path": paths, "iter": check.iteration}, temporary)
        losses = ", ".join(f"{name} = {value.mean().item():g}" for name, value in check.losses.items())
        rates = ", ".join(f"{name} {'/'.join(f'{v:g}' for v in sorted(set(lrs)))}" for name, lrs in check.lr.items())
        images = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {check.iteration}: {losses}. Learning rates: {rates}. "
            f"Images: {images or 'of unknown path'}. The batch is saved in {path}. Lower the learning rate, clip "
            "gradients (optim_wrapper.clip_grad) or look at the images; the last checkpoint is from before."
        )


@HOOKS.register_module()
class AdPERuntimeInfoHook(RuntimeInfoHook):
    """RuntimeInfoHook that reads losses from the GPU when they are logged, not at every iteration.

    All values reach the log, in one transfer per interval of the LoggerHook.
    """

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
        self.waiting: list[dict[str, Any]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.waiting.append({n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in (outputs or {}).items()})
        if (
            self.every_n_inner_iters(batch_idx, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx)
            or self.is_last_train_iter(runner)
        ):
            self._deliver(runner)

    def _deliver(self, runner: Any) -> None:
        tensors = [v.float().mean() for outputs in self.waiting for v in outputs.values() if torch.is_tensor(v)]
        values = iter(torch.stack(tensors).tolist() if tensors else [])
        for outputs in self.waiting:
            for name, value in outputs.items():
                runner.message_hub.update_scalar(f"train/{name}", next(values) if torch.is_tensor(value) else value)
        self.waiting = []


def _image_paths(node: Any) -> Iterator[str]:
    """Values of ``img_path`` in a batch of nested dicts, sequences and mmengine data elements."""
    if isinstance(node, BaseDataElement):
        node = node.metainfo
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "img_path":
                yield from map(str, [value] if isinstance(value, (str, os.PathLike)) else value)
            else:
                yield from _image_paths(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _image_paths(item)


def _plain_batch(node: Any) -> Any:
    """The batch in tensors and plain types, for reading without executing anything."""
    if isinstance(node, BaseDataElement):
        node = {**node.metainfo, **{name: node.get(name) for name in node.keys()}}  # noqa: SIM118  not a dict
    if isinstance(node, dict):
        return {str(name): _plain_batch(value) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain_batch(item) for item in node]
    if isinstance(node, torch.Tensor):
        return node.detach().cpu()
    return node if node is None or isinstance(node, (bool, int, float, str)) else str(node)
