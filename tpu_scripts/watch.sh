# shellcheck shell=bash
# shellcheck disable=SC2154  # the settings and the steps come from the file that sources this one
# The supervisor: looks every POLL_SECONDS, and does the one thing that the state of things asks for.
#
#   nothing there          create it
#   in the queue           wait; after FEWER_AFTER ask for one slice less, where MIN_SLICES allows it; so where it is refused
#   ready, not installed   install, launch
#   training runs          wait; stop it and launch again where its step has not moved for STALL_SECONDS
#   training finished      end with 0
#   it stopped or died     launch again            } together at most MAX_RESTARTS times
#   preempted, slice gone  delete, and so from the top }
#   train.py refused, or crashed twice alike with no checkpoint in between; the request was refused; trouble at PATIENCE
#   looks in a row, or INSTALLS failed installations: end with 1

PATIENCE=10
INSTALLS=3
# What train.py says of itself: bad input or a full disk, Ctrl-C, a loss that is not finite. (Python gives 1 to every
# exception, so also to those that come of another host's death.)
UNMENDABLE='failed (2|130):|failed 1: .*fourreal train: error: step [0-9]'
LOST='failed 3:' # a host or a file was out of reach, or nothing moved: no crash of its own, however often
RUNNING='running(, step [0-9]+)?$'

# What every machine's training does, a line each; none where nothing is installed.
ask_training() {
  local answer
  answer=$(on_all 300 "test ! -e ~/fourreal/code || $WORKER status") || return 1
  grep -o 'fourreal-worker [^:]*: .*' <<<"$answer" || true
}

# Why the request failed.
refusal() {
  call 120 compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" --format='value(state.failedData.error.message)'
}

# The run's whole checkpoints: other ones than before show that it has advanced.
list_checkpoints() {
  if ! call 120 storage ls "gs://$BUCKET/runs/$RUN/checkpoints/*/files.json" 2>"$scratch/message"; then
    was_missing || { cat "$scratch/message" >&2; return 1; }
  fi
}

# One word for what there is to do something about, and the evidence.
observe() {
  local state condition training
  state=$(queued_state) || return 1
  case $state in
    NONE) say 'absent' ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) say "queued: $NAME is $state" ;;
    SUSPENDED) say "lost: $NAME is SUSPENDED, it was preempted" ;;
    FAILED) say "refused: $NAME is FAILED: $(refusal)" ;;
    ACTIVE)
      condition=$(slices) || return 1
      case $condition in
        ready)
          training=$(ask_training) || return 1
          judge "$training" ;;
        coming*) say "unsettled: ${condition#*: }" ;;
        *) say "lost: ${condition#*: }" ;;
      esac ;;
    *) say "unsettled: $NAME is $state" ;;
  esac
}

# The lines of all machines, as one.
judge() {
  local lines=$1 line running others
  if line=$(grep -m 1 -E ": ($UNMENDABLE)" <<<"$lines"); then
    say "gave up: ${line#fourreal-worker }"
    return
  fi
  running=$(grep -c -E ": $RUNNING" <<<"$lines") || true
  others=$(grep -c -v -E ": $RUNNING|^$" <<<"$lines") || true
  if [ "$running" -gt 0 ]; then
    line=$(grep -o -m 1 ', step [0-9]*$' <<<"$lines") || true
    if [ "$others" = 0 ]; then say "running: on $running machines$line"; else say "torn: on $running machines, not on $others"; fi
  elif [ "$others" = 0 ] || grep -q ': nothing$' <<<"$lines"; then
    say 'bare: nothing is installed'
  elif [ "$(grep -c ': finished$' <<<"$lines")" = "$others" ]; then
    say 'finished'
  else
    line=$(grep -m 1 -v -E ": (finished$|$LOST)" <<<"$lines" || grep -m 1 ": $LOST" <<<"$lines")
    say "interrupted: ${line#fourreal-worker }"
  fi
}

watch() {
  local then_delete=no outcome=0
  case "$*" in
    '') ;;
    --then-delete) then_delete=yes ;;
    *) refuse 'watch takes --then-delete and nothing else' ;;
  esac
  check_project
  if [ "$dry_run" = yes ]; then
    plan_watch "$then_delete"
    return
  fi
  (supervise) || outcome=$?
  if [ "$then_delete" = yes ]; then
    delete
  elif [ "$outcome" = 0 ]; then
    say "$NAME costs money until tpu.sh delete"
  else
    say "$NAME, if it is there, costs money until tpu.sh delete" >&2
  fi
  return "$outcome"
}

supervise() {
  local restarts=0 troubles=0 installs=0 stalled=0 queued=0 uploaded=no mine=yes before='' failure='' all=$SLICES seen crash
  while :; do
    seen=$(observe) || seen='unknown'
    [ "${seen%, step *}" = "${before%, step *}" ] || say "$(date '+%F %T') $seen"
    if [[ $seen == running* && $seen == "$before" ]]; then stalled=$((stalled + POLL_SECONDS)); else stalled=0; fi
    before=$seen
    case $seen in
      absent)
        [ "$mine" = yes ] || fail "$NAME was deleted, and not by this watch: run it again to start anew"
        if request; then
          mine=no
        elif was_refused; then
          fewer || fail 'so it cannot be created'
        else
          seen='unknown: it could not be created'
        fi ;;
      queued* | running*)
        mine=no installs=0
        if [ "$stalled" -ge "$STALL_SECONDS" ]; then
          failure='' before=
          start_again "$seen: no other step for $stalled s"
        fi
        if [[ $seen == queued* ]]; then queued=$((queued + POLL_SECONDS)); else queued=0; fi
        if [ "$queued" -ge "$FEWER_AFTER" ] && fewer; then delete || say 'it will be tried again'; fi ;;
      bare*)
        mine=no installs=$((installs + 1))
        { { [ "$uploaded" = yes ] || upload; } && uploaded=yes && install_on_all && launch_on_all; } ||
          [ "$installs" -lt "$INSTALLS" ] || fail "installing failed $installs times" ;;
      interrupted*)
        # "interrupted: HOST: WHY": a WHY that comes back before the next checkpoint is no accident.
        if ! crash="${seen#*: *: } $(list_checkpoints)"; then
          seen='unknown: the checkpoints could not be listed'
        else
          [ "$crash" != "$failure" ] || fail "${seen#*: }, twice in a row with no checkpoint in between; a restart does not mend that"
          failure=
          count_restart "$seen"
          if ! launch_on_all; then
            say 'it will be tried again'
          elif [[ $seen == *': failed '* && $seen != *": $LOST"* ]]; then
            failure=$crash
          fi
        fi ;;
      lost*)
        failure='' mine=yes SLICES=$all # before the deletion, whose answer may get lost
        count_restart "$seen"
        delete || say 'it will be tried again' ;;
      refused*)
        fewer || fail "${seen#*: }; a restart does not mend that"
        delete || say 'it will be tried again' ;;
      'gave up'*) fail "${seen#*: }; a restart does not mend that" ;;
      finished) say "runs/$RUN is finished"; return ;;
    esac
    case $seen in
      unknown* | unsettled* | torn*)
        troubles=$((troubles + 1))
        if [ "$troubles" -ge "$PATIENCE" ]; then
          troubles=0
          case $seen in
            torn*) failure='' && start_again "$seen" ;;
            *) fail "no change at $PATIENCE looks in a row (${seen#*: }): see tpu.sh status; what trains goes on" ;;
          esac
        fi ;;
      *) troubles=0 ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

# Has the next request ask for one slice less; fails where there may not be fewer. Changes the caller's `queued` and `mine`.
fewer() {
  [ "$SLICES" -gt "$MIN_SLICES" ] || return 1
  SLICES=$((SLICES - 1)) queued=0 mine=yes
  say "asking for fewer: $SLICES x $ACCELERATOR_TYPE"
}

# Has what hangs launched again. A save is not to be expected of it, so it has little time until it is killed.
start_again() {
  count_restart "$1"
  on_all "$COMMAND_TIMEOUT" "$WORKER stop $POLL_SECONDS" || fail 'it could not be stopped either: tpu.sh delete, then watch again'
  launch_on_all || say 'it will be tried again'
}

# Counts in the caller's `restarts`.
count_restart() {
  [ "$restarts" -lt "$MAX_RESTARTS" ] || fail "${1#*: }, after $restarts restarts: MAX_RESTARTS allows no more"
  restarts=$((restarts + 1))
  say "restart $restarts of at most $MAX_RESTARTS"
}

# What a dry run shows of it.
plan_watch() {
  say '# where there is nothing: at the start, and again after every preemption; the upload only once'
  request
  upload
  install_on_all
  launch_on_all
  say "# every $POLL_SECONDS s"
  require_ready
  ask_training
  say '# where training ended early: whether it has advanced since the last time; then the launch again'
  list_checkpoints
  say "# after a preemption$([ "$1" = no ] || printf ', and at the end')"
  delete
}
