#!/usr/bin/env python
"""Train any config (pretraining, segmentation, detection). See --help; several GPUs: dist_train.sh, slurm_train.sh.

Exit status: 0 done; 2 a mistake in config, paths or command line; 85 stopped by SIGTERM, SIGUSR1 or Ctrl-C (SIGINT)
after saving a checkpoint, from which --resume continues; 86 another process of the run was lost; 130 Ctrl-C with
nothing saved; 1 anything else.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.errors import EXIT_INTERRUPTED, EXIT_MISTAKE, UserError, print_error, require
from adpe.garbage import collect_rarely

NEEDS = {"torch": "requirements/runtime.txt", "mmengine": "requirements/mm.txt"}


def main(command: str = "train_main", module: str = "adpe.engine.launch", needs: dict[str, str] = NEEDS) -> int:
    """Run a command of a module, once the packages that it `needs` are installed; returns the exit status."""
    collect_rarely()
    try:
        for package, requirements in needs.items():
            require(package, requirements)
        return getattr(importlib.import_module(module), command)()
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
