#!/usr/bin/env python
"""Time the checks of a COCO file of train2017's size, generated: by default 118,287 images and 860,001 annotations.

    python benchmarks/speed/coco_checks.py
    python benchmarks/speed/coco_checks.py --images 5000 --annotations 36335

Polygons have the length of COCO's (25 points on average), one annotation in 90 is a crowd with run lengths. The
second reading finds the first one's result by the file's content.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

WIDTH, HEIGHT, CLASSES = 640, 480, 80


def contents(images: int, annotations: int) -> dict[str, Any]:
    """A valid file: polygons around ellipses, and some crowds."""
    numbers = np.random.default_rng(0)
    radii = numbers.uniform(4, 100, (annotations, 2))
    centres = numbers.uniform(radii + 1, np.array([WIDTH, HEIGHT]) - radii - 1)
    points = numbers.integers(6, 45, annotations)
    owners = numbers.integers(1, images + 1, annotations)
    classes = numbers.integers(1, CLASSES + 1, annotations)
    entries = []
    for i in range(annotations):
        (x, y), (a, b) = centres[i], radii[i]
        if i % 90 == 0:
            left, top, side = int(x - a), int(y - b), 8
            counts = [left * HEIGHT + top, *([side, HEIGHT - side] * (side - 1)), side]
            counts.append(WIDTH * HEIGHT - sum(counts))
            mask: Any = {"size": [HEIGHT, WIDTH], "counts": counts}
            box, area = [left, top, side, side], side * side
        else:
            angles = np.linspace(0, 2 * np.pi, points[i], endpoint=False)
            outline = np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], axis=1).round(2)
            mask = [outline.ravel().tolist()]
            low, high = outline.min(0), outline.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
            rolled = np.roll(outline, -1, axis=0)
            area = abs(float((outline[:, 0] * rolled[:, 1] - rolled[:, 0] * outline[:, 1]).sum())) / 2
        entries.append(
            {
                "id": i + 1,
                "image_id": int(owners[i]),
                "category_id": int(classes[i]),
                "bbox": box,
                "area": area,
                "iscrowd": int(i % 90 == 0),
                "segmentation": mask,
            }
        )
    size = {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", **size} for i in range(1, images + 1)],
        "annotations": entries,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118287)
    parser.add_argument("--annotations", type=int, default=860001)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADPE_CACHE"] = folder
        from adpe.data.checks.coco import checked_coco

        file = Path(folder, "instances.json")
        file.write_text(json.dumps(contents(options.images, options.annotations)))
        size = file.stat().st_size / 2**20
        print(f"{options.images:,} images, {options.annotations:,} annotations, {size:,.0f} MiB")
        for name in ("checked", "checked again, found in the cache"):
            wall, processor = time.perf_counter(), time.process_time()
            checked = checked_coco(file)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            print(f"{name}: {processor:.1f} s of processor time, {wall:.1f} s; findings: {len(checked.findings)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
