"""Charts and pictures of the leaderboard page, as its template takes them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from adpe.errors import UserError

_MOST_POINTS = 1000


@dataclass(frozen=True)
class Chart:
    """Lines or points in one pair of axes.

    Attributes:
        title: above the chart.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        series: name -> points (x, y) or, with error bars, (x, y, low, high). Values that are not finite leave a gap.
        lines: join the points of a series, as for losses; False draws points alone, as for speed against accuracy.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, ...]]]
    lines: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file, embedded in the page, and what it shows. One that was embedded before is linked to."""

    path: Path
    caption: str


def chart_data(chart: Chart) -> dict[str, Any]:
    """What page.js draws."""
    series = [
        {"name": name, "points": [_point(point) for point in _thin(points)]} for name, points in chart.series.items()
    ]
    return {"title": chart.title, "x": chart.x, "y": chart.y, "lines": chart.lines, "series": series}


def _thin(points: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    """At most `_MOST_POINTS` of them, evenly spaced, the last one included."""
    if len(points) <= _MOST_POINTS:
        return points
    step = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(index * step)] for index in range(_MOST_POINTS)]


def _point(point: Iterable[float]) -> list[float | None]:
    # JSON has no NaN.
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in point]


def picture_data(picture: Picture, embedded: dict[str, int]) -> dict[str, Any]:
    """Source, size and caption; of a picture whose bytes are in `embedded` its number there alone."""
    try:
        with Image.open(picture.path) as image:
            (width, height), kind = image.size, Image.MIME[str(image.format)]
    except FileNotFoundError:
        raise UserError(f"{picture.path}: there is no such picture for the page.") from None
    except UnidentifiedImageError:
        raise UserError(f"{picture.path}: not an image; the page embeds PNG or JPEG files.") from None
    content = Path(picture.path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest in embedded:
        return {"number": embedded[digest], "source": None, "caption": picture.caption}
    embedded[digest] = len(embedded) + 1
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {
        "number": embedded[digest], "source": source, "width": width, "height": height, "caption": picture.caption
    }  # fmt: skip
