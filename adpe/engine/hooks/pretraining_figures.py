"""Pictures during pretraining, through mmengine's visualizer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from adpe.engine.reproducible import random_state, set_random_state
from adpe.engine.unwrapped import unwrapped
from adpe.errors import require
from adpe.methods.mae import MaskedAutoencoder


@HOOKS.register_module()
class AdPEVisualizationHook(Hook):
    """Writes to the visualizer how a held batch is reconstructed, what the adversary does, and its scalars.

    The held batch is one crop of each of the first training images, with one mask for the whole run. Random states are
    put back, so that a run is bit-equal with and without this hook. The main process alone draws.

    Args:
        interval: epochs (iterations if not `by_epoch`) between pictures "reconstructions" and "adversary".
        by_epoch: what `interval` counts.
        num_images: size of the held batch.
        scalar_interval: iterations between the scalars ``adversary/*`` (:func:`adversary_scalars`).
    """

    priority = "LOW"

    def __init__(
        self, interval: int = 10, by_epoch: bool = True, num_images: int = 6, scalar_interval: int = 50
    ) -> None:
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_images = num_images
        self.scalar_interval = scalar_interval
        self.inputs: Tensor | None = None

    def before_train(self, runner: Any) -> None:
        if is_main_process():
            require("matplotlib", "requirements/runtime.txt")
            dataset = runner.train_dataloader.dataset
            state = random_state()
            # The first crop of each; a data set that counts epochs is at its first one here, also in a resumed run.
            items = [dataset[index]["inputs"][:1] for index in range(min(self.num_images, len(dataset)))]
            set_random_state(state)
            self.inputs = torch.stack(items)

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
        from adpe.viz.reconstructions import adversary_scalars

        adversary = _autoencoder(runner).adversary
        if adversary is not None and adversary.learns:
            runner.visualizer.add_scalars(adversary_scalars(adversary), step=runner.iter + 1)

    def _draw(self, runner: Any, step: int) -> None:
        from adpe.viz.reconstructions import describe_reconstruction, draw_adversary, draw_images, reconstruct, to_array

        assert self.inputs is not None
        model = _autoencoder(runner)
        preprocessor = unwrapped(runner.model).data_preprocessor
        state, training = random_state(), model.training
        model.eval()
        try:
            images = preprocessor({"inputs": self.inputs}, training=False)["inputs"]
            h, w = model.encoder.patch_embed.grid(images)
            # Drawn on the CPU: the same mask on every device.
            noise = torch.rand(len(images), h * w, generator=torch.Generator().manual_seed(0)).to(images.device)
            mean, std = preprocessor.mean, preprocessor.std
            columns = reconstruct(model, images, noise, mean, std)
            title = f"{'epoch' if self.by_epoch else 'iteration'} {step}: {describe_reconstruction(model)}"
            runner.visualizer.add_image("reconstructions", to_array(draw_images(columns, title)), step=step)
            if model.adversary is not None and model.adversary.learns:
                runner.visualizer.add_image("adversary", to_array(draw_adversary(model, (h, w))), step=step)
        finally:
            model.train(training)
            set_random_state(state)


def _autoencoder(runner: Any) -> MaskedAutoencoder:
    return unwrapped(runner.model).model
