"""The page of all records and published rows: tables, plots across rows, and a section per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpe.leaderboard.html.figures import Chart, Picture
from adpe.leaderboard.html.page import write_page
from adpe.leaderboard.html.plots import epoch_charts, speed_charts
from adpe.leaderboard.html.runs import Run
from adpe.leaderboard.ranking import Leaderboard
from adpe.viz.predictions import read_scalars

_PICTURES = 3  # the last ones of a run


def write_report(
    path: str | Path,
    board: Leaderboard,
    records: Sequence[tuple[Mapping[str, Any], Path]],
    published: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        board: tables and problems.
        records: every record with the folder of its run, whose curves and pictures are shown as far as they are there.
        published: for the plots.
    """
    introduction = [
        f"{len(records)} recorded runs beside {len(published)} published rows. A letter stands for a protocol: rows of "
        "different letters are not comparable, and are neither averaged nor ranked together. What a letter stands for "
        "heads its rows, in words.",
        "published: printed in the source. implied: calculated from what the source prints. quoted: printed in a third "
        "place. ours: from a record, which its section below shows in full.",
    ]
    runs = [Run(record, _curves(folder), _pictures(folder)) for record, folder in records]
    charts = [*epoch_charts(board, published), *speed_charts(board)]
    return write_page(path, "AdPE leaderboard", board, introduction=introduction, charts=charts, runs=runs)


def _curves(folder: Path) -> list[Chart]:
    # A record that came without its run's folder has no curves.
    scalars = read_scalars(folder) if any(folder.glob("*/vis_data/scalars.json")) else {}
    return [Chart("Training loss", "iteration", "loss", {"loss": scalars["loss"]})] if scalars.get("loss") else []


def _pictures(folder: Path) -> list[Picture]:
    files = sorted(folder.rglob("vis_image/*.png"), key=lambda file: file.stat().st_mtime)[-_PICTURES:]
    return [Picture(file, file.stem.replace("_", " ")) for file in files]
