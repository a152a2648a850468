#!/usr/bin/env bash
# A study on SLURM. From a directory that all nodes see, with the study's command as arguments:
#
#   sbatch --nodes=4 --gpus-per-node=4 deploy/slurm.sh esa run --model … --out-dir results/mine
#
# Exit status: that of `esa status`: 0 done, 1 incomplete or failing cells, 2 bad input. At its time limit, and when
# it is preempted or loses a node, the job goes back into the queue and goes on where it was.
#
#SBATCH --job-name=esa
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=esa-%j.log
# To the script alone, two minutes before the limit. USR1, since TERM also comes from scancel, which means the end.
#SBATCH --signal=B:USR1@120

set -uo pipefail

fail() {
  echo "slurm.sh: $*" >&2
  exit 2
}

out=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --out-dir) next=$((i + 1)); out=${!next:-} ;;
    --out-dir=*) out=${!i#*=} ;;
  esac
done
[ -n "$out" ] || fail "the study's command needs --out-dir, on a file system that all nodes see"
[ -n "${SLURM_JOB_ID:-}" ] || fail "this is for sbatch: sbatch deploy/slurm.sh esa run … --out-dir …"

venv=${ESA_VENV:-.venv}
# shellcheck source=/dev/null
[ ! -f "$venv/bin/activate" ] || . "$venv/bin/activate"
for command in esa ray; do
  command -v "$command" >/dev/null || fail "no $command here; make an environment, or set ESA_VENV"
done

# One token for all nodes, in the home directory they share; Ray itself would write it readable for everyone. Written
# aside and linked, since two jobs may start at once.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
  mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
  fresh=$(mktemp "$RAY_AUTH_TOKEN_PATH.XXXXXX") || fail "no place for a token: $RAY_AUTH_TOKEN_PATH"
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$fresh"
  ln "$fresh" "$RAY_AUTH_TOKEN_PATH" 2>/dev/null
  rm "$fresh"
fi
chmod 600 "$RAY_AUTH_TOKEN_PATH" || fail "$RAY_AUTH_TOKEN_PATH must be yours"

# This script runs on the job's first node. symmetric-run knows the head by its address, and many machines call
# themselves 127.0.1.1.
head=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127[.]/ {print $1; exit}')
[ -n "$head" ] || head=$(hostname -I | awk '{print $1}')
[ -n "$head" ] || fail "this node has no address"
port=$((20000 + SLURM_JOB_ID % 10000))
# Where the study finds the cluster; without it, it would start one of its own.
export RAY_ADDRESS=$head:$port
# Not TMPDIR: the paths of Ray's sockets must stay short. Nodes of a large job don't come up within Ray's 30 s.
export RAY_TMPDIR=/tmp/esa-$SLURM_JOB_ID RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

requeue=
trap 'requeue=yes' USR1
trap 'kill -TERM "$step" 2>/dev/null; exit 143' TERM INT

# symmetric-run starts Ray on all nodes, the command on the first, and ends with `ray stop`, which stops every Ray of
# the node: hence --exclusive. Its dashboard stays on the head's loopback.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 \
  ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_ON_NODE" -- "$@" &
step=$!
ran=0
wait "$step" || ran=$?

if [ -n "$requeue" ]; then
  # A study that a whole time limit doesn't bring forward would go round for ever.
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "${ESA_RESTARTS:-20}" ] && scontrol requeue "$SLURM_JOB_ID"; then
    echo "slurm.sh: out of time, and back in the queue"
  else
    echo "slurm.sh: out of time; submit the same command again" >&2
  fi
  exit 1
fi

# symmetric-run returns 0 even when Ray didn't start: what is stored tells.
esa status --out-dir "$out"
status=$?
# All cells may be there and the report not.
[ "$status" -ne 0 ] || status=$ran
exit "$status"
