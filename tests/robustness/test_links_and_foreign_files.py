"""What a stranger's folder may name: links, files elsewhere, addresses and programs; nothing of it is read, written or
started."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from datasets import Image as ImageColumn
from datasets import Value
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.hub.publishing import files_to_publish, prepare_upload
from mpformer_hf.inference.exported import open_with_torch
from mpformer_hf.inference.loading import fingerprint, load_model
from mpformer_hf.inference.video import read_frames
from mpformer_hf.training.run import read_lines
from mpformer_hf.utils.files import lock_folder, write_new_folder
from tests import datasets_on_disk as make
from tests import official_folders
from tests.tiny import tiny_model


@pytest.fixture
def own(tmp_path):
    """A folder of the user."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "diary.txt").write_text("private")
    return tmp_path / "own"


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_place_of_the_temporary_folder_is_not_followed(exists, own, tmp_path):
    output = tmp_path / "out"
    if exists:
        output.mkdir()
    (output / ".writing" if exists else tmp_path / ".writing-out").symlink_to(own)
    with write_new_folder(output) as temporary:
        (temporary / "new.txt").write_text("x")
    assert names_in(own) == {"diary.txt"} and names_in(output) == {"new.txt"} and not output.is_symlink()


@pytest.mark.parametrize("name", ["log.jsonl", "evaluations.jsonl", "link", ".lock"])
def test_links_out_of_an_output_folder_are_refused(name, own, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(own / "new.txt")  # dangling
    with pytest.raises(ValueError, match=f"{name} is a link that leads out of the output folder; remove it"):
        lock_folder(tmp_path / "out")
    assert names_in(own) == {"diary.txt"}


def test_columns_that_are_not_used_are_not_opened(tmp_path, own):
    make.photo().save(own / "p.png")
    rows = [{"image": make.photo(), "label": Image.fromarray(np.ones((40, 60), np.uint8)), "thumbs": []}]
    rows[0]["thumbs"] = [
        {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None},
        {"bytes": None, "path": str(own / "p.png")},
    ]
    rows[0] |= {"url": "http://127.0.0.1:9/a.jpg", "filename": "lost.png", "size": [1, 2]}
    columns = {"image": ImageColumn(), "label": ImageColumn(), "thumbs": [ImageColumn()]}
    columns |= {"url": Value("string"), "filename": Value("string"), "size": [Value("int64")]}
    folder = make.write(tmp_path / "d", rows, columns, {"id2label.json": {"0": "a", "1": "b"}})
    dataset = open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train")
    assert dataset[0][1].classes == {1: 1} and set(dataset.rows.column_names) == {"image", "label"}


CONFIGS = "configs:\n- config_name: default\n  data_files:"
CARDS = {
    "an address": f"---\n{CONFIGS} http://127.0.0.1:9/x.parquet\n---\n",
    "a protocol": f"---\n{CONFIGS} file:///own/x.parquet\n---\n",
    "after a text": f"---\ndescription: |\n  a\n  ---\n{CONFIGS} /own/x.parquet\n---\n",
}


@pytest.mark.parametrize("card", CARDS)
def test_cards_that_name_files_elsewhere_are_refused(card, tmp_path):
    folder = make.semantic(tmp_path / "d", [np.ones((40, 60), np.uint8)])
    (folder / "README.md").write_text(CARDS[card])
    with pytest.raises(ValueError, match=r"README\.md names .*x\.parquet, outside of the dataset; --allow_outside"):
        open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train")


def test_linked_tables_of_any_suffix_are_refused(own, tmp_path):
    folder = make.semantic(tmp_path / "d", [np.ones((40, 60), np.uint8)])
    (folder / "data" / "train.csv.gz").symlink_to(own / "diary.txt")
    with pytest.raises(ValueError, match=r"train\.csv\.gz leads to .*outside of the dataset"):
        open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train")


def test_tables_of_classes_that_are_links_are_not_read(own, tmp_path):
    (own / "secret.csv").write_text("Pixel Value, Class\n0, hunter2\n1, b\n")
    folder = official_folders.mask_images(tmp_path / "d")
    (folder / "id2label.json").unlink()
    (folder / "_classes.csv").symlink_to(own / "secret.csv")
    with pytest.raises(ValueError, match=r"_classes\.csv leads to .*outside of the dataset"):
        open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train")


def test_images_in_a_zip_file_are_read(tmp_path):
    (tmp_path / "z").mkdir()
    make.photo().save(tmp_path / "a.png")
    Image.fromarray(np.ones((40, 60), np.uint8)).save(tmp_path / "a_label.png")
    with zipfile.ZipFile(tmp_path / "z" / "train.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.writestr("metadata.jsonl", json.dumps({"file_name": "a.png", "objects": "[]"}) + "\n")
    (tmp_path / "z" / "id2label.json").write_text('{"0": "a"}')
    dataset = open_dataset(DataArguments(dataset_name=str(tmp_path / "z"), task="instance"), "train")
    assert dataset.identity(0)[1] == "a.png"
    argv = ["prepare", str(tmp_path / "z"), str(tmp_path / "p"), "--task", "instance", "--splits", "train"]
    with pytest.raises(SystemExit, match="None of the 1 images has an object"):  # after it was read
        mpformer(argv)
    assert torch.equal(dataset[0][0], torch.from_numpy(np.array(make.photo())).permute(2, 0, 1))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    MPFormerImageProcessor().save_pretrained(folder)
    return folder


def rename_shard(folder, new):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = sorted(set(content["weight_map"].values()))[0]
    content["weight_map"] = {key: new if name == shard else name for key, name in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    return folder / shard


def test_an_index_that_names_files_elsewhere_is_refused(saved, own):
    shutil.move(rename_shard(saved, "../own/w.safetensors"), own / "w.safetensors")
    with pytest.raises(ValueError, match=r"index\.json names \.\./own/w\.safetensors, which is not in its folder"):
        load_model(str(saved))


def test_shards_in_a_folder_are_published_there(saved, tmp_path):
    (saved / "sub").mkdir()
    shutil.move(rename_shard(saved, "sub/w.safetensors"), saved / "sub" / "w.safetensors")
    before = fingerprint(str(saved))
    (tmp_path / "upload").mkdir()
    prepare_upload(saved, "a/b", False, tmp_path / "upload")
    assert load_model(str(tmp_path / "upload")).num_parameters() == load_model(str(saved)).num_parameters()
    os.truncate(saved / "sub" / "w.safetensors", 8)
    assert fingerprint(str(saved)) != before


def test_the_weights_that_are_loaded_are_those_that_are_published(saved):
    tiny_model().save_pretrained(saved)
    tiny_model().save_pretrained(saved.parent / "sharded", max_shard_size="40KB")
    shutil.copy(saved.parent / "sharded" / "model.safetensors.index.json", saved)
    load_model(str(saved))
    assert {file.name for file in files_to_publish(saved)} == {
        *("config.json", "preprocessor_config.json", "model.safetensors")
    }
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has adapters, which are not published: merge them"):
        files_to_publish(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "processor_config.json", "model.safetensors"])
def test_every_file_of_a_model_changes_its_fingerprint(name, saved):
    (saved / name).write_text("a")
    before = fingerprint(str(saved))
    (saved / name).write_text("b")
    assert fingerprint(str(saved)) != before


def test_a_configuration_does_not_ask_for_another_model(saved):
    content = json.loads((saved / "config.json").read_text()) | {"backbone": "evil/x", "backbone_config": None}
    (saved / "config.json").write_text(json.dumps(content | {"use_pretrained_backbone": True}))
    with pytest.raises(ValueError, match="backbone names the model 'evil/x': give its configuration, backbone_config"):
        load_model(str(saved))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_an_exported_file_with_pickles_is_not_loaded(tmp_path):
    torch.save(Evil(tmp_path / "ran"), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        archive.write(tmp_path / "model.pt", "archive/data/sample_inputs/model.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        open_with_torch(tmp_path / "evil.pt2")
    row = {"path_name": "opaque_obj_0", "use_pickle": False}
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.write(tmp_path / "model.pt", "archive/data/constants/opaque_obj_0")
        archive.writestr("archive/data/constants/model_constants_config.json", json.dumps({"config": {"a": row}}))
    with pytest.raises(Exception, match="it holds Python objects, which may run code"):
        open_with_torch(tmp_path / "other.pt2")
    assert not (tmp_path / "ran").exists()


def test_a_list_of_files_is_no_video(tmp_path, own):
    pytest.importorskip("av")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {own / 'diary.txt'}\n")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        list(read_frames(tmp_path / "list.mp4", 1))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match=r"pipe\.mp4 is not a regular file"):
        list(read_frames(tmp_path / "pipe.mp4", 1))


def test_a_log_that_is_no_file_is_not_read(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"log\.jsonl is not a regular file"):
        read_lines(tmp_path / "log.jsonl")


def test_refine_reads_no_linked_names(tmp_path, own, saved):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "classes.txt").symlink_to(own / "diary.txt")
    (tmp_path / "images").mkdir()
    make.photo().save(tmp_path / "images" / "a.png")
    with pytest.raises(SystemExit, match=r"classes\.txt leads to .*outside"):
        mpformer(["refine", str(saved), str(folder), str(tmp_path / "images"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_has_the_classes_that_it_began_with(tmp_path):
    folder = make.shapes(tmp_path / "data", 2, 2)
    flags = ["--config", "training/recipes/shapes_panoptic.yaml", "--per_device_train_batch_size", "1"]
    flags += ["--checkpointing_steps", "1", "--num_pictures", "0", "--eval_steps", "100", "--max_train_steps"]
    mpformer(["train", str(folder), *flags, "1", "--output_dir", str(tmp_path / "run")])
    file = folder / "panoptic_categories.json"
    content = json.loads(file.read_text())
    content[0]["name"], content[1]["name"] = content[1]["name"], content[0]["name"]
    file.write_text(json.dumps(content))
    (folder / "id2label.json").write_text(json.dumps({row["id"]: row["name"] for row in content}))
    with pytest.raises(SystemExit, match=r"the run had the class .*, where the dataset has .*: start a new run"):
        mpformer(
            [
                "train",
                str(folder),
                *flags,
                "2",
                "--output_dir",
                str(tmp_path / "run"),
                "--resume_from_checkpoint",
                "latest",
            ]
        )
