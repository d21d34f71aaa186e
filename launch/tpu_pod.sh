#!/usr/bin/env bash
# A command on all workers of a TPU pod slice, as one JAX cluster.
#
#   launch/tpu_pod.sh --tpu=NAME --zone=ZONE [--project=PROJECT] -- \
#       python -m experiments.train --dataset_dir=DS --work_dir=W
#
# Copies this checkout to ~/eain of each worker, installs it there in
# ~/eain/.venv, and runs the command in ~/eain. JAX finds the cluster by itself.
# DS and W are on storage that all workers mount. Ctrl-C or SIGTERM asks the
# workers to save and end. The exit code is that of a worker that failed; where
# one fails, the others end when JAX misses its heartbeat, in about two minutes.
#
# Options:
#   --tpu=NAME           the TPU VM's name
#   --zone=ZONE          its zone; unset: gcloud's own default
#   --project=PROJECT    its project; unset: gcloud's own default
#   --python=PYTHON      3.11 or 3.12 on the workers (default python3.11)
#   --skip_install       run what an earlier call has installed
#   --gcloud_flag=FLAG   one more flag for each gcloud call, as --internal-ip
#   --help               this text
set -euo pipefail

fail_flags() {
  echo "tpu_pod: $1" >&2
  exit 2
}

tpu=
python=python3.11
install=1
gcloud_flags=()
while (($# > 0)) && [[ $1 != -- ]]; do
  case $1 in
    --tpu=?*) tpu=${1#*=} ;;
    --zone=?* | --project=?*) gcloud_flags+=("$1") ;;
    --python=?*) python=${1#*=} ;;
    --skip_install) install= ;;
    --gcloud_flag=?*) gcloud_flags+=("${1#*=}") ;;
    --help | -h)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"
      exit 0
      ;;
    *) fail_flags "unknown option $1; see --help" ;;
  esac
  shift
done
[[ -n $tpu ]] || fail_flags '--tpu=NAME is missing'
(($# > 1)) || fail_flags 'write -- and then the command, after the options'
shift

on_workers() {
  # Standard input stays here: ssh would read it, one worker for all.
  gcloud compute tpus tpu-vm ssh "$tpu" --worker=all \
    ${gcloud_flags[@]+"${gcloud_flags[@]}"} --command="$1" </dev/null
}

# A worker runs one command at a time, for the TPU takes no second process; its
# id is kept so that it can be told to stop, which a closed connection does not.
refuse_busy="if [ -s eain/run.pid ] && kill -0 \"\$(cat eain/run.pid)\" 2>/dev/null; then
echo \"tpu_pod: \$(hostname) is busy: process \$(cat eain/run.pid) runs there\" >&2
exit 1
fi"

if [[ -n $install ]]; then
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  tar -czf "$folder/eain.tar.gz" -C "$root" --exclude=__pycache__ \
    pyproject.toml README.md LICENSE eain_jax experiments launch
  gcloud compute tpus tpu-vm scp "$folder/eain.tar.gz" "$tpu:" --worker=all \
    ${gcloud_flags[@]+"${gcloud_flags[@]}"} </dev/null
  printf -v quoted_python '%q' "$python"
  # A failed install leaves a folder without pip, and one of another Python
  # is not what was asked for.
  on_workers "$refuse_busy
set -e
mkdir -p eain
tar -xzf eain.tar.gz -C eain
cd eain
$quoted_python --version >.venv.wanted
[ -f .venv/made ] && cmp -s .venv.wanted .venv/made || {
rm -rf .venv
$quoted_python -m venv .venv
cp .venv.wanted .venv/made
}
.venv/bin/python -m pip install --quiet -e '.[tpu]'"
fi

# %q: each word arrives as it was written here, spaces and all.
printf -v command '%q ' "$@"
# The shell stays around it: for a session that a signal ended, ssh says 255,
# and gcloud would take that for a lost connection and start the command again.
run="$refuse_busy
cd eain || exit 1
export PATH=\"\$PWD/.venv/bin:\$PATH\" EAIN_DISTRIBUTED=detect EAIN_START_SECONDS=600 PYTHONUNBUFFERED=1
(echo \$BASHPID >run.pid; exec $command)
exit \$?"

# In a process group of its own (-m) it does not get this terminal's Ctrl-C,
# which would cut the connection instead of stopping the workers.
set -m
on_workers "$run" &
job=$!
set +m

trapped=
# shellcheck disable=SC2329  # It is the trap below that calls it.
stop_workers() {
  trapped=1
  trap 'kill -- "-$job"; exit 130' HUP INT TERM
  echo 'tpu_pod: asking the workers to save and end' >&2
  # shellcheck disable=SC2016  # The workers are to read it.
  on_workers 'kill -TERM "$(cat eain/run.pid)"' || true
}
trap stop_workers HUP INT TERM

# A trap ends `wait` early; the job's own exit code comes from another one.
while :; do
  trapped=
  code=0
  wait "$job" || code=$?
  [[ -n $trapped ]] || break
done
if ((code == 75)); then
  echo 'tpu_pod: saved; the same command goes on from there' >&2
elif ((code != 0)); then
  echo "tpu_pod: a worker ended with exit code $code" >&2
fi
exit "$code"
