"""Publishing and loading through the real Hub client, against a small Hub on 127.0.0.1, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor, MPFormerImageProcessorPil
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.hub.publishing import files_to_publish, prepare_upload
from mpformer_hf.training import finetune
from tests.hub_server import Hub
from tests.runs import ROOT, flags
from tests.tiny import tiny_model

# A process that has transformers but not this package, as on a machine where it was never installed.
WITHOUT_PACKAGE = "import sys; sys.modules['mpformer_hf'] = None\n"


LOOK = """
import json
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline
torch.manual_seed(0)
image = Image.fromarray((torch.rand(48, 80, 3) * 255).byte().numpy())
segmenter = pipeline("image-segmentation", model="somebody/{repo}"{trust})
model = AutoModelForUniversalSegmentation.from_pretrained("somebody/{repo}"{trust})
with torch.no_grad():
    sums = [
        model(**processor(image, return_tensors="pt")).masks_queries_logits.abs().sum().item()
        for processor in (
            AutoImageProcessor.from_pretrained("somebody/{repo}"{trust}, backend=backend)
            for backend in ("torchvision", "pil")
        )
    ]
labels = sorted(segment["label"] for segment in segmenter(image))
print("RESULT", json.dumps([segmenter.image_processor.task, labels, *sums]))
"""


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    model = tiny_model(id2label={0: "sky", 1: "road", 2: "car", 3: "dog"}, mask_piloting=True)
    model.save_pretrained(folder)
    MPFormerImageProcessor(task="semantic", size={"height": 64, "width": 64}).save_pretrained(folder)
    (folder / "log.jsonl").write_text("not for the Hub")
    return folder


def run(code: str, hub: Hub, home: Path, argv: list[str] = ()) -> subprocess.CompletedProcess:
    """Python code in a process of its own, with this Hub and an empty cache."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": "",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, cwd=home, capture_output=True, text=True, timeout=300
    )


def push(*argv, hub, home, before=""):
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); {before}\n"
    code += "from mpformer_hf.cli.main import main; main(['push', *sys.argv[1:]])"
    return run(code, hub, home, [str(a) for a in argv])


def result(done: subprocess.CompletedProcess) -> list:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT")
    )


def expected(folder: Path) -> list:
    """What `LOOK` finds, by the folder that was pushed."""
    torch.manual_seed(0)
    image = Image.fromarray((torch.rand(48, 80, 3) * 255).byte().numpy())
    model = MPFormerForUniversalSegmentation.from_pretrained(folder).eval()
    processors = [cls.from_pretrained(folder) for cls in (MPFormerImageProcessor, MPFormerImageProcessorPil)]
    with torch.no_grad():
        outputs = [model(**processor(image, return_tensors="pt")) for processor in processors]
    found = processors[0].post_process_semantic_segmentation(outputs[0], target_sizes=[(48, 80)])[0].unique().tolist()
    labels = sorted(model.config.id2label[label] for label in found)
    return ["semantic", labels, *(output.masks_queries_logits.abs().sum().item() for output in outputs)]


def test_a_broken_upload_publishes_nothing_and_the_retry_succeeds(hub, saved, tmp_path):
    hub.drop_uploads = 10**6
    broken = push(saved, "somebody/one", hub=hub, home=tmp_path, before="time.sleep = lambda seconds: None")
    assert broken.returncode == 1 and "was not pushed to somebody/one: " in broken.stderr
    assert broken.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in broken.stderr
    assert len(hub.revisions["somebody/one"]) == 1 and set(hub.files("somebody/one")) == {".gitattributes"}

    hub.drop_uploads = 1  # the client's own retry
    done = push(saved, "somebody/one", "--revision", "trial", hub=hub, home=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(hub.files("somebody/one")) == {".gitattributes"}, "main is another branch"
    published = {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(hub.files("somebody/one", "trial")) == published
    assert hub.files("somebody/one", "trial")["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert "import mpformer_hf" in hub.files("somebody/one", "trial")["README.md"].decode()
    assert not hub.unknown


@pytest.mark.parametrize("page", ["<html>Log in</html>", "{}"])
def test_a_page_that_is_not_of_the_hub_is_named(hub, saved, tmp_path, page):
    hub.page = page
    done = push(saved, "somebody/one", hub=hub, home=tmp_path)
    assert done.returncode == 1 and "was not pushed to somebody/one: what answered is not a Hub" in done.stderr
    assert "Traceback" not in done.stderr and not hub.revisions


def test_with_code_it_runs_where_the_package_is_not(hub, saved, tmp_path):
    done = push(saved, "somebody/two", "--with-code", hub=hub, home=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{hub.endpoint}/somebody/two/commit/" in done.stdout
    files = hub.files("somebody/two")
    config = json.loads(files["config.json"])
    assert {"AutoConfig", "AutoModel", "AutoModelForUniversalSegmentation", "AutoModelForImageSegmentation"} < set(
        config["auto_map"]
    )
    assert "trust_remote_code=True" in files["README.md"].decode() and "conversion.py" not in files
    home = tmp_path / "elsewhere"
    home.mkdir()
    done = run(WITHOUT_PACKAGE + LOOK.format(repo="two", trust=", trust_remote_code=True"), hub, home)
    there, here = result(done), expected(saved)
    assert there[:2] == here[:2] and there[2:] == pytest.approx(here[2:], rel=1e-4)
    assert "is not supported for" not in done.stderr
    assert not hub.unknown


def test_model_and_processor_push_themselves(hub, saved, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
MPFormerForUniversalSegmentation.from_pretrained({str(saved)!r}).push_to_hub("somebody/three")
MPFormerImageProcessor.from_pretrained({str(saved)!r}).push_to_hub("somebody/three")
"""
    there, here = result(run(code + LOOK.format(repo="three", trust=""), hub, tmp_path)), expected(saved)
    assert there[:2] == here[:2] and there[2:] == pytest.approx(here[2:], rel=1e-4)
    assert not hub.unknown


def test_a_trainer_pushes_model_and_processor(hub, saved, shapes, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from transformers import Trainer, TrainingArguments
from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.trainer import SegmentationCollator
model = MPFormerForUniversalSegmentation.from_pretrained({str(saved)!r}, num_labels=8, ignore_mismatched_sizes=True)
processor = MPFormerImageProcessor.from_pretrained({str(saved)!r})
arguments = TrainingArguments("out", max_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True,
                              push_to_hub=True, hub_model_id="somebody/four")
data = open_dataset(DataArguments(dataset_name={str(shapes)!r}, task="panoptic"), "train")
trainer = Trainer(model, arguments, train_dataset=data, data_collator=SegmentationCollator(processor),
                  processing_class=processor)
trainer.train()
trainer.push_to_hub()
again = MPFormerForUniversalSegmentation.from_pretrained("somebody/four")
same = all((x.cpu() == again.state_dict()[name]).all() for name, x in model.state_dict().items())
print("RESULT", int(same), MPFormerImageProcessor.from_pretrained("somebody/four").task == "semantic")
"""
    done = run(code, hub, tmp_path)
    assert done.returncode == 0 and "RESULT 1 True" in done.stdout, done.stderr[-3000:]
    assert not hub.unknown


def test_folders_that_are_no_model(saved, tmp_path, capsys):
    def refused(folder):
        with pytest.raises(SystemExit) as stopped:
            mpformer(["push", str(folder), "somebody/four"])
        return str(stopped.value)

    assert "has no config.json, preprocessor_config.json" in refused(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((saved / name).read_text())
    assert "has no model.safetensors" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "mask2former"}')
    assert "has model_type 'mask2former'" in refused(tmp_path)


def test_a_model_without_class_names_gets_a_card(tmp_path):
    tiny_model(num_labels=2).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor().save_pretrained(tmp_path / "model")
    (tmp_path / "staged").mkdir()
    prepare_upload(tmp_path / "model", "somebody/seven", False, tmp_path / "staged")
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "with 2 classes" in card and "pipeline_tag: image-segmentation" in card and "- mp-former" in card


def test_the_card_says_once_how_to_use_it(saved, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    prepare_upload(saved, "somebody/five", True, first)
    prepare_upload(first, "somebody/six", False, second)
    card = (second / "README.md").read_text()
    assert card.count("## Use") == 1 and "somebody/six" in card and "trust_remote_code" not in card
    assert "auto_map" not in json.loads((second / "config.json").read_text())
    assert "custom_pipelines" not in json.loads((second / "config.json").read_text())


def test_a_push_that_cannot_work_is_noticed_before_training(shapes, tmp_path):
    with pytest.raises(ValueError, match=r"^push_to_hub: .*(Token|offline)"):
        finetune.main(flags(shapes, tmp_path / "out", push_to_hub=True))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def saved_model(tmp_path):
    tiny_model(num_labels=1, id2label={0: "cat"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}, threshold=0.0).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_links_are_not_published(saved_model, tmp_path):
    (tmp_path / "key").write_text("secret")
    (saved_model / "other.safetensors").write_bytes(b"not of this model")
    assert {file.name for file in files_to_publish(saved_model)} == {
        *("config.json", "preprocessor_config.json", "model.safetensors")
    }
    (saved_model / "README.md").symlink_to(tmp_path / "key")
    with pytest.raises(ValueError, match=r"is a link to .*key, which is not in"):
        files_to_publish(saved_model)


def test_a_snapshot_of_the_hub_is_published(saved_model, tmp_path):
    snapshot = tmp_path / "models--me--model" / "snapshots" / "abc"
    blobs = tmp_path / "models--me--model" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(saved_model.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert len(files_to_publish(snapshot)) == 3
