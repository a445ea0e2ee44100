#!/usr/bin/env bash
# A Slurm cluster of our own on loopback, for the tests: no systemd, no GPU, no cgroups, no
# accounting. Needs root and Debian's Slurm packages.
#   cluster.sh install         the packages, by apt
#   cluster.sh up     DIR      start munged, slurmctld and a slurmd per node; returns when all are idle
#   cluster.sh env    DIR      the exports that a client needs:  eval "$(cluster.sh env DIR)"
#   cluster.sh stop   DIR WHAT    stop one daemon (slurmctld, slurmd.n2) by its own process id
#   cluster.sh start  DIR WHAT    start it again
#   cluster.sh down   DIR      cancel every job, stop every daemon, wait for each
# Knobs: NODES=3 CPUS=16 MEM=64000 (MB) GPUS=2 BASEPORT=17800
# Node n1 has no GPU, n2 to nN have GPUS pretended ones each. Partitions: cpu (n1), gpu (n2-), and
# urgent (all nodes), whose jobs preempt the others' and send them back into the queue.
set -euo pipefail
command=${1:?usage: cluster.sh install|up|env|stop|start|down [DIR] [WHAT]}
NODES=${NODES:-3} CPUS=${CPUS:-16} MEM=${MEM:-64000} GPUS=${GPUS:-2} BASEPORT=${BASEPORT:-17800}
PACKAGES="munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins procps"

install_packages() {
  # shellcheck disable=SC2086
  if dpkg -s $PACKAGES >/dev/null 2>&1; then return 0; fi
  local made=
  if [ ! -e /usr/sbin/policy-rc.d ]; then # or the packages would start their daemons
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    made=1
  fi
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
  if [ -n "$made" ]; then rm -f /usr/sbin/policy-rc.d; fi
}

if [ "$command" = install ]; then
  install_packages
  exit
fi
D=$(realpath -m "${2:?DIR}")
H=$(hostname -s)
[ ${#D} -le 70 ] || { echo "$D is too long for the path of a socket" >&2; exit 2; }
export SLURM_CONF=$D/etc/slurm.conf

wait_until() {
  local seconds=$1 k
  shift
  for ((k = 0; k < seconds * 10; k++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "gave up after $seconds s: $*" >&2
  tail -n 15 "$D"/log/*.out >&2
  return 1
}

# In a session of its own, with the process id of the daemon itself in run/NAME.mypid.
start() {
  local name=$1
  shift
  setsid "$@" </dev/null >>"$D/log/$name.out" 2>&1 &
  echo $! >"$D/run/$name.mypid"
}

gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

stop() {
  local name file pid
  for name in "$@"; do
    file=$D/run/$name.mypid
    [ -s "$file" ] || continue
    pid=$(<"$file")
    kill -TERM "$pid" 2>/dev/null || true
    wait_until 10 gone "$pid" 2>/dev/null || kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

nodes() { seq -f 'n%g' 1 "$NODES"; }
idle() { [ "$(sinfo -h -p urgent -t idle -o %D)" = "$NODES" ]; }
answers() { scontrol ping | grep -q UP; }
empty() { [ -z "$(squeue -h 2>/dev/null)" ]; }

daemon() {
  case $1 in
    slurmctld) start slurmctld slurmctld -D && wait_until 20 answers ;;
    slurmd.*) start "$1" slurmd -D -N "${1#slurmd.}" ;;
    *) echo "unknown daemon $1" >&2; exit 2 ;;
  esac
}

configure() {
  local node i file
  mkdir -p "$D"/{etc,run,log,state,bin,dev}
  for node in $(nodes); do mkdir -p "$D/spool/$node"; done
  head -c 1024 /dev/urandom >"$D/etc/munge.key"
  chmod 600 "$D/etc/munge.key"
  # Not used, but slurmd looks for cgroups unless told which version to look for.
  echo CgroupPlugin=cgroup/v1 >"$D/etc/cgroup.conf"
  cat >"$SLURM_CONF" <<E
ClusterName=loopback
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$BASEPORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,NoShared
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=300
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=n1 NodeHostname=$H NodeAddr=127.0.0.1 Port=$((BASEPORT + 11)) CPUs=$CPUS RealMemory=$MEM
NodeName=n[2-$NODES] NodeHostname=$H NodeAddr=127.0.0.1 Port=[$((BASEPORT + 12))-$((BASEPORT + 10 + NODES))] CPUs=$CPUS RealMemory=$MEM Gres=gpu:fake:$GPUS
PartitionName=cpu Nodes=n1 Default=YES MaxTime=60 DefaultTime=5 PriorityTier=1
PartitionName=gpu Nodes=n[2-$NODES] MaxTime=60 DefaultTime=5 PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=5 PriorityTier=10 PreemptMode=OFF
E
  # A pretended GPU must be a character device; 195 is NVIDIA's number, with no driver behind it.
  echo AutoDetect=off >"$D/etc/gres.conf"
  local devices=(/dev/null /dev/zero /dev/full /dev/random)
  for ((i = 0; i < GPUS; i++)); do
    file=$D/dev/nvidia$i
    [ -e "$file" ] || mknod "$file" c 195 "$i" 2>/dev/null || file=${devices[i]}
    echo "NodeName=n[2-$NODES] Name=gpu Type=fake File=$file" >>"$D/etc/gres.conf"
  done
  # The Slurm plugin's job step takes every SLURM_ variable away before it calls srun.
  printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/srun "$@"\n' "$SLURM_CONF" >"$D/bin/srun"
  chmod 755 "$D/bin/srun"
}

up() {
  local port node
  ! compgen -G "$D/run/*.mypid" >/dev/null || { echo "$D is up already" >&2; exit 2; }
  for port in 0 $(seq 11 $((10 + NODES))); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$((BASEPORT + port))") 2>/dev/null; then
      echo "port $((BASEPORT + port)) is taken; set BASEPORT" >&2
      exit 2
    fi
  done
  configure
  start munged munged -F --force --origin=127.0.0.1 --key-file="$D/etc/munge.key" \
    --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" \
    --log-file="$D/log/munged.log" --seed-file="$D/run/munge.seed"
  wait_until 10 munge -n --socket="$D/run/munge.socket"
  daemon slurmctld
  for node in $(nodes); do daemon "slurmd.$node"; done
  wait_until 60 idle
}

down() {
  [ -d "$D/run" ] || return 0
  # A job's step outlives its slurmd: empty the queue first.
  if answers 2>/dev/null; then
    scancel -u "$(id -un)" >/dev/null 2>&1 || true
    wait_until 20 empty 2>/dev/null || true
  fi
  local file names=()
  for file in "$D"/run/slurmd.*.mypid; do
    [ -e "$file" ] && names+=("$(basename "$file" .mypid)")
  done
  stop ${names[@]+"${names[@]}"} slurmctld munged
}

case $command in
  up)
    trap 'down' ERR
    up
    ;;
  env) echo "export SLURM_CONF=$D/etc/slurm.conf PATH=$D/bin:\$PATH" ;;
  stop) stop "${3:?WHAT}" ;;
  start) daemon "${3:?WHAT}" ;;
  down) down ;;
  *) echo "unknown: $command" >&2; exit 2 ;;
esac
