#!/usr/bin/env bash
# Install into .venv, then lint, format check, types, the site and tests, in as many processes as there are cores, four at most.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh "test"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
ruff check .
ruff format --check .
codespell
mypy
zizmor --offline --quiet .github/workflows
NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict --config-file .mkdocs.yml
command -v chromium > /dev/null || echo "chromium is missing: the tests of the pages are skipped"
[ -d outputs/web ] || echo "outputs/web is missing (npm install --prefix outputs/web onnxruntime-web): docs/examples/browser.html is not tested"
python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal "$@"
