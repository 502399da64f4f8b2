#!/usr/bin/env bash
# Runs on every machine of a pod; tpu.sh calls it there. Everything lies in ~/fourreal:
#   code/            the repository as it was uploaded; data/ and runs/ in it lead to the bucket, so that a command is the
#                    same here as on a laptop
#   bucket/          the bucket, mounted;  data/  copies of its data sets;  venv/  Python with all packages
#   setup.log  train.log  train.log.previous  pid  code-of-exit
#
#   worker.sh setup BUCKET [DATA_FOLDER ...]   installs; run from the unpacked upload, ~/fourreal/incoming
#   worker.sh launch [OPTIONS OF train.py]     starts training, detached
#   worker.sh status
#   worker.sh stop [SECONDS]                   has it save and end; kills it after so long (STOP_SECONDS)
#
# Each verb ends with one line `fourreal-worker HOST: ...`, which tpu.sh reads.
set -euo pipefail

root=$HOME/fourreal
bucket_folder=$root/bucket
python=$root/venv/bin/python
PYTHON_VERSION=3.11 # the images bring an older one
STOP_SECONDS=600    # what a save may take

report() { printf 'fourreal-worker %s: %s\n' "$(hostname)" "$*"; }

fail() {
  report "error: $*" >&2
  exit 1
}

# step WHAT COMMAND...: runs it into setup.log; a failure is one line.
step() {
  local what=$1
  shift
  printf '== %s\n' "$what" >>"$root/setup.log"
  "$@" >>"$root/setup.log" 2>&1 || fail "$what failed: $(last_line "$root/setup.log") (all of it: ~/fourreal/setup.log)"
}

last_line() { tail -c 4000 "$1" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c 1-300; }

# The process that trains here, if it lives; a number alone could be another process's after a reboot.
training_pid() {
  local pid
  pid=$(cat "$root/pid" 2>/dev/null) || return 1
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'train\.py' && printf '%s' "$pid"
}

setup() {
  local bucket=$1 folder
  shift
  training_pid >/dev/null && fail 'training runs here: tpu.sh stop it before installing'
  : >"$root/setup.log"
  rm -rf "$root/code"
  mv "$root/incoming" "$root/code"
  command -v gcsfuse >/dev/null || step 'installing gcsfuse' install_gcsfuse
  mountpoint -q "$bucket_folder" || step "mounting gs://$bucket" mount_bucket "$bucket"
  step 'making runs and data in the bucket' mkdir -p "$bucket_folder/runs" "$bucket_folder/data" "$root/data"
  ln -sfn "$bucket_folder/runs" "$root/code/runs"
  ln -sfn "$bucket_folder/data" "$root/code/data"
  for folder in "$@"; do
    ln -sfn "$root/data" "$root/code/data"
    mkdir -p "$root/data/$folder"
    step "copying gs://$bucket/data/$folder" \
      gcloud storage rsync --recursive "gs://$bucket/data/$folder" "$root/data/$folder"
  done
  step 'installing uv' python3 -m pip install --user --quiet uv
  [ -x "$python" ] || step "installing Python $PYTHON_VERSION" python3 -m uv venv --python "$PYTHON_VERSION" "$root/venv"
  cd "$root/code"
  step 'installing fourreal' python3 -m uv pip install --python "$python" -c constraints.txt -e '.[tpu,train]'
  report ready
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc list=/etc/apt/sources.list.d/gcsfuse.list
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" | sudo tee "$list" >/dev/null
  sudo apt-get -o DPkg::Lock::Timeout=300 update
  sudo apt-get -o DPkg::Lock::Timeout=300 install -y gcsfuse
}

# Metadata is never cached: all machines write into one folder, and on big machines gcsfuse would otherwise never see what
# another one has written since.
mount_bucket() {
  mkdir -p "$bucket_folder"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$bucket_folder"
}

launch() {
  local tries
  [ -x "$python" ] || fail 'nothing is installed here: run tpu.sh setup first'
  if training_pid >/dev/null; then
    report 'running (it was already)'
    return
  fi
  mountpoint -q "$bucket_folder" || fail 'the bucket is not mounted: run tpu.sh setup again'
  rm -f "$root/code-of-exit"
  [ ! -e "$root/train.log" ] || mv -f "$root/train.log" "$root/train.log.previous"
  : >"$root/pid"
  setsid nohup bash "$0" run "$@" </dev/null >"$root/train.log" 2>&1 &
  for ((tries = 0; tries < 100; tries++)); do
    if training_pid >/dev/null || [ -e "$root/code-of-exit" ]; then break; fi
    sleep 0.1
  done
  status
}

# What `launch` leaves behind: train.py, and afterwards its exit code. A SIGTERM to all processes reaches train.py too,
# which saves; this shell waits for it.
run() {
  local code=0
  trap : TERM
  cd "$root/code"
  export JAX_PLATFORMS=tpu,cpu # no TPU is an error, never a slow run on the CPU
  { # bash would tell of a signal with the process's number, and no two crashes would read alike
    (
      exec 2>&1
      printf '%s' "$BASHPID" >"$root/pid"
      exec "$python" train.py "$@"
    ) || code=$?
  } 2>/dev/null
  case $code in
    129 | 13[1-9] | 1[4-9][0-9]) printf 'train.py died of signal %s\n' "$((code - 128))" ;;
  esac
  printf '%s' "$code" >"$root/code-of-exit"
}

# One word, and for a failure the last line of the log: nothing, running, finished, stopped, killed, failed CODE. The first
# machine, whose log has the progress bar, says at which step it runs.
status() {
  local code step
  if training_pid >/dev/null; then
    step=$(tail -c 4000 "$root/train.log" | tr '\r' '\n' | sed -n 's/^.*| \([0-9]*\)\/[0-9]* \[.*$/\1/p' | tail -n 1)
    report "running${step:+, step $step}"
  elif [ ! -e "$root/pid" ]; then
    report nothing
  elif ! code=$(cat "$root/code-of-exit" 2>/dev/null); then
    report killed
  elif [ "$code" != 0 ]; then
    report "failed $code: $(last_line "$root/train.log")"
  elif tail -c 4000 "$root/train.log" | grep -q 'go on with --resume'; then
    report stopped
  else
    report finished
  fi
}

stop() {
  local pid tries seconds=${1:-$STOP_SECONDS}
  if pid=$(training_pid); then
    kill -TERM "$pid"
    for ((tries = 0; tries < 10 * seconds; tries++)); do
      training_pid >/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  status
}

verb=${1:-}
case $verb in
  setup | launch | run | status | stop) shift && "$verb" "$@" ;;
  *) fail "'$verb' is no verb of worker.sh" ;;
esac
