"""Predictions of a trained model on pictures without labels: what `tools/infer.py` does.

Segmentation gives a PNG of class numbers and a picture per image, detection one JSON in COCO's layout and a picture per
image, classification one JSON of the likeliest classes.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, VISUALIZERS, init_default_scope

from adpe.data.sources.images import ImageSource
from adpe.data.sources.names import is_hidden, is_image
from adpe.data.sources.pixels import CorruptImageError
from adpe.engine.config import read_config
from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.engine.hooks.label_guard import classes_of_checkpoint
from adpe.engine.options.conflicts import check_runner
from adpe.engine.settings.device import fit_to_device
from adpe.engine.settings.start import settle_start
from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.garbage import collect_as_usual

_TOLD = 30.0  # seconds between lines of progress
_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations", "FilterAnnotations")


@dataclass
class Model:
    """A trained model, ready for pictures.

    Attributes:
        cfg: of its training.
        model: on its device, in evaluation mode.
        classes: names of its labels.
        palette: RGB of every class, or None.
        scope: "mmseg", "mmdet" or "mmengine" (classification).
    """

    cfg: Config
    model: Any
    classes: tuple[str, ...]
    palette: Sequence[Sequence[int]] | None
    scope: str


@dataclass
class Predicted:
    """What was written.

    Attributes:
        images: pictures that were read.
        unreadable: those that could not be, with the reason.
        files: that were written.
    """

    images: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def infer(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "work_dirs/infer",
    batch_size: int = 4,
    score_threshold: float = 0.3,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> Predicted:
    """Predict pictures and write what is found below `out`, under their names.

    Args:
        config: of the training.
        checkpoint: that it wrote.
        images: pictures, folders (searched through) or patterns.
        out: folder.
        batch_size: pictures at once.
        score_threshold: objects below it are not drawn; the JSON has all.
        device: "cuda" if there is one, else "cpu".
        options: as ``--cfg-options``.
        log: takes a line.

    Raises:
        UserError: for a checkpoint that is not the config's, no picture, or none that can be read.
    """
    paths = find_images(images)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1.")
    model = load_model(config, checkpoint, device, options)
    pipeline = _pipeline(model.cfg, model.scope)
    writer = {"mmseg": _write_segmentation, "mmdet": _write_detection}.get(model.scope, _write_classification)
    done, names, records = Predicted(), _names(paths), []  # type: ignore[var-annotated]
    draw = _drawer(model, score_threshold)
    collect_as_usual()
    folder, told = Path(out), time.time()
    folder.mkdir(parents=True, exist_ok=True)
    for batch in _batches(paths, pipeline, batch_size, done):
        with torch.no_grad():
            found = _predict(model, [data for _, data in batch])
        for (path, _), sample in zip(batch, found, strict=True):
            records.append((path, sample))
            done.images.append(path)
            done.files += writer(model, sample, folder / names[path], draw)
        if time.time() - told > _TOLD:
            told = time.time()
            log(f"{len(done.images)} of {len(paths)} pictures")
    if not done.images:
        reason = next(iter(done.unreadable.items()))
        raise UserError(f"none of {len(paths)} pictures can be read; {reason[0]}: {reason[1]}")
    if model.scope != "mmseg":
        content = _coco_json(model, records) if model.scope == "mmdet" else _likeliest(model, records)
        with atomic_write(folder / "predictions.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        done.files.append(folder / "predictions.json")
    return done


def find_images(given: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Pictures that paths, folders and patterns name, each once, in order.

    Raises:
        UserError: for one that names none.
    """
    found: dict[Path, None] = {}
    for name in map(str, given):
        path = Path(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and is_image(p.name) and not is_hidden(p.name)]
        elif path.is_file():
            inside = [path]
        else:
            inside = [Path(p) for p in sorted(glob(name, recursive=True)) if Path(p).is_file() and is_image(p)]
        if not inside:
            raise UserError(f"{name}: no picture of this name, in this folder or of this pattern.")
        found.update(dict.fromkeys(inside))
    return list(found)


def load_model(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """Build the model of a config with all weights of a checkpoint of its training.

    Raises:
        UserError: for a config without a test pipeline, or a checkpoint of another model.
    """
    cfg = read_config(Path(config), dict(options or {}))
    check_runner(cfg)
    file = read_training_checkpoint(Path(checkpoint))
    if "state_dict" not in file or cfg.get("model") is None:
        raise UserError(f"{checkpoint} is no checkpoint of a training, or {config} has no model.")
    settle_start(cfg, str(checkpoint))
    for node in (cfg.model, cfg.model.get("backbone") or {}):
        node.pop("init_cfg", None)
    fit_to_device(cfg, "none", lambda line: None)
    scope = cfg.get("default_scope") or "mmengine"
    init_default_scope(scope)
    model = MODELS.build(cfg.model)
    try:
        missing, unexpected = model.load_state_dict(file["state_dict"], strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} is not of the model of {config}: {str(error).splitlines()[-1].strip()}"
        ) from None
    if missing or unexpected:
        raise UserError(
            f"{checkpoint} is not of the model of {config}: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:3])}) and has {len(unexpected)} others ({', '.join(unexpected[:3])})."
        )
    classes = classes_of_checkpoint(file)
    meta = (file.get("meta") or {}).get("dataset_meta") or {}
    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    palette = meta.get("palette")
    colors = palette if isinstance(palette, (list, tuple)) else None  # mmdet also has words there
    return Model(cfg, model.to(found).eval(), classes, colors, scope)


def _pipeline(cfg: Config, scope: str) -> Callable[[Path], Any]:
    """What makes the model's input of a picture's path."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    if scope == "mmengine":
        if "transform" not in dataset:
            raise UserError(f"{cfg.filename}: test_dataloader.dataset has no transform that could read pictures.")
        from timm.data import create_transform

        transform = create_transform(**{"no_aug": False, **dataset["transform"]})
        return lambda path: transform(ImageSource(path, on_corrupt="error").load(0)[0])
    steps = [copy.deepcopy(step) for step in dataset.get("pipeline") or [] if step["type"] not in _ANNOTATIONS]
    if not steps:
        raise UserError(f"{cfg.filename}: test_dataloader.dataset has no pipeline that could read pictures.")
    built = [TRANSFORMS.build(step) for step in steps]

    def load(path: Path) -> Any:
        results: Any = {"img_path": str(path), "img_id": str(path), "seg_fields": [], "reduce_zero_label": False}
        for step in built:
            results = step(results)
            if results is None:
                raise CorruptImageError("the test pipeline refuses it")
        return results

    return load


def _batches(
    paths: Sequence[Path], load: Callable[[Path], Any], size: int, done: Predicted
) -> Iterator[list[tuple[Path, Any]]]:
    batch: list[tuple[Path, Any]] = []
    for path in paths:
        try:
            batch.append((path, load(path)))
        except (CorruptImageError, UserError, OSError, ValueError) as error:
            done.unreadable[path] = str(error)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(model: Model, batch: list[Any]) -> list[Any]:
    if model.scope == "mmengine":
        device = next(model.model.parameters()).device
        return list(model.model.logits(torch.stack(batch).to(device)).float().softmax(dim=1).cpu())
    from mmengine.dataset import pseudo_collate

    return model.model.test_step(pseudo_collate(batch))


def _names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Where the results of each picture go: its path below the folder that all share, so that no two are one."""
    shared = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = {path: path.absolute().relative_to(shared) for path in paths}
    stems = [name.with_suffix("") for name in names.values()]
    return {
        path: name.with_suffix("") if stems.count(name.with_suffix("")) == 1 else name for path, name in names.items()
    }


def _drawer(model: Model, score_threshold: float) -> Callable[[Any, Path], list[Path]]:
    """What draws a sample into a PNG; nothing for classification."""
    if model.scope == "mmengine":
        return lambda sample, path: []
    from adpe.viz import framework_pictures as _registers  # noqa: F401

    kind = "SegLocalVisualizer" if model.scope == "mmseg" else "DetLocalVisualizer"
    visualizer = VISUALIZERS.build({"type": kind, "name": f"infer{time.time_ns()}"})
    palette = [tuple(map(int, color)) for color in model.palette or _colors(len(model.classes))]
    visualizer.dataset_meta = {"classes": model.classes, "palette": palette}
    options = {"pred_score_thr": score_threshold} if model.scope == "mmdet" else {"with_labels": False}

    def draw(sample: Any, path: Path) -> list[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        blank = np.zeros((*sample.ori_shape, 3), dtype=np.uint8)  # the visualizer reads the picture itself
        visualizer.add_datasample(path.stem, blank, sample, draw_gt=False, out_file=str(path), **options)
        return [path]

    return draw


def _colors(count: int) -> Any:
    """``(count, 3)`` uint8, far apart."""
    from matplotlib import colormaps

    return (255 * colormaps["turbo"](np.linspace(0.05, 0.95, max(count, 1)))[:, :3]).astype(np.uint8)


def _write_segmentation(model: Model, sample: Any, stem: Path, draw: Callable[[Any, Path], list[Path]]) -> list[Path]:
    """``NAME_mask.png`` of class numbers, 8 bits up to 256 classes and 16 above, and ``NAME.png``."""
    from PIL import Image

    labels = sample.pred_sem_seg.data[0].cpu().numpy()
    path = stem.with_name(f"{stem.name}_mask.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Image.fromarray(labels.astype(np.uint8 if len(model.classes) <= 256 else np.uint16)).save(temporary, "PNG")
    return [path, *draw(sample.cpu(), stem.with_name(f"{stem.name}.png"))]


def _write_detection(model: Model, sample: Any, stem: Path, draw: Callable[[Any, Path], list[Path]]) -> list[Path]:
    return draw(sample.cpu(), stem.with_name(f"{stem.name}.png"))


def _write_classification(model: Model, sample: Any, stem: Path, draw: Callable[[Any, Path], list[Path]]) -> list[Path]:
    return []


def _coco_json(model: Model, records: list[tuple[Path, Any]]) -> dict[str, Any]:
    """Images, categories numbered from 1 in the model's order, and annotations with a score."""
    from pycocotools import mask as coco_mask

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (path, sample) in enumerate(records, start=1):
        height, width = sample.ori_shape
        images.append({"id": number, "file_name": str(path), "height": height, "width": width})
        found = sample.pred_instances.cpu()
        masks = found.masks.numpy() if "masks" in found else [None] * len(found)
        for box, label, score, mask in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), masks,
                                           strict=True):  # fmt: skip
            left, top, right, bottom = box
            one = {
                "id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "score": score, "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
            }  # fmt: skip
            if mask is not None:
                code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                one["area"] = float(coco_mask.area(code))
                one["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
            annotations.append(one)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(model.classes)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _likeliest(model: Model, records: list[tuple[Path, Any]], count: int = 5) -> list[dict[str, Any]]:
    """Of every picture the likeliest classes with their probabilities."""
    answers = []
    for path, scores in records:
        best = scores.topk(min(count, len(scores)))
        names = [model.classes[i] if i < len(model.classes) else str(i) for i in best.indices.tolist()]
        answers.append({"image": str(path), "classes": dict(zip(names, best.values.tolist(), strict=True))})
    return answers
