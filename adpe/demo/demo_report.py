"""What the demo shows at its end: pictures of every stage, the leaderboard, the page."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
from adpe.demo.chain import write_text
from adpe.engine.hooks.checkpointing import latest_checkpoint, read_training_checkpoint
from adpe.errors import UserError
from adpe.leaderboard.html.page import Chart, Picture, Run, write_page
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.records import read_records
from adpe.leaderboard.tables import print_terminal, to_csv, to_markdown
from adpe.viz.figures import draw_images, save_png
from adpe.viz.predictions import detections, loss_curves, read_scalars, segmentations
from adpe.viz.reconstructions import reconstruct

if TYPE_CHECKING:
    from adpe.demo.chain import Stage

SHOWN = 4


def write_report(work_dir: Path, data_root: Path, name: str, stages: Sequence[Stage], console: Console) -> Path:
    """Draw the pictures, print the leaderboard and write `leaderboard.md`, `leaderboard.csv` and `index.html`.

    Args:
        work_dir: of the demo.
        data_root: what it ran on.
        name: of the data.
        stages: finished trainings; the first seed's are drawn.
        console: where the tables are printed.

    Returns:
        the page.
    """
    pictures = work_dir / "pictures"
    pictures.mkdir(exist_ok=True)
    records, faults, runs = [], [], []
    for stage in stages:
        found, wrong = read_records(stage.record)
        records += found[-1:]
        faults += wrong
        curves = read_scalars(stage.work_dir)
        chart = Chart("Training loss", "iteration", "loss", {"loss": curves.get("loss", [])})
        runs += [Run(record, charts=[chart]) for record in found[-1:]]
    first = [stage for stage in stages if stage.seed == stages[0].seed]
    with open(work_dir / "report.log", "w") as log, redirect_stdout(log), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' deprecations; their own tables go to the log
        shown = _pictures(first, pictures, name)
    board = build_leaderboard(records, baseline="random", faults=faults)
    print_terminal(board, console)
    write_text(work_dir / "leaderboard.md", to_markdown(board))
    write_text(work_dir / "leaderboard.csv", to_csv(board))
    introduction = [
        f"A small ViT pretrained with AdPE on {name}, then transferred to semantic segmentation (UperNet, mIoU) and to "
        "instance segmentation (Mask R-CNN, COCO AP), against the same networks trained from random weights.",
        f"Data: {data_root}",
    ]
    return write_page(
        work_dir / "index.html", f"AdPE on {name}", board, introduction=introduction, pictures=shown, runs=runs
    )


def _pictures(stages: Sequence[Stage], folder: Path, name: str) -> list[Picture]:
    pretraining = stages[0]
    scalars = read_scalars(pretraining.work_dir)
    curves = {"AdPE": scalars.get("loss", [])}
    path = loss_curves(curves, folder / "pretraining.png", title=f"Pretraining loss on {name}")
    shown = [Picture(path, "Pretraining: mean squared error over masked patches.")]
    shown.append(Picture(_reconstruct(pretraining, stages[1], folder / "reconstructions.png"),
                         "Validation images, what the encoder saw of them, and what the decoder painted."))  # fmt: skip
    for task, draw in (("segmentation", _segment), ("detection", _detect)):
        own = {s.work_dir.name.rpartition("-")[2]: s for s in stages if s.work_dir.name.startswith(task)}
        curves = {f"{start} start": read_scalars(stage.work_dir).get("loss", []) for start, stage in own.items()}
        path = loss_curves(curves, folder / f"{task}-loss.png", title=f"{task.capitalize()}: training loss")
        shown.append(Picture(path, f"{task.capitalize()}: the same recipe from both starts."))
        caption = f"{task.capitalize()} of validation images beside the ground truth."
        shown.append(Picture(draw(own, folder / f"{task}.png"), caption))
    return shown


def _checkpoint(stage: Stage) -> Path:
    """The last checkpoint of a finished stage."""
    found = latest_checkpoint(stage.work_dir)
    if found is None:
        raise UserError(f"{stage.work_dir} has no checkpoint: run the demo again.")
    return found[0]


def _load(stage: Stage) -> tuple[Config, Any]:
    """Config and trained segmentor or detector of a stage, in evaluation mode on the CPU."""
    cfg = Config.fromfile(stage.work_dir / Path(stage.config).name)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.load_state_dict(read_training_checkpoint(_checkpoint(stage))["state_dict"])
    return cfg, model.eval()


@torch.no_grad()
def _predict(stage: Stage) -> tuple[Any, list[Any], list[Any]]:
    """Validation data set, its first items, and the model's samples for them."""
    cfg, model = _load(stage)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    step = max(1, len(dataset) // SHOWN)
    items = [dataset[i * step] for i in range(min(SHOWN, len(dataset)))]
    return dataset, items, [model.test_step(pseudo_collate([item]))[0] for item in items]


def original(sample: Any) -> np.ndarray:
    """The image of a sample, (H, W, 3) uint8 RGB, turned as it was for the model."""
    return np.asarray(decode_picture(Path(sample.img_path).read_bytes(), sample.img_path, sample.get("ori_shape")))


@torch.no_grad()
def _reconstruct(pretraining: Stage, annotated: Stage, path: Path) -> Path:
    """Reconstructions of validation images at the size that pretraining saw."""
    checkpoint = _checkpoint(pretraining)
    model: Any = build_model(checkpoint).eval()
    load_checkpoint(model, checkpoint, verbose=False)
    source = ImageSource(str(Path(annotated.options["data_root"]) / "images/validation"))
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


def _segment(stages: dict[str, Stage], path: Path) -> Path:
    predicted = {}
    for start, stage in stages.items():
        dataset, items, samples = _predict(stage)
        predicted[f"{start} start"] = [sample.pred_sem_seg.data[0].numpy() for sample in samples]
    images = [original(sample) for sample in samples]
    truths = [item["data_samples"].gt_sem_seg.data[0].numpy() for item in items]
    h, w = _same_size(images)
    maps = {name: np.stack([p[:h, :w] for p in values]) for name, values in predicted.items()}
    classes, palette = dataset.metainfo["classes"], dataset.metainfo["palette"]
    return segmentations(
        np.stack([i[:h, :w] for i in images]), maps, np.stack([t[:h, :w] for t in truths]), classes, palette, path
    )


def _detect(stages: dict[str, Stage], path: Path) -> Path:
    predicted = {}
    for start, stage in stages.items():
        dataset, items, samples = _predict(stage)
        predicted[f"{start} start"] = [sample.pred_instances.numpy() for sample in samples]
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
