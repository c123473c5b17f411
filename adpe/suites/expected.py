"""The protocol that a claim of a suite is about: its config with the suite's settings, resolved as in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adpe.suites.suite import Claim, Suite, sweep_text, task_settings

_known: dict[str, Mapping[str, Any]] = {}


def expected_protocol(suite: Suite, claim: Claim) -> Mapping[str, Any]:
    """The resolved protocol of the claim's runs, as this version of the project would run them.

    Raises:
        UserError: what reading and building the config raise.
    """
    from adpe.engine.resolved_protocol import protocol_without_data  # torch and mmengine, which a table does not need

    task = next(task for task in suite.tasks if task.name == claim.task)
    method = next(method for method in suite.methods if method.name == claim.method)
    options = task_settings(task, method, claim.point)
    if sweep := sweep_text(claim.point):
        options["record.sweep"] = sweep
    key = str((task.config, sorted(options.items(), key=str)))
    if key not in _known:
        _known[key] = protocol_without_data(task.config, options)
    return _known[key]
