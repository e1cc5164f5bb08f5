"""DICOM images: rescaled, at the window or bits that they declare, upright in brightness; hostile files are refused."""

import io
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, dicom, load_images
from support.array_files import refused
from support.picture_files import (
    dicom_bytes,
    first_pixels,
    inspected,
    labels_of,
    picture,
    read_or_refused,
    reasons,
    write_files,
    write_tar,
    write_zip,
)

pytest.importorskip("pydicom", reason="the extra medical")
pytestmark = pytest.mark.quick

FAST = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def flat(value: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.full((8, 8), value, dtype)


def read(content: bytes, folder, **how: Any) -> list[int]:
    write_files(folder, {"a.dcm": content})
    return first_pixels(load_images(folder, how=Reading(**how)))[0]


@pytest.mark.parametrize(
    ("value", "bits", "expected"), [(0, 12, 0), (2048, 12, 128), (4095, 12, 255), (512, 10, 128), (255, 8, 255)]
)
def test_without_a_window_the_stored_bits_are_the_range(tmp_path, value, bits, expected):
    dtype = np.uint8 if bits == 8 else np.uint16
    assert read(dicom_bytes(flat(value, dtype), bits), tmp_path) == [expected]
    assert f"{bits} stored bits" in inspected(tmp_path).converted


@pytest.mark.parametrize(("value", "expected"), [(-2048, 0), (0, 128), (2047, 255)])
def test_signed_values_reach_below_zero(tmp_path, value, expected):
    assert read(dicom_bytes(flat(value, np.int16)), tmp_path) == [expected]


@pytest.mark.parametrize(("value", "expected"), [(804, 0), (1044, 128), (1283, 255), (0, 0), (4000, 255)])
def test_slope_and_window_are_applied(tmp_path, value, expected):
    """Stored 804 is 2·804 - 2048 = 40 - 480, the lower end of the window; beyond its ends is black or white."""
    content = dicom_bytes(flat(value), RescaleSlope="2", RescaleIntercept="-2048", WindowCenter="40", WindowWidth="960")
    low, high = (40 - 480 + 2048) / 2, (40 + 480 - 1 + 2048) / 2
    exact = 255 * min(max((value - low) / (high - low), 0), 1)
    assert read(content, tmp_path) == [round(exact)]
    assert round(exact) == pytest.approx(expected, abs=0.6)
    assert "window" in inspected(tmp_path).converted


def test_the_first_of_several_windows_counts(tmp_path):
    content = dicom_bytes(flat(75), WindowCenter=[100.5, 3000], WindowWidth=[101, 2])
    assert read(content, tmp_path) == [64]  # a quarter of 50..150


@FAST
@given(st.integers(-500, 500), st.integers(2, 2000), st.integers(0, 4095), st.sampled_from(["LINEAR", "LINEAR_EXACT"]))
def test_windows_agree_with_pydicom(tmp_path, centre, width, value, function):
    from pydicom import dcmread
    from pydicom.pixels import apply_voi_lut

    content = dicom_bytes(flat(value), WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    exact = apply_voi_lut(flat(value).astype(np.float64), dcmread(io.BytesIO(content)))[0, 0]
    assert read(content, tmp_path)[0] == pytest.approx(exact * 255 / 4095, abs=0.51)


def test_low_values_of_monochrome1_are_white(tmp_path):
    assert read(dicom_bytes(flat(0), kind="MONOCHROME1"), tmp_path) == [255]
    assert read(dicom_bytes(flat(4095), kind="MONOCHROME1"), tmp_path) == [0]
    assert read(dicom_bytes(flat(0), kind="MONOCHROME1"), tmp_path, range="0,4095") == [255]


def test_a_given_range_takes_the_place_of_every_window(tmp_path):
    content = dicom_bytes(flat(1000), WindowCenter=10, WindowWidth=2, RescaleIntercept=-500)
    assert read(content, tmp_path, range="-500,1500") == [128]
    assert "-500..1500" in inspected(tmp_path, range="-500,1500").converted


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_12_bits_in_16_declared_bits_ask_for_a_range(tmp_path, dtype):
    content = dicom_bytes(flat(2000, dtype), bits=16)
    refused(lambda: read(content, tmp_path), "nearly black", "--range")
    assert read(content, tmp_path, range="0,4000") == [128]


def test_colours_and_palettes_are_read(tmp_path):
    colours = np.tile(np.array([9, 80, 200], np.uint8), (8, 8, 1))
    assert read(dicom_bytes(colours, 8, "RGB"), tmp_path) == [9, 80, 200]
    palette: dict[str, Any] = {}
    for place, colour in enumerate(("Red", "Green", "Blue")):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        palette[f"{colour}PaletteColorLookupTableData"] = bytes([1 + place, 11 + place])
    assert read(dicom_bytes(flat(1, np.uint8), 8, "PALETTE COLOR", **palette), tmp_path) == [11, 12, 13]


def test_rows_and_columns_keep_their_order(tmp_path):
    stored = np.arange(8 * 9, dtype=np.uint8).reshape(8, 9)
    write_files(tmp_path, {"a.dcm": dicom_bytes(stored, 8)})
    assert np.array_equal(load_images(tmp_path).pixels[0, 0].numpy(), stored)


def test_files_of_a_scanner_need_no_ending(tmp_path):
    """Scanners write "IM0001" and UIDs; a DICOMDIR is a list of them."""
    content = dicom_bytes(flat(4095))
    names = ("well/IM0001", "well/1.2.840.113619.2.55", "ill/IM0002.DCM", "ill/3.dicom")
    write_files(tmp_path, {**dict.fromkeys(names, content), "DICOMDIR": bytes(128) + b"DICM", "well/README": "x"})
    found = inspected(tmp_path)
    assert found.images_per_class == {"ill": 2, "well": 2}
    assert reasons(found) == {"not an image": 2}


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_of_scans_of_patients_are_read(tmp_path, write):
    names = [f"study/{label}/{label}P{n}/IM{m}" for label in "AB" for n in range(3) for m in range(4)]
    ending = "zip" if write is write_zip else "tar"
    path = write(tmp_path / f"scans.{ending}", dict.fromkeys(names, dicom_bytes(flat(4095))))
    refused(lambda: inspected(path), "--class-level 1 for 2 class(es) (A, B)", "--class-level 2 for 6 class(es)")
    found = inspected(path, class_level=1)
    assert found.images_per_class == {"A": 12, "B": 12}
    assert any(
        "6 sub-folders look like persons" in warning and "at least 4 times" in warning for warning in found.warnings
    )


def test_scans_and_photographs_may_lie_side_by_side(tmp_path):
    write_files(tmp_path, {"a.dcm": dicom_bytes(flat(4095))})
    picture(tmp_path / "b.png", "L", 7)
    assert first_pixels(load_images(tmp_path)) == [[255], [7]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dicom_bytes(np.zeros((3, 8, 8), np.uint16), frames=3), ("3 frames", "a file of its own")),
        (dicom_bytes(flat(1), RescaleSlope="1.5").replace(b"1.5 ", b"nan "), ("rescale slope",)),
        (dicom_bytes(flat(1)).replace(b"MONOCHROME2", b"MONOCHROME9"), ("a.dcm",)),
        (dicom_bytes(flat(1))[:-20], ("a.dcm",)),
        (dicom_bytes(flat(1))[:200], ("a.dcm",)),
        (b"hello\nworld", ("the mark DICM is missing",)),
        (b"", ("the mark DICM is missing",)),
        (bytes(128) + b"DICM", ("a.dcm",)),
    ],
)
def test_unusable_files_are_one_line_that_names_them(tmp_path, content, words):
    write_files(tmp_path, {"a.dcm": content})
    refused(lambda: load_images(tmp_path), "a.dcm", *words)


def test_rows_times_columns_are_bounded(tmp_path):
    content = dicom_bytes(flat(1), Rows=60000, Columns=60000)
    content = content.replace(b"US\x02\x00\x08\x00", b"US\x02\x00\x60\xea")
    write_files(tmp_path, {"a.dcm": content})
    refused(lambda: load_images(tmp_path), "60000x60000", "make it smaller")


def test_a_deflated_file_is_refused_before_it_is_unpacked(tmp_path):
    """pydicom would unpack it without a bound on memory."""
    content = dicom_bytes(flat(1))
    plain = b"UI\x14\x001.2.840.10008.1.2.1\0"
    assert content.count(plain) == 1
    head = content[: content.index(b"\x28\x00\x02\x00")].replace(plain, b"UI\x16\x00" + dicom._DEFLATED)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(2**25)) + packer.flush()
    write_files(tmp_path, {"a.dcm": head + bomb})
    tracemalloc.start()
    try:
        refused(lambda: load_images(tmp_path), "a.dcm", "deflate", "uncompressed")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@FAST
@given(st.data())
def test_a_changed_file_is_read_or_refused_in_one_line(tmp_path, data):
    content = bytearray(dicom_bytes(flat(1000), WindowCenter=40, WindowWidth=400))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    write_files(tmp_path, {"a.dcm": bytes(content)})
    message = read_or_refused(tmp_path, side=8, fit="stretch")
    assert message == "" or "a.dcm" in message or str(tmp_path) in message


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    write_files(tmp_path, {"a.dcm": dicom_bytes(flat(1))})
    monkeypatch.setitem(sys.modules, "pydicom", None)  # what Python has for a module that is not there
    refused(lambda: load_images(tmp_path), "medical", "pydicom")


def test_labels_of_scans_stand_in_a_table(tmp_path):
    write_files(tmp_path, {f"scans/IM{n}": dicom_bytes(flat(4095)) for n in range(4)})
    write_files(
        tmp_path, {"labels.csv": "file,diagnosis\n" + "".join(f"IM{n},{'ill' if n else 'well'}\n" for n in range(4))}
    )
    assert labels_of(load_images(tmp_path)) == ["well", "ill", "ill", "ill"]
