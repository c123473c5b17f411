#!/usr/bin/env bash
# Train under Slurm.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), TIME (limit, such as 2-00:00:00), ACCOUNT, PYTHON, and
# SRUN_ARGS for further options of srun. Exit status as of train.py: the highest of the ranks'.
# For preemption: SRUN_ARGS="--signal=USR1@120" saves a checkpoint 120 s before the time limit (exit status 85); so does
# `scancel --signal=USR1 JOB` at any time. Slurm requeues batch jobs alone: submit with
# `sbatch --requeue --signal=USR1@120` a script whose last line is
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG --resume || { [ $? -eq 85 ] && scontrol requeue "$SLURM_JOB_ID"; }
# With --resume the first job begins at the beginning, and every later one resumes.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 3 ]; then echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2; exit 2; fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; fi
fi
PARTITION=$1 JOB_NAME=$2 CONFIG=$3
shift 3
GPUS=${GPUS:-8} GPUS_PER_NODE=${GPUS_PER_NODE:-8} CPUS_PER_TASK=${CPUS_PER_TASK:-5}
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
    case ${!name} in
        '' | *[!0-9]* | 0) echo "error: $name must be a positive number, got '${!name}'." >&2; exit 2 ;;
    esac
done
if [ "$GPUS" -lt "$GPUS_PER_NODE" ]; then GPUS_PER_NODE=$GPUS; fi
command -v srun >/dev/null || { echo "error: srun is not there: this script needs Slurm; else use tools/dist_train.sh." >&2; exit 2; }
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# A rank that ends first gives the others 60 s: --kill-on-bad-exit would kill those that end with 85 a moment later.
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun -p "$PARTITION" --job-name="$JOB_NAME" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=60 \
    ${TIME:+--time="$TIME"} ${ACCOUNT:+--account="$ACCOUNT"} ${SRUN_ARGS:-} \
    "$PYTHON" -u "$ROOT/tools/train.py" "$CONFIG" --launcher slurm "$@"
