#!/usr/bin/env python
"""Train any config (pretraining, segmentation, detection). See --help; several GPUs: dist_train.sh, slurm_train.sh.

Exit status: 0 done; 2 a mistake in config, paths or command line; 85 stopped by SIGTERM or SIGUSR1 after saving a
checkpoint, go on with --resume; 1 anything else.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import UserError, print_error, require

NEEDS = {"torch": "requirements/runtime.txt", "mmengine": "requirements/mm.txt"}


def main(command: str = "train_main", module: str = "adpe.engine.launch", needs: dict[str, str] = NEEDS) -> int:
    """Run a command of a module, once the packages that it `needs` are installed; returns the exit status."""
    try:
        for package, requirements in needs.items():
            require(package, requirements)
    except UserError as error:
        print_error(error)
        return 2
    return getattr(importlib.import_module(module), command)()


if __name__ == "__main__":
    sys.exit(main())
