#!/usr/bin/env bash
# Evaluate on several GPUs of this machine, or in several processes on the CPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Environment: PYTHON; for several nodes NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 3 ]; then echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2; exit 2; fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; fi
fi
CONFIG=$1 CHECKPOINT=$2 GPUS=$3
shift 3
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m adpe.distributed "$GPUS" "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
