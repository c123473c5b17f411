"""Pictures of what a run did: loss curves, predictions beside the ground truth; and reading its scalars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from adpe.errors import UserError
from adpe.files import atomic_write

Curve = list[tuple[float, float]]

_BOOKKEEPING = ("step", "iter", "epoch", "time", "data_time", "memory")
_WIDTH = 10.0  # inches; at 120 dots per inch the pictures are 1200 pixels wide
_DPI = 120
_COLOURS = tuple(mpl.color_sequences["tab10"])


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """Scalars that mmengine's local backend wrote under ``<work_dir>/<timestamp>/vis_data/scalars.json``.

    The files of a resumed run are joined in the order of their timestamps; steps that the later one repeats are taken
    from it. A run that restarts from its beginning replaces what came before. A truncated last line, as an interrupted
    run leaves it, is passed over, and so are files without any training step (validation alone) and the names of timing
    and memory.

    Returns:
        Name as logged (``"loss"``, ``"mIoU"``, ``"coco/bbox_mAP"``) -> [(step, value)]. Steps are iterations for what
        is logged in training; for validation they are iterations or epochs, as the run's LoggerHook counts them.
        Values that are not finite are kept.

    Raises:
        UserError: if there is no such file or a line other than the last cannot be read.
    """
    paths = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    if not paths:
        raise UserError(f"{work_dir}: no <timestamp>/vis_data/scalars.json in it; expected the work_dir of a run.")
    merged: dict[str, Curve] = {}
    beginning = math.inf
    for path in paths:
        lines = _read_lines(path)
        # mmengine writes "iter" into the lines of training alone.
        first = min((line["step"] for line in lines if "iter" in line), default=math.inf)
        if first == math.inf:
            continue
        if first <= beginning:
            merged, beginning = {}, first
        curves: dict[str, Curve] = {}
        for line in lines:
            for name, value in line.items():
                if name not in _BOOKKEEPING and isinstance(value, (int, float)):
                    curves.setdefault(name, []).append((line["step"], float(value)))
        for name, curve in curves.items():
            merged[name] = [point for point in merged.get(name, []) if point[0] < curve[0][0]] + curve
    return merged


def loss_curves(
    curves: Mapping[str, Curve],
    path: str | Path,
    *,
    title: str = "Training loss",
    x: str = "iteration",
    y: str = "loss",
) -> Path:
    """Draw one line per run.

    Args:
        curves: label -> [(step, value)]; values that are not finite leave a gap.
        path: PNG to write.
        title: of the picture.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    figure, (axes,) = _figure(1, 1, 4.5, title)
    for index, (label, points) in enumerate(curves.items()):
        steps, values = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
        marker = "o" if len(steps) < 25 else None
        axes.plot(steps, values, label=label, color=_COLOURS[index % len(_COLOURS)], linewidth=1.6, marker=marker, ms=4)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(ncols=2 if len(curves) > 4 else 1, frameon=False)
    return _save(figure, path)


def segmentations(
    images: Any,
    predictions: Any,
    truths: Any,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: str | Path,
    *,
    title: str = "Segmentation",
    ignore_index: int = 255,
) -> Path:
    """One row per image: the image, the true classes and the predicted ones, with a legend of the classes in them.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3), float in [0, 1] or uint8.
        predictions: (B, H, W) class indices, or label -> such an array for several models side by side.
        truths: (B, H, W) class indices; `ignore_index` is drawn black.
        class_names: name of each class.
        palette: RGB in 0-255 of each class.
        path: PNG to write.
        title: of the picture.
        ignore_index: label of pixels without ground truth.
    """
    several = predictions if isinstance(predictions, Mapping) else {"prediction": predictions}
    labels = {"truth": _array(truths), **{name: _array(maps) for name, maps in several.items()}}
    colours = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
    if len(colours) < len(class_names):
        raise UserError(f"palette has {len(colours)} colours for {len(class_names)} classes.")
    _same_length({"image": as_images(images), **labels})
    present = np.unique(np.concatenate([maps.ravel() for maps in labels.values()]))
    unknown = [int(index) for index in present if index != ignore_index and not 0 <= index < len(class_names)]
    if unknown:
        raise UserError(f"class indices {unknown} are outside the {len(class_names)} class names.")
    table = np.zeros((max(int(present.max(initial=0)), ignore_index) + 1, 3), dtype=np.uint8)
    table[: len(class_names)] = colours[: len(class_names)]
    table[ignore_index] = 0
    columns = {"image": as_images(images), **{name: table[maps] for name, maps in labels.items()}}
    legend = [Patch(color=colours[i] / 255.0, label=class_names[i]) for i in present if i != ignore_index]
    if ignore_index in present:
        legend.append(Patch(color="black", label="no ground truth"))
    return _grid(columns, path, title, legend)


def detections(
    images: Any,
    predictions: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    truths: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    path: str | Path,
    *,
    title: str = "Detection",
    score_threshold: float = 0.3,
) -> Path:
    """One row per image: true objects beside predicted ones, as boxes and translucent masks with class and score.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3), float in [0, 1] or uint8.
        predictions: per image a mapping with ``boxes`` (N, 4) in pixels x1 y1 x2 y2, ``labels`` (N,), ``scores`` (N,)
            and, if there are any, ``masks`` (N, H, W) bool; or label -> such a list for several models side by side.
        truths: the same without scores.
        class_names: name of each class.
        path: PNG to write.
        title: of the picture.
        score_threshold: predictions below it are not drawn.
    """
    pictures = as_images(images)
    several = predictions if isinstance(predictions, Mapping) else {"prediction": predictions}
    columns: dict[str, Sequence[Mapping[str, Any]]] = {"truth": truths, **several}
    _same_length({"image": pictures, **columns})
    figure, cells = _figure(len(pictures), len(columns), _WIDTH / len(columns) * _aspect(pictures), title)
    for index, (name, objects) in enumerate(columns.items()):
        for number, image in enumerate(pictures):
            axes = cells[number * len(columns) + index]
            shown = _draw_objects(axes, image, objects[number], class_names, score_threshold)
            noun = "object" if shown == 1 else "objects"
            count = f"{shown} {noun}" if name == "truth" else f"{shown} with score ≥ {score_threshold:g}"
            axes.set_title(f"{name}: {count}", fontsize=11)
    return _save(figure, path)


def as_images(batch: Any) -> np.ndarray:
    """Tensor or array (B, 3, H, W) or (B, H, W, 3), float in [0, 1] or uint8 -> (B, H, W, 3) uint8; floats are clipped.

    Raises:
        UserError: for another shape.
    """
    array = _array(batch)
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
        raise UserError(f"expected images of shape (B, 3, H, W) or (B, H, W, 3), found {array.shape}.")
    if array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.dtype == np.uint8:
        return array
    return np.rint(np.nan_to_num(array).clip(0, 1) * 255).astype(np.uint8)


def _draw_objects(
    axes: Axes, image: np.ndarray, objects: Mapping[str, Any], class_names: Sequence[str], score_threshold: float
) -> int:
    boxes = _array(objects["boxes"]).reshape(-1, 4)
    labels = _array(objects["labels"]).astype(int)
    scores = _array(objects["scores"]) if objects.get("scores") is not None else np.full(len(boxes), np.nan)
    masks = _array(objects["masks"]).astype(bool) if objects.get("masks") is not None else None
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise UserError(f"labels {sorted(set(labels.tolist()))} are not all among the {len(class_names)} class names.")
    # A score of NaN, the ground truth's, is never below the threshold.
    kept = [index for index in range(len(boxes)) if not scores[index] < score_threshold]
    canvas = image.astype(np.float64) / 255.0
    colours = {index: np.array(to_rgb(_COLOURS[labels[index] % len(_COLOURS)])) for index in kept}
    for index in kept if masks is not None else ():
        canvas[masks[index]] = 0.5 * canvas[masks[index]] + 0.5 * colours[index]  # type: ignore[index]
    _show(axes, canvas)
    for index in kept:
        # imshow puts the centre of the first pixel at 0, boxes put its corner there.
        x1, y1, x2, y2 = boxes[index] - 0.5
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colours[index], linewidth=1.5))
        text = class_names[labels[index]] + ("" if np.isnan(scores[index]) else f" {scores[index]:.2f}")
        above = "bottom" if y1 > 0.06 * len(image) else "top"
        axes.text(x1, y1, text, fontsize=8, color="white", va=above, clip_on=True, bbox=_label(colours[index]))
    return len(kept)


def _label(colour: np.ndarray) -> dict[str, Any]:
    return {"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.85}


def _grid(columns: Mapping[str, np.ndarray], path: str | Path, title: str, legend: Sequence[Patch] = ()) -> Path:
    rows = len(next(iter(columns.values())))
    figure, cells = _figure(rows, len(columns), _WIDTH / len(columns) * _aspect(columns["image"]), title)
    for index, (name, images) in enumerate(columns.items()):
        for number, image in enumerate(images):
            axes = cells[number * len(columns) + index]
            _show(axes, image)
            if number == 0:
                axes.set_title(name, fontsize=11)
    if legend:
        _add_legend(figure, legend)
    return _save(figure, path)


def _add_legend(figure: Figure, handles: Sequence[Patch]) -> None:
    """Below the figure, in as many columns as fit its width."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for columns in range(min(len(handles), 8), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()


def _figure(rows: int, columns: int, row_height: float, title: str) -> tuple[Figure, list[Axes]]:
    if rows == 0:
        raise UserError(f"{title}: no images to draw.")
    figure = Figure(figsize=(_WIDTH, row_height * rows + 0.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 256 else "antialiased")
    axes.set_axis_off()


def _aspect(images: np.ndarray) -> float:
    return images.shape[1] / images.shape[2]


def _save(figure: Figure, path: str | Path) -> Path:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _array(values: Any) -> np.ndarray:
    """A tensor on any device, a list of arrays or an array as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.detach().cpu().numpy()
    return np.asarray(values)


def _same_length(parts: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"different numbers of images: {lengths}.")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(texts):
                break
            raise UserError(f"{path}, line {number}: not JSON; delete the line or the file.") from None
        if not isinstance(line, dict) or "step" not in line:
            raise UserError(f"{path}, line {number}: expected a mapping with a step, as mmengine logs it.")
        lines.append(line)
    return lines
