#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod slice; run it where gcloud is set up:
#
#     scripts/launch_tpu_pod.sh TPU_NAME ZONE configs/cifar10.py gs://BUCKET/runs/cifar10 --config.train.batch_size=1024
#
# Each host needs this checkout in ~/ddim_jax with the extra `tpu` installed (pip install -e '.[tpu]'). JAX finds the
# other hosts by itself. Start the same command again after a preemption: the run resumes from its newest checkpoint.
set -euo pipefail
if (($# < 4)); then
    echo "usage: $0 TPU_NAME ZONE CONFIG WORKDIR [--config.GROUP.KEY=VALUE ...]" >&2
    exit 2
fi
tpu=$1 zone=$2 config=$3 workdir=$4
shift 4
printf -v command '%q ' python -m ddim_jax.main --config="$config" --workdir="$workdir" --distributed=auto "$@"
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="cd ~/ddim_jax && $command"
