"""The protocol that a claim of a suite is about: its config with the suite's settings, resolved as in a run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpe.suites.suite import Claim, Method, Suite, sweep_text, task_settings

_known: dict[str, Mapping[str, Any]] = {}


def expected_protocol(suite: Suite, claim: Claim) -> Mapping[str, Any]:
    """The resolved protocol of the claim's runs, as this version of the project would run them.

    What a run takes from the file of its encoder comes from one that the method's pretraining exports before its first
    step: of the protocol it says the same.

    Raises:
        UserError: what reading and building the configs raise.
    """
    from adpe.engine.resolved_protocol import protocol_without_data  # torch and mmengine, which a table does not need

    task = next(task for task in suite.tasks if task.name == claim.task)
    method = next(method for method in suite.methods if method.name == claim.method)
    options = task_settings(task, method, claim.point)
    if sweep := sweep_text(claim.point):
        options["record.sweep"] = sweep
    key = str((task.config, method.pretraining, method.options, sorted(options.items(), key=str)))
    if key not in _known:
        with tempfile.TemporaryDirectory() as folder:
            encoder = _untrained(method, Path(folder) / "encoder.safetensors")
            _known[key] = protocol_without_data(task.config, {**options, **encoder})
    return _known[key]


def _untrained(method: Method, path: Path) -> dict[str, str]:
    """The option `pretrained` with an encoder of the method as its pretraining builds it; none for random weights."""
    if method.pretraining is None:
        return {"pretrained": method.checkpoint} if method.checkpoint else {}
    from types import SimpleNamespace

    from mmengine.registry import MODELS, init_default_scope

    from adpe.checkpoints.loading import save_checkpoint
    from adpe.engine.config import read_config
    from adpe.engine.resolved_protocol import aside
    from adpe.engine.specifying import specification_of_run

    # Only the length of a finished run, which no protocol follows from, needs its data.
    cfg = read_config(method.pretraining, {**method.options, "record.method": method.name})
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with aside():
        model = MODELS.build(cfg.model)
        run: Any = SimpleNamespace(cfg=cfg, model=model, seed=0, iter=0, train_dataloader=())
        state = {f"encoder.{name}": tensor for name, tensor in model.model.exported().state_dict().items()}
        save_checkpoint(state, path, specification=specification_of_run(run))
    return {"pretrained": str(path)}
