"""Tests of `files`."""

import json
import resource

import pytest

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.training.checkpoints import save_model
from mpformer_hf.utils.files import write_atomically, write_json, write_new_folder
from tests.tiny import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0).save_pretrained(folder)
    return folder


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """Files of more than 100 KB cannot be written, as on a full disk."""
    write_json([1], tmp_path / "file.json")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_json(["x" * 200_000], tmp_path / "file.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "file.json").read_text()) == [1] and len(list(tmp_path.iterdir())) == 1


def test_a_failed_save_leaves_no_temporary_files(saved, tmp_path, monkeypatch):
    processor = MPFormerImageProcessor.from_pretrained(saved)
    monkeypatch.setattr(processor, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_model(), processor, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_and_by_one_process(tmp_path):
    folder = tmp_path / "new"
    (tmp_path / ".writing-new").mkdir()  # of a killed process
    (tmp_path / ".writing-new" / "left").write_text("over")
    with write_new_folder(folder) as first:
        (first / "one").write_text("1")
        with pytest.raises(ValueError, match="new is used by another process"), write_new_folder(folder):
            pass
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["one"] and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="new is not an empty folder"), write_new_folder(folder):
        pass
    mounted = tmp_path / "mounted"  # cannot be replaced
    mounted.mkdir()
    number = mounted.stat().st_ino
    with write_new_folder(mounted) as inside:
        (inside / "one").write_text("1")
        (inside / "folder").mkdir()
    assert sorted(path.name for path in mounted.iterdir()) == ["folder", "one"] and mounted.stat().st_ino == number
    with pytest.raises(OSError, match="full"), write_new_folder(tmp_path / "other") as other:
        (other / "one").touch()
        raise OSError("full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounted", "new"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: full (os error 28)")]
)
def test_a_full_disk_is_named_with_what_is_written(tmp_path, error):
    for writing in (write_new_folder, write_atomically):
        with pytest.raises(OSError, match=r"No space left on device: '.*/results'"), writing(tmp_path / "results"):
            raise error
    assert not list(tmp_path.iterdir())
