"""Charts of the page that look across rows: transfer against length of pretraining, accuracy against speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adpe.leaderboard.html.figures import Chart
from adpe.leaderboard.ranking import Leaderboard
from adpe.leaderboard.ranking.rows import OURS, Row
from adpe.leaderboard.records import iterations_of
from adpe.leaderboard.tasks import metric_of

_REFERENCES = ("MAE", "AdPE")


def epoch_charts(board: Leaderboard, published: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """For every task and metric, the metric against the epochs of pretraining.

    Drawn are ours, with error bars, and of the published those with several lengths, MAE and AdPE. A line joins rows of
    one method, encoder and head; lines of different heads are not comparable, which their names say.
    """
    charts = []
    entries = list(published)
    for table in board.tables:
        for name in table.metrics:
            series: dict[str, list[tuple[float, ...]]] = {}
            for row in table.results:
                epochs = next((record.get("pretraining_epochs") for record in row.records), None)
                if row.kind == OURS and isinstance(epochs, int) and name in row.cells and row.cells[name].summary:
                    protocol = f", protocol {row.protocol}" if len(table.protocols) > 1 else ""
                    series.setdefault(f"{row.name}{protocol}, ours", []).append((float(epochs), *_mean(row, name)))
            drawn: dict[str, list[tuple[float, ...]]] = {}
            for entry in entries:
                epochs, value = entry["pretraining"]["epochs"], entry["metrics"].get(name)
                same = (entry["task"], entry["dataset"]) == (table.task, table.dataset)
                if same and epochs and value is not None:
                    label = f"{entry['method']}, {entry['backbone']}, {entry['protocol']['head']}, {entry['kind']}"
                    drawn.setdefault(label, []).append((float(epochs), float(value)))
            for label, points in drawn.items():
                lengths = {point[0] for point in points}
                if len(lengths) > 1 or label.split(" ")[0].rstrip(",+") in _REFERENCES:
                    series[label] = points
            if series:
                title = f"{table.title}: {metric_of(name).label} by length of pretraining"
                ordered = {label: sorted(points) for label, points in series.items()}
                charts.append(Chart(title, "epochs of pretraining", metric_of(name).label, ordered))
    return charts


def speed_charts(board: Leaderboard) -> list[Chart]:
    """For every task, the first metric against images a second in training, validation included; ours alone."""
    charts = []
    for table in board.tables:
        for name in table.metrics[:1]:
            series: dict[str, list[tuple[float, ...]]] = {}
            for row in table.results:
                rates = [rate for rate in map(images_per_second, row.records) if rate is not None]
                if row.kind == OURS and rates and name in row.cells and row.cells[name].summary:
                    devices = {str((record.get("hardware") or {}).get("device")) for record in row.records}
                    label = f"{row.name}, {', '.join(sorted(devices))}"
                    series[label] = [(sum(rates) / len(rates), *_mean(row, name))]
            if series:
                label = metric_of(name).label
                charts.append(Chart(f"{table.title}: {label} by speed", "images/s", label, series, lines=False))
    return charts


def images_per_second(record: Mapping[str, Any]) -> float | None:
    """Training images a second of a run, from its length, batch and wall time."""
    iterations = iterations_of(record)
    batch, seconds = record.get("effective_batch"), record.get("wall_time_s")
    return iterations * batch / seconds if iterations and batch and seconds else None


def _mean(row: Row, name: str) -> tuple[float, ...]:
    """Mean and, of several seeds, one standard deviation below and above."""
    summary = row.cells[name].summary
    assert summary is not None
    if summary.std is None:
        return (summary.mean,)
    return summary.mean, summary.mean - summary.std, summary.mean + summary.std
