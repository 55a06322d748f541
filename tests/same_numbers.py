"""Do two trees of this project compute the same? Compares forward passes, losses, gradients, training runs and the
output files of all commands, to the bit.

git worktree add ../before REVISION
python -m tests.same_numbers ../before . --data path/to/nuclei:instance path/to/camvid:semantic

Each tree runs in processes of its own. Numbers that a run measures (seconds, speed, memory) are left out.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = re.compile(r"second|per_second|peak_memory|pixels_per|machine|version|commit")
ARITHMETIC = """
import hashlib, json, sys, torch
from transformers import ResNetConfig, SwinConfig
from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation
stages = ["stage1", "stage2", "stage3", "stage4"]
backbones = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
                           out_features=stages),
    "swin": SwinConfig(embed_dim=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages),
}
sizes = dict(hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_feedforward_dim=64, dim_feedforward=64,
             encoder_layers=2, decoder_layers=5, num_attention_heads=4, num_queries=8, train_num_points=64,
             num_labels=4)
pilots = {"release": {}, "noise": dict(pilot_noise="scale", pilot_noise_scale=0.3, pilot_groups=2),
          "mask": dict(mask_loss_points="mask"), "off": dict(mask_piloting=False),
          "prompts": dict(pilot_noise=["box", "shift", "outline", "clean"], pilot_noise_scale=0.5)}
found = {}
def note(name, tensor):
    found[name] = hashlib.sha256(tensor.detach().contiguous().float().numpy().tobytes()).hexdigest()[:16]
for backbone, config in backbones.items():
    for pilot, fields in pilots.items():
        torch.manual_seed(0)
        model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **{**sizes, **fields}))
        pixels = torch.randn(2, 3, 64, 96)
        masks = [torch.rand(count, 64, 96) > 0.7 for count in (3, 0)]
        labels = [torch.randint(4, (3,)), torch.zeros(0, dtype=torch.int64)]
        model.train()
        output = model(pixel_values=pixels, mask_labels=masks, class_labels=labels,
                       generator=torch.Generator().manual_seed(1))
        for name, value in output.loss_dict.items():
            note(f"{backbone}/{pilot}/loss/{name}", value)
        output.loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                note(f"{backbone}/{pilot}/gradient/{name}", parameter.grad)
        model.eval()
        with torch.no_grad():
            output = model(pixels, output_hidden_states=True, output_auxiliary_logits=True)
        note(f"{backbone}/{pilot}/classes", output.class_queries_logits)
        note(f"{backbone}/{pilot}/masks", output.masks_queries_logits)
json.dump(found, open(sys.argv[1], "w"))
"""


def commands(data: str, task: str, out: Path) -> list[list[str]]:
    """Command lines whose output files are compared, for one data set."""
    run, photos = out / "run", out / "photos"
    train = [
        "mpformer_hf.training",
        "--config",
        "training/recipes/base_small.yaml",
        "--dataset_name",
        data,
        "--task",
        task,
    ]
    train += ["--max_train_steps", "20", "--eval_steps", "10", "--max_eval_samples", "4", "--seed", "3"]
    train += ["--augmentation", "crop", "--crop_size", "96", "96", "--shortest_edges", "96", "112"]
    train += ["--eval_shortest_edge", "96", "--eval_longest_edge", "128", "--per_device_train_batch_size", "2"]
    train += ["--max_train_samples", "16", "--output_dir", str(run), "--num_pictures", "2"]
    noise = '["box", "shift", "outline", "clean"]'
    if task != "semantic":
        train += ["--pilot_noise", *json.loads(noise), "--pilot_noise_scale", "0.5"]
    cli = "mpformer_hf.cli.main"
    scored = ["--model", str(run), "--dataset_name", data, "--task", task, "--max_eval_samples", "3"]
    split = ["--eval_split", "val" if task == "instance" else "validation"]
    made = [
        train + (split if task == "instance" else []),
        [cli, "predict", str(run), str(photos), str(out / "predict"), "--threshold", "0.0", "--batch_size", "2"],
        [cli, "predict", str(run), str(photos), str(out / "tta"), "--flip", "--scales", "1", "0.75", "--window", "96"],
        [cli, "evaluate", *scored, *split, "--output_file", str(out / "scores.json"), "--report", str(out / "r.html")],
        [cli, "convert", "to-mask2former", str(run), str(out / "plain")],
        [cli, "prepare", data, str(out / "prepared"), "--task", task, "--splits", split[1]],
    ]
    if task == "instance":
        made += [
            [cli, "calibrate", *scored, *split],
            [cli, "audit", *scored, *split, "--output_dir", str(out / "audit")],
            [cli, "refine", str(run), str(out / "boxes.json"), str(photos), str(out / "refined"), "--overlays"],
        ]
    return made


def write_photos(out: Path) -> None:
    """Three photographs, and boxes on them."""
    import numpy as np
    from PIL import Image

    (out / "photos").mkdir(parents=True)
    generator, images, annotations = np.random.default_rng(0), [], []
    for number, (height, width) in enumerate(((120, 160), (120, 160), (97, 143))):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        photo.save(out / "photos" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = [20 + number, 30, 60, 40]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (out / "boxes.json").write_text(json.dumps(content))


def without_measured(value):
    """JSON without what was measured."""
    if isinstance(value, dict):
        return {key: without_measured(x) for key, x in value.items() if not MEASURED.search(key)}
    return [without_measured(x) for x in value] if isinstance(value, list) else value


def digest(file: Path, root: Path) -> str:
    """Hash of what a file says, without measured numbers and the paths of this run."""
    content = file.read_bytes()
    if file.suffix == ".json":
        content = json.dumps(without_measured(json.loads(content)), sort_keys=True).encode()
    elif file.suffix == ".jsonl":
        rows = [without_measured(json.loads(line)) for line in content.splitlines()]
        content = json.dumps(rows, sort_keys=True).encode()
    elif file.suffix in (".html", ".md"):
        content = re.sub(rb"[0-9.]+ (images/s|images a second|seconds|s|MiB|GiB)\b", b"", content)
    return hashlib.sha256(content.replace(str(root).encode(), b"ROOT")).hexdigest()[:16]


def record(tree: Path, out: Path, data: list[tuple[str, str]]) -> dict[str, str]:
    """What a tree computes: a hash of each tensor and each output file."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        """Error of a command, if it ends in one sentence."""
        done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode and not last.startswith("error: "):
            raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stderr[-3000:]}")
        return last.replace(str(out), "ROOT") if done.returncode else ""

    out.mkdir(parents=True)
    run("-c", ARITHMETIC, str(out / "arithmetic.json"))
    found = json.loads((out / "arithmetic.json").read_text())
    for folder, task in data:
        place = out / task
        write_photos(place)
        for command in commands(folder, task, place):
            if error := run("-m", *command):
                print(f"{tree}: {' '.join(command[:2])}: {error}")
                found[f"{task}/{' '.join(command[:2])}"] = error
        for file in sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")):
            if file.name != "settings.json":  # has a hash of the weights' file
                found[f"{task}/{file.relative_to(place)}"] = digest(file, out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, help="tree, or JSON of an earlier record")
    parser.add_argument("--data", nargs="*", default=[], help="FOLDER:TASK")
    parser.add_argument("--save", type=Path, help="write what the second tree computes as JSON")
    args = parser.parse_args()
    data = [(str(Path(folder).resolve()), task) for folder, _, task in (x.rpartition(":") for x in args.data)]
    records = []
    for tree in args.trees:
        if tree.endswith(".json"):
            records.append(json.loads(Path(tree).read_text()))
            continue
        with tempfile.TemporaryDirectory() as folder:
            records.append(record(Path(tree).resolve(), Path(folder) / "out", data))
    if args.save:
        args.save.write_text(json.dumps(records[1], indent=1) + "\n")
    first, second = records
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print("\n".join(different))
    print(f"{len(first.keys() | second.keys()) - len(different)} equal, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
