"""Flags of small training runs."""

import json

from tests.tiny import BACKBONES, SIZES


def flags(data, output, **more):
    fields = {"backbone_config": BACKBONES["resnet"].to_dict(), **SIZES}
    given = {
        "model_fields": json.dumps(fields),
        "dataset_name": data,
        "task": "panoptic",
        "augmentation": "crop",
        "crop_size": "64 64",
        "shortest_edges": "64 72",
        "eval_shortest_edge": 64,
        "eval_longest_edge": 64,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "learning_rate": 1e-3,
        "max_train_steps": 4,
        "eval_steps": 2,
        "output_dir": output,
        **more,
    }
    argv = []
    for name, value in given.items():
        argv += [f"--{name}", *([value] if name == "model_fields" else str(value).split())]
    return argv
