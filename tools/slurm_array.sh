#!/usr/bin/env bash
# An array of batch jobs: task N runs line N of a file of commands, on one node. For a suite, first what needs no encoder:
#   python tools/benchmark.py run SUITE --dry-run | grep -E 'tools/(dist_)?train' | grep -v '# finished' > all.txt
#   grep -v pretrained= all.txt > first.txt; grep pretrained= all.txt > second.txt
#   job=$(sbatch --parsable --partition=PARTITION --account=ACCOUNT --time=1-00:00:00 --array=1-$(wc -l < first.txt)%4 \
#         tools/slurm_array.sh first.txt)
#   sbatch --partition=PARTITION --account=ACCOUNT --time=12:00:00 --array=1-$(wc -l < second.txt)%8 \
#         --dependency=afterok:$job tools/slurm_array.sh second.txt
# Submit it in the root of the repository, with the environment's python first on PATH. The commands of a suite resume:
# a task that reaches its time limit saves a checkpoint and is requeued. `benchmark.py run SUITE --slurm PARTITION` submits
# a job for each run instead, which may use several nodes.
#SBATCH --job-name=adpe-suite
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=40
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm_%A_%a.log
if [ $# -ne 1 ]; then echo "usage: sbatch --array=1-N [options] $0 COMMANDS" >&2; exit 2; fi
cd "${SLURM_SUBMIT_DIR:?is unset: start this file with sbatch}" || exit 2
command=$(sed -n "${SLURM_ARRAY_TASK_ID:?is unset: give --array=1-N}p" "$1") || exit 2
if [ -z "$command" ]; then echo "error: $1 has no line $SLURM_ARRAY_TASK_ID: give --array=1-N." >&2; exit 2; fi
echo "$command"
srun --ntasks=1 --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-40}" bash -c "exec $command"
status=$?
if [ $status -eq 85 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
