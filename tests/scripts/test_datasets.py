"""Scripts that prepare the data of the studies: folders as they are distributed, against independent references."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from scripts.datasets import prepare_camvid, prepare_nuclei, tile_dataset


def opened(folder, task, split):
    return open_dataset(DataArguments(dataset_name=str(folder), task=task), split)


@pytest.fixture
def nuclei(tmp_path):
    """Twenty images of two sizes, each with three nuclei, one folder an image."""
    rng, source = np.random.default_rng(0), tmp_path / "stage1_train"
    for index in range(20):
        name, size = f"{rng.integers(2**60):x}", (64, 80) if index % 2 else (70, 70)
        folder = source / name
        (folder / "images").mkdir(parents=True), (folder / "masks").mkdir()
        Image.fromarray(rng.integers(0, 256, (*size, 4), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
        for number in range(3):
            mask = np.zeros(size, dtype=np.uint8)
            mask[20 * number : 20 * number + 9, index : index + 12] = 255
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return source


def test_nuclei_become_a_coco_folder(nuclei, tmp_path, capsys):
    prepare_nuclei.main([str(nuclei), str(tmp_path / "coco")])
    assert (
        capsys.readouterr().out == "train: 12 images, 36 nuclei\nval: 4 images, 12 nuclei\ntest: 4 images, 12 nuclei\n"
    )
    seen = set()
    for split in ("train", "val", "test"):
        coco = COCO(str(tmp_path / "coco" / "annotations" / f"instances_{split}.json"))
        for image in coco.imgs.values():
            name = image["file_name"].removesuffix(".png")
            assert name not in seen
            seen.add(name)
            masks = [coco.annToMask(row).astype(bool) for row in coco.imgToAnns[image["id"]]]
            truth = [np.asarray(Image.open(nuclei / name / "masks" / f"{i}.png")) > 0 for i in range(3)]
            assert all(np.array_equal(a, b) for a, b in zip(masks, truth, strict=True))
            for row, mask in zip(coco.imgToAnns[image["id"]], truth, strict=True):
                x, y, width, height = row["bbox"]
                assert row["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
    assert len(seen) == 20
    assert len(opened(tmp_path / "coco", "instance", "train")) == 12


def test_large_images_are_left_out_and_bad_folders_named(nuclei, tmp_path):
    prepare_nuclei.main([str(nuclei), str(tmp_path / "small"), "--longest_side", "70"])
    files = [json.loads(file.read_text())["images"] for file in (tmp_path / "small" / "annotations").iterdir()]
    assert sum(map(len, files)) == 10 and all(image["width"] == 70 for images in files for image in images)
    with pytest.raises(ValueError, match=r"has no images; expected ID/images/ID.png"):
        prepare_nuclei.main([str(tmp_path), str(tmp_path / "other")])
    Image.new("L", (5, 5), 255).save(next(nuclei.iterdir()) / "masks" / "9.png")
    with pytest.raises(ValueError, match=r"9.png is 5x5, its image"):
        prepare_nuclei.main([str(nuclei), str(tmp_path / "other")])
    assert not (tmp_path / "other").exists(), "a part was written"


def test_tiles_have_the_pixels_and_objects_of_their_place(nuclei, tmp_path):
    prepare_nuclei.main([str(nuclei), str(tmp_path / "coco")])
    tile_dataset.main([str(tmp_path / "coco"), str(tmp_path / "tiles"), "--tile", "48", "--min_area", "8"])
    whole, tiles = opened(tmp_path / "coco", "instance", "val"), opened(tmp_path / "tiles", "instance", "validation")
    assert len(tiles) == 4 * len(whole) and tiles.labels.names == ["nucleus"]
    image, segments = whole[0]
    height, width = image.shape[1:]
    layers = segments.map.view(-1, height, width).amax(0)
    corners = [(top, left) for top in (0, height - 48) for left in (0, width - 48)]
    for (top, left), index in zip(corners, range(4), strict=True):
        part, objects = tiles[index]
        assert (part == image[:, top : top + 48, left : left + 48]).all()
        expected = layers[top : top + 48, left : left + 48]
        large = [i for i in expected.unique().tolist() if i in segments.classes and (expected == i).sum() >= 8]
        assert len(objects.classes) == len(large)


@pytest.fixture
def camvid(tmp_path):
    """Three images a split, with touching cars, tiny pedestrians and void."""
    rng, source = np.random.default_rng(0), tmp_path / "CamVid"
    for split in ("train", "val", "test"):
        (source / split).mkdir(parents=True), (source / f"{split}annot").mkdir()
        for index in range(3):
            labels = np.zeros((72, 96), dtype=np.uint8)
            labels[30:], labels[:, 80:] = 3, 11
            labels[40:50, 5:20], labels[50:60, 20:30] = 8, 8  # meet at a corner
            labels[40:50, 40:52], labels[5:9, 5:9] = 8, 9
            Image.fromarray(labels).save(source / f"{split}annot" / f"{index}.png")
            Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(source / split / f"{index}.png")
    return source


def test_camvid_semantic_and_panoptic(camvid, tmp_path):
    prepare_camvid.main([str(camvid), str(tmp_path / "semantic"), str(tmp_path / "panoptic")])
    for split in ("train", "validation", "test"):
        semantic, panoptic = (
            opened(tmp_path / "semantic", "semantic", split),
            opened(tmp_path / "panoptic", "panoptic", split),
        )
        assert len(semantic) == len(panoptic) == 3 and panoptic.labels.things == {8, 9, 10}
        image, segments = panoptic[0]
        labels = semantic[0][1].map.numpy()
        assert (image == semantic[0][0]).all() and set(np.unique(labels)) == {0, 3, 8, 9, 255}
        assert sorted(segments.classes.values()) == [0, 3, 8, 8], "two cars; the pedestrian is too small"
        _, count = ndimage.label(labels == 8, structure=np.ones((3, 3)))
        assert count == 2
        for segment, label in segments.classes.items():
            assert (labels[segments.map.numpy() == segment] == label).all()
        void = ~np.isin(segments.map.numpy(), list(segments.classes))
        assert void[labels == 255].all() and void[labels == 9].all() and not void[labels == 8].any()


def test_a_folder_that_is_not_camvid(camvid, tmp_path):
    with pytest.raises(ValueError, match="it has no folders train, trainannot"):
        prepare_camvid.main([str(tmp_path), str(tmp_path / "a"), str(tmp_path / "b")])
    (camvid / "valannot" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"val/0.png has no labels"):
        prepare_camvid.main([str(camvid), str(tmp_path / "a"), str(tmp_path / "b")])
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists(), "a part was written"
