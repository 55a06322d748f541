"""Generators of datasets: geometry against formulas, splits that share nothing, datasets that the reader accepts."""

import itertools

import numpy as np
import pytest

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from scripts.datasets import make_shapes_dataset, make_solids_dataset
from scripts.datasets.make_solids_dataset import CONE, CUBE, CYLINDER, PHOTOGRAPHS, SPHERE, STRIPS, render_solid

ABOVE, SIDE = np.pi / 2, 0.0


RADIUS = 40.0


@pytest.mark.parametrize(
    "label, elevation, area",
    [
        (SPHERE, 0.6, np.pi * 0.8**2),
        (CUBE, ABOVE, 1.44**2),
        (CUBE, SIDE, 1.44**2),
        (CYLINDER, ABOVE, np.pi * 0.62**2),
        (CYLINDER, SIDE, 2 * 0.62 * 2 * 0.85),
        (CONE, ABOVE, np.pi * 0.8**2),
        (CONE, SIDE, 0.8 * 1.75),
    ],
)
def test_projections_of_solids_have_the_right_area(label, elevation, area):
    pixels, normals = render_solid(label, RADIUS, elevation, turn=0.0)
    assert pixels.sum() == pytest.approx(area * RADIUS**2, rel=0.03)
    seen = normals[pixels]
    np.testing.assert_allclose(np.linalg.norm(seen, axis=-1), 1, atol=1e-6)
    assert (seen[:, 2] > 0).all(), "a face that points away from the camera is seen"


def test_a_turned_cube_is_wider():
    side, edge = (render_solid(CUBE, RADIUS, SIDE, turn)[0].any(0).sum() for turn in (0.0, np.pi / 4))
    assert edge / side == pytest.approx(2**0.5, rel=0.03)


def test_splits_share_no_photographed_pixel(monkeypatch):
    for first, second in itertools.combinations(PHOTOGRAPHS, 2):
        assert not set(PHOTOGRAPHS[first]) & set(PHOTOGRAPHS[second])
    for split, (first, last) in STRIPS.items():
        foreign = np.full((512, 512, 3), 255, dtype=np.uint8)
        foreign[:, round(512 * first) : round(512 * last)] = 0

        def photograph(name, split=split, foreign=foreign):
            if name in make_solids_dataset.TINTS:
                return foreign
            return np.full_like(foreign, 0 if name in PHOTOGRAPHS[split] else 255)

        monkeypatch.setattr(make_solids_dataset, "photograph", photograph)
        for label in range(4, 8):
            for seed in range(20):
                ground = make_solids_dataset.draw_ground(np.random.default_rng(seed), label, 32, split)
                assert ground.max() == 0, f"{split}: a ground has pixels of another split"


@pytest.mark.parametrize("generator", [make_shapes_dataset, make_solids_dataset])
def test_scenes_have_a_class_for_every_pixel_and_are_reproduced(generator):
    for seed in range(12):
        image, ids, classes = generator.draw_scene(np.random.default_rng(seed), 64, "train")
        again = generator.draw_scene(np.random.default_rng(seed), 64, "train")
        assert np.array_equal(image, again[0]) and np.array_equal(ids, again[1]) and classes == again[2]
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and ids.shape == (64, 64)
        assert set(np.unique(ids).tolist()) <= set(classes), "a pixel without a class"
        assert all(label < generator.NUM_THINGS for segment, label in classes.items() if segment > 2)


def test_solids_stay_visible():
    for seed in range(30):
        _, ids, classes = make_solids_dataset.draw_scene(np.random.default_rng(seed), 128, "test")
        assert all((ids == segment).sum() > 40 for segment in classes if segment > 2)


def test_the_reader_accepts_the_dataset(tmp_path):
    make_solids_dataset.main([str(tmp_path / "d"), "--train", "2", "--validation", "1", "--test", "1", "--size", "64"])
    data = open_dataset(DataArguments(dataset_name=str(tmp_path / "d"), task="panoptic"), "test")
    image, segments = data[0]
    assert image.shape == (3, 64, 64) and data.labels.names == make_solids_dataset.NAMES
    assert data.labels.stuff == [4, 5, 6, 7] and len(segments.classes) >= 1


@pytest.mark.parametrize("flag, value", [("--train", "0"), ("--size", "-1"), ("--seed", "-1")])
def test_numbers_out_of_range_are_named(flag, value, tmp_path):
    with pytest.raises(ValueError, match=f"^{flag} must be at least"):
        make_solids_dataset.main([str(tmp_path / "d"), flag, value])
    assert not (tmp_path / "d").exists()
