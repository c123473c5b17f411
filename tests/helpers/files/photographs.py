"""Four photographs of scikit-image and scikit-learn with annotated objects: a data set small enough to learn by heart.

None is square. Files below the root are those of `adpe.data.scenes`: images/, annotations/, instances_*.json,
classes.json; training and validation hold the same four.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from adpe.data.composition import _load_photograph

CLASSES = ("background", "saucer", "cup", "cat", "flower", "pavilion")
# Photograph: class and outline (x, y) of every object, in pixels of the photograph at a width of 480. Later objects lie
# over earlier ones in the label map.
OBJECTS: dict[str, list[tuple[str, list[tuple[int, int]]]]] = {
    "coffee.png": [
        ("saucer", [(62, 165), (80, 110), (140, 60), (320, 60), (370, 110), (383, 170), (365, 230), (310, 285),
                    (230, 306), (150, 293), (90, 245)]),
        ("cup", [(140, 70), (160, 35), (200, 16), (250, 15), (295, 30), (325, 65), (328, 100), (305, 175), (275, 188),
                 (215, 190), (180, 185), (150, 140), (138, 100)]),
    ],
    "chelsea.png": [
        ("cat", [(40, 110), (60, 45), (95, 0), (425, 0), (385, 60), (385, 130), (355, 210), (330, 290), (300, 319),
                 (200, 319), (120, 280), (70, 220)]),
    ],
    "flower.jpg": [
        ("flower", [(128, 165), (150, 95), (190, 68), (235, 63), (285, 73), (322, 105), (335, 165), (315, 225),
                    (270, 258), (232, 268), (190, 262), (145, 225)]),
        ("flower", [(217, 319), (225, 290), (255, 283), (300, 285), (330, 300), (335, 319)]),
    ],
    "china.jpg": [
        ("pavilion", [(152, 22), (160, 45), (238, 90), (240, 130), (262, 185), (255, 215), (275, 255), (240, 285),
                      (235, 319), (150, 319), (90, 255), (50, 190), (62, 130), (70, 85), (140, 45)]),
    ],
}  # fmt: skip


def write_photographs(root: Path, width: int) -> Path:
    """Write the data set with photographs `width` pixels wide. Returns the root."""
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, objects in OBJECTS.items():
            image = photograph(name, width)
            stem = Path(name).stem
            image.save(root / "images" / split / f"{stem}.jpg", quality=95)
            labels = Image.new("L", image.size, 1)
            images.append({"id": len(images) + 1, "file_name": f"{stem}.jpg", "width": width, "height": image.height})
            for kind, outline in objects:
                points = [(x * width / 480, min(y * width / 480, image.height)) for x, y in outline]
                ImageDraw.Draw(labels).polygon(points, fill=1 + CLASSES.index(kind))
                left, top = np.min(points, axis=0).tolist()
                right, bottom = np.max(points, axis=0).tolist()
                x, y = np.array(points).T
                annotations.append({
                    "id": len(annotations) + 1, "image_id": len(images), "category_id": CLASSES.index(kind),
                    "iscrowd": 0, "bbox": [left, top, right - left, bottom - top],
                    "area": float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2),
                    "segmentation": [[float(value) for point in points for value in point]],
                })  # fmt: skip
            labels.save(root / "annotations" / split / f"{stem}.png")
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES) if i]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(document))
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


@cache
def photograph(name: str, width: int) -> Image.Image:
    image = _load_photograph(name)
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
