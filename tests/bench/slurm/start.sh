#!/bin/bash
# A Slurm of one node on this machine, for tests: own key, configuration, ports, logs and state in one folder.
#
#   eval "$(sudo tests/slurm/start.sh /tmp/slurm)"    starts it and sets SLURM_CONF
#   sbatch ... ; squeue ; scancel ...
#   sudo tests/slurm/stop.sh /tmp/slurm
#
# Needs root (Slurm starts jobs as other users) and a Debian or Ubuntu with its packages slurm-wlm and munge, which it
# installs if they are missing. Started again on the same folder it says SLURM_CONF and starts what is not running.
# No accounting and no cgroups: it is there to run, kill and list jobs. Exit status 77: impossible here, and why.
set -euo pipefail

fail() { # STATUS WORDS
    echo "$2" >&2
    exit "$1"
}

[ $# -eq 1 ] || fail 2 "usage: $0 FOLDER"
[ "$(id -u)" -eq 0 ] || fail 77 "needs root: slurmd starts jobs as other users"

missing() { # whether one of the programs is
    local program
    for program in slurmctld slurmd sbatch srun munged; do command -v $program >/dev/null || return 0; done
    return 1
}

if missing; then
    command -v apt-get >/dev/null || fail 77 "slurm-wlm and munge are not installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } >&2 ||
        fail 77 "apt-get could not install slurm-wlm and munge"
fi

mkdir -p "$1"
folder=$(realpath "$1")
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

free_port() { # FIRST: the first port from there on at which nobody listens
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

runs() { # NAME: whether the process of this PID file is alive
    [ -s "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null
}

if [ ! -s "$SLURM_CONF" ]; then
    mkdir -p "$folder"/{state,spool}
    (umask 077 && mkdir -p "$folder/munge" && head -c 1024 /dev/urandom >"$folder/munge/key")
    chmod 711 "$folder/munge" # other users' jobs reach the socket, not the key
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port 26817)
SlurmdPort=$(free_port 26917)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
# A machine with fewer processors than are said here stays in service.
SlurmdParameters=config_overrides
ReturnToService=2
# Seconds between SIGTERM and SIGKILL.
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
fi

runs munge/munged || munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >&2 ||
    fail 1 "munged did not start: $(tail -n 3 "$folder/munge/log" 2>/dev/null)"
runs slurmctld || slurmctld >&2 || fail 1 "slurmctld did not start: $(tail -n 3 "$folder/slurmctld.log")"
runs slurmd || slurmd -N "$host" >&2 || fail 1 "slurmd did not start: $(tail -n 3 "$folder/slurmd.log")"

for _ in $(seq 60); do
    case $(sinfo --noheader --format=%T 2>/dev/null || true) in
    idle | mixed | allocated)
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
        ;;
    esac
    sleep 0.5
done
fail 1 "the node is not ready after 30 s; see $folder/slurmctld.log and $folder/slurmd.log:
$(tail -n 5 "$folder/slurmctld.log" "$folder/slurmd.log")"
