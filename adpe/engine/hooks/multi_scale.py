"""The record of a test with test-time augmentation: that of the run which wrote the checkpoint, with mIoU_ms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from adpe.engine.resolved_protocol import TTA
from adpe.engine.resolved_protocol.data import data_description
from adpe.engine.resolved_protocol.description import as_json
from adpe.leaderboard.protocol import fingerprint, protocol_of
from adpe.leaderboard.records import append_record, file_sha256, read_records
from adpe.leaderboard.tasks import METRICS

# Of what the data sets hold; how they are built differs by the pipeline, which stands in the config.
_CONTENT = ("images", "names", "contents", "classes")


def record_multi_scale(
    cfg: Config, dataset: Any, checkpoint: str | Path, metrics: Mapping[str, float]
) -> tuple[list[Path], dict[str, float]]:
    """Write the record of a checkpoint's run once more, with the metrics of its test with augmentation.

    The record is looked for beside the checkpoint (``record.jsonl``) and in the ``records.jsonl`` of the folders above,
    as suites have one, by the checkpoint's hash, and written where it was found. Its protocol is the run's, in which
    the config's `tta_pipeline`, `tta_model` and `test_cfg` and the images are those of this test.

    Args:
        cfg: of the test, before the augmentation was put in the place of the test's pipeline.
        dataset: that was tested on.
        checkpoint: that was tested.
        metrics: of the test; ``mIoU`` becomes ``mIoU_ms``.

    Returns:
        the files written to, none if none has a record of the checkpoint, and the metrics added.
    """
    added = {f"{name}_ms": float(value) for name, value in metrics.items() if f"{name}_ms" in METRICS}
    path = Path(checkpoint).resolve()
    files = [path.parent / "record.jsonl", *(parent / "records.jsonl" for parent in path.parents[:6])]
    written: list[Path] = []
    digest: str | None = None
    for file in files if added else []:
        if not file.is_file():
            continue
        digest = digest or file_sha256(path)
        found = [record for record in read_records(file)[0] if record.get("checkpoint_sha256") == digest]
        if found:
            append_record(file, _completed(found[-1], cfg, dataset, added))
            written.append(file)
    return written, added


def _completed(record: Mapping[str, Any], cfg: Config, dataset: Any, added: Mapping[str, float]) -> dict[str, Any]:
    new = {**copy.deepcopy(dict(record)), "metrics": {**record["metrics"], **added}}
    protocol = protocol_of(new)
    if protocol is None:
        return new
    config: dict[str, Any] = protocol["config"]
    config |= {name: as_json(cfg[name]) for name in TTA}
    test = cfg.model.get("test_cfg")
    if test is not None or (config.get("model") or {}).get("test_cfg") is not None:
        config["model"]["test_cfg"] = as_json(test)
    tested = data_description(dataset) or {}
    data: dict[str, Any] = protocol.get("data") or {}
    if data.get("val"):
        data["val"] |= {name: tested[name] for name in _CONTENT if name in tested}
    own = fingerprint(protocol)
    if own != new["fingerprint"]:  # tested otherwise than the run's config says
        new |= {"fingerprint": own, "task_fingerprint": own, "own": None}
    return new
