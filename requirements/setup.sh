#!/usr/bin/env bash
# Make the environment that every command runs in, from the hashed lock: requirements/setup.sh VENV PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=$2
needed_gb=8   # 6.7 GB of packages, and what pip unpacks on the way

fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

[[ $(uname -s) == Linux ]] || fail "this is $(uname -s), and SageMaker's programs run on Linux only" \
  "use a Linux machine, or a container on this one"
command -v "$python" >/dev/null || fail "there is no $python on this machine" \
  "install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not start" \
  "name another one: make PYTHON=/path/to/python3.12"
case $version in
  3.11 | 3.12 | 3.13) ;;
  *) fail "$python is Python $version, and the packages run on 3.11, 3.12 and 3.13" \
    "name another one: make PYTHON=/path/to/python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module" \
  "on Debian and Ubuntu: apt-get install python$version-venv"
[[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] || fail \
  "the C headers of $python are missing, which sagemaker-training is compiled with" \
  "on Debian and Ubuntu: apt-get install python$version-dev"
command -v gcc >/dev/null || fail "there is no gcc on this machine, which sagemaker-training is compiled with" \
  "on Debian and Ubuntu: apt-get install gcc libc6-dev"
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1e6) }')
((free_gb >= needed_gb)) || fail "only $free_gb GB are free in $PWD, and the packages take $needed_gb" \
  "free some space, or clone to another disk"

# What pip does, a line a package: `  torch-2.14.1-...whl (876.3 MB)`, and then what it installs, which takes a minute.
tell() {
  sed -unE -e 's/^ *(Downloading|Using cached) ([^ ]*\/)?([^ \/]+) (\([^)]*\)).*/  \3 \4/p' \
    -e 's/^ *Processing (.*\/)?([^ \/]+\.(whl|gz|zip)).*/  \2/p' \
    -e "s/^Installing collected packages: .*/unpacking them, which takes a while/p"
}
# On a terminal also, every two seconds, how much lies there and since when.
count() {
  while sleep 2; do
    printf '\r\033[K  %s MB in %s, %s s\r' "$(du -sm "$venv" 2>/dev/null | cut -f1)" "$venv" "$SECONDS" >&2
  done
}

echo "setting up $venv from requirements/dev.txt: $(grep -c '^[a-z].*==' requirements/dev.txt) packages, 7 GB, a few" \
  "minutes, once"
if [[ -t 2 ]]; then
  count &
  counter=$!
  trap 'kill "$counter" 2>/dev/null; printf "\r\033[K" >&2' EXIT
fi
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-color --progress-bar off --require-hashes \
  -r requirements/dev.txt | tell || fail "the packages could not be installed, for the reason above" \
  "when the package index can be reached again and the disk has room, repeat: what arrived is kept"
# Kernels for training on this CPU. Where that fails, a job says so when it needs them.
"$venv/bin/python" code/image_classifier/training/norm_library.py --here 2>/dev/null || true
echo "$venv is set up: $(du -sm "$venv" | cut -f1) MB, $SECONDS s"
