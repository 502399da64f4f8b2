#!/usr/bin/env bash
# What the container of a cluster runs (Dockerfile, gke.yaml): pod.sh CONFIG RUN_FOLDER [OPTIONS OF train.py].
#
# A run that has begun goes on with --resume. Exit codes are those of train.py, 0 only where the run is finished: one that was
# asked to stop (SIGTERM, as before a preemption) saves and ends with 3, so that the cluster starts it again.
set -euo pipefail

LOST=3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 2 ]; then
  printf 'pod.sh: error: expected CONFIG and RUN_FOLDER, as in pod.sh configs/tiny.py runs/tiny\n' >&2
  exit 2
fi
words=("$1" --out "$2" "${@:3}")
[ ! -e "$2/config.json" ] || words+=(--resume)

stopped=no code=0
trap 'stopped=yes; kill -TERM "$training" 2>/dev/null || true' TERM
"${PYTHON:-python}" train.py "${words[@]}" &
training=$!
wait "$training" || code=$?
if [ "$stopped" = yes ]; then
  code=0
  wait "$training" || code=$? # the first one ended with the signal, before train.py did
  [ "$code" != 0 ] || code=$LOST
fi
exit "$code"
