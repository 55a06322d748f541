"""Overlays: what touches can be told apart, and what is written can be read."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mpformer_hf import MPFormerImageProcessor, draw_segmentation
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.inference.captions import free_place, write_captions
from mpformer_hf.inference.drawing import PALETTE, READABLE, SHADES, class_color, instance_shades
from mpformer_hf.inference.mask_parts import contour, part_of, touches
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


def test_a_class_name_with_a_line_break_is_drawn(tmp_path):
    tiny_model(num_labels=2, id2label={0: "a\nb", 1: "\x1b[2J"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="semantic", size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    make.photo().save(tmp_path / "photo.png")
    mpformer(["predict", str(tmp_path / "model"), str(tmp_path / "photo.png"), str(tmp_path / "out")])
    assert (tmp_path / "out" / "overlays" / "photo.png").is_file()


def rectangle(top, bottom, left, right, size=(600, 800)):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def instances(masks, label=0):
    rows = [{"id": i, "label_id": label, "score": 0.9} for i in range(len(masks))]
    return {"segmentation": np.array(masks), "segments_info": rows}


def test_touching_instances_of_one_class_have_different_colours_and_contours():
    masks = [rectangle(100, 300, x, x + 100) for x in range(100, 500, 100)] + [rectangle(400, 500, 600, 700)]
    shades = instance_shades([part_of(mask, 3) for mask in masks])
    assert all(one != other for one, other in pairwise(shades[:4])) and shades[4] == 0
    drawn = np.asarray(draw_segmentation(Image.new("RGB", (800, 600)), instances(masks), {0: "cell"}, legend=False))
    inside = {tuple(drawn[120, x]) for x in (150, 250)}
    assert len(inside) == 2 and tuple(drawn[120, 199]) not in inside and tuple(drawn[120, 200]) not in inside


def test_colours_of_classes_differ():
    colors = [class_color(i) for i in range(150)]
    assert len(set(colors)) == 150 and colors[:7] == list(PALETTE) and colors[7] not in PALETTE
    assert len(set(SHADES)) == len(SHADES)


def test_captions_do_not_cover_each_other_or_small_objects():
    image, font = Image.new("RGB", (400, 300)), ImageFont.load_default(size=12)
    masks = [rectangle(140 + i, 150 + i, 190 + i, 200 + i, (300, 400)) for i in range(8)]
    drawn = []

    class Pen(ImageDraw.ImageDraw):
        def rectangle(self, box, **options):
            drawn.append(box)
            super().rectangle(box, **options)

    write_captions(Pen(image), [(part_of(mask, 3), "cell 0.90") for mask in masks], image.size, font)
    assert len(drawn) == 8
    for index, (left, top, right, bottom) in enumerate(drawn):
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        for other in drawn[:index]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
        x, y = 195 + index, 145 + index
        assert not (left < x < right and top < y < bottom), "the caption covers its small object"
    assert free_place((5, 5), (500, 10), (400, 300), [], 0) is None


def test_small_images_are_enlarged_and_long_legends_have_columns():
    small = draw_segmentation(Image.new("RGB", (60, 40)), np.zeros((40, 60), int), {0: "sky"}, legend=False)
    assert small.size == (720, 480) and min(small.size) == READABLE
    map_ = np.arange(150).repeat(4000).reshape(600, 1000)
    names = {i: f"class {i}" for i in range(150)}
    drawn = draw_segmentation(Image.new("RGB", (1000, 600)), map_, names)
    assert drawn.height == 600 and drawn.width > 1000


def test_narrow_images_stay_of_a_usable_size():
    narrow = draw_segmentation(Image.new("RGB", (2, 3000)), np.zeros((3000, 2), int), {0: "sky"}, legend=False)
    assert narrow.size == (2, 3000)
    with pytest.raises(ValueError, match="The palette has 1 colours, but there is a class 1"):
        draw_segmentation(Image.new("RGB", (9, 9)), np.ones((9, 9), int), {0: "a", 1: "b"}, palette=[(1, 2, 3)])


def test_sizes_are_compared():
    with pytest.raises(ValueError, match="The result is 40x60, the image 50x60"):
        draw_segmentation(Image.new("RGB", (60, 50)), np.zeros((40, 60), int), {0: "sky"})
    nothing = draw_segmentation(
        Image.new("RGB", (800, 600)), instances([]) | {"segmentation": np.zeros((0, 600, 800))}, {}
    )
    assert nothing.size == (800, 600)


def test_contours_and_neighbours_by_parts_are_those_of_whole_masks():
    """Against squares around all pixels, on blobs that reach the borders."""
    generator = np.random.default_rng(0)
    masks = []
    for _ in range(12):
        y, x, height, width = generator.integers(0, 50, 2).tolist() + generator.integers(1, 20, 2).tolist()
        mask = np.zeros((60, 64), dtype=bool)
        mask[max(0, y - 5) : y + height, max(0, x - 5) : x + width] = generator.random() < 2
        mask &= generator.random(mask.shape) < 0.9
        masks.append(mask)

    def near(mask, reach):
        rows, columns = np.nonzero(mask)
        found = np.zeros_like(mask)
        for row, column in zip(rows, columns, strict=True):
            found[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
        return found

    for mask in masks:
        part = part_of(mask, 6)
        found = np.zeros_like(mask)
        found[part.window] = contour(part, 2)
        assert np.array_equal(found, mask & near(~mask, 2))
        for other in masks:
            assert touches(part, part_of(other, 6)) == (near(mask, 3) & other).any()
    empty = part_of(np.zeros((9, 9), dtype=bool), 3)
    assert not contour(empty, 1).any() and not touches(empty, part_of(masks[0], 3))


@pytest.mark.parametrize("orientation", [3, 6])
def test_results_of_the_pipeline_are_drawn_on_the_turned_photo(orientation, tmp_path):
    photo = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    opened = Image.open(tmp_path / "a.png")
    shown = ImageOps.exif_transpose(opened)
    mask = Image.fromarray(np.zeros(shown.size[::-1], np.uint8))
    found = [{"label": "a", "score": 0.9, "mask": mask}]
    drawn = draw_segmentation(opened, found, {0: "a"}, legend=False)
    assert drawn.tobytes() == draw_segmentation(shown.convert("RGB"), found, {0: "a"}, legend=False).tobytes()


def test_a_photo_of_sixteen_bits_is_not_drawn_white():
    values = np.full((40, 60), 20000, dtype=np.uint16)
    drawn = draw_segmentation(Image.fromarray(values), np.zeros((40, 60), np.int64) - 1, {0: "a"}, legend=False)
    assert np.array(drawn).max() == 20000 >> 8
