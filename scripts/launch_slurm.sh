#!/usr/bin/env bash
#SBATCH --job-name=ddim_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on several GPU nodes, one process a node, all its GPUs:
#
#     sbatch scripts/launch_slurm.sh configs/cifar10.py /shared/runs/cifar10 --config.train.batch_size=1024
#
# The workdir must be on a file system that all nodes see. Slurm sends SIGTERM two minutes before the time limit; the
# run then saves and exits, and this script puts the job into the queue again, where it goes on from that checkpoint.
# (--requeue alone does so only for jobs that Slurm itself ended: a node failed, or another job was preferred.)
set -euo pipefail
if (($# < 2)); then
    echo "usage: sbatch $0 CONFIG WORKDIR [--config.GROUP.KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
# 75 says that the run is saved and not complete. One of the processes requeues the job, which ends all that is left of
# it; to srun it is a success, since the status of one process would make it kill the others. Slurm signals the shell
# around a process, too, which has to outlive it.
exec srun --kill-on-bad-exit=1 bash -c '
    trap : TERM
    status=0
    "$@" || status=$?
    if ((status == 75)); then
        if ((SLURM_PROCID == 0)); then scontrol requeue "$SLURM_JOB_ID"; fi
        exit 0
    fi
    exit "$status"' ddim_jax \
    python -m ddim_jax.main --config="$config" --workdir="$workdir" --distributed=auto --stopped_status=75 "$@"
