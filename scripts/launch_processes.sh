#!/usr/bin/env bash
# Trains with several processes on this machine, each with some fake CPU devices: how a multi-host run is tried out.
#
#     scripts/launch_processes.sh 2 --config=configs/digits.py:tiny --workdir=runs/two
#
# They meet at a free port of localhost, or at $PORT. When one fails, the others are ended, by SIGKILL after $GRACE
# seconds (30). The exit status is that of the first that failed. SIGTERM, SIGHUP and Ctrl-C are passed on as SIGTERM,
# by which training saves and ends; the second Ctrl-C kills.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 COUNT --config=CONFIG --workdir=WORKDIR [--mode=MODE] [--config.GROUP.KEY=VALUE ...]" >&2
    exit 2
fi
count=$1
shift
if [[ ! $count =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "$0: COUNT is a number of processes, not '$count'" >&2
    exit 2
fi
port=${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}
pids=()
status=0
asked=0
deadline=
tell() {
    kill "-$1" "${pids[@]}" 2>/dev/null || true
}
trap 'asked=1; tell TERM' TERM HUP
trap 'if ((asked)); then tell KILL; status=130; else asked=1; tell TERM; fi' INT
for ((id = 0; id < count; id++)); do
    python -m ddim_jax.main "$@" --coordinator="localhost:$port" --num_processes="$count" --process_id="$id" &
    pids+=($!)
done
while ((${#pids[@]})); do
    left=()
    for pid in "${pids[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            left+=("$pid")
            continue
        fi
        ended=0
        wait "$pid" || ended=$?
        ((status)) || status=$ended
    done
    pids=(${left[@]+"${left[@]}"})
    # Who was asked to end has a status that says so, and the others are still saving.
    if ((status && !asked && ${#pids[@]})); then
        if [[ -z $deadline ]]; then
            tell TERM
            deadline=$((SECONDS + ${GRACE:-30}))
        elif ((SECONDS >= deadline)); then
            tell KILL
        fi
    fi
    sleep 0.2
done
exit "$status"
