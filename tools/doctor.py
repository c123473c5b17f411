#!/usr/bin/env python3
"""Says in one screen what is installed and whether the chain can run; exits with 0 only if it can.

Usage: python tools/doctor.py [--json | --quick]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

# A broken or half-made environment may not have this package installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe import doctor

STYLES = {"ok": "green", "info": "blue", "warning": "yellow", "fault": "red"}


def show(checks: list[doctor.Check]) -> None:
    """Print the report: a table, then the remedy of each warning and fault, once where several have the same."""
    remedies: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        if check.remedy:
            remedies.setdefault((check.status, check.remedy), []).append(check.name)
    lines = [f"{status}: {', '.join(names)}: {remedy}" for (status, remedy), names in remedies.items()]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print("\n".join([f"{check.status:<7}  {check.name:<26}  {check.detail}" for check in checks] + ["", *lines]))
        return
    table = Table("", "status", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for check in checks:
        table.add_row(check.name, Text(check.status, STYLES[check.status]), Text(check.detail, overflow="fold"))
    console = Console()
    console.print(table)
    for line in lines:
        console.print(Text(line, STYLES[line.partition(":")[0]]))


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Say what is installed and whether the chain can run.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    group.add_argument("--quick", action="store_true", help="only look for missing packages, importing none (0.2 s)")
    arguments = parser.parse_args()

    if arguments.quick:
        if missing := doctor.missing_packages():
            print(f"error: {sys.executable} lacks {', '.join(missing)}: {doctor.reinstall_remedy()}", file=sys.stderr)
            return 1
        print(f"{sys.executable} has every package; `make doctor` tries them.")
        return 0
    checks = doctor.examine()
    runs = all(check.status != "fault" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": runs, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
        print("The chain can run." if runs else "The chain cannot run. Fix the errors above.")
    return 0 if runs else 1


if __name__ == "__main__":
    sys.exit(main())
