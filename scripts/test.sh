#!/usr/bin/env bash
# Install into .venv, then lint, format check and tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh "test"
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
python -m pytest "$@"
