#!/usr/bin/env bash
# A real, throw-away Slurm on one Debian machine, for the tests: no systemd, no cgroups, no GPU; needs root.
#
#   slurm-local.sh up       install what is missing, start what does not run, wait until every node takes jobs
#   slurm-local.sh down     cancel all jobs and stop the daemons that `up` started
#   slurm-local.sh status   nodes and jobs
#
# `up` may be said at any time: it starts again whatever was killed, and resumes nodes that are drained or down.
# SLURM_ACCOUNTING=1 in front of `up` adds MariaDB and slurmdbd, so that sacct works and limits of users are kept; a
# cluster that is up without (or with) them is brought down first.
# SLURM_CPUS=8 in front of `up` gives each node that many CPUs, where no cluster is up yet.
#
# Partitions: cpu (the default), gpu and preemptible, each of all nodes. A job of cpu or gpu that needs the room sends
# those of preemptible back to the queue. A job that takes more memory than it asked for is killed.
set -euo pipefail

NODES=4
CPUS=${SLURM_CPUS:-4} # of each node, whatever the machine has
MEMORY_MB=64000 # of each, likewise
GPUS=2          # fake ones, of each node
ACCOUNTING=${SLURM_ACCOUNTING:-0}

# Not a folder of our own: Snakemake's job step passes no SLURM_CONF on.
CONF=/etc/slurm/slurm.conf
MARK="# written by slurm-local.sh"
HOST=$(hostname -s)
DIR=$(sed -n 's/^# slurm-local dir: //p' "$CONF" 2>/dev/null || true) # where the cluster that is up keeps its state
DIR=${DIR:-/tmp/slurm-local}
RUN=$DIR/run
MUNGE=$DIR/munge/munge.socket

die() {
  echo "slurm-local.sh: $*" >&2
  exit 1
}

runs() { # daemon, by the name of its pid file
  [[ -s $RUN/$1.pid ]] && kill -0 "$(cat "$RUN/$1.pid")" 2>/dev/null
}

await() { # seconds, command...
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

install_packages() {
  local package wanted=(slurmctld slurmd slurm-client munge) missing=()
  [[ $ACCOUNTING == 1 ]] && wanted+=(slurmdbd mariadb-server)
  for package in "${wanted[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  apt-get update -qq
  # Installed, these packages start nothing: without systemd their services cannot run, and must not.
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

node_lines() {
  local n
  for ((n = 1; n <= NODES; n++)); do
    echo "NodeName=n$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((17000 + n)) CPUs=$CPUS RealMemory=$MEMORY_MB" \
      "Gres=gpu:fake:$GPUS State=UNKNOWN"
  done
}

accounting_lines() {
  if [[ $ACCOUNTING == 1 ]]; then
    printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=127.0.0.1 \
      AccountingStoragePort=17098 "AccountingStoragePass=$MUNGE" AccountingStorageTRES=gres/gpu \
      AccountingStorageEnforce=limits
  else
    echo AccountingStorageType=accounting_storage/none
  fi
}

write_config() {
  local n g
  mkdir -p "$DIR"/{run,log,state,dev,munge} "${CONF%/*}"
  for ((n = 1; n <= NODES; n++)); do mkdir -p "$DIR/spool/n$n"; done
  # Character devices, or Slurm never sets CUDA_VISIBLE_DEVICES: each is another /dev/null.
  for ((g = 0; g < GPUS; g++)); do [[ -c $DIR/dev/gpu$g ]] || mknod -m 666 "$DIR/dev/gpu$g" c 1 3; done
  echo "NodeName=n[1-$NODES] Name=gpu Type=fake File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"${CONF%/*}/gres.conf"
  cat >"$CONF" <<END
$MARK, which may write it again at any time
# slurm-local dir: $DIR
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that goes back to the queue waits there until its credential has expired: two minutes, if nothing is said.
AuthInfo=socket=$MUNGE,cred_expire=15
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
# Without cgroups the memory of a job is looked at once a second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
# Jobs of one study lie on different nodes where that is possible.
SelectTypeParameters=CR_Core_Memory,CR_LLN
GresTypes=gpu
# Schedule at once: nobody waits for thousands of other users here.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MaxArraySize=10001
MaxJobCount=50000
MinJobAge=1800
KillWait=2
InactiveLimit=0
# A node that is gone is to be noticed within a test, and comes back by itself.
SlurmdTimeout=10
# Commands give up sooner where nobody answers; it is 10 s, if nothing is said.
MessageTimeout=5
ReturnToService=2
$(accounting_lines)
$(node_lines)
PartitionName=cpu Nodes=ALL Default=YES MaxTime=1-00:00:00 DefMemPerCPU=500 PriorityTier=10 PreemptMode=OFF
PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 DefMemPerCPU=500 PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=ALL MaxTime=1-00:00:00 DefMemPerCPU=500 PriorityTier=1 PreemptMode=REQUEUE
END
}

start() { # daemon, by the name of its pid file; command...
  local daemon=$1
  shift
  runs "$daemon" || setsid "$@" </dev/null >>"$DIR/log/$daemon.out" 2>&1
}

start_munge() {
  [[ -s $DIR/munge/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/munge.key")
  start munged /usr/sbin/munged --force --key-file="$DIR/munge/munge.key" --socket="$MUNGE" \
    --pid-file="$RUN/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/munged.seed"
}

start_accounting() {
  local sql=(mariadb --no-defaults --socket "$RUN/mariadb.sock")
  if [[ ! -d $DIR/mariadb/mysql ]]; then
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/mariadb" --auth-root-authentication-method=socket \
      --skip-test-db >"$DIR/log/mariadb-install.log" 2>&1
  fi
  start mariadb /usr/sbin/mariadbd --no-defaults --user=root --datadir="$DIR/mariadb" --socket="$RUN/mariadb.sock" \
    --bind-address=127.0.0.1 --port=17099 --pid-file="$RUN/mariadb.pid" --innodb-lock-wait-timeout=900 &
  await 30 "${sql[@]}" --execute "SELECT 1" || die "MariaDB does not answer; see $DIR/log/mariadb.out"
  "${sql[@]}" --execute "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm', slurm@localhost IDENTIFIED BY 'slurm';
    GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1', slurm@localhost;"
  (umask 077 && printf '%s\n' AuthType=auth/munge "AuthInfo=$MUNGE" DbdHost=localhost DbdPort=17098 SlurmUser=root \
    "LogFile=$DIR/log/slurmdbd.log" "PidFile=$RUN/slurmdbd.pid" StorageType=accounting_storage/mysql \
    StorageHost=127.0.0.1 StoragePort=17099 StorageUser=slurm StoragePass=slurm >"${CONF%/*}/slurmdbd.conf")
  start slurmdbd /usr/sbin/slurmdbd
  await 30 sacctmgr --noheader show cluster || die "slurmdbd does not answer; see $DIR/log/slurmdbd.log"
  # What is there already is no error.
  sacctmgr --immediate add cluster local >/dev/null 2>&1 || true
  sacctmgr --immediate add account lab >/dev/null 2>&1 || true
  sacctmgr --immediate add user root account=lab >/dev/null 2>&1 || true
}

all_nodes_take_jobs() {
  scontrol update NodeName="n[1-$NODES]" State=RESUME || true # an error where none is drained or down
  [[ $(timeout 5 sinfo --noheader --Node --partition=cpu --states=idle,alloc,mix --responding | wc -l) == "$NODES" ]]
}

start_slurm() {
  local n
  start slurmctld /usr/sbin/slurmctld -i
  for ((n = 1; n <= NODES; n++)); do start "slurmd-n$n" /usr/sbin/slurmd -N "n$n"; done
  await 60 all_nodes_take_jobs || {
    sinfo --list-reasons
    tail -n 20 "$DIR"/log/slurm*.log >&2
    die "the nodes do not come up"
  }
}

stop() { # daemon, by the name of its pid file
  local pid
  runs "$1" || return 0
  pid=$(cat "$RUN/$1.pid")
  kill "$pid"
  await 10 eval "! kill -0 $pid" || kill -9 "$pid"
}

down() {
  local n daemon
  if runs slurmctld; then timeout 10 scancel --user=root || true; fi
  for ((n = 1; n <= NODES; n++)); do stop "slurmd-n$n" & done # each takes two seconds
  wait
  for daemon in slurmctld slurmdbd mariadb munged; do stop "$daemon"; done
  rm -f "$CONF" "${CONF%/*}"/{gres,slurmdbd}.conf
}

[[ $EUID == 0 ]] || die "must be root"
[[ ! -e $CONF ]] || grep -q "^$MARK" "$CONF" || die "$CONF is not ours: this machine has a Slurm already"
case ${1:-} in
  up)
    install_packages
    if [[ -e $CONF && $ACCOUNTING != "$(grep -c accounting_storage/slurmdbd "$CONF")" ]]; then down; fi
    runs slurmctld || write_config
    start_munge
    if [[ $ACCOUNTING == 1 ]]; then start_accounting; fi
    start_slurm
    ;;
  down) down ;;
  status)
    sinfo --Node --format '%N %P %T %c %m %G'
    squeue
    ;;
  *) die "usage: $0 up|down|status" ;;
esac
