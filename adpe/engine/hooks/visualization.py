"""Pictures during pretraining, through mmengine's visualizer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import default_collate

from adpe.engine.resuming.reproducible import random_state, set_random_state
from adpe.engine.unwrapped import unwrapped
from adpe.errors import require


@HOOKS.register_module()
class AdPEVisualizationHook(Hook):
    """Writes to the visualizer the method's figures of a held batch, and its scalars.

    The held batch is the views of the first training images. Random states are put back, so that a run is bit-equal
    with and without this hook. The main process alone draws.

    Args:
        interval: epochs (iterations if not `by_epoch`) between the method's figures.
        by_epoch: what `interval` counts.
        num_images: size of the held batch.
        scalar_interval: iterations between the method's scalars.
    """

    priority = "LOW"

    def __init__(
        self, interval: int = 10, by_epoch: bool = True, num_images: int = 6, scalar_interval: int = 50
    ) -> None:
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_images = num_images
        self.scalar_interval = scalar_interval
        self.inputs: Any = None

    def before_train(self, runner: Any) -> None:
        if is_main_process():
            require("matplotlib", "requirements/runtime.txt")
            dataset = runner.train_dataloader.dataset
            state = random_state()
            # A data set that counts epochs is at its first one here, also in a resumed run.
            items = [dataset[index]["inputs"] for index in range(min(self.num_images, len(dataset)))]
            set_random_state(state)
            self.inputs = default_collate(items)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not is_main_process():
            return
        if self.every_n_train_iters(runner, self.scalar_interval) or self.is_last_train_iter(runner):
            self._write_scalars(runner)
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._draw(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Any) -> None:
        if (
            is_main_process()
            and self.by_epoch
            and (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner))
        ):
            self._draw(runner, runner.epoch + 1)

    def _write_scalars(self, runner: Any) -> None:
        scalars = unwrapped(runner.model).model.scalars()
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _draw(self, runner: Any, step: int) -> None:
        from adpe.viz.figures import to_array

        model = unwrapped(runner.model)
        preprocessor, method = model.data_preprocessor, model.model
        state, training = random_state(), method.training
        method.eval()
        try:
            views = preprocessor({"inputs": self.inputs}, training=False)["inputs"]
            with torch.no_grad():
                figures = method.figures(views, preprocessor.mean, preprocessor.std)
            for name, figure in figures.items():
                title = f"{'epoch' if self.by_epoch else 'iteration'} {step}: {figure.get_suptitle()}"
                figure.suptitle(title, fontsize=11, fontweight="bold")
                runner.visualizer.add_image(name, to_array(figure), step=step)
        finally:
            method.train(training)
            set_random_state(state)
