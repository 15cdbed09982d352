#!/usr/bin/env bash
#SBATCH --job-name=ddim_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#
# Trains on several GPU nodes, one process a node, all its GPUs:
#
#     sbatch scripts/launch_slurm.sh configs/cifar10.py /shared/runs/cifar10 --config.train.batch_size=1024
#
# The workdir must be on a file system that all nodes see. Slurm sends SIGTERM two minutes before the time limit; the
# run then saves and exits, and the requeued job goes on from that checkpoint.
set -euo pipefail
config=$1 workdir=$2
shift 2
exec srun --kill-on-bad-exit=1 python -m ddim_jax.main \
    --config="$config" --workdir="$workdir" --distributed=auto "$@"
