"""Puts into the wheel what a checkout has beside the package: configs, suites, published rows and tools, below
adpe/checkout.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = ("configs", "benchmarks/suites", "benchmarks/published", "benchmarks/records", "requirements", "tools")


class BuildWithCheckout(build_py):
    """The package, and the folders that its commands read."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "adpe" / "checkout"
        shutil.rmtree(target, ignore_errors=True)
        for folder in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / folder, target / folder, ignore=ignored)


setup(cmdclass={"build_py": BuildWithCheckout})
