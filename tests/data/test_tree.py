"""Folders and archives as one list of files: nothing leads out of them, nothing hostile is unpacked, no cut goes by."""

import os
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import load_images, tree
from support.array_files import refused
from support.picture_files import (
    first_pixels,
    image_bytes,
    inspected,
    labels_of,
    picture,
    read_or_refused,
    reasons,
    write_files,
    write_tar,
    write_zip,
)

pytestmark = pytest.mark.quick

FAST = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FILES = {
    f"{name}/{number}.png": image_bytes(np.full((8, 8), value, np.uint8))
    for name, number, value in (("cat", 1, 10), ("cat", 2, 20), ("dog", 1, 30))
}
WRITERS = {
    "folder": write_files,
    "a.zip": write_zip,
    "stored.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
    "a.tar": write_tar,
    "a.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "a.tgz": lambda path, files: write_tar(path, files, "w:gz"),
    "a.tar.bz2": lambda path, files: write_tar(path, files, "w:bz2"),
    "a.tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
    "not_packed.tgz": write_tar,
    "packed.tar": lambda path, files: write_tar(path, files, "w:gz"),
}
ARCHIVES = [name for name in WRITERS if name != "folder"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("wrapped", ["", "data/", "outer folder/data/"])
def test_archives_are_read_as_the_folder_that_they_hold(tmp_path, kind, wrapped):
    path = WRITERS[kind](tmp_path / kind, {wrapped + name: content for name, content in FILES.items()})
    images = load_images(path)
    assert first_pixels(images) == [[10], [20], [30]]
    assert labels_of(images) == ["cat", "cat", "dog"]


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar.gz"])
def test_what_systems_leave_behind_is_ignored(tmp_path, kind):
    junk = (
        "__MACOSX/cat/._1.png", ".DS_Store", "cat/.hidden.png", "Thumbs.db", "cat/thumbs.DB", "@eaDir/cat/1.png",
        "cat/@eaDir/1.png/THUMB.png", "desktop.ini", ".git/a.png", "$RECYCLE.BIN/1.png",
    )  # fmt: skip
    found = inspected(WRITERS[kind](tmp_path / kind, {**FILES, **dict.fromkeys(junk, b"junk")}))
    assert found.splits == {"train": 3}
    assert found.class_names == ("cat", "dog")
    assert found.skipped == ()


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz", "a.tar"])
def test_archives_in_a_folder_stand_for_folders_of_their_names(tmp_path, kind):
    ending = kind[1:]
    for split in ("train", "test"):
        WRITERS[kind](tmp_path / f"{split}{ending}", FILES)
    found = inspected(tmp_path)
    assert found.splits == {"train": 3, "test": 3}
    assert found.class_names == ("cat", "dog")


def test_an_archive_beside_the_images_it_was_unpacked_to_is_not_read(tmp_path):
    write_files(tmp_path / "data", FILES)
    write_zip(tmp_path / "data.zip", FILES)
    found = inspected(tmp_path)
    assert found.splits == {"train": 3}
    assert reasons(found) == {"not an image": 1}


# --- links and pipes ------------------------------------------------------------------------------------


def test_links_may_not_leave_the_folder(tmp_path):
    root = tmp_path / "root"
    picture(tmp_path / "outside" / "secret.png", "L", 1)
    picture(root / "cat" / "a.png", "L", 20)
    (root / "cat" / "b.png").symlink_to(root / "cat" / "a.png")
    assert first_pixels(load_images(root)) == [[20], [20]]
    (root / "cat" / "c.png").symlink_to(tmp_path / "outside" / "secret.png")
    refused(lambda: load_images(root), "c.png is a link out of", "copy its target there")
    (root / "cat" / "c.png").unlink()
    (root / "dog").symlink_to(tmp_path / "outside")
    refused(lambda: load_images(root), "dog is a link out of")


def test_a_split_folder_may_not_be_a_link_to_elsewhere(tmp_path):
    picture(tmp_path / "outside" / "cat" / "a.png", "L", 1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "outside")
    refused(lambda: load_images(tmp_path / "root"), "train is a link out of")


def test_a_link_to_a_folder_that_is_read_anyway_is_refused(tmp_path):
    """Its records would count twice; a link to a folder around it would never end."""
    picture(tmp_path / "cat" / "a.png", "L", 20)
    for target in (tmp_path / "cat", tmp_path):
        (tmp_path / "dog").symlink_to(target)
        refused(lambda: load_images(tmp_path), "dog is a link to another folder", "remove it")
        (tmp_path / "dog").unlink()


def test_the_folder_itself_may_be_a_link(tmp_path):
    picture(tmp_path / "real" / "cat" / "a.png", "L", 20)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert first_pixels(load_images(tmp_path / "link")) == [[20]]


def test_broken_links_and_pipes_are_named(tmp_path):
    picture(tmp_path / "a.png", "L", 20)
    (tmp_path / "b.png").symlink_to(tmp_path / "nothing.png")
    refused(lambda: load_images(tmp_path), "b.png", "remove it")
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "c.png")  # opening it would block
    refused(lambda: load_images(tmp_path), "c.png", "remove it")


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    refused(lambda: load_images(tmp_path), str(tmp_path), "Permission denied", "check its permissions")


# --- size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar", "a.tar.gz"])
def test_the_number_of_files_is_bounded(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tree, "MAX_FILES", 2)
    refused(lambda: load_images(WRITERS[kind](tmp_path / kind, FILES)), "more than 2 files", "give fewer")


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar.gz"])
def test_the_depth_of_folders_is_bounded(tmp_path, kind):
    files = {"/".join("abcdefghijklmnopqrs") + "/1.png": FILES["cat/1.png"]}
    refused(lambda: load_images(WRITERS[kind](tmp_path / kind, files)), "16 folders deep")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a.zip", ("bomb", "uncompressed")),
        ("a.tar.gz", ("bomb", "give the folder")),
        ("a.tar.bz2", ("bomb",)),
        ("a.tar.xz", ("bomb",)),
    ],
)
def test_a_bomb_is_unpacked_up_to_a_bound_only(tmp_path, monkeypatch, kind, words):
    for module in ("tree", "files"):
        monkeypatch.setattr(f"dp_sinkhorn.data.{module}.FREE_BYTES", 2**16)
        monkeypatch.setattr(f"dp_sinkhorn.data.{module}.MAX_EXPANSION", 20)
    path = WRITERS[kind](tmp_path / kind, {"cat/1.png": bytes(2**26)})
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        refused(lambda: load_images(path), *words)
        assert tracemalloc.get_traced_memory()[1] < 2**24  # xz has a dictionary of 2**23
    finally:
        tracemalloc.stop()


def test_a_sparse_tar_member_does_not_unpack_to_more_than_the_file(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": b"x"})
    data = bytearray(path.read_bytes())
    data[124:136] = b"%011o\0" % 2**33  # the size in the header
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    refused(lambda: load_images(path), "a.tar")


# --- hostile and damaged archives -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../1.png", "cat/../../1.png", "/etc/1.png", "..\\1.png"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
def test_a_path_out_of_an_archive_is_refused(tmp_path, kind, name):
    refused(
        lambda: load_images(WRITERS[kind](tmp_path / kind, {name: FILES["cat/1.png"]})), "a path out of the archive"
    )


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("cat/1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(lambda: load_images(tmp_path / "a.tar"), "cat/1.png", "no plain file")


def test_a_link_in_a_zip_is_a_damaged_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/1.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, str(picture(tmp_path / "secret.png", "L", 1)))
    refused(lambda: load_images(tmp_path / "a.zip"), "cat/1.png", "cannot be read")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 8  # flags of the first member in the list
    path.write_bytes(data[:at] + bytes([data[at] | 1]) + data[at + 1 :])
    refused(lambda: load_images(path), "a.zip is encrypted", "unpack it")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_without_a_bound_on_memory_are_refused(tmp_path, method):
    refused(lambda: load_images(write_zip(tmp_path / "a.zip", FILES, method)), "deflate", "unpack it")


@FAST
@given(st.sampled_from(ARCHIVES), st.floats(0, 1, exclude_max=True))
@example("a.tar", 1536 / 10240)  # between two members
@example("a.tar", 512 / 10240)
@example("a.tar.gz", 0.5)
def test_a_cut_archive_is_never_read_in_part(tmp_path, kind, share):
    whole = WRITERS[kind](tmp_path / f"whole_{kind}", FILES).read_bytes()
    kept = int(share * len(whole.rstrip(b"\0")))  # a tar archive ends in zeros
    (tmp_path / kind).write_bytes(whole[:kept])
    refused(lambda: load_images(tmp_path / kind), kind)


@FAST
@given(st.sampled_from(ARCHIVES), st.data())
def test_a_damaged_archive_is_read_or_refused_in_one_line(tmp_path, kind, data):
    path = tmp_path / kind
    content = bytearray(WRITERS[kind](path, FILES).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read_or_refused(path)


def test_a_damaged_header_in_a_tar_does_not_end_it_silently(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES)
    content = bytearray(path.read_bytes())
    content[1024 + 148] ^= 1  # the checksum of the second member
    path.write_bytes(content)
    refused(lambda: load_images(path), "damaged or cut", "get it again")


@pytest.mark.parametrize("content", [b"", b"hello\nworld", bytes(1000)])
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_a_file_that_is_no_archive_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(lambda: load_images(tmp_path / name), name)
