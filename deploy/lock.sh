#!/usr/bin/env bash
# Makes the hashed locks from pyproject.toml. No registry's address is written into them.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header "$@"; }
compile pyproject.toml -o deploy/locks/cpu.txt
compile pyproject.toml --extra beside-torch -c deploy/locks/cpu.txt -o deploy/locks/train.txt
compile pyproject.toml --extra dev -c deploy/locks/cpu.txt -o deploy/locks/dev.txt
