#!/usr/bin/env bash
# From nothing to a fine-tuned, evaluated and reloaded MP-Former on generated images, on the CPU.
#   bash scripts/quickstart.sh [FOLDER]      default: outputs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER="${1:-outputs/quickstart}"
if [ -e "$FOLDER" ]; then
    echo "error: $FOLDER exists; name another folder: bash scripts/quickstart.sh FOLDER" >&2
    exit 1
fi
source scripts/install.sh "train"
RECIPE=training/recipes/shapes_panoptic.yaml
python scripts/make_shapes_dataset.py "$FOLDER/data"
accelerate launch --cpu --num_processes 1 --num_machines 1 --num_cpu_threads_per_process "$(nproc)" \
    --mixed_precision no --dynamo_backend no \
    training/finetune.py --config "$RECIPE" --dataset_name "$FOLDER/data" --output_dir "$FOLDER/model"
python training/evaluate.py --config "$RECIPE" --dataset_name "$FOLDER/data" --eval_split test \
    --model_name_or_path "$FOLDER/model" --output_file "$FOLDER/test.json" > /dev/null
python scripts/quickstart_report.py "$FOLDER"
