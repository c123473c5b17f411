"""How far a training is, from the lines that mmengine's LoggerHook writes."""

from __future__ import annotations

import re

_STEP = re.compile(r"(?:Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]|Iter\(train\)\s+\[\s*(\d+)/(\d+)\])")


def fraction_done(line: str, epochs: int | None) -> float | None:
    """Share of a training that is done, 0..1, by a line of its log.

    Args:
        line: of the log.
        epochs: that the training has, where it counts epochs; 0 is returned for those if it is not known.

    Returns:
        None if the line says nothing of it.
    """
    match = _STEP.search(line)
    if match is None:
        return None
    epoch, step, steps, iteration, iterations = match.groups()
    if iteration is not None:
        return int(iteration) / int(iterations)
    return (int(epoch) - 1 + int(step) / int(steps)) / epochs if epochs else 0.0
