"""The wheel in a fresh environment without the repository: every command on a tiny model."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from tests import datasets_on_disk as make
from tests.hub_server import Hub
from tests.runs import flags
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Python of a virtual environment that has only the wheel and finds its dependencies, and its variables."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, next(folder.glob("*.whl"))], check=True)
    # The dependencies of the tests' environment, whose editable installation of this project is not followed. They come
    # after the standard library (PYTHONPATH would not): cityscapesscripts installs an old `typing`.
    packages = next((folder / "env").rglob("site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python, {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}


ALL = "import json, sys; from mpformer_hf.cli.main import main; [main(argv) for argv in json.loads(sys.argv[1])]"


def test_every_command_runs_without_the_repository(environment, tmp_path):
    data = make.shapes(tmp_path / "data", train=1, validation=2)
    names = json.loads((data / "id2label.json").read_text())
    torch.manual_seed(0)
    tiny_model(decoder_layers=2, num_labels=8, id2label={int(i): name for i, name in names.items()}).save_pretrained(
        tmp_path / "model"
    )
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    make.photo().save(tmp_path / "photo.png")
    hub = Hub()
    train = flags("data", "run", max_train_steps=2, checkpointing_steps=2)
    del train[train.index("--dataset_name") : train.index("--dataset_name") + 2]
    boxes = {"images": [{"id": 1, "file_name": "photo.png", "height": 40, "width": 60}], "categories": []}
    boxes["categories"] = [{"id": 1, "name": next(iter(names.values()))}]
    boxes["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}]
    (tmp_path / "photos").mkdir()
    make.photo().save(tmp_path / "photos" / "photo.png")
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    commands = [
        ["check", "data", "--task", "panoptic", "--output", "pictures"],
        ["train", "data", *train],
        ["plot", "run", "--output", "curves.png"],
        ["predict", "run", "photo.png", "predictions"],
        ["evaluate", "run", "data", "--eval_split", "validation"],
        ["refine", "run", "boxes.json", "photos", "refined"],
        ["audit", "run", "data", "audited", "--eval_split", "validation"],
        ["convert", "to-mask2former", "model", "plain"],
        ["prepare", "data", "prepared", "--task", "panoptic"],
        ["export", "model", "model.pt2", "--height", "64", "--width", "64"],
        ["push", "model", "somebody/model"],
    ]
    python, variables = environment
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    options = {"cwd": tmp_path, "env": {**variables, **own}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    usage = subprocess.run([python.with_name("mpformer"), "--help"], text=True, **options).stdout
    assert all(argv[0] in usage for argv in commands) and len(usage.splitlines()) < 26
    # one process, which imports everything once
    done = subprocess.run([python, "-c", ALL, json.dumps(commands)], text=True, **options)
    hub.close()
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 of 1 images" in done.stdout and (tmp_path / "predictions" / "overlays" / "photo.png").is_file()
    assert '"pq"' in done.stdout and '"mean_iou"' in done.stdout
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "mask2former"
    assert (tmp_path / "model.pt2").stat().st_size > 100_000
    assert "model.safetensors" in hub.files("somebody/model")
    assert "# run" in (tmp_path / "run" / "README.md").read_text() and (tmp_path / "curves.png").is_file()
    assert (tmp_path / "refined" / "annotations.json").is_file() and (tmp_path / "audited" / "index.html").is_file()


PYTHON = """
import mpformer_hf
sizes = dict(augmentation="crop", crop_size=[64, 64], eval_shortest_edge=64, eval_longest_edge=64)
options = dict(model_fields={fields}, max_train_steps=1, dataloader_num_workers=0, **sizes)
run = mpformer_hf.train("data", task="panoptic", output_dir="run", **options)
print(run.predictor()("photo.png"), run.best["pq"] is not None)
"""


def test_python_and_two_processes_train_without_the_repository(environment, tmp_path):
    make.shapes(tmp_path / "data", train=2, validation=1)
    make.photo().save(tmp_path / "photo.png")
    python, variables = environment
    argv = flags("data", "two", max_train_steps=1)
    code = PYTHON.replace("{fields}", repr(json.loads(argv[1])))
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert "Result(panoptic, 40x60" in done.stdout, done.stderr[-2000:]
    launch = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mpformer_hf", "train", *argv]
    two = {**variables, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=tmp_path, env=two, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "all_results.json").read_text())["steps"] == 1


def test_the_package_is_that_of_the_wheel(environment, tmp_path):
    python, variables = environment
    code = "import mpformer_hf; from mpformer_hf.utils.recipes import RECIPES; print(mpformer_hf.__file__, RECIPES, "
    code += "(RECIPES / 'own_dataset.yaml').is_file()); import training"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.count(str(python.parents[1])) == 2 and done.stdout.endswith("True\n")
    assert "No module named 'training'" in done.stderr
