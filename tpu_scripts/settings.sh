# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are used by the file that sources this one, which sets `here`
# Reads a settings file and checks every value in it, so that nothing is asked of the cloud with a wrong one.

# The names of settings.example.env, in its order.
SETTINGS="PROJECT ZONE BUCKET NAME ACCELERATOR_TYPE RUNTIME_VERSION SLICES PROVISIONING WAIT NETWORK SUBNETWORK
SERVICE_ACCOUNT CONFIG RUN TRAIN_OPTIONS COPY_DATA POLL_SECONDS COMMAND_TIMEOUT STALL_SECONDS
MAX_RESTARTS MIN_SLICES FEWER_AFTER"

# Sets the settings from the file "$1"; what it leaves out has the example's value.
load_settings() {
  local file=$1 name
  [ -f "$file" ] || refuse "there is no $file: copy $here/settings.example.env to it and fill it in"
  bash -n "$file" 2>/dev/null || refuse "$file cannot be read: $(bash -n "$file" 2>&1 | head -n 1)"
  while read -r name; do
    [[ " ${SETTINGS//$'\n'/ } " == *" $name "* ]] || refuse "$file sets $name, which is no setting: see settings.example.env"
  done < <(sed -n 's/^ *\([A-Za-z_][A-Za-z0-9_]*\)+\{0,1\}=.*/\1/p' "$file")
  name=$(sed -n 's/^ *\(TRAIN_OPTIONS\|COPY_DATA\)=[^(].*/\1/p' "$file" | head -n 1)
  [ -z "$name" ] || refuse "$file: $name needs parentheses around its words, as $name=(one two)"
  # shellcheck source=/dev/null
  source "$here/settings.example.env"
  # shellcheck source=/dev/null
  source "$file"
  check_settings "$file"
}

# Refuses the value of the setting "$2" in the file "$1" unless it matches the pattern "$3"; "$4" says what is expected.
expect() {
  [[ ${!2} =~ ^($3)$ ]] || refuse "$1: $2 is '${!2}': expected $4"
}

check_settings() {
  local file=$1 whole='a whole number of 1 or more' folder option
  expect "$file" PROJECT '[a-z][a-z0-9:.-]+' "your Google Cloud project's id"
  expect "$file" ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, as us-west4-a'
  expect "$file" BUCKET '[a-z0-9][a-z0-9._-]+[a-z0-9]' "a bucket's name without gs://"
  expect "$file" NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' 'a-z, 0-9 and -, from a letter on, at most 40'
  case $ACCELERATOR_TYPE in
    tpu7x* | ct7* | 7x*) refuse "$file: ACCELERATOR_TYPE is '$ACCELERATOR_TYPE': the Cloud TPU API ends at v6e; tpu7x is had through GKE" ;;
  esac
  expect "$file" ACCELERATOR_TYPE '(v4|v5litepod|v5p|v6e)-[0-9]+' 'v4-*, v5litepod-*, v5p-* or v6e-* and a size, as v5litepod-16'
  [ -n "$RUNTIME_VERSION" ] || case $ACCELERATOR_TYPE in
    v4-*) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
  esac
  expect "$file" RUNTIME_VERSION '[a-z0-9.-]+' 'the name of a TPU software version, or nothing'
  expect "$file" SLICES '[1-9][0-9]*' "$whole"
  expect "$file" PROVISIONING 'spot|on-demand|reserved' 'spot, on-demand or reserved'
  expect "$file" WAIT '[1-9][0-9]*[smhd]' 'a number and s, m, h or d, as 24h'
  expect "$file" NETWORK '[a-z0-9-]*' "a network's name, or nothing"
  expect "$file" SUBNETWORK '[a-z0-9-]*' "a subnetwork's name, or nothing"
  expect "$file" SERVICE_ACCOUNT '[^ ]+@[^ ]+|' "an account's address, or nothing"
  [[ $CONFIG != /* && -f "$here/../$CONFIG" ]] || refuse "$file: CONFIG is '$CONFIG': expected a file inside this repository, as configs/tiny.py"
  expect "$file" RUN '[A-Za-z0-9_][A-Za-z0-9._ -]*' "a folder's name of letters, digits, spaces, ., _ and -"
  for folder in ${COPY_DATA[@]+"${COPY_DATA[@]}"}; do
    [[ $folder =~ ^[A-Za-z0-9_][A-Za-z0-9._\ /-]*$ ]] || refuse "$file: COPY_DATA has '$folder': expected folders of gs://$BUCKET/data"
  done
  for option in ${TRAIN_OPTIONS[@]+"${TRAIN_OPTIONS[@]}"}; do
    case $option in --out | --out=* | --resume | --overwrite)
      refuse "$file: TRAIN_OPTIONS has $option: the scripts give --out and --resume; for a new start choose another RUN" ;;
    esac
  done
  expect "$file" POLL_SECONDS '[1-9][0-9]*' "$whole"
  expect "$file" COMMAND_TIMEOUT '[1-9][0-9]*' "$whole"
  expect "$file" STALL_SECONDS '[1-9][0-9]*' "$whole"
  expect "$file" MAX_RESTARTS '[0-9]+' 'a whole number'
  MIN_SLICES=${MIN_SLICES:-$SLICES}
  expect "$file" MIN_SLICES '[1-9][0-9]*' "$whole, or nothing"
  [ "$MIN_SLICES" -le "$SLICES" ] || refuse "$file: MIN_SLICES is $MIN_SLICES: expected at most SLICES, $SLICES"
  expect "$file" FEWER_AFTER '[1-9][0-9]*' "$whole"
}
