#!/usr/bin/env bash
# A training on one node or several as a batch job, which saves before its time is over and is requeued until it is done.
#   sbatch --partition=PARTITION --account=ACCOUNT --time=1-00:00:00 --nodes=2 tools/slurm_job.sh CONFIG [of train.py]
# Submit it in the root of the repository, with the environment's python first on PATH. Options of sbatch go before this
# file's name and overrule the lines below. The exit status is that of train.py; 85: a checkpoint was saved.
#SBATCH --job-name=adpe
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=5
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.log
if [ $# -lt 1 ]; then echo "usage: sbatch [options] $0 CONFIG [arguments of train.py]" >&2; exit 2; fi
cd "${SLURM_SUBMIT_DIR:?is unset: start this file with sbatch}" || exit 2
# srun does not take --cpus-per-task from sbatch. A rank that ends first gives the others 60 s to save.
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-5}" \
    python -u tools/train.py "$1" --launcher slurm --resume "${@:2}"
status=$?
if [ $status -eq 85 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
