#!/usr/bin/env bash
#SBATCH --job-name=ddim_jax_evaluate
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#
# Measures the rows of a table on several GPUs at once, a job of one GPU each:
#
#     sbatch scripts/evaluate_slurm_array.sh configs/cifar10.py /shared/runs/cifar10 \
#         --config.eval.preset=ddim-table1-cifar10
#
# All tasks of the array run the same command. Each takes the next row that no other has, until none is left, and the
# last one to end completes WORKDIR/evaluate/NAME/table.md. So any number of tasks will do (sbatch --array=0-3 ...), they
# may start at any time, and those that hit the time limit lose little: submit the array again. The workdir must be on a
# file system that all nodes see.
set -euo pipefail
if (($# < 2)); then
    echo "usage: sbatch $0 CONFIG WORKDIR [--config.eval.KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
exec srun python -m ddim_jax.main --mode=evaluate --config="$config" --workdir="$workdir" "$@"
