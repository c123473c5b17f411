"""A model card from a specification and records: what made the weights, and what was measured with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adpe.errors import UserError, require
from adpe.leaderboard.ranking import build_leaderboard
from adpe.leaderboard.ranking.rows import Row, Table
from adpe.leaderboard.tasks import TASKS, metric_of
from adpe.models.specification import ModelSpecification

_USE = {
    "adpe": """import adpe

encoder = adpe.from_pretrained("{name}")  # or a folder
features = encoder.forward_features(images)  # (B, 1 + L, D)""",
    "timm": """import adpe, timm

adpe.register_with_timm()
model = timm.create_model("hf-hub:{name}", pretrained=True)""",
    "transformers": """from transformers import AutoModel

model = AutoModel.from_pretrained("{name}")""",
}


def check_records(records: Iterable[Mapping[str, Any]], said: ModelSpecification) -> list[dict[str, Any]]:
    """Records of evaluations of one encoder's recipe, and of the random initialisation to compare with.

    Args:
        records: of runs, any tasks; those of pretraining are left out.
        said: of the encoder. Seeds of the same recipe count as one.

    Raises:
        UserError: for a record of another encoder; it names the run.
    """
    kept = []
    for record in records:
        origin = record.get("pretrained_from") or {}
        if record["task"] == "pretrain":
            continue
        if record.get("start") != "random" and (
            said.config_sha256 is None or origin.get("config_sha256") != said.config_sha256
        ):
            raise UserError(
                f"record of {record['run']}: its encoder is of the config {origin.get('config_sha256')}, not of "
                f"{said.config_sha256} as the one that is shared: leave it out, or share that encoder."
            )
        kept.append(dict(record))
    return kept


def model_card(
    name: str,
    said: ModelSpecification,
    framework: str,
    license: str | None,
    pretraining: Mapping[str, Any] | None,
    records: Sequence[Mapping[str, Any]],
) -> str:
    """The text of ``README.md``: YAML for the hub, and tables.

    Args:
        name: of the model, ``OWNER/NAME`` on the hub.
        said: of the encoder.
        framework: whose names the weights have.
        license: identifier of the hub, e.g. ``"cc-by-4.0"``; None is ``unknown``.
        pretraining: record of the run that made the weights, if it is known.
        records: of :func:`check_records`.
    """
    require("huggingface_hub", "requirements/runtime.txt")
    from huggingface_hub import ModelCardData

    tables = build_leaderboard(records).tables
    data = ModelCardData(
        license=license or "unknown",
        library_name="adpe" if framework == "adpe" else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=["vision-transformer", "masked-image-modelling", "self-supervised-learning"],
        model_name=name.rpartition("/")[2],
        eval_results=[result for table in tables for result in _results(table)],
    )
    on_hub = name if "/" in name else f"OWNER/{name}"
    uses = ("adpe", "timm") if framework == "adpe" else ("transformers", "adpe")
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"Encoder pretrained with {said.method or 'a method that its file does not name'}: {_size(said)}.",
        "## How it was made\n\n" + _pairs(_facts(said, pretraining or {})),
        "## Use\n\n" + "\n\n".join(f"```python\n{_USE[use].format(name=on_hub)}\n```" for use in uses),
        "## Results\n\n" + ("\n\n".join(map(_table, tables)) or "None recorded with these weights."),
        f"## Licence\n\n{license or 'Not stated: ask whoever shares it.'}",
    ]
    return "\n\n".join(parts) + "\n"


def _size(said: ModelSpecification) -> str:
    height, width = said.pretrain_img_size
    return (
        f"{said.depth} blocks of width {said.embed_dim} with {said.num_heads} heads, patches of {said.patch_size} "
        f"pixels, {said.position} positions of {height} x {width} pixels"
    )


def _facts(said: ModelSpecification, record: Mapping[str, Any]) -> dict[str, Any]:
    hardware = record.get("hardware") or {}
    return {
        "method": said.method,
        "recipe": said.recipe,
        "data": record.get("dataset"),
        "images": ((record.get("protocol") or {}).get("data") or {}).get("train", {}).get("images"),
        "seed": said.seed,
        "epochs": said.epochs,
        "optimiser steps": said.iterations,
        "images per step": record.get("effective_batch"),
        "precision": record.get("precision"),
        "hardware": hardware.get("device"),
        "hours": round(record["wall_time_s"] / 3600, 2) if record.get("wall_time_s") else None,
        "commit of adpe": record.get("commit"),
        "config (SHA-256)": said.config_sha256,
        "protocol": record.get("fingerprint"),
        "mean, std of pixels": f"{list(said.mean)}, {list(said.std)}" if said.mean and said.std else None,
    }


def _pairs(facts: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(table: Table) -> str:
    head = ["encoder", *(metric_of(name).label for name in table.metrics), "seeds", "protocol"]
    lines = [f"### {table.title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in table.rows:
        cells = [_cell(row.name), *(_metric(row, name) for name in table.metrics)]
        cells += [", ".join(map(str, sorted(row.seeds))), _cell(row.records[-1]["fingerprint"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Means over seeds, with their 95 % t interval where there are several seeds."]
    for letter, facts in table.protocols.items():
        told = ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, [], ""))
        lines += ["", f"Protocol {letter}: {_cell(told)}."]
    return "\n".join(lines)


def _metric(row: Row, name: str) -> str:
    cell = row.cells.get(name)
    if cell is None or cell.summary is None:
        return ""
    digits, summary = metric_of(name).digits, cell.summary
    text = f"{summary.mean:.{digits}f}"
    if summary.low is None or summary.high is None:
        return text
    return f"{text} ({summary.low:.{digits}f} to {summary.high:.{digits}f})"


def _results(table: Table) -> list[Any]:
    """The rows of our weights as the hub's ``model-index`` has them; the baseline is not of this model."""
    from huggingface_hub import EvalResult

    kind = TASKS[table.task].model_index
    return [
        EvalResult(
            task_type=kind.lower().replace(" ", "-"),
            task_name=kind,
            dataset_type=table.dataset,
            dataset_name=table.dataset,
            metric_type=name,
            metric_name=metric_of(name).label,
            metric_value=round(cell.summary.mean, 4),
        )
        for row in table.rows
        if row.start != "random"
        for name, cell in row.cells.items()
        if name in table.metrics and cell.summary is not None
    ]
