"""The contract between a pretraining method and the engine that trains it.

A method is one file: it holds the networks, says what is minimised, how parameters are grouped, what happens after an
optimiser step, and what people look at. Engine, hooks, checkpoints and tools know this class alone. A new method is
listed in :data:`adpe.methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from adpe.models.factory import create_encoder
from adpe.models.layers import Block

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from adpe.models.specification import ModelSpecification


class Progress(NamedTuple):
    """How far a training is, for schedules of a method. The default is its first step.

    Attributes:
        iteration: forward passes done.
        iterations: forward passes in all.
        epoch: whole passes over the data done.
        epochs: passes over the data in all.
    """

    iteration: int = 0
    iterations: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Share of the forward passes done, in [0, 1)."""
        return self.iteration / max(self.iterations, 1)


class PretrainingMethod(nn.Module):
    """Base of every pretraining method.

    Everything that a resumed run needs (a teacher, centres, queues, codebooks) is a parameter or a persistent buffer:
    it is then in the checkpoint, and a resumed run is bit-equal. What follows from progress is computed from it.

    Attributes:
        encoder: what is pretrained.
        unit_pixels: views have pixels in [0, 1] instead of pixels normalised by the preprocessor's mean and std.
        own_normalisation: mean and std by which a method with `unit_pixels` normalises what its encoder sees.
        export_name: the file in the work directory that :meth:`export` writes.
        whole_batch: the loss compares the images of a pass with each other, so that a batch which is divided over
            passes (accumulation) has another loss.
    """

    encoder: Any
    unit_pixels: ClassVar[bool] = False
    own_normalisation: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None
    export_name: ClassVar[str] = "encoder.safetensors"
    whole_batch: ClassVar[bool] = False

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> PretrainingMethod:
        """The method around an encoder of a named size.

        Args:
            model: name for :func:`adpe.create_encoder`.
            encoder_options: options of the config that are none of the method's own.
            options: of the method.
        """
        return cls(create_encoder(model, **encoder_options), **options)

    @property
    def title(self) -> str:
        """The method's name in records and tables."""
        return type(self).__name__

    def losses(self, views: Sequence[Tensor], progress: Progress = Progress()) -> dict[str, Tensor]:  # noqa: B008
        """One forward pass.

        Args:
            views: groups of crops, each ``(B, V, C, h, w)`` with V crops of one size per image.
            progress: of the training.

        Returns:
            scalars by name. Those whose name contains "loss" are added up and minimised, the others are logged.
        """
        raise NotImplementedError

    def parameter_groups(self, lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, each with a ``name``; see :func:`decay_groups` for the default.

        Args:
            lr: base learning rate.
            weight_decay: of matrices.
            options: `paramwise_cfg` of the config.

        Raises:
            TypeError: for an option that the method does not have.
        """
        if options:
            raise TypeError(f"{type(self).__name__} has no paramwise_cfg {', '.join(sorted(options))}.")
        return decay_groups(self, lr, weight_decay)

    def resting(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Trainable parameters that a step leaves alone: no update, weight decay or moments."""
        return []

    def before_step(self, progress: Progress) -> None:
        """Runs before every optimiser step, after clipping: drops the gradients of what is :meth:`resting`."""
        for parameter in self.resting(progress):
            parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Runs after every optimiser step, on every process: a projection, a teacher's moving average."""

    def compiled(self) -> Iterable[nn.Module]:
        """Modules that ``compile=True`` compiles."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def ascending(self) -> dict[str, nn.Parameter]:
        """Parameters that maximise the loss, by name; the engine checks that they are optimised so and move."""
        return {}

    @property
    def ascent_is_bounded(self) -> bool:
        """Whether ascending parameters are projected, and may therefore rest at a bound."""
        return False

    def collapse(self, progress: Progress) -> str | None:
        """A sentence if the training has collapsed (unused codes, constant teacher), or None. Asked now and then."""
        return None

    def exported(self) -> nn.Module:
        """The encoder that transfer starts from."""
        return self.encoder

    def export(self, path: Path, specification: ModelSpecification | None) -> None:
        """Write what transfer starts from, the encoder alone, at the end of training.

        Args:
            path: of the file.
            specification: what the file says of the encoder.
        """
        from adpe.checkpoints.loading import save_checkpoint  # which knows the methods

        state = {f"encoder.{name}": tensor for name, tensor in self.exported().state_dict().items()}
        save_checkpoint(state, path, specification=specification)

    def made_with(self) -> dict[str, Any]:
        """Frozen models of files that the method uses, for the run's record: role to what says which."""
        return {}

    def scalars(self) -> dict[str, float]:
        """Numbers to follow over training, ``group/name`` to value."""
        return {}

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        """Pictures of held views, by name.

        Args:
            views: as :meth:`losses` takes them, without augmentation drawn anew.
            mean: of the channels, for pixels in [0, 1], by which the views are normalised.
            std: likewise.
        """
        return {}

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of whole images by the exported encoder, as timm means it."""
        return self.exported().forward_features(images)  # type: ignore[operator]


def decay_groups(
    module: nn.Module, lr: float, weight_decay: float, without: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """MAE's two groups: matrices and tokens decay, 1-D tensors and biases do not.

    Args:
        module: whose trainable parameters are grouped.
        lr: learning rate of both.
        weight_decay: of the first.
        without: names left out, of parameters that have groups of their own.
    """
    excluded = set(without)
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name not in excluded:
            (no_decay if parameter.ndim <= 1 or name.endswith(".bias") else decay).append(parameter)
    return [
        {"name": "decay", "params": decay, "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "lr": lr, "weight_decay": 0.0},
    ]
