"""What a trial's measurements and a budget of time come to: encoder, batch and number of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adpe.engine.folder.trial import Measured
from adpe.errors import UserError

# Of the time; the rest is for checkpoints, pictures and a machine that slows down.
SHARE_OF_TIME = 0.9
# The longest schedule of the published recipe (configs/_base_/pretrain.py).
LONGEST = 1600
# Optimiser steps that an epoch has at least: a small folder takes a smaller batch than the recipe's.
STEPS_PER_EPOCH = 4
SAVE_EVERY = 300.0  # s
LOG_EVERY = 20.0  # s


@dataclass(frozen=True)
class Choice:
    """What is trained.

    Attributes:
        measured: of the encoder and batch that were chosen.
        epochs: of the training.
        hours: that it is expected to take.
        steps: optimiser steps of an epoch.
        effective_batch: images of a step.
    """

    measured: Measured
    epochs: int
    hours: float
    steps: int
    effective_batch: int

    def intervals(self) -> dict[str, Any]:
        """Epochs between checkpoints and between pictures, optimiser steps between lines of the log."""
        step = self.effective_batch / self.measured.images_per_s
        return {
            "checkpoint": max(1, min(self.epochs, round(SAVE_EVERY / (step * self.steps)))),
            "pictures": max(1, self.epochs // 10),
            "log": max(1, min(50, round(LOG_EVERY / step))),
        }


def batch_of(images: int, published: int) -> int:
    """Images of an optimiser step: the recipe's, halved until an epoch has `STEPS_PER_EPOCH`, or 1."""
    batch = published
    while batch > 1 and batch * STEPS_PER_EPOCH > images:
        batch //= 2
    return batch


def needed_speed(images: int, effective_batch: int, epochs: int, hours: float) -> float:
    """Images per second with which so many epochs fit into the hours."""
    return epochs * (images // effective_batch) * effective_batch / (SHARE_OF_TIME * hours * 3600)


def choose(
    measured: Sequence[Measured], images: int, effective_batch: int, wanted: int, hours: float, epochs: int | None
) -> Choice:
    """The largest encoder that gets the `wanted` epochs in time, else the smallest, each with its fastest batch.

    Args:
        measured: of a trial, from the smallest encoder to the largest.
        images: of the folder.
        effective_batch: images of an optimiser step.
        wanted: the recipe's epochs.
        hours: of the whole training.
        epochs: if they are given, and not to be chosen: as many as fit, at most `LONGEST`.

    Raises:
        UserError: if not even one epoch fits; it says how long one takes.
    """
    steps = images // effective_batch
    fastest: dict[str, Measured] = {}
    for one in measured:
        if one.model not in fastest or one.images_per_s > fastest[one.model].images_per_s:
            fastest[one.model] = one
    needed = needed_speed(images, effective_batch, epochs or wanted, hours)
    enough = [one for one in fastest.values() if one.images_per_s >= needed]
    taken = enough[-1] if enough else next(iter(fastest.values()))
    epoch = steps * effective_batch / taken.images_per_s / 3600 / SHARE_OF_TIME
    fitting = min(int(hours / epoch), LONGEST)
    if epochs is None and fitting < 1:
        raise UserError(
            f"--hours {hours:g}: one epoch of {images} images takes {epoch:.2g} h on this machine, at "
            f"{taken.images_per_s:.3g} images/s. Give --hours {epoch * 1.05:.2g} or more, or a part of the images."
        )
    count = epochs or fitting
    return Choice(taken, count, count * epoch, steps, effective_batch)
