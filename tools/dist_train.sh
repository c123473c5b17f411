#!/usr/bin/env bash
# Train on several GPUs of this machine, or in several processes on the CPU.
#   tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Environment: PYTHON; for several nodes NNODES, NODE_RANK, MASTER_ADDR, PORT. Exit status as of train.py;
# 86 where a process waited in vain for one on another node, longer than env_cfg.dist_cfg.timeout (1800 s).
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 2 ]; then echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2; exit 2; fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; fi
fi
CONFIG=$1 GPUS=$2
shift 2
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m adpe.distributed "$GPUS" "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "$@"
