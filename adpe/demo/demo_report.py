"""What the demo shows at its end: pictures of every stage, the leaderboard, the page."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from rich.console import Console

import adpe.engine  # noqa: F401  registers models and data sets
from adpe.checkpoints.loading import load_checkpoint
from adpe.checkpoints.reading import build_model
from adpe.data.sources.images import ImageSource
from adpe.data.sources.pixels import decode_picture
from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD, MultiCrop, crop_generator
from adpe.engine.hooks.checkpointing import latest_checkpoint, read_training_checkpoint
from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.leaderboard.formats import print_terminal, to_csv, to_markdown
from adpe.leaderboard.html.figures import Chart, Picture
from adpe.leaderboard.html.page import write_page
from adpe.leaderboard.html.runs import Run
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import read_records
from adpe.viz.figures import draw_images, save_png
from adpe.viz.predictions import detections, loss_curves, read_scalars, segmentations
from adpe.viz.reconstructions import reconstruct

if TYPE_CHECKING:
    from adpe.demo.chain import Data
    from adpe.suites.suite import Run as Training
    from adpe.suites.suite import Suite

SHOWN = 4
_LINKS = (
    ("linear-segmentation", "One linear layer on a frozen encoder: segmentation of validation images"),
    ("upernet", "UperNet, fine-tuned: segmentation of validation images"),
    ("mask-r-cnn", "Mask R-CNN, fine-tuned: detections on validation images"),
)


def write_report(folder: Path, data: Data, suite: Suite, runs: Sequence[Training], console: Console) -> Path:
    """Draw the pictures, print the leaderboard and write `leaderboard.md`, `leaderboard.csv` and `index.html`.

    Args:
        folder: of the demo.
        data: what it ran on.
        suite: what was run.
        runs: finished trainings; the first seed's are drawn.
        console: where the tables are printed.

    Returns:
        the page.
    """
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    records, faults, sections = [], [], []
    for run in runs:
        found, wrong = read_records(run.work_dir(folder) / "record.jsonl")
        records += found[-1:]
        faults += wrong
        curves = read_scalars(run.work_dir(folder))
        chart = Chart("Training loss", "iteration", "loss", {"loss": curves.get("loss", [])})
        sections += [Run(record, charts=[chart]) for record in found[-1:]]
    first = {run.name.rpartition("/")[0]: run for run in runs if run.seed == runs[0].seed}
    with open(folder / "report.log", "w") as log, redirect_stdout(log), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' deprecations; their own tables go to the log
        shown = _pictures(first, folder, pictures, data)
    board = build_leaderboard(records, baseline="random", faults=faults)
    print_terminal(board, console)
    write_text(folder / "leaderboard.md", to_markdown(board))
    write_text(folder / "leaderboard.csv", to_csv(board))
    return write_page(
        folder / "index.html",
        suite.title,
        board,
        introduction=[suite.text, f"Data: {data.text}."],
        pictures=shown,
        runs=sections,
    )


def _pictures(runs: Mapping[str, Training], folder: Path, pictures: Path, data: Data) -> list[Picture]:
    pretrainings = {run.method: run for run in runs.values() if run.task == "pretraining"}
    curves = {method: read_scalars(run.work_dir(folder)).get("loss", []) for method, run in pretrainings.items()}
    path = loss_curves(curves, pictures / "pretraining.png", title=f"Pretraining loss on {data.name}")
    shown = [Picture(path, "Pretraining: mean squared error over hidden patches.")]
    last = list(pretrainings.values())[-1]
    path = _reconstruct(last.work_dir(folder), data, pictures / "reconstructions.png")
    caption = f"{last.method}: validation images, what the encoder saw of them, and what the decoder reconstructed."
    shown.append(Picture(path, caption))
    for task, text in _LINKS:
        own = {run.method: run for name, run in runs.items() if name.endswith(f"/{task}")}
        curves = {method: read_scalars(run.work_dir(folder)).get("loss", []) for method, run in own.items()}
        title = next(iter(own.values())).task
        path = loss_curves(curves, pictures / f"{task}-loss.png", title=f"{title}: training loss")
        shown.append(Picture(path, f"{title}: the same recipe from every start."))
        draw = _detect if task == "mask-r-cnn" else _segment
        compared = {m: run for m, run in own.items() if m in (next(iter(own)), last.method)}
        path = draw({m: (run, run.work_dir(folder)) for m, run in compared.items()}, pictures / f"{task}.png")
        shown.append(Picture(path, f"{text} beside the ground truth."))
    return shown


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _checkpoint(folder: Path) -> Path:
    """The last checkpoint of a finished run."""
    found = latest_checkpoint(folder)
    if found is None:
        raise UserError(f"{folder} has no checkpoint: run the demo again.")
    return found[0]


def _load(run: Training, folder: Path) -> tuple[Config, Any]:
    """Config and trained segmentor or detector of a run, in evaluation mode on the CPU."""
    cfg = Config.fromfile(folder / Path(run.config).name)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.load_state_dict(read_training_checkpoint(_checkpoint(folder))["state_dict"])
    return cfg, model.eval()


@torch.no_grad()
def _predict(run: Training, folder: Path) -> tuple[Any, list[Any], list[Any]]:
    """Validation data set, some of its items, and the model's samples for them."""
    cfg, model = _load(run, folder)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    step = max(1, len(dataset) // SHOWN)
    items = [dataset[i * step] for i in range(min(SHOWN, len(dataset)))]
    return dataset, items, [model.test_step(pseudo_collate([item]))[0] for item in items]


def original(sample: Any) -> np.ndarray:
    """The image of a sample, (H, W, 3) uint8 RGB, turned as it was for the model."""
    return np.asarray(decode_picture(Path(sample.img_path).read_bytes(), sample.img_path, sample.get("ori_shape")))


@torch.no_grad()
def _reconstruct(pretraining: Path, data: Data, path: Path) -> Path:
    """Reconstructions of validation images at the size that pretraining saw."""
    checkpoint = _checkpoint(pretraining)
    model: Any = build_model(checkpoint).eval()
    load_checkpoint(model, checkpoint, verbose=False)
    source = ImageSource(str(data.root / "images/validation"))
    size = model.encoder.img_size[0]
    whole = MultiCrop(size=size, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    step = max(1, len(source) // SHOWN)
    chosen = [i * step for i in range(min(SHOWN, len(source)))]
    images = torch.cat([whole(source.load(i)[0], crop_generator(0, 0, i)) for i in chosen])
    patches = (size // model.encoder.patch_size) ** 2
    noise = torch.rand(len(images), patches, generator=torch.Generator().manual_seed(0))
    title = f"Reconstructions, {model.mask_ratio:.0%} of the patches hidden"
    return save_png(draw_images(reconstruct(model, images, noise, IMAGENET_MEAN, IMAGENET_STD), title), path)


def _same_size(arrays: list[np.ndarray]) -> tuple[int, int]:
    return min(a.shape[0] for a in arrays), min(a.shape[1] for a in arrays)


def _segment(runs: Mapping[str, tuple[Training, Path]], path: Path) -> Path:
    predicted = {}
    for method, (run, folder) in runs.items():
        dataset, items, samples = _predict(run, folder)
        predicted[method] = [sample.pred_sem_seg.data[0].numpy() for sample in samples]
    images = [original(sample) for sample in samples]
    truths = [item["data_samples"].gt_sem_seg.data[0].numpy() for item in items]
    h, w = _same_size(images)
    maps = {name: np.stack([p[:h, :w] for p in values]) for name, values in predicted.items()}
    classes, palette = dataset.metainfo["classes"], dataset.metainfo["palette"]
    return segmentations(
        np.stack([i[:h, :w] for i in images]), maps, np.stack([t[:h, :w] for t in truths]), classes, palette, path
    )


def _detect(runs: Mapping[str, tuple[Training, Path]], path: Path) -> Path:
    predicted = {}
    for method, (run, folder) in runs.items():
        dataset, items, samples = _predict(run, folder)
        predicted[method] = [sample.pred_instances.numpy() for sample in samples]
    images = [original(sample) for sample in samples]
    h, w = _same_size(images)
    found = {
        name: [
            {"boxes": p.bboxes, "labels": p.labels, "scores": p.scores, "masks": p.masks[:, :h, :w].astype(bool)}
            for p in values
        ]
        for name, values in predicted.items()
    }
    truths = []
    for item in items:
        truth = item["data_samples"].gt_instances
        boxes = getattr(truth.bboxes, "tensor", truth.bboxes).numpy()
        scale_x, scale_y = item["data_samples"].scale_factor
        masks = truth.masks.resize(item["data_samples"].ori_shape).to_ndarray()[:, :h, :w].astype(bool)
        boxes = boxes / [scale_x, scale_y, scale_x, scale_y]
        truths.append({"boxes": boxes, "labels": truth.labels.numpy(), "masks": masks})
    return detections(np.stack([i[:h, :w] for i in images]), found, truths, dataset.metainfo["classes"], path)
