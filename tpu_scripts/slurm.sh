#!/usr/bin/env bash
# Trains on GPUs under SLURM, one process a GPU. From the repository, with every setting of sbatch before the script:
#
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 tpu_scripts/slurm.sh CONFIG RUN_FOLDER [OPTIONS OF train.py]
#
# The run's folder and the data must be on a disk that all nodes share. JAX finds the other processes from SLURM's variables.
# Ten minutes before the time limit, and where the cluster warns before it preempts, train.py gets a SIGTERM, saves and
# ends; the job then queues itself again and goes on with --resume. So it does after a node failed or a process died or made no
# progress, where some did not start in time, or a read or write failed on a disk that is not full. A job that failed
# otherwise does not come back, nor one that came back MAX_RESTARTS times.
#
#SBATCH --job-name=fourreal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

MAX_RESTARTS=20
LOST=3 # what train.py ends with where starting all processes again may mend it
python=${PYTHON:-.venv/bin/python}

fail() {
  printf 'slurm.sh: error: %s\n' "$*" >&2
  exit 2
}

case ${1:-} in
  -h | --help) sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p;}' "$0"; exit ;;
esac
[ -n "${SLURM_JOB_ID:-}" ] || fail 'this is for sbatch: sbatch tpu_scripts/slurm.sh CONFIG RUN_FOLDER'
[ $# -ge 2 ] || fail 'expected CONFIG and RUN_FOLDER: sbatch tpu_scripts/slurm.sh configs/tiny.py runs/tiny'
cd "$SLURM_SUBMIT_DIR" # the script itself is a copy elsewhere
[ -f train.py ] || fail "there is no train.py in $SLURM_SUBMIT_DIR: run sbatch from the repository"
[ -x "$python" ] || fail "there is no $python: run make setup, or name another with PYTHON=..."
config=$1 folder=$2
shift 2
[ -f "$config" ] || fail "there is no config $config in $SLURM_SUBMIT_DIR"

words=("$python" train.py "$config" --out "$folder" "$@")
[ ! -e "$folder/config.json" ] || words+=(--resume)
log=$folder.$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.log
mkdir -p "$(dirname "$folder")"
printf 'the log: %s\n' "$log"

[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun no longer takes from sbatch
trap : TERM # train.py gets its own; this shell stays to queue the job again
code=0
# The processes end each other, with a line and a code. After a minute srun kills those that cannot, as one that hangs.
srun --kill-on-bad-exit=0 --wait=60 --output="$log" "${words[@]}" || code=$?
# Where one was killed srun gives that code, as the highest; the others have said what it means, or, where it was the first one,
# JAX has, which aborts them.
if { [ "$code" = 0 ] && grep -q 'go on with --resume' "$log"; } || [ "$code" = "$LOST" ] ||
  grep -q -e 'start all again with --resume' -e 'JAX distributed service detected fatal errors' "$log"; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
    fail "$folder is not finished, but the job came back $MAX_RESTARTS times already: submit it again to go on"
  fi
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
