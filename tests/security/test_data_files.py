"""Hostile data files: each is refused in one line, before it costs memory or time."""

import gzip
import io
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dp_sinkhorn.data import (
    Reading,
    class_names,
    dataset,
    files,
    from_arrays,
    load_images,
    npz,
    open_data,
    pictures,
    tree,
)
from dp_sinkhorn.io.errors import InputError
from support.npy import UINT8, npy

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\n"


def archive(path: Path, *members: tuple[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as made:
        for name, data in members:
            made.writestr(name, data)
    return path


@pytest.fixture
def small(monkeypatch):
    """Limits a test to 32 MiB; the bombs would unpack to at least 64 MiB."""
    monkeypatch.setattr(files, "FREE_BYTES", 2**22)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def test_the_archives_of_these_tests_are_valid(tmp_path):
    path = archive(tmp_path / "a.npz", ("train_images.npy", npy(UINT8)))
    assert len(load_images(path)) == 4
    assert len(load_images(archive(tmp_path / "b.npz", ("train_images.npy", npy(UINT8, version=2))))) == 4


def test_a_zip_bomb_is_refused_by_its_expansion(tmp_path, refused, small):
    header = UINT8.replace("(4, 8, 8)", "(1048576, 8, 8)")
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("train_images.npy", "w") as member:
        member.write(npy(header, b""))
        for _ in range(64):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**17
    refused(lambda: load_images(path), "unpacks to more than 200 times", "decompression bomb")


def test_a_gzip_bomb_with_a_matching_header_is_refused(tmp_path, refused, small):
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4B3I", 0, 0, 8, 3, 2**20, 8, 8))
        for _ in range(64):
            file.write(bytes(2**20))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 1) + b"\0")
    refused(lambda: load_images(tmp_path), "unpacks to more than 200 times", "decompression bomb")


def test_gzip_members_are_joined_and_trailing_junk_is_refused(tmp_path, refused):
    data = struct.pack(">4B3I", 0, 0, 8, 3, 2, 8, 8) + bytes(128)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    path.write_bytes(gzip.compress(data[:50]) + gzip.compress(b"") * 50 + gzip.compress(data[50:]))
    assert len(load_images(tmp_path)) == 2
    path.write_bytes(gzip.compress(data) + b"junk")
    refused(lambda: load_images(tmp_path), "cannot be read", "get the file again")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_memory_bound_are_refused(tmp_path, refused, packing):
    # bzip2 reaches a ratio of 45,000, and zipfile decompresses a whole chunk at once.
    header = UINT8.replace("(4, 8, 8)", "(65536, 8, 8)")
    path = archive(tmp_path / "a.npz", ("train_images.npy", npy(header, b"")), packing=packing)
    refused(lambda: load_images(path), "compressed by a method that numpy never uses", "numpy.savez")


def test_a_header_of_four_gib_is_not_read(tmp_path, refused, small):
    data = npy(UINT8, bytes(2**22), version=2, length=2**32 - 1)
    refused(
        lambda: load_images(archive(tmp_path / "a.npz", ("train_images.npy", data))),
        "has a header of 4294967295 bytes",
    )


@pytest.mark.parametrize(
    ("descr", "word"),
    [
        ("'<U0'", "dtype <U0"),
        ("'|V8'", "dtype |V8"),
        ("[('a', '|O')]", "pickled"),
        ("[('a', '|u1')]", "plain dtype"),
        ("('|u1', (2, 2))", "plain dtype"),
        ("'<M8[s]'", "array of datetime64"),
        ("'<c16'", "array of complex128"),
        ("'|S4'", "array of |S4"),
        ("'|O'", "pickled"),
    ],
)
def test_array_types_other_than_numbers_are_refused(tmp_path, refused, small, descr, word):
    header = UINT8.replace("'|u1'", descr).replace("(4, 8, 8)", "(1, 8, 8)")
    size = 0 if word == "pickled" else np.dtype(eval(descr)).itemsize if descr != "('|u1', (2, 2))" else 4  # noqa: S307
    path = archive(tmp_path / "a.npz", ("train_images.npy", npy(header, bytes(64 * size))))
    refused(lambda: load_images(path), word)


@pytest.mark.parametrize("descr", ["'>f4'", "'<f8'", "'>i2'", "'<f16'"])
@pytest.mark.parametrize("order", ["True", "False"])
def test_other_byte_orders_and_layouts_are_accepted(tmp_path, descr, order):
    header = UINT8.replace("'|u1'", descr).replace("(4, 8, 8)", "(1, 8, 9)").replace("False", order)
    values = np.zeros((1, 8, 9), np.dtype(eval(descr)))  # noqa: S307
    values[0, 0, 5] = 1 if values.dtype.kind == "f" else 200
    payload = values.tobytes(order="F" if order == "True" else "C")
    made = load_images(archive(tmp_path / "a.npz", ("train_images.npy", npy(header, payload))))
    assert made.pixels.nonzero().tolist() == [[0, 0, 0, 5]]


def test_labels_without_bytes_are_refused(tmp_path, refused, small):
    # 10^15 empty strings take no bytes, but sorting them would never end.
    labels = UINT8.replace("|u1", "<U0").replace("(4, 8, 8)", "(1000000000000000,)")
    path = archive(tmp_path / "a.npz", ("train_images.npy", npy(UINT8)), ("train_labels.npy", npy(labels, b"")))
    refused(lambda: load_images(path), "train_labels in", "dtype <U0")


def test_repeated_members_are_refused_and_other_names_ignored(tmp_path, refused):
    path = archive(tmp_path / "a.npz", ("train_images.npy", npy(UINT8)), ("../train_images.npy", b""), ("/etc/x", b""))
    assert len(load_images(path)) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, ("train_images.npy", npy(UINT8)), ("train_images.npy", npy(UINT8)))
    refused(lambda: load_images(path), "train_images in", "is stored twice")


def test_an_encrypted_member_is_refused(tmp_path, refused):
    data = bytearray(archive(tmp_path / "a.npz", ("train_images.npy", npy(UINT8))).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    refused(lambda: load_images(tmp_path / "a.npz"), "encrypted", "numpy.savez")


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_long_list_of_members_is_refused_unread(tmp_path, refused, monkeypatch, comment):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as made:
        made.comment = comment
        for number in range(50):
            made.writestr(f"{number}.npy", b"")
    refused(lambda: open_data(path), "no array of images")
    monkeypatch.setattr(npz, "MAX_DIRECTORY_BYTES", 2000)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    refused(lambda: open_data(path), "list of members of more than 2000 bytes")


def test_a_zip64_archive_is_refused(tmp_path, refused):
    data = archive(tmp_path / "a.npz", ("train_images.npy", npy(UINT8))).read_bytes()
    end = data.index(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**62, 1)
    (tmp_path / "a.npz").write_bytes(data[:end] + locator + data[end:])
    refused(lambda: load_images(tmp_path / "a.npz"), "more than 4 GiB")


def test_array_sizes_are_checked_before_allocation(refused):
    # Views of one number take no memory; a copy would.
    flat = np.zeros((), np.float16)
    view = np.broadcast_to
    small, large = Reading(side=8, fit="crop"), Reading(side=128)
    refused(lambda: from_arrays(view(flat, (1, 30_000, 30_000)), None, how=small), "30000x30000", "at most 8192")
    refused(lambda: from_arrays(view(flat, (1, 3, 30_000, 8)), None, how=small), "30000x8", "at most 8192")
    refused(lambda: from_arrays(view(flat, (2**31, 1, 1)), None, how=large), "137438953472 bytes")
    refused(lambda: from_arrays(view(flat, (2**40, 8, 8)), None), "more than 2147483648")
    refused(lambda: from_arrays(view(flat, (2**20, 8192, 8192)), None, how=small), "pixels", "give fewer")
    labels = view(np.zeros((), np.uint8), (2**40,))
    refused(lambda: from_arrays(np.zeros((2, 8, 8)), labels), "1099511627776 labels, more than")
    refused(lambda: from_arrays(np.zeros((2, 8, 8), np.uint8), labels[: 2**20]), "1048576 labels do not match 2 images")
    refused(lambda: from_arrays(np.zeros((1, 8, 8)), np.array(["a" * 129])), "at most 128 bytes")
    refused(lambda: from_arrays(np.zeros((1, 8, 8)), np.array(["ä" * 65])), "more than 128 bytes")
    refused(lambda: from_arrays(np.zeros((1, 8, 8)), np.array([b"a" * 129])), "at most 128 bytes")


def picture(path: Path, size=(8, 8), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 20).save(path, **options)


@pytest.mark.parametrize("ending", ["png", "gif", "tif", "webp", "bmp"])
def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, refused, monkeypatch, ending):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # a program may have taken Pillow's own limit away
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 10_000)
    picture(tmp_path / f"a.{ending}", (101, 100))
    monkeypatch.setattr(Image.Image, "convert", None)
    refused(
        lambda: load_images(tmp_path, how=Reading(side=8, fit="crop")),
        "101x100 pixels, more than 10000",
        "decompression bomb",
    )


def test_a_huge_png_is_refused_by_its_header(tmp_path, refused):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2**18, 2**18, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2**20)))
    )
    refused(lambda: load_images(tmp_path, how=Reading(side=8, fit="crop")), "a.png", "decompression bomb")


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_a_bomb_in_png_metadata_is_refused_or_not_unpacked(tmp_path, kind):
    info = PngImagePlugin.PngInfo()
    payload = zlib.compress(bytes(2**26))
    head = {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"k\0\0"}[kind]
    info.add(kind.encode(), head + payload)
    picture(tmp_path / "a.png", pnginfo=info)
    tracemalloc.start()
    try:
        with suppress(InputError):
            assert len(load_images(tmp_path)) == 1
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path, refused):
    os.mkfifo(tmp_path / "a.png")
    refused(lambda: load_images(tmp_path), "a.png", "not a file")
    (tmp_path / "a.png").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a.png"))
        refused(lambda: load_images(tmp_path), "a.png", "not a file")


def test_a_file_that_became_a_pipe_after_it_was_listed_is_refused(tmp_path, refused):
    picture(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((2, 8, 8)))
    found = open_data(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    refused(found.load, "a.png is not a regular file")


def test_loops_of_links_are_refused(tmp_path, refused):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    refused(lambda: load_images(tmp_path), "a.png", "loop")
    (tmp_path / "root" / "class").mkdir(parents=True)
    (tmp_path / "root" / "class" / "again").symlink_to(tmp_path / "root" / "class")
    refused(lambda: load_images(tmp_path / "root"), "again is a link")


def test_control_characters_in_names_are_escaped(tmp_path, refused):
    picture(tmp_path / ESCAPE / "a.png")
    message = refused(lambda: load_images(tmp_path), r"\x1b]0;owned\x07", r"\u202e\n")
    assert "\x1b" not in message
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / os.fsdecode(b"\xff\x1b[31m.png")).write_bytes(b"no image")
    refused(lambda: load_images(bad), r"\udcff\x1b[31m.png", "cannot be read")
    refused(lambda: load_images("x/" * 50_000), "…", "digits")


def test_a_folder_with_too_many_files_or_bytes_is_refused(tmp_path, refused, monkeypatch):
    for number in range(6):
        picture(tmp_path / "class" / f"{number}.png")
    listed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(tree, "MAX_FILES", 2)
        patch.setattr(Path, "is_file", lambda self: not listed.append(self.name))
        refused(lambda: load_images(tmp_path), "holds more than 2 files")
    assert len(listed) == 3
    monkeypatch.setattr(dataset, "MAX_BYTES", 383)
    refused(lambda: load_images(tmp_path), "would take 384 bytes, more than 383")
    monkeypatch.undo()
    picture(tmp_path / "other" / "0.png")
    monkeypatch.setattr(class_names, "MAX_CLASSES", 1)
    refused(lambda: load_images(tmp_path), "2 different labels")


def test_sixteen_bit_grey_is_rounded_to_the_nearest_byte(tmp_path):
    values = np.arange(65536, dtype=np.uint16)
    for number, part in enumerate(values.reshape(16, 64, 64)):
        Image.fromarray(part).save(tmp_path / f"{number:02d}.png")
    read = load_images(tmp_path).pixels.flatten().numpy()
    assert np.array_equal(read, np.rint(values / 257).astype(np.uint8))


def test_a_truncated_stream_of_an_image_file_is_no_crash(tmp_path, refused):
    whole = io.BytesIO()
    Image.new("RGB", (32, 32), (1, 2, 3)).save(whole, "TIFF", compression="tiff_deflate")
    for cut in (9, 60, len(whole.getvalue()) - 20):
        (tmp_path / "a.tif").write_bytes(whole.getvalue()[:cut])
        refused(lambda: load_images(tmp_path), "a.tif", "replace or remove")
