# shellcheck shell=bash
# shellcheck disable=SC2154  # program, dry_run, scratch and the settings come from the file that sources this one
# Every call of gcloud goes through here: printed instead of run under --dry-run, never without a time limit, and
# a failure becomes one line that says what was wrong and what to do.

say() { printf '%s\n' "$*"; }

# One line on stderr, and the end: 1 where something failed, 2 where the input is wrong.
complain() { printf '%s: error: %s\n' "$program" "$*" >&2; }
fail() { complain "$@"; exit 1; }
refuse() { complain "$@"; exit 2; }

# The words as one line from which a shell reads the same words.
quote() {
  local word line='' escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$escaped}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# call SECONDS ARGUMENTS...: gcloud ARGUMENTS. Prints its output; returns 1 after the line that explains a failure. A dry run
# prints the command to descriptor 3, also where the output is asked for, and that is empty.
call() {
  local seconds=$1 code=0
  shift
  if [ "$dry_run" = yes ]; then
    say "$(quote gcloud "$@")" >&3
    return
  fi
  timeout --kill-after=10 "$seconds" gcloud "$@" </dev/null 2>"$scratch/stderr" || code=$?
  # With several slices gcloud only warns of those that it cannot reach.
  if [ "$code" = 0 ] && ! grep -q 'Could not prepare all' "$scratch/stderr"; then
    return
  fi
  complain "$(explain "$code" "$seconds" "$(called "$@")")"
  return 1
}

# The part of a command that names it: gcloud and the words before the first option.
called() {
  local word line=gcloud
  for word in "$@"; do
    case $word in -*) break ;; esac
    line+=" $word"
  done
  printf '%s' "$line"
}

# explain CODE SECONDS COMMAND: what the last call's stderr means, in one line.
explain() {
  local code=$1 seconds=$2 command=$3 text line
  text=$(cat "$scratch/stderr")
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then
    printf '%s gave no answer within %s s: look at it with tpu.sh status, then try again' "$command" "$seconds"
    return
  fi
  line=$(sed -n 's/^.*\(fourreal-worker [^:]*: error: .*\)/\1/p' "$scratch/stderr" | head -n 1)
  if [ -n "$line" ]; then
    printf '%s' "$line"
    return
  fi
  case $text in
    *'active account'* | *'gcloud auth login'* | *eauthentication*)
      printf 'gcloud is not logged in: run gcloud auth login' ;;
    *SERVICE_DISABLED* | *'has not been used in project'*)
      printf 'the Cloud TPU API is off in %s: run %s' "$PROJECT" "$(quote gcloud services enable tpu.googleapis.com --project="$PROJECT")" ;;
    *RESOURCE_EXHAUSTED* | *[Qq]uota*)
      printf 'no quota for %s x %s (%s) in %s: ask for more under IAM & Admin > Quotas, or change ACCELERATOR_TYPE, PROVISIONING or ZONE: %s' \
        "$SLICES" "$ACCELERATOR_TYPE" "$PROVISIONING" "$ZONE" "$(last_error)" ;;
    *PERMISSION_DENIED* | *'does not have permission'* | *'does not have storage.'*)
      printf 'your account may not do this in %s: ask for roles/tpu.admin, roles/iam.serviceAccountUser and roles/storage.admin: %s' "$PROJECT" "$(last_error)" ;;
    *'not present in the SSH agent'*)
      # shellcheck disable=SC2016  # to be read, not expanded
      printf 'ssh to several machines needs your key in an agent: run eval "$(ssh-agent)" and ssh-add ~/.ssh/google_compute_engine' ;;
    *'Could not prepare all'*)
      printf '%s did not reach every slice: look with tpu.sh status, then try again' "$command" ;;
    *)
      printf '%s failed with exit code %s: %s' "$command" "$code" "$(last_error)" ;;
  esac
}

# The last call's error message: its ERROR line, or else its last line.
last_error() {
  { grep -m 1 '^ERROR' "$scratch/stderr" || grep -v '^ *$' "$scratch/stderr" | tail -n 1; } | sed 's/^ERROR: *//' | cut -c 1-300
}

# Whether the last call failed because what it asked for does not exist.
was_missing() { grep -qE 'NOT_FOUND|not found: 404|matched no objects' "$scratch/stderr"; }

# Whether it failed for want of a login, a permission, the API or quota, which do not come by waiting.
was_refused() {
  grep -qE 'active account|gcloud auth login|eauthentication|SERVICE_DISABLED|has not been used in project|RESOURCE_EXHAUSTED|[Qq]uota|PERMISSION_DENIED|does not have permission' "$scratch/stderr"
}
