#!/usr/bin/env bash
# Fine-tune a small MP-Former with a pretrained backbone on generated images on the CPU, evaluate it and predict with it.
#   bash scripts/quickstart.sh [FOLDER]      default: outputs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER="${1:-outputs/quickstart}"
if [ -e "$FOLDER" ]; then
    echo "error: $FOLDER exists; choose another folder: bash scripts/quickstart.sh FOLDER" >&2
    exit 1
fi
source scripts/install.sh "quickstart"
python -m scripts.datasets.make_solids_dataset "$FOLDER/data" --train 2500
mpformer train "$FOLDER/data" --config quickstart --output_dir "$FOLDER/model"
mpformer evaluate "$FOLDER/model" "$FOLDER/data" --config quickstart --eval_split test \
    --output_file "$FOLDER/test.json" > /dev/null
python -m scripts.quickstart_report "$FOLDER"
