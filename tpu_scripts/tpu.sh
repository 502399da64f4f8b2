#!/usr/bin/env bash
# Trains on Cloud TPUs: one command, a verb for every step. docs/pods.md goes through them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
program=tpu.sh
dry_run=no
settings=$here/settings.env
# shellcheck source=gcloud.sh
source "$here/gcloud.sh"
# shellcheck source=settings.sh
source "$here/settings.sh"
# shellcheck source=watch.sh
source "$here/watch.sh"

VERBS="create setup launch status logs profile stop watch list delete"

help_of() {
  case $1 in
    create) say 'tpu.sh create: asks for the TPU: a queued resource of SLICES slices. It may stand in the queue for WAIT.' ;;
    setup) say 'tpu.sh setup: uploads this checkout to the bucket and installs it on every machine, with the bucket mounted.
Files that git ignores stay here.' ;;
    launch) say 'tpu.sh launch: starts train.py on every machine, detached; with --resume where runs/RUN has begun.' ;;
    status) say 'tpu.sh status: says what the queued resource, its slices and the training on every machine are doing.' ;;
    logs) say 'tpu.sh logs [--slice N] [--worker N] [--lines N]: follows the log of one machine (slice 0, worker 0); Ctrl-C ends it.' ;;
    profile) say 'tpu.sh profile [--to FOLDER]: fetches the run'\''s profile from the bucket to FOLDER (out/profile-RUN).' ;;
    stop) say 'tpu.sh stop: has every machine save and stop; tpu.sh launch goes on from there. So would a tpu.sh watch: end it first.' ;;
    watch) say 'tpu.sh watch [--then-delete]: keeps the run going by itself: creates the TPU where there is none, installs, launches, and
after preemption or a failed host creates, installs and launches again, at most MAX_RESTARTS times. It ends with 0
when the run is finished, and with an error on what a restart does not mend. It lives where you start it: use tmux or
nohup. --then-delete deletes the TPU in both cases, so that it costs nothing more.' ;;
    list) say 'tpu.sh list: lists the queued resources and TPU machines of the project in ZONE.' ;;
    delete) say 'tpu.sh delete: deletes the queued resource and its machines. The bucket stays.' ;;
  esac
}

usage() {
  say "usage: tpu_scripts/tpu.sh VERB [--dry-run] [--settings FILE] [OPTIONS OF THE VERB]

Trains on Cloud TPUs, with the settings of tpu_scripts/settings.env (explained in settings.example.env).

  create    ask for the TPU               logs      follow the log of one machine
  setup     install on all machines       profile   fetch a profile
  launch    start training                stop      save and stop
  status    what is it doing              list      what is there in the zone
  watch     all of it, and again after    delete    end it, and its cost
            every preemption

--dry-run prints the commands, as they are where nothing is amiss, and runs nothing. tpu.sh VERB --help says more.
docs/pods.md starts from nothing."
}

# --- what can be asked of the cloud ---

# Has every machine run the worker script's verb.
on_all() {
  local seconds=$1 command=$2
  call "$seconds" compute tpus queued-resources ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --node=all --worker=all --command="$command"
}
WORKER='bash ~/fourreal/code/tpu_scripts/worker.sh'

check_tools() {
  local tool
  for tool in gcloud timeout git; do
    command -v "$tool" >/dev/null && continue
    [ "$tool" != gcloud ] || refuse 'there is no gcloud here: install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install'
    refuse "there is no $tool here: install it (timeout is one of the GNU coreutils)"
  done
}

# What creating and installing need besides: the API and the bucket.
check_project() {
  local enabled hierarchical region=${ZONE%-*}
  enabled=$(call 60 services list --enabled --project="$PROJECT" --filter=config.name=tpu.googleapis.com --format='value(config.name)') || exit 1
  [ "$dry_run" = yes ] || [ -n "$enabled" ] || refuse "the Cloud TPU API is off in $PROJECT: run $(quote gcloud services enable tpu.googleapis.com --project="$PROJECT")"
  if ! hierarchical=$(call 60 storage buckets describe "gs://$BUCKET" --raw --format='value(hierarchicalNamespace.enabled)' 2>"$scratch/message"); then
    was_missing || { cat "$scratch/message" >&2; exit 1; }
    refuse "there is no bucket gs://$BUCKET: make it with $(quote gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="$region" --uniform-bucket-level-access --enable-hierarchical-namespace)"
  fi
  [ "$dry_run" = yes ] || [ "$hierarchical" = True ] || refuse "gs://$BUCKET has no hierarchical namespace, so folders in it are not renamed at once: make another bucket, with --enable-hierarchical-namespace"
}

# The queued resource's state, or NONE.
queued_state() {
  local state
  if state=$(call 120 compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" --format='value(state.state)' 2>"$scratch/message"); then
    say "$state"
  elif was_missing; then
    say NONE
  else
    cat "$scratch/message" >&2
    return 1
  fi
}

slice_names() {
  local number
  if [ "$SLICES" = 1 ]; then
    say "$NAME"
    return
  fi
  for ((number = 0; number < SLICES; number++)); do say "$NAME-$number"; done
}

# `ready`, `coming: ...` while slices are on their way, or `broken: ...` when one is gone.
slices() {
  local states slice state
  states=$(call 120 compute tpus tpu-vm list --project="$PROJECT" --zone="$ZONE" --format='value(name.basename(),state)') || return 1
  [ "$dry_run" = no ] || { say ready; return; }
  for slice in $(slice_names); do
    state=$(awk -v slice="$slice" '$1 == slice {print $2}' <<<"$states")
    case $state in
      READY) ;;
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | UNHIDING)
        say "coming: slice $slice is $state"
        return ;;
      '') say "broken: slice $slice is missing"; return ;;
      *) say "broken: slice $slice is $state"; return ;;
    esac
  done
  say ready
}

# Fails unless every slice can be worked on.
require_ready() {
  local state
  state=$(queued_state) || exit 1
  [ "$dry_run" = no ] || state=ACTIVE
  case $state in
    ACTIVE) ;;
    NONE) fail "there is no queued resource $NAME in $ZONE: run tpu.sh create" ;;
    SUSPENDING | SUSPENDED) fail "$NAME is $state: it was preempted; run tpu.sh delete, then create, or leave it all to tpu.sh watch" ;;
    FAILED) fail "$NAME is FAILED: run tpu.sh status for the reason, then tpu.sh delete" ;;
    *) fail "$NAME is $state: its machines are not there yet; try again later, or leave it to tpu.sh watch" ;;
  esac
  require_slices
}

require_slices() {
  local condition
  condition=$(slices) || exit 1
  case $condition in
    ready) ;;
    coming*) fail "$NAME is not ready, ${condition#*: }: try again in a few minutes" ;;
    *) fail "$NAME is ACTIVE, but ${condition#*: }: run tpu.sh delete, then create, or leave it all to tpu.sh watch" ;;
  esac
}

# `yes` where the run has begun, so that training resumes it, else `no`.
run_begun() {
  if call 120 storage objects describe "gs://$BUCKET/runs/$RUN/config.json" --format='value(name)' >/dev/null 2>"$scratch/message"; then
    say yes
  elif was_missing; then
    say no
  else
    cat "$scratch/message" >&2
    return 1
  fi
}

# --- steps, which `watch` takes too ---

request() {
  local words=("$NAME" --project="$PROJECT" --zone="$ZONE" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
  if [ "$SLICES" = 1 ]; then words+=(--node-id="$NAME"); else words+=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  case $PROVISIONING in spot) words+=(--spot) ;; reserved) words+=(--reserved) ;; esac
  words+=(--valid-until-duration="$WAIT")
  [ -z "$NETWORK" ] || words+=(--network="$NETWORK")
  [ -z "$SUBNETWORK" ] || words+=(--subnetwork="$SUBNETWORK")
  [ -z "$SERVICE_ACCOUNT" ] || words+=(--service-account="$SERVICE_ACCOUNT")
  call "$COMMAND_TIMEOUT" compute tpus queued-resources create "${words[@]}"
}

upload() {
  local list=(git -C "$root" ls-files -z --cached --others --exclude-standard)
  local pack=(tar -C "$root" --null -T - -czf code.tar.gz)
  (
    cd "$scratch" || exit 1
    if [ "$dry_run" = yes ]; then
      say "cd \"\$(mktemp -d)\""
      say "$(quote "${list[@]}") >files"
      say "$(quote "${pack[@]}") <files"
    else
      "${list[@]}" >files 2>stderr || { complain "the upload is what git lists, and git says: $(last_error)"; exit 1; }
      "${pack[@]}" <files 2>stderr || { complain "the checkout cannot be packed: $(last_error)"; exit 1; }
    fi
    call "$COMMAND_TIMEOUT" storage cp code.tar.gz "gs://$BUCKET/code/$NAME.tar.gz" --project="$PROJECT"
  )
}

install_on_all() {
  local archive=gs://$BUCKET/code/$NAME.tar.gz
  on_all "$COMMAND_TIMEOUT" "set -e; mkdir -p ~/fourreal; rm -rf ~/fourreal/incoming; mkdir ~/fourreal/incoming; gcloud storage cat $(quote "$archive") | tar -xz -C ~/fourreal/incoming; bash ~/fourreal/incoming/tpu_scripts/worker.sh setup $(quote "$BUCKET" ${COPY_DATA[@]+"${COPY_DATA[@]}"})"
}

launch_on_all() {
  local begun words=("$CONFIG" --out "runs/$RUN")
  begun=$(run_begun) || return 1
  if [ "$dry_run" = yes ]; then
    say '# where that is there the run has begun, and --resume follows --out'
  elif [ "$begun" = yes ]; then
    say "runs/$RUN has begun: going on with --resume"
    words+=(--resume)
  fi
  on_all 300 "$WORKER launch $(quote "${words[@]}" ${TRAIN_OPTIONS[@]+"${TRAIN_OPTIONS[@]}"})"
}

# --- the verbs ---

create() {
  local state
  check_project
  state=$(queued_state) || exit 1
  [ "$dry_run" = no ] || state=NONE
  case $state in
    NONE) ;;
    ACTIVE)
      require_slices
      say "$NAME exists already and is ready"
      return ;;
    SUSPENDING | SUSPENDED | FAILED) fail "$NAME exists already and is $state: run tpu.sh delete first" ;;
    *)
      say "$NAME exists already and is $state"
      return ;;
  esac
  request
  [ "$dry_run" = yes ] || say "$NAME is requested: tpu.sh status says when it is ACTIVE"
}

setup() {
  check_project
  require_ready
  upload
  install_on_all
}

launch() {
  require_ready
  launch_on_all
}

status() {
  local state
  if [ "$dry_run" = yes ]; then
    require_ready
    ask_training
    return
  fi
  state=$(queued_state) || exit 1
  case $state in
    NONE) say "there is no queued resource $NAME in $ZONE" ;;
    FAILED) fail "$NAME is FAILED: $(refusal)" ;;
    ACTIVE)
      say "$NAME is ACTIVE"
      require_slices
      state=$(ask_training) || exit 1
      say "${state:-nothing is installed: run tpu.sh setup}" ;;
    *) say "$NAME is $state" ;;
  esac
}

logs() {
  local slice=0 worker=0 lines=100 words
  while [ $# -gt 0 ]; do
    [[ ${2:-} =~ ^[0-9]+$ ]] || refuse "logs: expected a number after $1"
    case $1 in
      --slice) slice=$2 ;;
      --worker) worker=$2 ;;
      --lines) lines=$2 ;;
      *) refuse "logs has no option $1: see tpu.sh logs --help" ;;
    esac
    shift 2
  done
  [ "$slice" -lt "$SLICES" ] || refuse "logs: --slice is $slice, but there are $SLICES, from 0 on"
  require_ready
  words=(compute tpus queued-resources ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --node="$slice" --worker="$worker"
    --command="tail -n $lines -F ~/fourreal/train.log")
  if [ "$dry_run" = yes ]; then
    call 0 "${words[@]}"
    return
  fi
  gcloud "${words[@]}" || fail "the log of slice $slice, worker $worker ended with exit code $?: look with tpu.sh status"
}

profile() {
  local folder=$root/out/profile-$RUN
  if [ $# -gt 0 ]; then
    [ "$1" = --to ] && [ -n "${2:-}" ] && [ $# = 2 ] || refuse 'profile takes --to FOLDER and nothing else'
    folder=$2
  fi
  [ "$dry_run" = yes ] || mkdir -p "$folder" || refuse "profile: $folder cannot be made: choose another with --to"
  if ! call "$COMMAND_TIMEOUT" storage cp --recursive "gs://$BUCKET/runs/$RUN/profile" "$folder" 2>"$scratch/message"; then
    was_missing || { cat "$scratch/message" >&2; exit 1; }
    fail "runs/$RUN has no profile: turn it on in TRAIN_OPTIONS, as docs/pods.md says"
  fi
  [ "$dry_run" = yes ] || say "the profile is in $folder"
}

stop() {
  require_ready
  on_all "$COMMAND_TIMEOUT" "$WORKER stop"
}

list() {
  call 120 compute tpus queued-resources list --project="$PROJECT" --zone="$ZONE"
  call 120 compute tpus tpu-vm list --project="$PROJECT" --zone="$ZONE"
}

delete() {
  local state
  state=$(queued_state) || return 1
  if [ "$state" = NONE ]; then
    say "there is no queued resource $NAME in $ZONE: nothing to delete"
    return
  fi
  call "$COMMAND_TIMEOUT" compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet || return 1
  [ "$dry_run" = yes ] || say "$NAME is deleted"
}

main() {
  exec 3>&1
  local verb=${1:-} rest=()
  case $verb in
    '' | -h | --help) usage; return ;;
  esac
  [[ " $VERBS " == *" $verb "* ]] || refuse "'$verb' is no verb: expected one of $VERBS"
  program="tpu.sh $verb"
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) help_of "$verb"; return ;;
      --dry-run) dry_run=yes ;;
      --settings)
        [ -n "${2:-}" ] || refuse 'expected a file after --settings'
        settings=$2
        shift ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
  case $verb in
    logs | profile | watch) ;;
    *) [ ${#rest[@]} = 0 ] || refuse "'${rest[0]}' means nothing here: see tpu.sh $verb --help" ;;
  esac
  load_settings "$settings"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  [ "$dry_run" = yes ] || check_tools
  "$verb" ${rest[@]+"${rest[@]}"}
}

main "$@"
