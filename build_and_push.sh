#!/usr/bin/env bash
# Build the images, and push them to Amazon ECR or to any other registry: train, serve, and serve-cpu, which is a tenth
# of serve's size and for machines without a GPU; and, when it is named, serve-arm64, the same for arm64 processors.
#
#   ./build_and_push.sh build [train|serve|serve-cpu|serve-arm64 ...]  build, tag by git revision, write
#                                                          build/images.json
#   ./build_and_push.sh push  [IMAGE ...]                  the same, then push, and write URI@digest there too
#   ./build_and_push.sh dockerfile train|serve             print the whole Dockerfile, for a docker build --file - of
#                                                          your own; serve's with --target serve-cpu makes that one
#
# serve-arm64 is built on an arm64 machine, or on another whose kernel runs arm64 programs by qemu (binfmt_misc).
#
# Settings, from the environment:
#   AWS_REGION, AWS_PROFILE ...  as for the AWS CLI; the account is the one the credentials belong to
#   REGISTRY            push to this registry instead of ECR, e.g. registry.example.com/team (log in yourself)
#   REPOSITORY_PREFIX   images are named PREFIX-train, -serve and -serve-cpu       (image-classifier)
#   CUDA                13, or 12 for drivers older than 580                      (13)
#   IMAGENET_WEIGHTS    none; download; or file: weights/resnet50-11ad3fa6.pth    (none)
#   BASE_IMAGE          a Debian with Python 3.11 in its packages                 (debian:bookworm-slim)
#   TRIM                --stubs leaves out CUDA libraries that a ResNet50 does not call (see docker/trim.py)
#   TAG                 instead of the git revision
#   PIP_CONF, CA_BUNDLE files given to the build as secrets, to reach a package index of your own
#   BUILD_NETWORK       the network of the build, e.g. host
#   ECR_ENDPOINT        the host to push to where ECR is reached through another name
set -euo pipefail
cd "$(dirname "$0")"
export DOCKER_BUILDKIT=1

fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

check_docker() {
  command -v docker >/dev/null || fail "there is no docker program on this machine" \
    "install Docker, or on a bare Debian machine run docker/ci-engine.sh"
  docker version --format '{{.Server.Version}}' >/dev/null 2>&1 || fail "the Docker engine does not answer" \
    "start it, or on a bare Debian machine run docker/ci-engine.sh"
}

# The revision, for a changed tree a mark with the change's checksum, and the settings that change what is in the images:
# the same tag is always the same thing.
revision() {
  local inputs=(code docker requirements .dockerignore) hash changes
  hash=$(git rev-parse --short=12 HEAD 2>/dev/null) || fail "this is not a git checkout" "set TAG"
  if [[ -n $(git status --porcelain -- "${inputs[@]}") ]]; then
    changes=$({ git diff HEAD -- "${inputs[@]}"
      git ls-files --others --exclude-standard -z -- "${inputs[@]}" | xargs -0 --no-run-if-empty sha256sum
    } | sha256sum | cut -c 1-8)
    hash+=-dirty-$changes
  fi
  [[ $WEIGHTS == none ]] || hash+=-imagenet
  [[ -z ${TRIM:-} ]] || hash+=$TRIM
  echo "$hash$VARIANT"
}

check_weights() {
  case $WEIGHTS in
    none | download) ;;
    file) [[ -f weights/$WEIGHTS_FILE ]] || fail "there is no weights/$WEIGHTS_FILE" \
      "put it there: https://download.pytorch.org/models/$WEIGHTS_FILE" ;;
    *) fail "IMAGENET_WEIGHTS is $WEIGHTS" "it is none, download or file" ;;
  esac
}

# One text for the stages that both images begin with, so that they share layers.
dockerfile() { cat docker/shared.Dockerfile "docker/${1%%-*}/Dockerfile"; }

build() {
  local kind=$1 name=$PREFIX-$1 cuda=$CUDA platform=linux/amd64 flags=()
  [[ $kind != serve-arm64 ]] || platform=linux/arm64
  [[ $kind != serve-* ]] || { cuda=0; flags+=(--target serve-cpu); }
  flags+=(--platform "$platform")   # SageMaker's, and not that of the machine that builds
  [[ -n ${PIP_CONF:-} ]] && flags+=(--secret "id=pip_conf,src=$PIP_CONF")
  [[ -n ${CA_BUNDLE:-} ]] && flags+=(--secret "id=ca_bundle,src=$CA_BUNDLE")
  [[ -n ${BUILD_NETWORK:-} ]] && flags+=(--network "$BUILD_NETWORK")
  [[ -n ${BASE_IMAGE:-} ]] && flags+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
  [[ $kind == train ]] && flags+=(--build-arg "IMAGENET_WEIGHTS=$WEIGHTS")
  echo "building $name:$TAG"
  dockerfile "$kind" >"build/$kind.Dockerfile"
  docker build --progress plain "${flags[@]}" --build-arg "TRIM=${TRIM:-}" \
    --build-arg "CUDA_VARIANT=$VARIANT" --build-arg "CUDA_MAJOR=$CUDA" --build-arg "REVISION=$TAG" \
    --file "build/$kind.Dockerfile" --tag "$name:$TAG" --tag "$name:latest" . >"build/$kind.log" 2>&1 \
    || fail_build "$kind" "$name"
  record "$kind" image "$name:$TAG" cuda_major "$cuda"
}

# What a step of ours, or the download, says in the log; else the log's last lines.
fail_build() {
  local log=build/$1.log problem
  problem=$(sed -nE 's/^#[0-9]+ [0-9.]+ error: (.*)$/\1/p' "$log" | tail -n 1)
  [[ -z $problem ]] || fail "$2 could not be built: $problem" "the whole log is $log"
  if [[ $(<"$log") == *'xec format error'* ]]; then
    fail "$2 could not be built: this machine does not run programs for its processor" \
      "let qemu run them (Debian: apt-get install qemu-user-static), or build on such a machine"
  fi
  if [[ $(<"$log") == *'Get "https://download.pytorch.org/'* ]]; then
    fail "the ImageNet weights cannot be downloaded from download.pytorch.org" \
      "put $WEIGHTS_FILE into weights/ and set IMAGENET_WEIGHTS=file"
  fi
  tail -n 20 "$log" >&2
  fail "$2 could not be built" "the whole log is $log"
}

# Merge pairs of key and value into one image's entry of build/images.json, where deploy.py reads it.
record() {
  python3 - "$@" <<'PY'
import json, os, pathlib, sys
path = pathlib.Path("build/images.json")
images = json.loads(path.read_text()) if path.exists() else {}
entry = images.setdefault(sys.argv[1], {})
if sys.argv[3] != entry.get("image") and sys.argv[2] == "image":
    entry.clear()  # another build: what was pushed is not it
entry.update(zip(sys.argv[2::2], sys.argv[3::2]))
temporary = path.with_suffix(".tmp")
temporary.write_text(json.dumps(images, indent=2) + "\n")
os.replace(temporary, path)
PY
}

# Run an aws command; known failures end with one sentence, any other with the CLI's own last line.
aws_() {
  local output
  if output=$(aws "$@" 2>&1); then echo "$output"; return; fi
  case $output in
    *ExpiredToken* | *"token has expired"* | *"SSO session"*"expired"*)
      fail "the AWS session has expired" "log in again (aws sso login) and repeat" ;;
    *"Unable to locate credentials"* | *InvalidClientTokenId* | *UnrecognizedClient* | *"could not be found"*)
      fail "there are no valid AWS credentials" "run aws configure, or set AWS_PROFILE" ;;
    *AccessDenied*) fail "AWS refuses ${1} ${2}: ${output##*$'\n'}" "the role needs the ECR actions of docs/images.md" ;;
    *RepositoryNotFoundException* | *ImageNotFoundException*) return 3 ;;
    *) fail "aws ${1} ${2} failed: ${output##*$'\n'}" "run it by hand to see more" ;;
  esac
}

find_ecr() {
  local account password suffix=amazonaws.com
  command -v aws >/dev/null || fail "there is no aws program on this machine" \
    "install the AWS CLI, or set REGISTRY to push elsewhere"
  REGION=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
  [[ -n $REGION ]] || fail "no AWS region is set" "set AWS_REGION"
  export AWS_DEFAULT_REGION=$REGION
  account=$(aws_ sts get-caller-identity --query Account --output text)
  case $REGION in
    cn-*) suffix=amazonaws.com.cn ;;
    us-iso-*) suffix=c2s.ic.gov ;;
    us-isob-*) suffix=sc2s.sgov.gov ;;
  esac
  REGISTRY=${ECR_ENDPOINT:-$account.dkr.ecr.$REGION.$suffix}
  password=$(aws_ ecr get-login-password)
  docker login --username AWS --password-stdin "$REGISTRY" <<<"$password" >/dev/null 2>build/login.log \
    || fail "$REGISTRY refuses the login: $(tail -n 1 build/login.log)" "check the region and the clock of this machine"
}

create_repository() {
  local status=0
  aws_ ecr describe-repositories --repository-names "$1" >/dev/null || status=$?
  ((status == 3)) || return "$status"
  aws_ ecr create-repository --repository-name "$1" --image-scanning-configuration scanOnPush=true \
    --image-tag-mutability IMMUTABLE >/dev/null
  echo "created the repository $1 (scanned on push, immutable tags)"
}

# Digest of a tag that is in ECR already, empty otherwise.
pushed_digest() {
  aws_ ecr describe-images --repository-name "$1" --image-ids "imageTag=$TAG" --query 'imageDetails[0].imageDigest' \
    --output text || (($? == 3))
}

push() {
  local kind=$1 name=$PREFIX-$1 digest=""
  if [[ -n ${REGION:-} ]]; then
    create_repository "$name"
    digest=$(pushed_digest "$name")
  fi
  if [[ -n $digest ]]; then
    echo "$name:$TAG is in the registry already; tags are never overwritten"
  else
    docker tag "$name:$TAG" "$REGISTRY/$name:$TAG"
    echo "pushing $REGISTRY/$name:$TAG"
    docker push "$REGISTRY/$name:$TAG" >build/push.log 2>&1 || case $(<build/push.log) in
      *immutable*) fail "$name:$TAG exists and its tag is immutable" "commit the change, or set another TAG" ;;
      *denied* | *"no basic auth"* | *unauthorized* | *expired*)
        fail "$REGISTRY refuses the push: $(tail -n 1 build/push.log)" "log in again: docker login $REGISTRY" ;;
      *) fail "the push failed: $(tail -n 1 build/push.log)" "repeat it: layers that arrived are not sent again" ;;
    esac
    digest=$(sed -nE 's/.*digest: (sha256:[0-9a-f]{64}).*/\1/p' build/push.log)
  fi
  record "$kind" uri "$REGISTRY/$name@$digest"
  echo "$REGISTRY/$name@$digest"
}

COMMAND=${1:-}
[[ $COMMAND == @(build|push|dockerfile) ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
KINDS=("${@:2}")
((${#KINDS[@]})) || KINDS=(train serve serve-cpu)
for kind in "${KINDS[@]}"; do
  [[ $kind == @(train|serve|serve-cpu|serve-arm64) ]] \
    || fail "there is no image $kind" "the images are train, serve, serve-cpu and serve-arm64"
done
if [[ $COMMAND == dockerfile ]]; then
  ((${#KINDS[@]} == 1)) || fail "there is one Dockerfile for an image" "ask for train or for serve"
  dockerfile "${KINDS[0]}"
  exit
fi
PREFIX=${REPOSITORY_PREFIX:-image-classifier}
CUDA=${CUDA:-13}
WEIGHTS=${IMAGENET_WEIGHTS:-none}
WEIGHTS_FILE=$(sed -nE 's/^IMAGENET_FILE = "(.*)"$/\1/p' code/image_classifier/vision/network.py)
case $CUDA in
  13) VARIANT="" ;;
  12) VARIANT=-cu12 ;;
  *) fail "there are no images for CUDA $CUDA" "CUDA is 13 or 12" ;;
esac
check_weights
check_docker
TAG=${TAG:-$(revision)}
mkdir -p build
[[ $COMMAND == build || -n ${REGISTRY:-} ]] || find_ecr   # before the build: a login that fails should fail at once
for kind in "${KINDS[@]}"; do build "$kind"; done
[[ $COMMAND == build ]] || for kind in "${KINDS[@]}"; do push "$kind"; done
