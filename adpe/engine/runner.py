"""mmengine's Runner with checkpoints that are written whole and read safely."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from adpe.engine.hooks.checkpointing import make_plain, read_training_checkpoint
from adpe.engine.mmengine_internals import end_workers, mark_loaded
from adpe.engine.resuming.reproducible import position, set_random_state
from adpe.engine.resuming.resumption import Division, Resumption
from adpe.engine.settings.activation_checkpointing import checkpoint_activations
from adpe.engine.settings.precision import precision_of
from adpe.engine.settings.schedules import fit_schedule
from adpe.engine.specifying import specification_of_run
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.garbage import collect_as_usual
from adpe.models.specification import KEY
from adpe.models.vit import FORM
from adpe.transfer.precise_boxes import keep_boxes_precise


@RUNNERS.register_module()
class AdPERunner(Runner):
    """Runner that saves atomically, loads with ``weights_only=True`` and resumes inside an epoch.

    Attributes:
        strict_load: whether a checkpoint must have exactly the model's parameters, as for evaluating and resuming.
        source: for the record, the config as it was read, the paths in it that a sweep sets, and the protocol of the
            task (`adpe.engine.resolved_protocol`); set by the launcher.
    """

    strict_load = False
    source: tuple[Any, Sequence[str], dict[str, Any] | None]
    _random_state: dict[str, Any] | None = None
    _resumption: Resumption | None = None

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """As mmengine's, and what the modules of this package log goes to the same places."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        package = logging.getLogger("adpe")
        package.handlers = list(logger.handlers)
        package.setLevel(logger.level)
        return logger

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """As mmengine's, and None switches off any hook of ``default_hooks``, not only mmengine's own."""
        super().register_default_hooks({name: Hook() if hook is None else hook for name, hook in (hooks or {}).items()})

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As mmengine's; without workers (``num_workers=0``) options of workers are left out."""
        if isinstance(dataloader, dict) and not dataloader.get("num_workers", 0):
            about = {"persistent_workers", "prefetch_factor", "multiprocessing_context"}
            given = sorted(name for name in about if dataloader.get(name))
            if given:
                print_log(f"num_workers = 0: {', '.join(given)} left out, which need workers", "current")
            dataloader = {name: value for name, value in dataloader.items() if name not in about}
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """As mmengine's, with detectors whose boxes stay in float32 under autocast."""
        built = super().build_model(model)
        keep_boxes_precise(built)
        return built

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """As mmengine's, for trainings of any length: see :func:`adpe.engine.settings.schedules.fit_schedule`."""

        def fit(node: Any) -> Any:
            if isinstance(node, dict) and "type" not in node:
                return {name: fit(part) for name, part in node.items()}
            parts = node if isinstance(node, (list, tuple)) else [node]
            if not all(isinstance(part, dict) for part in parts):
                return node
            kept, notes = fit_schedule(list(parts), self.max_iters, self.max_epochs, len(self.train_dataloader))
            for note in notes:
                self.logger.warning(f"param_scheduler: {note}")
            return kept

        return super().build_param_scheduler(fit(scheduler))

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """As mmengine's, and after all hooks saw a checkpoint, whichever saves it, it is reduced to plain types."""
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            make_plain(kwargs["checkpoint"])

    def train(self) -> nn.Module:
        """As mmengine's, with a recomputation under `activation_checkpointing` that trains backbones too."""
        # Taken out, so that mmengine does not do it as well; the launcher has written the config with it.
        modules = self.cfg.pop("activation_checkpointing", None)
        if modules:
            checkpoint_activations(unwrapped(self.model), modules)
            self.logger.info(f"activation_checkpointing: {modules} recomputed in the backward pass")
        collect_as_usual()
        model = super().train()
        self._end_workers()
        return model

    def val(self) -> dict[str, float]:
        """As mmengine's, after what was imported on the way to it."""
        collect_as_usual()
        metrics = super().val()
        self._end_workers()
        return metrics

    def test(self) -> dict[str, float]:
        """As mmengine's, after what was imported on the way to it."""
        collect_as_usual()
        metrics = super().test()
        self._end_workers()
        return metrics

    def _end_workers(self) -> None:
        """End the workers of the data loaders; a process that goes on would wait 5 s for each once they are garbage."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            end_workers(getattr(loop, "dataloader", None))

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save as mmengine does, but to a temporary file that replaces `filename` once it is verified readable.

        Raises:
            UserError: if the disk is full or not writable; files that were there are as before.
        """
        if not is_main_process():
            return
        path = Path(out_dir, filename)
        kwargs["meta"] = {
            **(kwargs.get("meta") or {}),
            # For a run that measures which precision to take, and is resumed.
            "precision": precision_of(self.cfg.get("optim_wrapper") or {}),
            "division": tuple(Division.of(self)),
        }
        specification = specification_of_run(self)
        if specification is not None:
            kwargs["meta"][KEY] = specification.to_json()
        try:
            with atomic_write(path) as temporary:
                super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
                read_training_checkpoint(temporary)
        except OSError as error:
            raise UserError(
                f"checkpoint {path} could not be saved: {error}. Earlier checkpoints are intact; free some space and "
                "rerun with --resume."
            ) from error

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable[..., Any] = "cpu",
        strict: bool = False,
        revise_keys: Any = ((r"^module\.", ""),),
    ) -> dict[str, Any]:
        """Load a local checkpoint into the model, or into the one that test-time augmentation wraps.

        Unless strict, parameters that are missing, unknown or of another shape are reported and left out, and a
        checkpoint that shares none with the model is refused.

        Raises:
            UserError: if the file cannot be read or does not fit the model.
        """
        checkpoint = read_training_checkpoint(filename, map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        if self._resumption is not None:
            self._resumption.check(checkpoint, filename)
        model: nn.Module = unwrapped(self.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        prefixed = all(name.startswith("module.") for name in checkpoint["state_dict"])
        state = {name.removeprefix("module.") if prefixed else name: t for name, t in checkpoint["state_dict"].items()}
        own = model.state_dict()
        # Checkpoints of earlier versions lack the buffer that names the form of relative positions.
        missing = [name for name in own if name not in state and not name.endswith(FORM)]
        unexpected = [name for name in state if name not in own]
        shapes = [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        faults = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
            if names
        ]
        fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
        if faults and (strict or self.strict_load or not fitting):
            raise UserError(
                f"{filename} does not fit the config's model ({type(model).__name__}): parameters {'; '.join(faults)}. "
                "Use the config that the checkpoint was trained with."
            )
        if faults:
            self.logger.warning(f"{filename}: parameters {'; '.join(faults)}")
        try:
            model.load_state_dict(fitting, strict=False)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{filename} does not fit the config's model ({type(model).__name__}): {reason}") from None
        mark_loaded(self)
        self._random_state = checkpoint.get("random_state")
        self.logger.info(f"Load checkpoint from {filename}")
        return checkpoint

    def dump_config(self) -> None:
        """Nothing: the launcher writes the config as it was before it was fitted to processes and device."""

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a training checkpoint of ours or mmengine's: all states and the position in the data.

        Raises:
            UserError: if the checkpoint cannot be continued with this config (`adpe.engine.resuming.resumption`).
        """
        self.strict_load = True
        self._resumption = Resumption(self)
        super().resume(filename, *args, **kwargs)
        self._resumption.finish()
        self._resumption = None
        if self._random_state is not None and is_main_process():
            set_random_state(self._random_state)
        position(self.train_loop)
