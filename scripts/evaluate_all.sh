#!/usr/bin/env bash
# Measures every checkpoint of a workdir, and writes one table of all of them to WORKDIR/evaluate/:
#
#     scripts/evaluate_all.sh configs/cifar10.py runs/cifar10 --config.eval.preset=ddim-table1-cifar10
#
# Started again after it was interrupted, or when training has written more checkpoints, it goes on: what is measured
# stays. The same command may run on several machines that see the workdir; they share the rows.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 CONFIG WORKDIR [--config.eval.KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
exec python -m ddim_jax.main --mode=evaluate --config="$config" --workdir="$workdir" \
    --config.eval.checkpoints="('all',)" "$@"
