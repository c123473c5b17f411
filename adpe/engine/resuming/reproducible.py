"""Randomness and data order as functions of (seed, position), so that a resumed run repeats the uninterrupted one.

Nothing random depends on what ran before: a training iteration draws from a stream seeded by (seed, rank, iteration),
an item of the training data from one seeded by (seed, pass over the data, index). Workers, validation and restarts
therefore change nothing, and the position in the data is the iteration number alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, HOOKS
from torch.utils.data import BatchSampler, Dataset, Sampler

from adpe.data.dataset import AdPEImageDataset
from adpe.engine.mmengine_internals import set_iterator
from adpe.errors import UserError

# First words of the seeds, so that the two kinds of streams never coincide.
_ITERATION, _ITEM = 1, 2


def _seeds(*words: int) -> tuple[int, np.ndarray]:
    """A 64-bit seed for torch and Python, four 32-bit words for numpy."""
    sequence = np.random.SeedSequence(words)
    return int(sequence.generate_state(1, np.uint64)[0]), sequence.generate_state(4)


def random_state() -> dict[str, Any]:
    """The states of the global generators of Python, numpy and torch (CPU and every GPU), in plain types."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned. GPU states are put back where the number of GPUs is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


@HOOKS.register_module()
class AdPESeedHook(Hook):
    """Seeds Python, numpy and torch before every training iteration by (seed, rank, iteration).

    Masks, dropout and drop path of an iteration are thereby the same in a resumed run, and differ between ranks.
    """

    priority = "VERY_LOW"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed, words = _seeds(_ITERATION, runner.seed, runner.rank, runner.iter)
        random.seed(seed)
        np.random.seed(words)
        torch.manual_seed(seed)


@DATASETS.register_module()
class AdPESeededDataset(Dataset):
    """Wraps a dataset so that each item is drawn with generators seeded by (seed, pass, index).

    Indices come from `AdPESampler` as ``index + len(dataset) * pass``; plain indices are pass 0. The global generators
    are left as they were. Everything else is the wrapped dataset's.

    Args:
        dataset: the dataset, or its config.
        seed: first part of every item's seed.
    """

    def __init__(self, dataset: dict[str, Any] | Dataset, seed: int) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles this object
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> Any:
        return self.dataset.get_data_info(index % len(self))

    def __getitem__(self, index: int) -> Any:
        return self._drawn([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if isinstance(self.dataset, AdPEImageDataset):  # which reads no global generator
            return self.dataset.__getitems__([index % len(self) for index in indices])
        return self._drawn(indices)

    def _drawn(self, indices: Sequence[int]) -> list[Any]:
        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        items = []
        try:
            for position in indices:
                times, index = divmod(position, len(self))
                seed, words = _seeds(_ITEM, self.seed, times, index)
                random.seed(seed)
                np.random.seed(words)
                torch.default_generator.manual_seed(seed)
                items.append(self.dataset[index])
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
        return items


@DATA_SAMPLERS.register_module()
class AdPESampler(Sampler[int]):
    """Wraps a sampler to yield ``index + len(dataset) * pass``, for `AdPESeededDataset`.

    The pass is the epoch, plus for endless samplers how often all ranks together have gone through the data.

    Args:
        dataset: the training data.
        sampler: config of the wrapped sampler.
        seed: of the wrapped sampler; None draws one that all ranks share.
    """

    def __init__(self, dataset: Sized, sampler: dict[str, Any], seed: int | None = None) -> None:
        self.dataset = dataset
        self.config = sampler
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.length = len(self._build())
        if len(dataset) == 0:
            raise UserError("the training data is empty: look at data_root, data_prefix and ann_file of the config.")

    def _build(self) -> Any:
        # A new sampler for each iteration: InfiniteSampler continues where another iterator, prefetching, left it.
        sampler = DATA_SAMPLERS.build(self.config, default_args={"dataset": self.dataset, "seed": self.seed})
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        return sampler

    @property
    def endless(self) -> bool:
        """Whether the wrapped sampler never ends (mmengine's InfiniteSampler, mmdet's MultiSourceSampler)."""
        return any(word in str(self.config["type"]) for word in ("InfiniteSampler", "MultiSourceSampler"))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rank, processes = get_dist_info()
        images = len(self.dataset)
        for position, index in enumerate(self._build()):
            yield index + images * (self.epoch + (position * processes + rank) // images)


@DATA_SAMPLERS.register_module()
class AdPEBatchSampler(Sampler[list[int]]):
    """Wraps a batch sampler: an epoch is a whole number of optimizer steps, and a resumed run can start inside it.

    Args:
        sampler: yields the indices of this rank.
        batch_size: images per batch.
        batch_sampler: config of the wrapped batch sampler; None is torch's.
        drop_last: whether an incomplete last batch is dropped.
        accumulation: batches per optimizer step. What remains of an epoch after the last whole step is dropped.

    Raises:
        UserError: if an epoch has no batch.
    """

    def __init__(
        self,
        sampler: AdPESampler,
        batch_size: int,
        batch_sampler: dict[str, Any] | None = None,
        drop_last: bool = False,
        accumulation: int = 1,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.accumulation = accumulation
        self.config = batch_sampler
        self.start = 0
        self.length = len(self._build()) // accumulation * accumulation
        if self.length == 0:
            raise UserError(
                f"the training data has {len(sampler)} images per process, fewer than one optimizer step takes "
                f"({batch_size} x {accumulation}): use a smaller effective_batch or train_dataloader.batch_size."
            )

    def _build(self) -> Any:
        if self.config is None:
            return BatchSampler(self.sampler, self.batch_size, self.drop_last)
        arguments = {"sampler": self.sampler, "batch_size": self.batch_size, "drop_last": self.drop_last}
        return DATA_SAMPLERS.build(self.config, default_args=arguments)

    def __len__(self) -> int:
        return self.length

    def skip(self, batches: int) -> None:
        """Let the next iteration begin after `batches` batches; those after it begin at the start."""
        self.start = batches

    def __iter__(self) -> Iterator[list[int]]:
        # Reached at the first batch: loaders make iterators that they do not use.
        start, self.start = self.start, 0
        yield from islice(self._build(), start, None if self.sampler.endless else self.length)


@FUNCTIONS.register_module()
def adpe_worker_init(worker_id: int) -> None:
    """Keep signals to the run's process group from the worker: the main process still needs batches to end its step.

    A worker is ended by the main process, or ends by itself when that is gone. Seeding is `AdPESeededDataset`'s.
    """
    os.setpgrp()


def make_reproducible(cfg: Config, seed: int, accumulation: int) -> None:
    """Wrap dataset, sampler and batch sampler of ``cfg.train_dataloader`` in the classes above, and seed iterations.

    Args:
        cfg: changed in place.
        seed: the run's seed.
        accumulation: batches per optimizer step.
    """
    loader = cfg.train_dataloader
    for name in ("dataset", "sampler"):
        if not isinstance(loader.get(name), dict):
            raise UserError(f"train_dataloader.{name} must be a dict with a type, got {loader.get(name)!r}.")
    if "num_batch_per_epoch" in loader:
        raise UserError("train_dataloader.num_batch_per_epoch is not supported; use an iteration-based train_cfg.")
    loader.dataset = ConfigDict(type="AdPESeededDataset", dataset=loader.dataset, seed=seed)
    loader.sampler = ConfigDict(type="AdPESampler", sampler=loader.sampler)
    loader.batch_sampler = ConfigDict(
        type="AdPEBatchSampler",
        batch_sampler=loader.get("batch_sampler"),
        drop_last=loader.pop("drop_last", False),
        accumulation=accumulation,
    )
    for each in (loader, cfg.get("val_dataloader")):
        if each is not None:
            each.setdefault("worker_init_fn", ConfigDict(type="adpe_worker_init"))
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), {"type": "AdPESeedHook"}]


class PositionedIterator:
    """The endless iterator of an IterBasedTrainLoop, begun after a number of batches that are never loaded.

    mmengine discards the batches that a resumed run has already seen by loading them. This one, put in place of the
    loop's, discards their indices.

    Args:
        dataloader: the training loader, whose batch sampler is an `AdPEBatchSampler`.
        batches: number of batches to leave out, counted from the start of training.
    """

    def __init__(self, dataloader: Any, batches: int) -> None:
        self.dataloader = dataloader
        self.batch_sampler: AdPEBatchSampler = dataloader.batch_sampler
        endless = self.batch_sampler.sampler.endless
        self.epoch, start = (0, batches) if endless else divmod(batches, len(self.batch_sampler))
        self.batch_sampler.sampler.set_epoch(self.epoch)
        self.batch_sampler.skip(start)
        self.discarded = batches
        self.iterator: Iterator[Any] | None = None

    def skip_iter(self, batches: int) -> None:
        """Called by the loop (mmengine >= 0.10.12) for the batches that are already left out."""
        self.discarded = 0

    def __iter__(self) -> PositionedIterator:
        return self

    def __next__(self) -> Any:
        if self.discarded:  # mmengine < 0.10.12 asks for the batches to discard one by one
            self.discarded -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.dataloader)
        try:
            return next(self.iterator)
        except StopIteration:
            self.epoch += 1
            self.batch_sampler.sampler.set_epoch(self.epoch)
            self.iterator = iter(self.dataloader)
            return next(self.iterator)


def position(loop: Any) -> None:
    """Make a resumed train loop continue with the batch after its last.

    Args:
        loop: mmengine's EpochBasedTrainLoop or IterBasedTrainLoop, whose iteration and epoch are those of the
            checkpoint.
    """
    if hasattr(loop, "dataloader_iterator"):
        set_iterator(loop, PositionedIterator(loop.dataloader, loop.iter))
    else:
        loop.dataloader.batch_sampler.skip(loop.iter - loop.epoch * len(loop.dataloader))
