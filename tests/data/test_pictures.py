"""Encoded images: every format, mode and declaration becomes the right pixels; damaged and hostile files are named."""

import io
import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from dp_sinkhorn.data import Reading, load_images, pictures
from support.array_files import noise, refused
from support.picture_files import (
    first_pixels,
    image_bytes,
    inspected,
    labels_of,
    picture,
    read_or_refused,
    reasons,
    write_files,
)

pytestmark = pytest.mark.quick

FAST = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
COLOURS = ["png", "bmp", "tif", "tiff", "webp", "ppm", "jp2"]
LOSSY = ["jpg", "jpeg", "jpe", "jfif", "avif"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [*COLOURS, "PNG", "TIF"])
def test_lossless_formats_keep_every_pixel_in_its_place(tmp_path, ending):
    pixels = noise(1, 9, 11, 3)[0]
    write_files(tmp_path, {f"a.{ending}": image_bytes(pixels, ending.lower())})
    assert np.array_equal(load_images(tmp_path).arrays()[0][0], pixels)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "pgm", "gif", "jp2"])
def test_grey_files_stay_grey(tmp_path, ending):
    pixels = noise(1, 9, 11)[0]
    write_files(tmp_path, {f"a.{ending}": image_bytes(pixels, ending)})
    images = load_images(tmp_path)
    assert images.shape == (1, 9, 11)
    assert np.array_equal(images.arrays()[0][0], pixels)


@pytest.mark.parametrize("ending", LOSSY)
def test_lossy_formats_are_read(tmp_path, ending):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    write_files(tmp_path, {f"a.{ending}": image_bytes(np.full((8, 8, 3), 200, np.uint8), ending)})
    assert load_images(tmp_path).pixels.to(int).sub(200).abs().max() <= 2


@pytest.mark.parametrize("ending", ["heic", "HEIF", "jxl", "nii.gz", "svg", "psd"])
def test_formats_that_cannot_be_read_are_counted(tmp_path, ending):
    write_files(tmp_path, {"a.png": image_bytes(noise(1, 8, 8)[0]), f"b.{ending}": b"x", f"c.{ending}": b"x"})
    found = inspected(tmp_path)
    assert found.splits == {"train": 1}
    assert reasons(found) == {"an image format that cannot be read here": 2}
    assert any("2 file(s) were not read" in warning for warning in found.attention)
    (tmp_path / "a.png").unlink()
    refused(lambda: inspected(tmp_path), f"b.{ending}", "convert to PNG")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "jp2"])
def test_files_without_an_ending_are_known_by_their_first_bytes(tmp_path, ending):
    content = image_bytes(np.full((8, 8, 3), 90, np.uint8), ending)
    write_files(tmp_path, {"cat/1": content, "cat/1.2.840": content, "cat/notes": b"hello", "cat/a.txt": content})
    found = inspected(tmp_path)
    assert found.splits == {"train": 2}
    assert sum(reasons(found).values()) == 2


def test_a_false_ending_does_not_matter_among_the_known_formats(tmp_path):
    write_files(tmp_path, {"a.jpg": image_bytes(np.full((8, 8), 7, np.uint8), "png")})
    assert first_pixels(load_images(tmp_path)) == [[7]]


def test_formats_that_run_other_programs_are_never_opened(tmp_path):
    """Pillow would give PostScript to Ghostscript."""
    write_files(tmp_path, {"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"})
    refused(lambda: load_images(tmp_path), "a.png", "no image of a known format")
    assert "EPS" not in pictures.FORMATS


# --- modes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "colour", "value"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("LA", (77, 255), 77),
        ("LA", (77, 0), 255),  # what lies under transparent pixels is nobody's intention
        ("LA", (100, 51), 224),  # 100/5 + 255·4/5
        ("I;16", 257 * 77 + 100, 77),
    ],
)
def test_grey_modes_become_grey_on_white(tmp_path, mode, colour, value):
    picture(tmp_path / "a.png", mode, colour)
    picture(tmp_path / "b.png", "L", 5)
    assert first_pixels(load_images(tmp_path)) == [[value], [5]]


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "pixel"),
    [
        ("RGB", (1, 2, 3), "png", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), "png", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 0), "png", [255, 255, 255]),
        ("RGBA", (100, 0, 200, 51), "png", [224, 204, 244]),
        ("RGBA", (100, 0, 200, 51), "webp", [224, 204, 244]),
        ("CMYK", (254, 253, 252, 0), "tif", [1, 2, 3]),
        ("YCbCr", (76, 85, 255), "tif", [254, 0, 0]),
    ],
)
def test_one_colour_image_makes_all_rgb(tmp_path, mode, colour, ending, pixel):
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    picture(tmp_path / f"a.{ending}", mode, colour, **options)
    picture(tmp_path / "b.png", "L", 5)
    picture(tmp_path / "c.png", "I;16", 257 * 200)
    assert first_pixels(load_images(tmp_path)) == [pixel, [5, 5, 5], [200, 200, 200]]


def test_a_palette_gives_colours_not_indices(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.gif")
    assert first_pixels(load_images(tmp_path)) == [[10, 20, 30]] * 2


def test_a_palette_without_colours_is_grey(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 90, 90, 90])
    image.save(tmp_path / "a.png")
    assert first_pixels(load_images(tmp_path)) == [[90]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_colours_of_a_palette_are_white(tmp_path, transparency):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=transparency)
    assert first_pixels(load_images(tmp_path)) == [[255, 255, 255]]
    assert any("transparent" in warning for warning in inspected(tmp_path).warnings)


def test_a_transparent_colour_of_rgb_is_white(tmp_path):
    picture(tmp_path / "a.png", "RGB", (10, 20, 30), transparency=(10, 20, 30))
    assert first_pixels(load_images(tmp_path)) == [[255, 255, 255]]


def test_the_training_images_determine_colour_and_size(tmp_path):
    picture(tmp_path / "train" / "a.png", "L", 20)
    picture(tmp_path / "test" / "b.png", "RGB", (30, 30, 30))
    assert first_pixels(load_images(tmp_path, "test")) == [[30]]
    picture(tmp_path / "train" / "c.png", "RGB", (1, 2, 3))
    picture(tmp_path / "test" / "b.png", "L", 30)
    assert first_pixels(load_images(tmp_path, "test")) == [[30, 30, 30]]
    picture(tmp_path / "test" / "b.png", "L", 30, (9, 8))
    refused(lambda: load_images(tmp_path, "test"), "8x8", "9x8", "--side 32")
    how = Reading(side=8, fit="stretch")
    assert load_images(tmp_path, "test", how).shape == (3, 8, 8)


# --- orientation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_exif_says(tmp_path, ending, orientation):
    """The camera stores what `stored` is; a reader must show `upright`: black at the top left, grey at its right."""
    upright = np.full((16, 24), 255, np.uint8)
    upright[:8, :8], upright[:8, 16:] = 0, 128
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if ending == "jpg" else {}
    write_files(tmp_path, {f"a.{ending}": image_bytes(np.ascontiguousarray(stored), ending, exif=exif, **options)})
    images = load_images(tmp_path)
    assert images.shape[1:] == (16, 24)
    found = images.pixels[0, 0].to(int)
    assert [int(found[4, 4]), int(found[4, 20]), int(found[12, 12])] == pytest.approx([0, 128, 255], abs=12)


# --- ranges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "jp2"])
def test_sixteen_bits_are_read_at_0_to_65535(tmp_path, ending):
    for index, value in enumerate((0, 128, 129, 30000, 65535)):
        (tmp_path / f"{index}.{ending}").write_bytes(image_bytes(np.full((8, 8), value, np.uint16), ending))
    assert first_pixels(load_images(tmp_path)) == [[0], [0], [1], [117], [255]]
    assert "16 bits" in inspected(tmp_path).converted


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_twelve_bits_in_sixteen_ask_for_their_range(tmp_path, ending):
    for index, value in enumerate((0, 1000, 4095)):
        (tmp_path / f"{index}.{ending}").write_bytes(image_bytes(np.full((8, 8), value, np.uint16), ending))
    refused(lambda: load_images(tmp_path), "nearly black", "--range 0,4095")
    how = Reading(range="0,4095")
    assert first_pixels(load_images(tmp_path, how=how)) == [[0], [62], [255]]
    found = inspected(tmp_path, range="0,4095")
    assert found.value_range == (0, 4095)
    assert "0..4095 became 0..255" in found.converted
    assert not any("became black or white" in warning for warning in found.warnings)
    found = inspected(tmp_path, range="0,2000")
    assert any("became black or white" in warning for warning in found.warnings)


def twelve_bit_tiff(values: np.ndarray) -> bytes:
    """A TIFF of 12 bits a sample: two samples in three bytes; the width is even."""
    height, width = values.shape
    first, second = values.reshape(-1, 2).T.astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)


def test_a_tiff_that_declares_12_bits_is_read_at_them(tmp_path):
    values = np.linspace(0, 4095, 64).astype(int).reshape(8, 8)
    (tmp_path / "a.tif").write_bytes(twelve_bit_tiff(values))
    assert np.array_equal(load_images(tmp_path).pixels[0, 0].numpy(), np.rint(values * (255 / 4095)))
    assert "12 bits" in inspected(tmp_path).converted


@pytest.mark.parametrize("most", [100, 255, 1000, 4095, 65535])
def test_a_pgm_is_read_at_the_largest_value_it_declares(tmp_path, most):
    values = np.linspace(0, most, 64).astype(int)
    body = values.astype(">u2" if most > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"P5\n8 8\n{most}\n".encode() + body)
    found = load_images(tmp_path).pixels[0, 0].numpy().astype(int).ravel()
    assert abs(found - values * 255 / most).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("F", 0.5), ("I", 70000)])
def test_files_without_a_range_ask_for_one(tmp_path, mode, colour):
    picture(tmp_path / "a.tif", mode, colour)
    refused(lambda: load_images(tmp_path), "a.tif", "--range")
    how = Reading(range=(0, 2 * colour))
    assert first_pixels(load_images(tmp_path, how=how)) == [[128]]


def test_eight_bits_are_kept_byte_for_byte(tmp_path):
    dim = np.arange(64, dtype=np.uint8).reshape(8, 8) // 8
    write_files(tmp_path, {"a.png": image_bytes(dim)})
    assert np.array_equal(load_images(tmp_path).pixels[0, 0].numpy(), dim)
    assert (inspected(tmp_path).value_range, inspected(tmp_path).converted) == ((0, 7), "kept")


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_images_in_one_file_are_refused(tmp_path, kind):
    first, second = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 255)
    (tmp_path / "a.png").write_bytes(encoded(first, kind, save_all=True, append_images=[second]))
    refused(lambda: load_images(tmp_path), "a.png", "several images", "a file of its own")


def test_of_a_camera_s_pair_of_jpegs_the_first_counts(tmp_path):
    first, second = Image.new("L", (8, 8), 50), Image.new("L", (8, 8), 250)
    (tmp_path / "a.jpg").write_bytes(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert first_pixels(load_images(tmp_path)) == [[50]]


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp", "tif", "jp2", "ppm"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_image_is_named(tmp_path, ending, damage):
    path = tmp_path / "cat" / f"bad.{ending}"
    whole = image_bytes(noise(1, 32, 32, 3)[0], ending)
    write_files(
        tmp_path,
        {f"cat/bad.{ending}": {"empty": b"", "text": b"hello\nworld", "half": whole[: len(whole) // 2]}[damage]},
    )
    message = refused(lambda: load_images(tmp_path), str(path), "cannot be read", "replace or remove")
    assert "0x" not in message
    assert "<" not in message


@FAST
@given(st.sampled_from(["png", "jpg", "gif", "bmp", "webp", "tif", "jp2", "pgm"]), st.data())
def test_a_changed_image_is_read_or_refused_in_one_line(tmp_path, ending, data):
    content = bytearray(image_bytes(noise(1, 16, 16)[0], ending))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"a.{ending}").write_bytes(content)
    message = read_or_refused(tmp_path, side=8, fit="stretch", range="0,255")
    assert message == "" or f"a.{ending}" in message
    (tmp_path / f"a.{ending}").unlink()


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", "L", 20, (5000, 5000))
    how = Reading(side=32)
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 2**20)
    tracemalloc.start()
    try:
        refused(lambda: load_images(tmp_path, how=how), "a.png", "5000x5000", "decompression bomb")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [9_000, 4_000])  # Pillow warns above the limit, and raises above twice the limit
def test_pillow_s_own_limit_is_an_error_too(tmp_path, monkeypatch, limit):
    picture(tmp_path / "a.png", "L", 20, (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(lambda: load_images(tmp_path, how=Reading(side=32)), "a.png", "decompression bomb")


def test_no_file_stays_open(tmp_path):
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    write_files(tmp_path, {f"{n}.png": image_bytes(noise(1, 8, 8)[0]) for n in range(20)})
    before = len(list(os.scandir(folder)))
    assert labels_of(load_images(tmp_path)) == ["0"] * 20
    assert len(list(os.scandir(folder))) <= before
