#!/usr/bin/env bash
# Trains with several processes on this machine, each with some fake CPU devices: how a multi-host run is tried out.
#
#     scripts/launch_processes.sh 2 --config=configs/digits.py:tiny --workdir=runs/two
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 COUNT --config=CONFIG --workdir=WORKDIR [--mode=MODE] [--config.GROUP.KEY=VALUE ...]" >&2
    exit 2
fi
count=$1
shift
port=${PORT:-12355}
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((id = 0; id < count; id++)); do
    python -m ddim_jax.main "$@" --coordinator="localhost:$port" --num_processes="$count" --process_id="$id" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    # A signal interrupts the first wait; the second is for the process to save and end.
    wait "$pid" || wait "$pid" || status=$?
done
exit "$status"
