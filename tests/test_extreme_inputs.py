"""Images, names and disks at their limits: a sentence each, nothing is half-written."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from mpformer_hf import MPFormerImageProcessor, MPFormerImageProcessorPil
from mpformer_hf.cli import predict
from mpformer_hf.data.result_names import result_names
from mpformer_hf.evaluation.task_metrics import format_score
from mpformer_hf.files import write_json
from mpformer_hf.images import read_image
from mpformer_hf.metrics.average_precision import AveragePrecision
from mpformer_hf.model_card import escape
from tests import datasets_on_disk as make
from tests.runs import ROOT, flags
from tests.tiny import tiny_model
from training import finetune
from training.card import write_run_card
from training.checkpoints import save_model
from training.engine import FineTuner

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("processor", [MPFormerImageProcessor, MPFormerImageProcessorPil])
@pytest.mark.parametrize("width, height", [(20000, 1), (1, 20000)])
def test_images_that_are_too_narrow_are_refused_by_processor_and_pipeline(processor, width, height, saved):
    image, message = Image.new("RGB", (width, height)), f"the image is {width}x{height} pixels, too narrow"
    with pytest.raises(ValueError, match=message):
        processor(size=SIZE)([image])
    with pytest.raises(ValueError, match=message):
        pipeline("image-segmentation", model=str(saved))(image)


def test_empty_images_are_refused():
    with pytest.raises(ValueError, match="the image is empty"):
        MPFormerImageProcessor(size=SIZE)([np.zeros((0, 5, 3), dtype=np.uint8)])


def test_images_too_narrow_to_train_on_stop_the_run_in_a_sentence(tmp_path):
    maps = [np.zeros((1, 20000), dtype=np.uint8)] * 2
    data = make.semantic(tmp_path / "data", maps)
    argv = flags(data, tmp_path / "out", task="semantic", longest_edge=96)
    with pytest.raises(ValueError, match=r"Row [01]: a 20000x1 image cannot be augmented"):
        finetune.main([*argv, "--eval_split", "train", "--train_split", "train"])


def png_header(file, width, height):
    """A PNG of a few bytes that declares a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_decompression_bombs_are_skipped(saved, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    png_header(tmp_path / "photos" / "bomb.png", 60_000, 60_000)
    with pytest.raises(ValueError, match="it has more than 178,956,970 pixels"):
        read_image(tmp_path / "photos" / "bomb.png")
    make.photo().save(tmp_path / "photos" / "good.png")
    predict.main([str(saved), str(tmp_path / "photos"), str(tmp_path / "out")])
    told = capsys.readouterr()
    assert "skipped bomb: it has more than 178,956,970 pixels" in told.err and "1 of 2 images" in told.out


def test_long_names_are_shortened_and_stay_unique(saved, tmp_path):
    deep = tmp_path / "photos" / ("a" * 120) / ("b" * 120)
    deep.mkdir(parents=True)
    for name in ("é" * 100, "é" * 99):
        make.photo().save(deep / f"{name}.png")
    files = sorted(str(file.relative_to(tmp_path / "photos")) for file in deep.iterdir())
    names = result_names(files)
    assert len(set(names)) == 2 and all(len(name.encode()) <= 209 for name in names)
    assert result_names(files[:1]) == names[:1], "the name depends on other files"
    predict.main([str(saved), str(tmp_path / "photos"), str(tmp_path / "out")])
    assert sorted(file.stem for file in (tmp_path / "out" / "results").iterdir()) == sorted(names)


# --- A full disk ---


def limited():
    """Files of more than 100 KB cannot be written, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def run_limited(module, *argv):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=limited,
    )


def test_a_full_disk_ends_training_in_a_sentence(shapes, tmp_path):
    done = run_limited("training.finetune", *flags(shapes, tmp_path / "out", max_train_steps=1))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out").rglob(".writing*"))


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_json([1], tmp_path / "file.json")
    code = f"from mpformer_hf.files import *; write_json(['x' * 200_000], Path({str(tmp_path / 'file.json')!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert json.loads((tmp_path / "file.json").read_text()) == [1] and len(list(tmp_path.iterdir())) == 1


def test_a_failed_save_leaves_no_temporary_files(saved, tmp_path, monkeypatch):
    processor = MPFormerImageProcessor.from_pretrained(saved)
    monkeypatch.setattr(processor, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_model(), processor, tmp_path)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_training_in_a_word_and_the_run_resumes(shapes, tmp_path):
    argv = flags(shapes, tmp_path / "out", max_train_steps=10_000, eval_steps=10_000, checkpointing_steps=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "training.finetune", *argv],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in the background of a shell
    )
    end = time.monotonic() + 120
    while not list((tmp_path / "out").glob("checkpoint-*")) and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told and "interrupted" in told.splitlines()
    steps = max(int(f.name.split("-")[1]) for f in (tmp_path / "out").glob("checkpoint-*")) + 1
    argv[argv.index("--max_train_steps") + 1] = str(steps)
    assert finetune.main([*argv, "--resume_from_checkpoint", "latest"])["steps"] == steps


# --- Scores that are not defined, and names in model cards ---


def test_scores_without_objects_are_none_and_shown_as_a_dash():
    metric = AveragePrecision(num_labels=2)
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[0, :10, :10] = True
    truth = {"masks": mask, "label_ids": [0]}
    metric.add(prediction={**truth, "scores": [1.0]}, reference=truth)
    scores = metric.compute()
    assert scores["ap"] == scores["ap_small"] == pytest.approx(1)
    assert scores["ap_medium"] is None and scores["ap_large"] is None and scores["per_class_ap"][1] is None
    assert json.loads(json.dumps(scores)) == scores and format_score(scores["ap_large"]) == "-"


def test_the_first_weights_are_kept_if_no_score_is_defined(tmp_path):
    tuner = FineTuner.__new__(FineTuner)
    tuner.metric, tuner.best, tuner.evaluations_since_best, tuner.output = "ap", None, 0, tmp_path
    tuner.accelerator = type("Main", (), {"is_main_process": False})
    kept = []
    tuner.save = kept.append
    tuner.results = {}
    for score in (None, None, 0.0, None, 0.5):
        tuner.results["last"] = {"ap": score}
        tuner.keep_best()
    assert len(kept) == 3 and tuner.results["best"] == {"ap": 0.5} and tuner.evaluations_since_best == 0


def test_names_in_the_card_are_neither_html_nor_lines(tmp_path):
    assert escape("<script>a</script>\n# b `c`") == "&lt;script&gt;a&lt;/script&gt; # b 'c'"
    scores = dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar"), 0.5) | {"ap_large": None}
    best = {**scores, "images": 1, "step": 1}
    arguments = {"task": "instance", "dataset_name": "a/<b>", "eval_split": "validation", "train_split": "train"}
    arguments |= dict.fromkeys(("model_name_or_path", "backbone", "metric_for_best", "validation_share"))
    results = {"best": best, "steps": 1, "train_seconds": 1.0}
    write_run_card(tmp_path, results, arguments, ["<script>alert(1)</script>", "two\n\n# lines"])
    text = (tmp_path / "README.md").read_text()
    assert "<script>" not in text and "two # lines" in text and "| ap_large | - |" in text
    assert "# lines" not in text.splitlines()
