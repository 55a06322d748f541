"""Image files of every kind: handled, or refused in one sentence."""

import io
import os
import stat
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mpformer_hf import MPFormerImageProcessor, MPFormerImageProcessorPil, MPFormerImageSegmentationPipeline
from mpformer_hf.model.images import ORIENTATION, as_displayed, open_image, read_image, to_eight_bits, to_rgb, warn_once
from mpformer_hf.model.label_maps import as_maps
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


def gradient(height=6, width=8):
    return np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_modes_become_rgb(mode):
    image = Image.fromarray(gradient()).convert(mode)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(to_rgb(image), expected)


def test_sixteen_bits_keep_the_upper_eight():
    values = np.array([[0, 255, 256, 65535, 40000]], dtype=np.uint16)
    assert to_rgb(Image.fromarray(values))[0].tolist() == [[0, 0, 1, 255, 156]]


def test_exif_turns_the_image(tmp_path):
    image, exif = Image.fromarray(gradient()), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert torch.equal(turned, to_rgb(image).rot90(-1, (1, 2)))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), expected)
    again = as_displayed(as_displayed(Image.open(tmp_path / "a.png")))
    assert np.array_equal(np.array(again), expected), "a turned image is turned again"


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16"])
def test_turned_tiffs_by_path_bytes_and_object(mode, tmp_path):
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 257
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(gradient()).convert(mode)
    pixels = to_rgb(image)
    turns = {6: lambda x: x.rot90(-1, (1, 2)), 3: lambda x: x.flip(1, 2), 2: lambda x: x.flip(2)}
    for orientation, turn in turns.items():
        file = tmp_path / "a.tif"
        image.save(file, tiffinfo={274: orientation})
        for found in (read_image(file), read_image(io.BytesIO(file.read_bytes())), to_rgb(Image.open(file))):
            assert torch.equal(found, turn(pixels))


def test_white_is_zero_with_sixteen_bits(tmp_path):
    values = np.array([[0, 65535, 40000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = content.index(struct.pack("<HHI", 262, 3, 1))
    content[entry + 8 : entry + 10] = b"\0\0"
    assert read_image(io.BytesIO(bytes(content)))[0].tolist() == [[255, 0, 99]]


def test_damaged_exif_data_do_not_fail_an_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    start = content.index(b"Exif")
    end = start - 2 + int.from_bytes(content[start - 2 : start], "big")
    expected = read_image(tmp_path / "a.jpg").shape
    for place in range(start + 14, end):
        for value in (0, 7, 12, 255):
            damaged = bytearray(content)
            damaged[place] = value
            assert sorted(read_image(io.BytesIO(bytes(damaged))).shape) == sorted(expected)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "two.gif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_unknown_ranges_are_refused(mode):
    with pytest.raises(ValueError, match=f"has mode {mode} .32 bits, signed or floats., expected unsigned values"):
        to_rgb(Image.new(mode, (4, 4)))
    with pytest.raises(ValueError, match="expected an image, got str"):
        to_rgb("photo.jpg")


def test_broken_files_are_refused(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[:400])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    for name, message in (
        ("truncated", "cannot be decoded"),
        ("text", "not an image file"),
        ("empty", "not an image file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(next(tmp_path.glob(f"{name}.*")))
    Image.new("1", (400, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="more than 2,000 pixels"):
        read_image(tmp_path / "huge.png")


def sixteen_bits(tmp_path):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "sixteen.png")
    return tmp_path / "sixteen.png"


def rotated(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # rotated by 90 degrees
    values = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "rotated.png", exif=exif)
    return tmp_path / "rotated.png"


@pytest.mark.parametrize("kind", [sixteen_bits, rotated])
@pytest.mark.parametrize("processor", [MPFormerImageProcessor, MPFormerImageProcessorPil])
def test_training_processor_and_pipeline_have_equal_values(kind, processor, tmp_path):
    path = kind(tmp_path)
    processor = processor(do_resize=False, size_divisor=1, task="semantic")
    in_training = processor(read_image(path), return_tensors="pt")["pixel_values"]
    in_processor = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    segmenter = MPFormerImageSegmentationPipeline(model=tiny_model(), image_processor=processor)
    if kind is rotated:  # the processor's caller has maps and sizes of the stored pixels
        stored = Image.fromarray(np.array(Image.open(path)))
        assert torch.equal(in_processor, processor(stored, return_tensors="pt")["pixel_values"])
    else:
        assert torch.equal(in_processor, in_training)
    for image in (Image.open(path), str(path)):
        assert torch.equal(segmenter.preprocess(image)["pixel_values"][0], in_training)


def test_arrays_of_other_types_have_the_values_of_eight_bits():
    eight = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = MPFormerImageProcessor(do_resize=False, size_divisor=1)
    expected = processor(eight, return_tensors="pt")["pixel_values"]
    sixteen = eight.astype(np.uint16) * 256 + 77
    for same in (sixteen, torch.from_numpy(sixteen), eight.astype(np.float32), eight.astype(np.float32) / 255):
        torch.testing.assert_close(processor(same, return_tensors="pt")["pixel_values"], expected, atol=1e-5, rtol=0)
    for wrong in (eight.astype(np.int32) + 200, eight.astype(np.float32) - 5):
        with pytest.raises(ValueError, match="expected 0 to 255 or 0 to 1"):
            processor(wrong, return_tensors="pt")


def test_images_and_maps_of_other_types():
    assert to_eight_bits(np.array([[True, False]])).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="values of type complex64"):
        to_eight_bits(np.zeros((2, 2), dtype=np.complex64))
    assert as_maps(np.full((2, 2), 3_000_000_000, dtype=np.uint32))[0].tolist() == [[3_000_000_000] * 2] * 2
    with pytest.raises(ValueError, match="has ids down to"):
        as_maps(np.full((2, 2), -(2**40), dtype=np.int64))
    with torch.no_grad():
        outputs = tiny_model()(torch.randn(1, 3, 64, 96))
    for size in ((40, 60, 3), (40,), (40.7, 60), (0, 60), (-1, 60)):
        with pytest.raises(ValueError, match="target_sizes must be pairs"):
            MPFormerImageProcessor().post_process_panoptic_segmentation(outputs, target_sizes=[size])


def test_only_known_types_are_opened(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    for source in (tmp_path / "a.png", io.BytesIO(eps)):
        with pytest.raises(ValueError, match=r"not an image file \(PNG, JPEG"):
            open_image(source)


def test_damaged_files_of_every_type_have_one_kind_of_error(tmp_path):
    photo, formats = make.photo(40, 60), ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
    for name in formats:
        buffer = io.BytesIO()
        photo.save(buffer, name)
        assert open_image(io.BytesIO(buffer.getvalue())).size == (60, 40)
        for content in (buffer.getvalue()[: len(buffer.getvalue()) // 2], buffer.getvalue()[:40] + b"\xff" * 999):
            with pytest.raises(
                ValueError, match=r"it (cannot be decoded|is not an image file|has more than|is a TIFF of a kind)"
            ):
                open_image(io.BytesIO(content))


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert stat.S_ISFIFO(os.stat(tmp_path / "x.png").st_mode)
    with pytest.raises(ValueError, match="there is no such file"):
        open_image(tmp_path / "x.png")


def test_pages_that_are_left_out_are_said_once(tmp_path, caplog):
    pages = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    warn_once.cache_clear()
    for _ in range(2):
        assert torch.equal(read_image(tmp_path / "a.tif"), to_rgb(pages[0]))
    assert caplog.text.count("A TIFF has several pages: the first is used") == 1


def test_a_second_channel_that_is_left_out_is_said(tmp_path, caplog):
    first = Image.fromarray(gradient()).convert("L")
    Image.merge("LA", (first, Image.new("L", first.size, 7))).save(tmp_path / "two.tif")
    assert torch.equal(read_image(tmp_path / "two.tif"), to_rgb(first))
    assert "A TIFF has two channels: the first is used" in caplog.text


def test_a_page_of_another_kind_does_not_matter(tmp_path):
    second = Image.fromarray(np.zeros((4, 4), np.float32))
    Image.fromarray(gradient()).save(tmp_path / "a.tif", save_all=True, append_images=[second])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    where = content.rindex(struct.pack("<HHII", 258, 3, 1, 32))  # bits of the second page
    content[where : where + 12] = struct.pack("<HHII", 258, 3, 1, 13)
    with Image.open(io.BytesIO(content)) as image, pytest.raises(Exception, match="unknown pixel mode"):
        image.seek(1)
    assert torch.equal(read_image(io.BytesIO(content)), to_rgb(Image.fromarray(gradient())))


@pytest.mark.parametrize("depth, refused", [(8, False), (12, True), (16, True)])
def test_jpeg_2000_of_many_bits_is_refused(depth, refused, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(buffer, "JPEG2000")
    content = bytearray(buffer.getvalue())
    where = content.index(b"\xff\x51") + 40  # bits of the channels - 1
    for channel in range(3):
        content[where + 3 * channel] = depth - 1
    if refused:
        with pytest.raises(ValueError, match="a JPEG 2000 of more than 8 bits a channel"):
            open_image(io.BytesIO(content))
    else:
        assert (np.array(open_image(io.BytesIO(content))) == 255).all()


def test_values_that_would_be_misread_are_refused(tmp_path):
    grey = Image.fromarray(gradient()[..., 0])
    grey.save(tmp_path / "signed.tif", tiffinfo={339: 2})
    with pytest.raises(ValueError, match="a TIFF of signed values; save it as unsigned ones"):
        open_image(tmp_path / "signed.tif")
    with pytest.raises(ValueError, match=r"floats from 0 to 1\.0001: clip them to 1, or give values of 0 to 255"):
        to_eight_bits(np.linspace(0, 1.0001, 12).reshape(2, 2, 3))
    assert (
        to_eight_bits(np.array([[[0.0, 0.5, 1.0]]])).max() == 255 and to_eight_bits(np.full((1, 1, 3), 9.0)).max() == 9
    )
    with pytest.raises(ValueError, match=r"mode I \(32 bits, signed or floats\)"):
        to_rgb(Image.fromarray(np.zeros((2, 2), np.int32)))


def test_pgm_of_sixteen_bits(tmp_path):
    values = np.arange(0, 65536, 1366, dtype=np.uint16).reshape(6, 8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 6 65535\n" + values.astype(">u2").tobytes())
    assert torch.equal(read_image(tmp_path / "a.pgm")[0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_the_tiles_of_a_tiff_count_as_its_pixels(tmp_path):
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 277: 1, 322: 30000, 323: 30000, 324: 200, 325: 16}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)
    with pytest.raises(ValueError, match="it has 900,000,000 pixels, at most 1,000 are allowed"):
        open_image(io.BytesIO(content.ljust(300, b"\0")), largest=1000)


def test_heic_is_named_and_arrays_of_another_byte_order_are_read():
    with pytest.raises(ValueError, match="a HEIC image, as phones write them, which is not read; convert it to JPEG"):
        open_image(io.BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)))
    values = np.arange(0, 65536, 2048, dtype=np.uint16).reshape(4, 8)
    assert (to_eight_bits(values.astype(">u2")) == values >> 8).all()


def test_frames_that_are_left_out_are_said_once(tmp_path, caplog):
    frames = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    warn_once.cache_clear()
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(tmp_path / f"a.{suffix}").shape == (3, 6, 8)
    assert caplog.text.count("An image is an animation: its first frame is used") == 1
