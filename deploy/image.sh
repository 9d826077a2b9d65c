#!/usr/bin/env bash
# Builds, tries and scans the two images; what GitHub, act, .ci/run and people all run.
#   bash deploy/image.sh build cpu|gpu    -> moola:cpu, moola:gpu (options of `docker build` may follow)
#   bash deploy/image.sh smoke cpu|gpu    runs the image's jobs in it, on a tiny spec (tests/test_image.py)
#   bash deploy/image.sh scan  cpu|gpu    its packages as sbom-cpu.spdx.json; needs syft
# Environment: PYTHON_IMAGE another base; TORCH the torch of the gpu image, a lock's name (default cu130);
# TORCH_INDEX, TORCH_WHEELS where that torch is, if not on PyPI; BUILD_NETWORK such as host.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,7s/^# //p' deploy/image.sh >&2; exit 2; }
[[ $# -ge 2 && $2 =~ ^(cpu|gpu)$ ]] || usage
command=$1 kind=$2 image=moola:$2
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)

# The commit, with -dirty where the files are not the commit's.
revision() {
  git rev-parse HEAD 2>/dev/null | tr -d '\n' && { [ -z "$(git status --porcelain)" ] || printf -- '-dirty'; }
}

build() {
  local options=(--load --file "Dockerfile.$kind" --tag "$image")
  options+=(--build-arg "GIT_SHA=${GIT_SHA:-$(revision || true)}")
  options+=(--build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' moola/__init__.py)")
  options+=(--build-arg "SOURCE_URL=${SOURCE_URL:-}")
  [ -z "${PYTHON_IMAGE:-}" ] || options+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
  [ -z "${BUILD_NETWORK:-}" ] || options+=(--network "$BUILD_NETWORK")
  [ ! -f "${SSL_CERT_FILE:-}" ] || options+=(--secret "id=ca,src=$SSL_CERT_FILE")
  if [ "$kind" = gpu ]; then
    [ -z "${TORCH:-}" ] || options+=(--build-arg "TORCH=$TORCH")
    [ -z "${TORCH_INDEX:-}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    [ -z "${TORCH_WHEELS:-}" ] || options+=(--build-context "wheelhouse=$TORCH_WHEELS")
  fi
  docker buildx build "${options[@]}" "$@" .
}

case $command in
  build) build "${@:3}" ;;
  smoke) MOOLA_SMOKE=$kind exec "$python" -m pytest tests/test_image.py -k "$kind" "${@:3}" ;;
  scan) exec syft scan "docker:$image" --output "spdx-json=sbom-$kind.spdx.json" ;;
  *) usage ;;
esac
