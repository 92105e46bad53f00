#!/usr/bin/env bash
# Give a bare Debian machine, as root and with no registry within reach, what building the images takes:
#
#   docker/ci-engine.sh [STATE_DIR]      (default: build/engine; safe to run again)
#
# 1. a Docker engine, and a registry server for the test of pushing, from Debian's packages;
# 2. the base image debian:bookworm-slim, made from this machine's own package sources;
# 3. STATE_DIR/env, to be sourced before build_and_push.sh: it passes this machine's pip settings and CA bundle to the
#    build as secrets, and serves package folders of this machine (file:// indexes, wheel folders) on loopback.
# With ARM64=1 also qemu, by which the kernel runs arm64 programs, and the base image arm64v8/debian:bookworm-slim: what
# `BASE_IMAGE=arm64v8/debian:bookworm-slim ./build_and_push.sh build serve-arm64` takes.
# With `stop` as the first argument it ends what it started.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=/usr/bin:/usr/sbin:/sbin:$PATH   # Debian's own client: a newer one elsewhere may want a buildx plugin

stop() {
  local pid
  for name in index dockerd; do
    if pid=$(cat "$STATE/$name.pid" 2>/dev/null) && kill "$pid" 2>/dev/null; then
      while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
    fi
    rm -f "$STATE/$name.pid"
  done
}

engine() {
  local missing=() package wanted=(docker.io docker-registry mmdebstrap iptables)
  [[ -z ${ARM64:-} ]] || wanted+=(qemu-user-static arch-test)
  for package in "${wanted[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if ((${#missing[@]})); then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
  docker info >/dev/null 2>&1 && return
  setsid dockerd --mtu=1400 >"$STATE/dockerd.log" 2>&1 </dev/null &
  echo $! >"$STATE/dockerd.pid"
  for _ in $(seq 120); do docker info >/dev/null 2>&1 && return; sleep 0.5; done
  echo "error: the Docker engine does not start: $(tail -n 1 "$STATE/dockerd.log")" >&2
  exit 1
}

emulation() {
  local misc=/proc/sys/fs/binfmt_misc
  [[ -e $misc/register ]] || mount -t binfmt_misc binfmt_misc "$misc"
  [[ -e $misc/qemu-aarch64 ]] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$misc/register"
}

# The base image called $1, for the architecture $2.
base_image() {
  docker image inspect "$1" >/dev/null 2>&1 && return
  local tmp sources clean
  tmp=$(mktemp -d)
  # shellcheck disable=SC2016  # apt's placeholders
  mapfile -t sources < <(apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u)
  # the same clean-up after apt that Debian's own image has, so that no layer keeps a package cache
  clean='"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true";'
  # shellcheck disable=SC2016  # mmdebstrap's own $1
  mmdebstrap --variant=minbase --mode=root --architectures="$2" --include=ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="printf '%s\n' 'DPkg::Post-Invoke { $clean };' 'APT::Update::Post-Invoke { $clean };' 'Dir::Cache::pkgcache \"\"; Dir::Cache::srcpkgcache \"\";' > \"\$1\"/etc/apt/apt.conf.d/docker-clean" \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/log/*.log "$1"/var/log/apt/*' \
    bookworm "$tmp/rootfs.tar" "${sources[@]}" >"$STATE/base.log" 2>&1 \
    || { echo "error: the base image could not be made: $(tail -n 1 "$STATE/base.log")" >&2; exit 1; }
  # not `docker import`, which notes this machine's processor for any other's files
  printf '%s\n' 'FROM scratch' 'ADD rootfs.tar /' 'CMD ["bash"]' >"$tmp/Dockerfile"
  DOCKER_BUILDKIT=1 docker build --quiet --platform "linux/$2" --tag "$1" "$tmp" >/dev/null
  rm -rf "$tmp"
}

# The build runs on the host's network, so what listens on this machine's loopback is in its reach.
packages() {
  local ca
  if ! kill -0 "$(cat "$STATE/index.pid" 2>/dev/null)" 2>/dev/null; then
    rm -f "$STATE/pip.conf"
    setsid "${PYTHON:-python3}" docker/serve_packages.py "$STATE" >"$STATE/index.log" 2>&1 </dev/null &
    echo $! >"$STATE/index.pid"
    for _ in $(seq 60); do [[ -s $STATE/pip.conf ]] && break; sleep 0.5; done
    [[ -s $STATE/pip.conf ]] || { echo "error: no pip settings: $(tail -n 1 "$STATE/index.log")" >&2; exit 1; }
  fi
  ca=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
  mkdir -p "$STATE/bin"   # holds nothing but the client, so that no other program changes with it
  ln -sf /usr/bin/docker "$STATE/bin/docker"
  printf 'export %s\n' "PATH=$STATE/bin:\$PATH" "PIP_CONF=$STATE/pip.conf" "CA_BUNDLE=$ca" "BUILD_NETWORK=host" >"$STATE/env"
}

if [[ ${1:-} == stop ]]; then
  STATE=$(realpath -m "${2:-build/engine}")
  stop
  exit
fi
STATE=$(realpath -m "${1:-build/engine}")
mkdir -p "$STATE"
engine
base_image debian:bookworm-slim "$(dpkg --print-architecture)"
[[ -z ${ARM64:-} ]] || { emulation; base_image arm64v8/debian:bookworm-slim arm64; }
packages
echo "engine $(docker version --format '{{.Server.Version}}') and debian:bookworm-slim are ready; source $STATE/env"
