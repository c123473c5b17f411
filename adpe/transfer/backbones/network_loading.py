"""Checkpoints of other networks than the one encoder: every tensor is accounted for, as in `load_checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable

from mmengine.logging import print_log
from torch import Tensor, nn

from adpe.checkpoints.copies import unwrap, without_wrappers
from adpe.checkpoints.loading import LoadReport, check_values
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError

# Of a run whose backbone is the network, or holds it as `net`.
_PREFIXES = ("backbone.", "net.")


def start_network(
    net: nn.Module,
    path: str,
    fit: Callable[[nn.Module, dict[str, Tensor], LoadReport], None],
    left_out: re.Pattern[str],
    new: re.Pattern[str] | None = None,
    hint: str = "",
) -> None:
    """Load a file that must cover the network, with the load report in the log.

    Args:
        net: the network.
        path: see :func:`read_network`.
        fit: brings tensors of the file to the network's sizes, and writes what it did to the report.
        left_out: see :func:`load_network`; so are `new` and `hint`.
        new: names of the network that may keep their start.
        hint: what to do about a file that does not cover it.

    Raises:
        UserError: as :func:`read_network` and :func:`load_network`, and what `fit` raises.
    """
    report = LoadReport(path)
    state = read_network(path, report)
    fit(net, state, report)
    load_network(net, state, report, left_out, new, hint)


def read_network(path: str, report: LoadReport) -> dict[str, Tensor]:
    """Tensors of a file by the network's own names: the authors', or those of a run with it as backbone.

    Args:
        path: see :func:`adpe.checkpoints.reading.read_file`.
        report: takes what is left out, such as other copies of the weights.

    Raises:
        UserError: if the file cannot be read.
    """
    state = without_wrappers(unwrap(read_file(path), report.dropped), report.dropped)
    for prefix in _PREFIXES:
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inner:
            report.dropped |= dict.fromkeys((n for n in state if not n.startswith(prefix)), "not part of the backbone")
            state = inner
    return state


def load_network(
    net: nn.Module,
    state: dict[str, Tensor],
    report: LoadReport,
    left_out: re.Pattern[str],
    new: re.Pattern[str] | None = None,
    hint: str = "",
) -> None:
    """Load tensors that must cover the network, with the load report in the log.

    Args:
        net: the network; it is left as it was if they do not.
        state: of :func:`read_network`.
        report: is completed.
        left_out: names of the file that this network does not need.
        new: names of the network that may keep their start.
        hint: what to do about a file that does not cover it.

    Raises:
        UserError: for missing or unknown tensors, another shape, or values that are no weights.
    """
    own = net.state_dict()
    wrong = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
    for name in own:
        if name not in state:
            (report.new if new and new.match(name) else report.missing).append(name)
        elif name not in report.resized:
            report.matched.append(name)
    for name in state:
        if name not in own:
            if left_out.match(name):
                report.dropped[name] = "not part of this network"
            else:
                report.unexpected.append(name)
    if report.missing or wrong or report.unexpected:
        named = ", ".join([*report.missing, *wrong, *report.unexpected][:3])
        raise UserError(
            f"{report.path}: of {len(own)} tensors of {type(net).__name__} {len(report.missing)} are missing, "
            f"{len(wrong)} of another shape, and {len(report.unexpected)} are unknown ({named}). {hint}".rstrip()
        )
    known = {name: tensor for name, tensor in state.items() if name in own}
    for name, tensor in known.items():
        if own[name].is_floating_point():  # BatchNorm counts its batches
            check_values(name, tensor, report.path)
    net.load_state_dict(known, strict=False)
    print_log(str(report), logger="current")
