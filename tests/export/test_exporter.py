"""`mpformer export`: exported files have the outputs of the model, also at other sizes than the traced ones."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoBackbone, SwinConfig, Swinv2Config

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.export import exporter
from mpformer_hf.export.portable import portable
from mpformer_hf.export.postprocessing import RESULTS, Postprocessing
from mpformer_hf.export.targets import TARGETS
from mpformer_hf.export.windows import replace_window_attention
from mpformer_hf.inference.exported import ExportedModel, Runtime, runtimes_of
from mpformer_hf.inference.loading import load_model
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.images import read_image, to_rgb
from mpformer_hf.model.outputs import MPFormerForUniversalSegmentationOutput
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import photo as photo_of
from tests.export import examples, tensorrt
from tests.runs import ROOT
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {}
    for backbone in ("resnet", "swin"):
        folders[backbone] = tmp_path_factory.mktemp("saved") / backbone
        torch.manual_seed(0)
        tiny_model(backbone, decoder_layers=2).save_pretrained(folders[backbone])
        MPFormerImageProcessor().save_pretrained(folders[backbone])
    return folders


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Tests that export the same model at the same size share what `torch.export` made."""
    traced, export = {}, torch.export.export

    def once(model, arguments, *rest, dynamic_shapes=None, **options):
        if rest or options or not hasattr(model, "output_names"):  # of other packages
            return export(model, arguments, *rest, dynamic_shapes=dynamic_shapes, **options)
        key = (type(model), tuple(model.output_names), model.smallest_side, arguments[0].shape, repr(dynamic_shapes))
        if key not in traced:
            traced[key] = export(model, arguments, dynamic_shapes=dynamic_shapes)
        return traced[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", once)
        yield


def run(file: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of an exported file."""
    return runtimes_of(file)[0].open(file)(images)


@pytest.fixture(scope="module")
def onnx_file(saved, tmp_path_factory):
    """The resnet model as `model.onnx`, with dynamic sizes."""
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    mpformer(["export", str(saved["resnet"]), str(file), "--height", "64", "--width", "96"])
    return file


@pytest.mark.parametrize("backbone, name, smallest", [("swin", "model.onnx", 160), ("resnet", "model.pt2", 64)])
def test_the_file_is_the_model(saved, tmp_path, backbone, name, smallest, capsys):
    """Also at another size than the traced one."""
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    file = tmp_path / name
    sides = ["--height", str(smallest), "--width", str(smallest + 32)]
    mpformer(["export", str(saved[backbone]), str(file), *sides])
    assert f"image sides: multiples of 32 from {smallest}): largest difference of an output" in capsys.readouterr().out
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, "model_processor"]
    pixel_values = torch.randn(1, 3, smallest + 64, smallest)
    logits = exporter.ExportableModel(load_model(str(saved[backbone])))
    with torch.no_grad():
        expected = logits(pixel_values)
    for ours, theirs in zip(run(file, pixel_values), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    if name.endswith("onnx"):
        assert tensorrt.problems(pytest.importorskip("onnx").load(file).graph) == []


@pytest.mark.parametrize("config", [SwinConfig, Swinv2Config])
@pytest.mark.parametrize("size", [(96, 160), (128, 128), (32, 64), (256, 224)])
def test_windows_that_can_be_exported_are_those_of_transformers(config, size):
    options = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2], "window_size": 4}
    torch.manual_seed(0)
    encoder = AutoBackbone.from_config(config(**options, out_indices=[1, 2, 3, 4])).eval()
    for bias in (layer.bias for layer in encoder.modules() if isinstance(layer, torch.nn.Linear)):
        if bias is not None:
            torch.nn.init.normal_(bias)  # so that padding changes the attention
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = encoder(image).feature_maps
        assert replace_window_attention(encoder) == 4
        for ours, theirs in zip(encoder(image).feature_maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def read_with(monkeypatch, read):
    """Let files of torch.export be read by a function of the file and images."""
    runtime = replace(runtimes_of("model.pt2")[0], open=lambda file: lambda images: read(file, images))
    monkeypatch.setattr(exporter, "runtimes_of", lambda file: [runtime])


def test_what_differs_is_not_kept(saved, tmp_path, monkeypatch, capsys):
    def wrong(file, pixel_values):
        height, width = pixel_values.shape[-2:]
        return [torch.zeros(3, 8, 5), torch.full((3, 8, height // 4, width // 4), 9.0)]

    read_with(monkeypatch, wrong)
    with pytest.raises(SystemExit, match=r"at 64x96: its outputs differ from the model's by .*; nothing was saved"):
        mpformer(["export", str(saved["resnet"]), str(tmp_path / "model.pt2"), "--height", "64", "--width", "96"])
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_back_gets_one_size(saved, tmp_path, monkeypatch, capsys):
    def guarded(file, pixel_values):
        if pixel_values.shape[-2:] != (64, 96):
            raise RuntimeError("the shape guards cannot be read")
        return run(file, pixel_values)

    read_with(monkeypatch, guarded)
    mpformer(["export", str(saved["resnet"]), str(tmp_path / "model.pt2"), "--height", "64", "--width", "96"])
    assert "image sides: only 64x96" in capsys.readouterr().out
    processor = MPFormerImageProcessor.from_pretrained(tmp_path / "model_processor")
    assert processor([torch.zeros(3, 70, 50)], return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["{resnet}", "model.txt"], "must end in one of .aoti.pt2, .pt2, .onnx, .pte, .tflite, .mlpackage"),
        (["{resnet}", "{resnet}/config.pt2"], "exists; choose another file"),
        (["{resnet}", "model.pt2", "--height", "100"], "multiples of 32"),
        (["no/such folder", "model.pt2"], "Cannot load no/such folder"),
    ],
)
def test_bad_arguments(saved, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (saved["resnet"] / "config.pt2").touch()
    with pytest.raises(SystemExit, match=message):
        mpformer(["export", *(part.format(resnet=saved["resnet"]) for part in argv)])
    assert not list(tmp_path.iterdir())


def check_results(task: str, found: dict, expected: list, least_classes: int) -> None:
    """Compare the outputs of a graph with the results of the image processor."""
    for index, result in enumerate(expected):
        if task == "semantic":
            assert (found["segmentation"][index] == result).float().mean() > 0.999
            assert len(result.unique()) >= least_classes
            continue
        scores, labels = found["scores"][index], found["labels"][index]
        segments = [row for row in result["segments_info"] if row["score"] > 0]
        kept = (scores > 0).nonzero()[:, 0].tolist()
        assert sorted(scores[kept].tolist()) == pytest.approx(sorted(row["score"] for row in segments), abs=1e-4)
        areas = [{}, {}]  # by class, of the graph and of the processor
        for query in kept:
            mask = found["masks"][index, query] if task == "instance" else found["segmentation"][index] == query + 1
            areas[0].setdefault(int(labels[query]), []).append(int(mask.sum()))
        for row in segments:
            mask = result["segmentation"]
            mask = mask[row["id"]] if task == "instance" else mask == row["id"]
            areas[1].setdefault(row["label_id"], []).append(int(mask.sum()))
        assert areas[0].keys() == areas[1].keys() and len(areas[0]) >= least_classes
        for label, values in areas[0].items():
            assert sorted(values) == pytest.approx(sorted(areas[1][label]), abs=3)


def results_of(processor, outputs, size: tuple[int, int]) -> list:
    """Results of the image processor, all instances."""
    sizes = {"target_sizes": [size] * len(outputs.class_queries_logits)}
    if processor.task == "instance":
        options = {"threshold": 0.0, "max_detections": 20, "return_binary_maps": True}
        return processor.post_process_instance_segmentation(outputs, **sizes, **options)
    return getattr(processor, f"post_process_{processor.task}_segmentation")(outputs, **sizes)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("seed", range(3))
def test_fixed_shapes_give_the_results_of_the_processor(task, seed):
    torch.manual_seed(seed)
    classes = 3 * torch.randn(2, 12, 6)
    masks = F.interpolate(4 * torch.randn(2, 12, 4, 6), scale_factor=4, mode="bicubic")
    outputs = MPFormerForUniversalSegmentationOutput(
        class_queries_logits=classes, masks_queries_logits=masks, pixel_mask=torch.ones(2, 64, 96, dtype=torch.int64)
    )
    processor = MPFormerImageProcessor(
        task=task, threshold=0.3, label_ids_to_fuse=[1, 2], overlap_mask_area_threshold=0.3
    )
    thresholds = (processor.threshold, processor.mask_threshold, processor.overlap_mask_area_threshold)
    graph = Postprocessing(task, [1, 2], *thresholds, detections=20)
    found = dict(zip(RESULTS[task], graph(classes, masks), strict=True))
    check_results(task, found, results_of(processor, outputs, (64, 96)), least_classes=2)


class Logits(torch.nn.Module):
    """Logits of a convolution and of its mean, in place of the model's."""

    def __init__(self, model):
        super().__init__()
        torch.manual_seed(0)
        self.masks, self.smallest_side = torch.nn.Conv2d(3, 8, 8, stride=4, padding=2), 64
        self.classes = torch.nn.Linear(1, 5)
        self.input_name, self.output_names, self.dtype = "pixel_values", exporter.OUTPUTS, torch.float32

    def forward(self, pixel_values):
        masks = 4 * self.masks(pixel_values)
        return self.classes(masks.mean((2, 3))[..., None]), masks


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_results_in_the_graph_and_the_programs_to_copy(task, saved, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    folder, file = shutil.copytree(saved["resnet"], tmp_path / "model"), tmp_path / "model.onnx"
    processor = MPFormerImageProcessor(task=task, threshold=0.05, size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = ['say_"hi"', "Straße\\Ü", "道路", "two\nlines"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    flags = ["--height", "64", "--width", "96", "--with-postprocessing", "--detections", "20"]
    if task != "panoptic":  # the whole model once
        monkeypatch.setattr(exporter, "ExportableModel", Logits)
    mpformer(["export", str(folder), str(file), *flags])
    assert tensorrt.problems(onnx.load(file).graph) == []
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        logits = exporter.ExportableModel(load_model(str(folder)))((images / 255 - mean) / std)
    outputs = MPFormerForUniversalSegmentationOutput(**dict(zip(exporter.OUTPUTS, logits, strict=True)))
    found = dict(zip(RESULTS[task], run(file, images), strict=True))
    check_results(task, found, results_of(processor, outputs, (96, 128)), least_classes=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    with Image.open(ROOT / "tests" / "fixtures" / "coffee.jpg") as photo:
        photo.resize((90, 70)).save(tmp_path / "photo.jpg", exif=exif)
    expected = examples.run_python(file, tmp_path / "photo.jpg")
    assert expected and {label for label, *_ in expected} <= {" ".join(name.split()) for name in names}
    for run_program in (examples.run_cpp, examples.run_page):
        found = run_program(file, tmp_path / "photo.jpg")
        if found is not None:
            assert [label for label, *_ in found] == [label for label, *_ in expected]
            for (_, score, share), (_, own_score, own_share) in zip(found, expected, strict=True):
                assert score == pytest.approx(own_score, abs=0.02) and share == pytest.approx(own_share, abs=2)


def graph_operators(graph) -> set[str]:
    """Operators of a graph and of the graphs in it."""
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            found |= graph_operators(attribute.g) if attribute.HasField("g") else set()
    return found


def test_the_onnx_file_is_the_model_and_other_runtimes_read_it(saved, onnx_file):
    """No loops, branches or sequences; OpenVINO has the logits of the model."""
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    content = onnx.load(onnx_file)
    onnx.checker.check_model(content, full_check=True)
    operators = graph_operators(content.graph) | {o for f in content.functions for o in graph_operators(f)}
    assert "GridSample" not in operators and "Gather" in operators
    assert tensorrt.problems(content.graph) == [] and not content.functions
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    assert shapes["pixel_values"] == ["batch", 3, "32*rows", "32*columns"]
    assert shapes["masks_queries_logits"][0] == "batch" and shapes["masks_queries_logits"][2:] == [
        "8*rows",
        "8*columns",
    ]
    symbols = re.compile(r"\bs\d+\b")
    assert not any(symbols.search(d.dim_param) for v in content.graph.value_info for d in v.type.tensor_type.shape.dim)
    assert not {name for name in operators if name in ("Loop", "If", "Scan") or "Sequence" in name}
    settings = {row.key: row.value for row in content.metadata_props}
    assert (
        json.loads(settings["labels"]) == [f"LABEL_{i}" for i in range(4)]
        and json.loads(settings["task"]) == "panoptic"
    )
    assert json.loads(settings["image_mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert (onnx_file.with_name("model_processor") / "preprocessor_config.json").is_file()
    compiled = openvino.Core().compile_model(str(onnx_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model = load_model(str(saved["resnet"]))
    for size in ((2, 3, 96, 128), (1, 3, 64, 64)):
        pixel_values = torch.randn(size)
        outputs = compiled(pixel_values.numpy())
        with torch.no_grad():
            expected = model(pixel_values)
        for name in exporter.OUTPUTS:
            torch.testing.assert_close(torch.from_numpy(outputs[name]), expected[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_near_the_model(precision, saved, onnx_file, tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    copy = replace(TARGETS[".onnx"], save=lambda program, file, *_: shutil.copyfile(onnx_file, file))
    monkeypatch.setitem(TARGETS, ".onnx", copy)
    official_folders.mask_images(tmp_path / "photos")
    file = tmp_path / "model.onnx"
    flags = ["--height", "64", "--width", "96", "--precision", precision]
    flags += ["--photos", str(tmp_path / "photos")] if precision == "int8" else []
    mpformer(["export", str(saved["resnet"]), str(file), *flags])
    table = re.search(r"model.onnx \(onnxruntime\) +- +([\d.e+-]+) +([\d.]+)% ", capsys.readouterr().out)
    assert (table is not None) == (precision == "int8")
    if table:
        assert float(table[1]) > 0 and 0 < float(table[2]) <= 100
    content = onnx.load(file)
    if precision == "int8":
        assert "QuantizeLinear" in graph_operators(content.graph)
    else:
        kinds = [row.data_type for row in content.graph.initializer]
        assert kinds.count(onnx.TensorProto.FLOAT16) > len(kinds) / 4
    assert {row.key for row in content.metadata_props} >= {"labels", "task", "size"}
    photo = read_image(next((tmp_path / "photos").rglob("*.jpg"))) if precision == "int8" else to_rgb(photo_of(48, 64))
    size = {"height": 640, "width": 512}  # above 2,048 cells, whose numbers half precision does not have
    processor = MPFormerImageProcessor(size=size if precision == "fp16" else {"height": 96, "width": 128})
    pixel_values = processor([photo, photo], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = load_model(str(saved["resnet"]))(pixel_values).masks_queries_logits
    found = run(file, pixel_values)[1]
    assert (
        0 < (found - expected).abs().mean() < (0.005 if precision == "fp16" else 0.25) * expected.abs().mean() + 0.002
    )


def test_precisions_that_do_not_fit(saved, tmp_path):
    argv = ["export", str(saved["resnet"]), str(tmp_path / "model.onnx"), "--precision"]
    with pytest.raises(SystemExit, match="int8 needs --photos, a folder of images to calibrate with"):
        mpformer([*argv, "int8"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty has no image"):
        mpformer([*argv, "int8", "--photos", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="nowhere is not a folder"):
        mpformer([*argv, "int8", "--photos", str(tmp_path / "nowhere")])
    for name in ("one", "two"):
        (tmp_path / "empty" / f"{name}.png").write_bytes(b"PNG")
    with pytest.raises(SystemExit, match=r"Photos cannot be read; remove them: .*one\.png.*; .*two\.png"):
        mpformer([*argv, "fp32", "--photos", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="--photos has no effect: files with post-processing"):
        mpformer([*argv, "fp32", "--with_postprocessing", "--photos", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match=r"precision fp16 is for \.onnx files"):
        mpformer(["export", str(saved["resnet"]), str(tmp_path / "model.pt2"), "--precision", "fp16"])


@pytest.mark.parametrize("fields", [{}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}])
def test_the_graph_normalises_as_the_processor(fields):
    processor = MPFormerImageProcessor(task="semantic", do_resize=False, **fields)
    logits = Logits(None)
    seen = []
    logits.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    exporter.EndToEndModel(logits, processor, 20)(image)
    expected = processor(image[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-5)
    told = exporter.describe("model", processor, {0: "a"}, 64)
    known = json.loads(processor.to_json_string())
    assert known.keys() - {"size"} <= told.keys() and json.loads(told["labels"]) == ["a"]
    assert all(json.loads(told[name]) == value for name, value in known.items() if name != "size")


@pytest.mark.parametrize("threshold, share", [(0.0, 1.0), (1.0, 0.0)])
def test_the_extremes_of_the_mask_threshold(threshold, share):
    graph = Postprocessing("instance", [], 0.0, threshold, 0.8, detections=5)
    masks = graph(torch.randn(1, 8, 5), torch.randn(1, 8, 16, 24))[2]
    assert masks.float().mean() == share


def test_graphs_of_phones_are_the_model(saved):
    """Without operators and memory layouts that their runtimes do not have."""
    model, image = exporter.ExportableModel(load_model(str(saved["resnet"]))), torch.randn(1, 3, 64, 96)
    program = portable(torch.export.export(model, (image,), dynamic_shapes=None))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not names & {"aten.__or__.Tensor", "aten.bitwise_not.default", "aten.clamp.Tensor", "aten.alias.default"}
    kinds = {node.kwargs["memory_format"] for node in program.graph.nodes if "memory_format" in node.kwargs}
    assert torch.channels_last not in kinds
    with torch.no_grad():
        for ours, theirs in zip(program.module()(image), model(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".aoti.pt2", ".pte", ".tflite", ".mlpackage"])
def test_files_of_one_size(saved, tmp_path, suffix, capsys):
    """The command compares the file with the model; a photo of any shape is padded to its size."""
    for package in TARGETS[suffix].packages:
        pytest.importorskip(package)
    if suffix == ".aoti.pt2" and "MPFORMER_TEST_INDUCTOR" not in os.environ:
        pytest.skip("it is compiled for half a minute: set MPFORMER_TEST_INDUCTOR=1")
    file = tmp_path / f"model{suffix}"
    mpformer(["export", str(saved["resnet"]), str(file), "--height", "64", "--width", "64"])
    assert (
        "only 64x64): not compared" if suffix == ".mlpackage" else "only 64x64): largest"
    ) in capsys.readouterr().out
    if suffix == ".mlpackage":
        return
    photo = photo_of(48, 80)
    found = Predictor.from_pretrained(str(file), "semantic")(photo)
    processor = MPFormerImageProcessor.from_pretrained(tmp_path / "model_processor")
    expected = Predictor(load_model(str(saved["resnet"])), processor, "semantic")(photo)
    assert (found.label_map == expected.label_map).float().mean() > 0.999
    assert processor(photo, return_tensors="pt")["pixel_mask"].sum(1).max() == round(64 * 48 / 80)


def test_an_exported_file_is_a_model(saved, onnx_file, tmp_path):
    """`predict` and `evaluate` make of it what they make of the saved model."""
    data = make.shapes(tmp_path / "shapes", train=1, validation=2)
    for folder in (saved["resnet"], onnx_file.with_name("model_processor")):
        processor = MPFormerImageProcessor(task="semantic", size={"shortest_edge": 64, "longest_edge": 128})
        processor.save_pretrained(folder)
    maps = []
    for name in (saved["resnet"], onnx_file):
        output = tmp_path / f"of_{name.name}"
        mpformer(["predict", str(name), str(data), str(output), "--split", "validation", "--write", "maps"])
        maps.append({file.name: file.read_bytes() for file in sorted((output / "maps").iterdir())})
    assert len(maps[0]) == 2 and maps[0] == maps[1]
    with pytest.raises(SystemExit, match=r"model\.onnx is an exported file"):
        mpformer(["evaluate", str(onnx_file), str(data), "--diagnostics", str(tmp_path / "layers.png")])
    predictor = Predictor.from_pretrained(str(onnx_file))
    with pytest.raises(ValueError, match=r"model.onnx has no pilot, which boxes and rough masks need: give the saved"):
        predictor.refine(torch.zeros(3, 64, 64, dtype=torch.uint8), boxes=torch.tensor([[1, 1, 9, 9]]))
    with pytest.raises(ValueError, match="runs on the CPU as it is: leave out device, dtype, compile"):
        Predictor.from_pretrained(str(onnx_file), dtype="bfloat16")
    with pytest.raises(SystemExit, match=r"Cannot load .*model\.onnx"):
        mpformer(["export", str(onnx_file), str(tmp_path / "again.onnx")])


def test_a_file_without_its_folder_or_runtime(tmp_path, onnx_file, monkeypatch):
    alone = shutil.copyfile(onnx_file, tmp_path / "alone.onnx")
    with pytest.raises(ValueError, match=r"alone.onnx cannot be used as a model: .*alone_processor/config.json"):
        ExportedModel(alone)
    monkeypatch.setattr(Runtime, "is_installed", lambda runtime: False)
    for name, message in (("m.mlpackage", "Core ML, is not supported"), ("m.pte", "needs ExecuTorch: pip install")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            runtimes_of(tmp_path / name)
