#!/usr/bin/env python
"""Compare this implementation with recorded numbers of the reference, case by case.

Exit status: 0 if every case agrees, 1 if one does not, 2 for a mistake in the command line or the directory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adpe.errors import UserError, print_error
from adpe.parity.cases import CaseResult, check_directory

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "goldens"


def table(results: list[CaseResult]) -> Table:
    """One row per case: its largest relative errors, red past the tolerance, and what was not compared."""
    tolerances = {name: result.tolerances[name] for result in results for name in result.errors}
    columns = [f"{name}\n<= {tolerance:g}" for name, tolerance in tolerances.items()]
    out = Table("case", *columns, "", "remark", box=box.SIMPLE_HEAD, pad_edge=False)
    for result in results:
        cells = []
        for name, tolerance in tolerances.items():
            error = result.errors.get(name)
            style = "dim" if error is None else "" if error <= tolerance else "bold red"
            cells.append(Text("-" if error is None else f"{error:.1e}", style, justify="right"))
        verdict = Text("pass", "green") if result.passed else Text("FAIL", "bold red")
        out.add_row(Text(result.case, no_wrap=True), *cells, verdict, Text(result.remark, overflow="fold"))
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Run every golden case of a directory, by the checker of the system that its meta.json names, and "
        "print the largest relative errors of loss, outputs, gradients and trajectories. Exit status 1 if one is past "
        "its tolerance.",
    )
    parser.add_argument(
        "directory", nargs="?", default=GOLDENS,
        help="folder with meta.json and one .npz a case; default: tests/goldens",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="that computes, in float32: cpu or cuda (default: cpu)")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no CUDA device here")
    # TF32 has three digits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        results = check_directory(options.directory, options.device)
    except UserError as error:
        print_error(error)
        return 2
    # A pipe has no width of its own: rows stay whole there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table(results))
    failed = [result.case for result in results if not result.passed]
    console.print(
        f"{len(failed)} of {len(results)} cases are past their tolerance: {', '.join(failed)}"
        if failed
        else f"all {len(results)} cases agree",
        style="red" if failed else "green",
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
