#!/bin/bash
# Ends the Slurm that start.sh started on this folder, its jobs first. The folder stays, with its logs.
set -uo pipefail

[ $# -eq 1 ] || {
    echo "usage: $0 FOLDER" >&2
    exit 2
}
folder=$(realpath "$1")
export SLURM_CONF=$folder/slurm.conf
[ -s "$SLURM_CONF" ] || {
    echo "$folder holds no slurm.conf: not a folder of start.sh" >&2
    exit 2
}

# Jobs survive the end of their slurmd, so they go first.
squeue --noheader --format=%A 2>/dev/null | sort -u | xargs --no-run-if-empty scancel
for _ in $(seq 20); do
    [ -z "$(squeue --noheader 2>/dev/null)" ] && break
    sleep 0.5
done

for name in slurmd slurmctld munge/munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null
    for _ in $(seq 20); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    kill -KILL "$pid" 2>/dev/null
done
exit 0
