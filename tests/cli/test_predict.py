"""`mpformer predict` on real files: all sources and outputs, bad images, resuming, several processes."""

import io
import json
import multiprocessing
import random
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Image as ImageColumn
from PIL import Image
from pycocotools import mask as coco_mask

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import predict
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.coco_ids import ImageIds
from mpformer_hf.data.result_names import result_names
from mpformer_hf.inference import prediction as script
from mpformer_hf.inference import shards
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.images import read_image
from mpformer_hf.utils.files import lock_folder
from tests import datasets_on_disk as make
from tests import official_folders
from tests.runs import run_together
from tests.tiny import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0).save_pretrained(folder)
    return folder


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


def write_model(folder: Path, names: list[str], **fields) -> Path:
    tiny_model(num_labels=len(names), id2label=dict(enumerate(names))).save_pretrained(folder)
    MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, **fields).save_pretrained(folder)
    return folder


def test_ids_of_a_resumed_prediction_are_those_of_its_own_run(tmp_path, capsys):
    saved = write_model(tmp_path / "model", ["a", "b"], task="instance", threshold=0.0)
    photos = tmp_path / "photos"
    for name in ("b.jpg", "c.jpg"):
        official_folders.save_photo(photos / name)
    argv = ["predict", str(saved), str(photos), str(tmp_path / "out"), "--write", "overlays"]

    def ids():
        return {
            row["file_name"]: row["id"] for row in json.loads((tmp_path / "out" / "images.json").read_text())["images"]
        }

    mpformer(argv)
    assert ids() == {"b.jpg": 0, "c.jpg": 1}
    official_folders.save_photo(photos / "a.jpg")
    mpformer(argv)
    assert ids() == {"a.jpg": 0, "b.jpg": 1, "c.jpg": 2}
    official_folders.write_json(
        {"images": [{"id": 0, "file_name": "b.jpg"}, {"id": 7, "coco_url": "http://x/train/c.jpg"}]},
        tmp_path / "i.json",
    )
    mpformer([*argv, "--image_ids", str(tmp_path / "i.json")])
    assert ids() == {"b.jpg": 0, "c.jpg": 7} and "skipped a: " in capsys.readouterr().err


def test_ids_are_found_by_paths_of_which_folders_may_be_missing(tmp_path):
    official_folders.write_json(
        {"images": [{"id": i, "file_name": name} for i, name in enumerate(("100/x.png", "101/x.png", "val/y.png"))]},
        tmp_path / "i.json",
    )
    ids = ImageIds(tmp_path / "i.json")
    found = {name: ids.find(name) for name in ("100/x.png", "DCIM/101/x.png", "x.png", "102/x.png", "y.png", "z.png")}
    assert found == {"100/x.png": 0, "DCIM/101/x.png": 1, "x.png": None, "102/x.png": None, "y.png": 2, "z.png": None}


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0, label_ids_to_fuse=[3]).save_pretrained(folder)
    return folder


def test_lost_pictures_are_written_again_and_broken_results_replaced(saved_model, tmp_path):
    make.photo().save(tmp_path / "photo.png")
    argv = [str(saved_model), str(tmp_path / "photo.png"), str(tmp_path / "out")]
    predict.main(argv)
    out = tmp_path / "out"
    (out / "predictions" / "photo.png").unlink()
    predict.main(argv)
    assert (out / "predictions" / "photo.png").is_file()
    expected = (out / "results" / "photo.json").read_text()
    for text in ("[]", "null", "5", json.dumps({"pixels_sha256": json.loads(expected)["pixels_sha256"]})):
        (out / "results" / "photo.json").write_text(text)
        predict.main(argv)
        assert (out / "results" / "photo.json").read_text() == expected
    (out / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a mapping of settings"):
        predict.main(argv)


def test_earlier_predictions_are_not_segmented_and_tables_not_ignored(saved_model, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    make.photo().save(photos / "a.png")
    predict.main([str(saved_model), str(photos), str(photos / "one")])
    predict.main([str(saved_model), str(photos), str(photos / "two")])
    assert capsys.readouterr().out.count("1 of 1 images") == 2
    make.semantic(photos / "table", [np.zeros((40, 60), dtype=np.uint8)])
    with pytest.raises(ValueError, match="has parquet files and 1 images"):
        predict.main([str(saved_model), str(photos), str(tmp_path / "out")])


def test_unreadable_images_of_a_dataset_are_skipped(saved_model, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "bad").write_text("no image")
    rows = [{"image": {"path": str(tmp_path / "d" / "bad")}}, {"image": make.photo()}]
    folder = make.write(tmp_path / "d", rows, {"image": ImageColumn()}, {})
    predict.main([str(saved_model), str(folder), str(tmp_path / "out"), "--split", "train"])
    told = capsys.readouterr()
    assert "1 of 2 images" in told.out and "skipped train_000000: it is not an image file" in told.err


NAMES = {0: "sky", 1: "road", 2: "car", 3: "dog"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    torch.manual_seed(0)
    tiny_model(id2label=NAMES).save_pretrained(folder)
    processor = MPFormerImageProcessor(
        task="panoptic", size={"shortest_edge": 64, "longest_edge": 96}, threshold=0.0, label_ids_to_fuse=[0, 1]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (64, 48)), ("more/a.png", (40, 60)), ("a.bmp", (40, 60))):
        make.photo(*size).save(folder / name)
    return folder


def run(trained, source, output, *flags):
    mpformer(["predict", str(trained), str(source), str(output), *flags])


def read(file):
    return json.loads(file.read_text())


def test_panoptic_results_are_coco_files(trained, photos, tmp_path, capsys):
    run(trained, photos, tmp_path / "out")
    assert "4 of 4 images" in capsys.readouterr().out
    out = read(tmp_path / "out" / "predictions.json")
    assert [image["file_name"] for image in out["images"]] == ["a.bmp", "a.png", "b.jpg", "more/a.png"]
    assert {c["name"]: c["isthing"] for c in out["categories"]} == {"sky": 0, "road": 0, "car": 1, "dog": 1}
    for image, annotation in zip(out["images"], out["annotations"], strict=True):
        rgb = np.array(Image.open(tmp_path / "out" / "predictions" / annotation["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        assert ids.shape == (image["height"], image["width"]) and annotation["segments_info"]
        for segment in annotation["segments_info"]:
            y, x = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(y)
            assert segment["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        overlay = Image.open(tmp_path / "out" / "overlays" / annotation["file_name"])
        assert overlay.height >= image["height"] and overlay.width > image["width"]


def test_instance_results_are_cocos_list(trained, photos, tmp_path):
    run(
        trained, f"{photos}/*.jpg", tmp_path / "out", "--task", "instance", "--write", "overlays", "--threshold", "0.05"
    )
    found = read(tmp_path / "out" / "predictions.json")
    assert found and not (tmp_path / "out" / "maps").exists()
    for row in found:
        assert set(row) == {
            "image_id",
            "category_id",
            "segmentation",
            "score",
        }  # a bbox would change pycocotools' areas
        assert row["segmentation"]["size"] == [64, 48] and coco_mask.area(row["segmentation"]) > 0
        assert 0.05 <= row["score"] <= 1 and row["image_id"] == 0


def test_images_in_which_nothing_was_found_are_counted(trained, photos, tmp_path, capsys):
    run(trained, photos, tmp_path / "out", "--task", "instance", "--write", "none", "--threshold", "1")
    files = len(list((tmp_path / "out" / "results").iterdir()))
    assert f"nothing was found in {files} of them, such as " in (out := capsys.readouterr().out)
    assert "above the threshold of 1\n" in out
    run(trained, photos, tmp_path / "all", "--task", "instance", "--write", "none", "--threshold", "0")
    assert "nothing was found" not in capsys.readouterr().out


def test_semantic_maps_of_a_dataset(trained, tmp_path):
    data = make.semantic(tmp_path / "data", [np.zeros((40, 60), np.uint8)] * 3)
    run(trained, data, tmp_path / "out", "--task", "semantic", "--split", "train", "--every", "2", "--flip")
    names = [file.name for file in sorted((tmp_path / "out" / "maps").iterdir())]
    assert names == ["train_000000.png", "train_000002.png"]
    labels = np.array(Image.open(tmp_path / "out" / "maps" / names[0]))
    segments = read(tmp_path / "out" / "results" / "train_000000.json")["segments"]
    assert labels.shape == (40, 60) and {s["label_id"]: s["area"] for s in segments} == dict(
        zip(*(x.tolist() for x in np.unique(labels, return_counts=True)), strict=True)
    )
    assert {s["label"] for s in segments} <= set(NAMES.values())


def test_frames_of_a_video(trained, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "drive.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * shade, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    run(trained, tmp_path / "drive.mp4", tmp_path / "out", "--every", "3")
    assert [image["file_name"] for image in read(tmp_path / "out" / "predictions.json")["images"]] == [
        "drive_000000.png",
        "drive_000003.png",
    ]
    run(trained, tmp_path / "drive.mp4", tmp_path / "video", "--every", "2", "--write", "video")
    overlays = sorted((tmp_path / "video" / "overlays").iterdir())
    with av.open(str(tmp_path / "video" / "overlays.mp4")) as video:
        assert video.streams.video[0].average_rate == 2.5
        frames = [np.asarray(frame.to_image(), dtype=int) for frame in video.decode(video=0)]
    assert len(frames) == len(overlays) == 3
    for frame, overlay in zip(frames, overlays, strict=True):
        picture = np.asarray(Image.open(overlay).convert("RGB"), dtype=int)
        assert abs(frame[: picture.shape[0], : picture.shape[1]] - picture).mean() < 12
    with pytest.raises(SystemExit, match="--write video is for videos"):
        run(trained, tmp_path / "video" / "overlays", tmp_path / "new", "--write", "video")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit, match="cannot be read as a video"):
        run(trained, tmp_path / "broken.mp4", tmp_path / "out2")


def test_an_interrupted_run_resumes_and_incomplete_results_are_made_again(
    trained, photos, tmp_path, monkeypatch, capsys
):
    seen = []
    plain = script.Predictor.predict
    monkeypatch.setattr(script.Predictor, "predict", lambda self, images: seen.extend(images) or plain(self, images))
    run(trained, photos, tmp_path / "out")
    whole = read(tmp_path / "out" / "predictions.json")
    assert len(seen) == 4
    (tmp_path / "out" / "results" / "b.json").unlink()
    (tmp_path / "out" / "results" / ".b.json").write_text('{"name": "b", "segm')
    run(trained, photos, tmp_path / "out")
    assert len(seen) == 5 and read(tmp_path / "out" / "predictions.json") == whole
    with pytest.raises(SystemExit, match="has results of another flip"):
        run(trained, photos, tmp_path / "out", "--flip")
    with pytest.raises(SystemExit, match="is not an empty folder"):
        run(trained, photos, photos)


def test_results_belong_to_a_model_and_to_the_pixels_of_an_image(trained, photos, tmp_path, monkeypatch):
    seen = []
    plain = script.Predictor.predict
    monkeypatch.setattr(script.Predictor, "predict", lambda self, images: seen.extend(images) or plain(self, images))
    shutil.copytree(trained, tmp_path / "model")
    run(tmp_path / "model", photos, tmp_path / "out")
    make.photo(40, 52).save(photos / "a.png")  # replaced
    make.photo(44, 60).save(photos / "0.png")  # added; names must not shift
    run(tmp_path / "model", photos, tmp_path / "out")
    assert [tuple(image.shape[1:]) for image in seen[4:]] in ([(44, 60), (40, 52)], [(40, 52), (44, 60)])
    assert read(tmp_path / "out" / "results" / "a.png.json")["width"] == 52
    torch.manual_seed(1)
    tiny_model(id2label=NAMES).save_pretrained(tmp_path / "model")  # retrained
    with pytest.raises(SystemExit, match=r"has results of another model \(its weights"):
        run(tmp_path / "model", photos, tmp_path / "out")


def test_the_output_folder_is_not_segmented(trained, photos, capsys):
    for _ in range(2):
        run(trained, photos, photos / "out")
        assert "4 of 4 images" in capsys.readouterr().out


def test_a_run_without_any_result_fails(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    with pytest.raises(SystemExit, match="None of the 1 images could be segmented"):
        run(trained, tmp_path / "photos", tmp_path / "out")


def bad_files(folder):
    """Files that are no usual photographs; returns those that can be segmented."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
    good = {
        "deep.png": Image.fromarray(rng.integers(0, 65536, (24, 36), dtype=np.uint16)),
        "print.jpg": Image.fromarray(values).convert("CMYK"),
        "grey.png": Image.fromarray(values[..., 0]),
        "palette.png": Image.fromarray(values).convert("P"),
        "alpha.png": Image.fromarray(values).convert("RGBA"),
        "both.png": Image.fromarray(values).convert("LA"),
        "bits.png": Image.fromarray(values).convert("1"),
        "pixel.png": Image.fromarray(values[:1, :1]),
        "wide.png": Image.new("RGB", (30000, 500)),
    }
    for name, image in good.items():
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(values).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(values).save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(values[::-1])])
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    content = buffer.getvalue()
    (folder / "text.jpg").write_text("this is no image")
    (folder / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    Image.new("RGB", (30000, 1)).save(folder / "line.png")
    for index in range(12):  # cut or flipped anywhere
        cut = int(rng.integers(1, len(content)))
        (folder / f"cut{index}.png").write_bytes(content[:cut])
        flipped = bytearray(content)
        flipped[int(rng.integers(0, len(content)))] ^= 255
        (folder / f"flipped{index}.png").write_bytes(bytes(flipped))
    return {*(Path(name).stem for name in good), "turned", "moving"}


def test_no_file_ends_in_a_traceback(trained, tmp_path, capsys):
    good = bad_files(tmp_path / "files")
    run(trained, tmp_path / "files", tmp_path / "out", "--write", "maps")
    told = capsys.readouterr()
    done = {file.stem for file in (tmp_path / "out" / "results").iterdir()}
    assert good <= done
    skipped = [line for line in told.err.splitlines() if line.startswith("skipped ")]
    files = {file.stem for file in (tmp_path / "files").iterdir()}
    assert {line.split()[1].rstrip(":") for line in skipped} == files - done
    assert {"text", "empty", "float", "line"} <= files - done
    assert "skipped line: the image is 30000x1 pixels, too narrow" in told.err
    assert "skipped text: it is not an image file" in told.err
    assert read(tmp_path / "out" / "results" / "turned.json")["height"] == 36


def test_two_processes_share_the_work(trained, photos, tmp_path):
    told = run_together(["mpformer_hf", "predict", trained, photos, tmp_path / "out"], processes=2)
    assert sum("4 of 4 images" in text for text in told) == 1, "the processes did not find each other"
    run(trained, photos, tmp_path / "alone")
    assert read(tmp_path / "out" / "predictions.json") == read(tmp_path / "alone" / "predictions.json")


def test_shards_write_to_one_folder_and_a_run_without_shard_completes_it(
    trained, photos, tmp_path, monkeypatch, capsys
):
    run(trained, photos, tmp_path / "alone")
    for shard in ("2/5", "1/5", "5/5", "3/5", "4/5"):
        run(trained, photos, tmp_path / "out", "--shard", shard)
        images = 0 if shard == "5/5" else 1
        assert f"{images} of {images} images of shard {shard} are in" in capsys.readouterr().out
        assert not (tmp_path / "out" / "predictions.json").exists()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "results").iterdir()}
    assert len(made) == 4
    monkeypatch.setattr(Predictor, "__call__", None)  # nothing is segmented again
    run(trained, photos, tmp_path / "out")
    assert read(tmp_path / "out" / "predictions.json") == read(tmp_path / "alone" / "predictions.json")
    assert {file: file.stat().st_mtime_ns for file in made} == made


def test_a_shard_and_the_whole_are_written_by_one_run_each(trained, photos, tmp_path):
    with lock_folder(tmp_path / "out", "-shard-1-of-2"):
        with pytest.raises(SystemExit, match=r"out is used by another process \(shard 1 of 2\)"):
            run(trained, photos, tmp_path / "out", "--shard", "1/2")
        with pytest.raises(SystemExit, match=r"out is used by another process \(shard 1 of 2\)"):
            run(trained, photos, tmp_path / "out")
        run(trained, photos, tmp_path / "out", "--shard", "2/2")
    with pytest.raises(SystemExit, match="has results of 2 shards, not 3"):
        run(trained, photos, tmp_path / "out", "--shard", "1/3")
    with lock_folder(tmp_path / "out"), pytest.raises(SystemExit, match="out is used by another process"):
        run(trained, photos, tmp_path / "out", "--shard", "1/2")


def start_shards(index: int, together, folder: Path) -> None:
    """Claim twenty folders, with delays between looking at a folder and using it."""
    check = shards.check_new_folder
    shards.check_new_folder = lambda folder: time.sleep(0.02 * random.random()) or check(folder)
    held = []
    for turn in range(20):
        together.wait(60)
        shards.check_output(folder / str(turn), {"a": 1}, 3)
        held.append(shards.claim_output(folder / str(turn), {"a": 1}, index, 3))


def test_shards_may_start_at_the_same_time(tmp_path):
    processes = multiprocessing.get_context("fork")
    together = processes.Barrier(3)
    jobs = [processes.Process(target=start_shards, args=(index, together, tmp_path)) for index in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert all(read(tmp_path / str(turn) / "settings.json") == {"a": 1, "shards": 3} for turn in range(20))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["photos", "--shard", "0/4"], "--shard must be like 3/16"),
        (["photos", "--shard", "5/4"], "--shard must be like 3/16"),
        (["photos", "--shard", "2"], "--shard must be like 3/16"),
        (["photos", "--every", "0"], "every must be at least 1"),
        (["photos", "--scales", "0"], "scales must be greater than 0"),
        (["photos", "--threshold", "nan"], r"threshold must be at least 0 and at most 1"),
        (["photos", "--threshold", "2"], r"threshold must be at least 0 and at most 1"),
        (["nothing/*.png"], "No file matches nothing"),
        (["empty"], "empty has no image"),
        (["./nowhere"], "Folder ./nowhere does not exist"),
        (["nobody/photo.jgp"], "of nobody/photo.jgp: .*; there is no local file or folder of this name either"),
        (["nowhere.jpg"], "nowhere.jpg is not a file or folder that can be read"),
        (["rtsp://x/y"], "rtsp://x/y is a stream"),
    ],
)
def test_bad_arguments(trained, photos, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=message):
        run(trained, flags[0], "out", *flags[1:])
    with pytest.raises(SystemExit, match="Cannot load nobody"):
        run("nobody", "photos", "out")
