#!/usr/bin/env bash
# Builds, tries, scans and publishes the two images; what GitHub, act, .ci/run and people all run.
#   bash deploy/image/build.sh build cpu|gpu    makes moola:cpu or moola:gpu, for linux/amd64
#                                               (options of `docker buildx build` may follow)
#   bash deploy/image/build.sh smoke cpu|gpu    runs the image's jobs in it, on a tiny spec
#                                               (tests/test_image.py)
#   bash deploy/image/build.sh scan  cpu|gpu    its packages, as sbom-cpu.spdx.json
#   bash deploy/image/build.sh push  cpu|gpu    builds and pushes to $REPOSITORY by digest;
#                                               prints name= and digest=
#   bash deploy/image/build.sh tag   cpu|gpu DIGEST NAME
#                                               $REPOSITORY:cpu-NAME becomes that digest
# Environment:
#   PYTHON_IMAGE               another base
#   TORCH                      the torch of the gpu image, a lock's name (default cu128; cu130)
#   TORCH_INDEX, TORCH_WHEELS  where that torch is, if not on PyPI
#   BUILD_NETWORK              such as host
#   SOURCE_URL                 for the label
#   SSL_CERT_FILE              a certificate authority of your network's own
set -euo pipefail
cd "$(dirname "$0")/../.."
usage() {
  sed -n '2,/^set/s/^# //p' deploy/image/build.sh >&2
  exit 2
}
[[ $# -ge 2 && $2 =~ ^(cpu|gpu)$ ]] || usage
command=$1
kind=$2
image=moola:$kind
repository=${REPOSITORY:-}
repository=${repository,,}
platform=linux/amd64 # of every host that can be rented, whatever this computer is
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)

# The commit, with -dirty where the files are not the commit's.
revision() {
  local sha
  sha=$(git rev-parse HEAD 2>/dev/null) || return 0
  echo "$sha$([ -z "$(git status --porcelain)" ] || echo -dirty)"
}

# docker buildx build with what every build is given; options of one kind of build follow.
build() {
  local options=(--platform "$platform" --file "Dockerfile.$kind")
  options+=(--build-arg "SOURCE_URL=${SOURCE_URL:-}")
  options+=(--build-arg "GIT_SHA=$(revision)")
  options+=(--build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' moola/__init__.py)")
  [ -z "${PYTHON_IMAGE:-}" ] || options+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
  [ -z "${BUILD_NETWORK:-}" ] || options+=(--network "$BUILD_NETWORK")
  [ ! -f "${SSL_CERT_FILE:-}" ] || options+=(--secret "id=ca,src=$SSL_CERT_FILE")
  [ -z "$repository" ] || options+=(--cache-from "type=registry,ref=$repository:cache-$kind")
  if [ "$kind" = gpu ]; then
    [ -z "${TORCH:-}" ] || options+=(--build-arg "TORCH=$TORCH")
    [[ ! ${TORCH:-} =~ ^cu([0-9]+)[0-9]$ ]] ||
      options+=(--build-arg "CUDA=${BASH_REMATCH[1]}.0")
    [ -z "${TORCH_INDEX:-}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    [ -z "${TORCH_WHEELS:-}" ] || options+=(--build-context "wheelhouse=$TORCH_WHEELS")
  fi
  docker buildx build "${options[@]}" "$@" .
}

push() {
  local details digest
  details=$(mktemp)
  build --output "type=image,name=$repository,push-by-digest=true,name-canonical=true,push=true" \
    --provenance mode=max --sbom true \
    --cache-to "type=registry,ref=$repository:cache-$kind,mode=max" \
    --metadata-file "$details" "$@" >&2
  digest=$("$python" -c '
import json, sys
print(json.load(open(sys.argv[1]))["containerimage.digest"])
' "$details")
  docker pull --quiet --platform "$platform" "$repository@$digest" >&2
  docker tag "$repository@$digest" "$image"
  printf 'name=%s\ndigest=%s\n' "$repository" "$digest"
}

case $command in
  build) build --load --tag "$image" "${@:3}" ;;
  smoke) MOOLA_SMOKE=$kind exec "$python" -m pytest tests/test_image.py -k "$kind" "${@:3}" ;;
  scan)
    syft=$([ -x .venv/bin/syft ] && echo .venv/bin/syft || echo syft)
    exec "$syft" scan "docker:$image" --output "spdx-json=sbom-$kind.spdx.json" --output syft-table
    ;;
  push) push "${@:3}" ;;
  tag) docker buildx imagetools create --tag "$repository:$kind-$4" "$repository@$3" ;;
  *) usage ;;
esac
