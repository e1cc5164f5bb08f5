"""CIFAR's pickled batches are parsed as Python 2 and 3 write them; none is ever run, and hostile ones are refused."""

import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, load_images, open_data
from dp_sinkhorn.data.layouts import cifar
from dp_sinkhorn.data.layouts.cifar import parse_pickle
from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
from support.array_files import cifar_rows, noise, python2_pickle, refused, write_cifar10, write_cifar100

TRAIN, TEST = noise(7, 32, 32, 3, seed=1), noise(3, 32, 32, 3, seed=2)
LABELS, TEST_LABELS = [2, 0, 1, 1, 0, 2, 2], [1, 1, 0]
NAMES = ("airplane", "automobile", "bird")


def python3_pickle(value: Any, protocol: int) -> bytes:
    return pickle.dumps(value, protocol)


WRITERS: list[Any] = [
    pytest.param(python2_pickle, id="python 2"),
    *(pytest.param(partial(python3_pickle, protocol=protocol), id=f"protocol {protocol}") for protocol in range(5)),
    pytest.param(
        lambda value: pickle.dumps({key.encode(): part for key, part in value.items()}, 2), id="keys of bytes"
    ),
]


@pytest.mark.parametrize("dump", WRITERS)
def test_cifar_10_is_read_whoever_wrote_it(tmp_path, dump):
    data = open_data(write_cifar10(tmp_path, (TRAIN, LABELS), (TEST, TEST_LABELS), NAMES, dump=dump))
    train, test = data.load(), data.load("test")
    assert np.array_equal(train.arrays()[0], TRAIN)
    assert np.array_equal(test.arrays()[0], TEST)
    assert train.class_names == test.class_names == NAMES
    assert train.labels.tolist() == LABELS
    assert test.labels.tolist() == TEST_LABELS
    assert data.found.unused == []


@pytest.mark.parametrize("dump", WRITERS)
def test_cifar_100_is_read_by_fine_or_coarse_labels(tmp_path, dump):
    fine, coarse = LABELS, [0, 1, 1, 1, 1, 0, 0]
    splits = {"train": (TRAIN, fine, coarse), "test": (TEST, TEST_LABELS, [1, 1, 1])}
    write_cifar100(tmp_path, splits, NAMES, ("machine", "animal"), dump)
    train = load_images(tmp_path)
    assert np.array_equal(train.arrays()[0], TRAIN)
    assert train.class_names == NAMES
    assert train.labels.tolist() == fine
    for column in ("coarse_labels", "coarse_label", "coarse"):
        how = Reading(label_column=column)
        train, test = load_images(tmp_path, how=how), load_images(tmp_path, "test", how)
        assert train.class_names == ("machine", "animal")
        assert (train.labels.tolist(), test.labels.tolist()) == (coarse, [1, 1, 1])
    refused(lambda: open_data(tmp_path, Reading(label_column="x")), "coarse_labels, fine_labels", "--label-column")


def test_batches_keep_their_order_beyond_nine(tmp_path):
    images = noise(12, 32, 32, 3)
    write_cifar10(tmp_path, (images, range(12)), None, [f"class {place}" for place in range(12)], batches=12)
    data = open_data(tmp_path)
    assert np.array_equal(data.load().arrays()[0], images)
    assert data.load().labels.tolist() == list(range(12))
    assert list(data.found.parts) == ["train"]


def test_labels_count_through_names_that_are_numbers(tmp_path):
    write_cifar10(tmp_path, (TRAIN, LABELS), None, ("3", "2", "1"))
    train = load_images(tmp_path)
    assert train.class_names == ("3", "2", "1")
    assert train.labels.tolist() == LABELS


def test_without_meta_the_labels_are_the_names(tmp_path):
    write_cifar10(tmp_path, (TRAIN, LABELS), None, NAMES)
    (tmp_path / "batches.meta").unlink()
    assert load_images(tmp_path).class_names == ("0", "1", "2")


def test_dark_images_are_bytes_all_the_same(tmp_path):
    write_cifar10(tmp_path, (TRAIN // 32, LABELS), None, NAMES)
    assert np.array_equal(load_images(tmp_path).arrays()[0], TRAIN // 32)


@pytest.mark.parametrize("ending", [".tar.gz", ".tar"])
def test_the_archive_as_it_is_distributed_is_read(tmp_path, ending):
    write_cifar10(tmp_path / "cifar-10-batches-py", (TRAIN, LABELS), (TEST, TEST_LABELS), NAMES)
    (tmp_path / "cifar-10-batches-py" / "readme.html").write_text("<html>")
    with tarfile.open(tmp_path / f"a{ending}", "w:gz" if ending == ".tar.gz" else "w") as made:
        made.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    data = open_data(tmp_path / f"a{ending}")
    assert np.array_equal(data.load("test").arrays()[0], TEST)
    ((reason, name),) = data.found.unused
    assert reason == "not a batch"
    assert name.endswith("readme.html")


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    for name in ("a", "b"):
        write_cifar10(tmp_path / name, (TRAIN, LABELS), None, NAMES)
    refused(lambda: open_data(tmp_path), "several data sets", "give one folder")


# --- what does not fit ----------------------------------------------------------------------------------


def batch(**changes: Any) -> dict[str, Any]:
    return {"labels": LABELS, "data": cifar_rows(TRAIN)} | changes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (batch(labels=LABELS[:-1]), ["6 labels for 7 images"]),
        (batch(labels=[*LABELS[:-1], 3]), ["label 3 is not in 0..2"]),
        (batch(labels=[*LABELS[:-1], -1]), ["labels", "none"]),
        (batch(labels=[*LABELS[:-1], 2**70]), ["labels"]),
        (batch(labels=[*LABELS[:-1], True]), ["labels"]),
        (batch(labels=[*LABELS[:-1], "a"]), ["labels"]),
        (batch(labels="abc"), ["labels"]),
        (batch(labels=np.array(LABELS)), ["other values than bytes"]),
        (batch(data=cifar_rows(TRAIN).astype(np.float32)), ["other values than bytes"]),
        (batch(data=cifar_rows(TRAIN)[:, :-1]), ["no images of 32x32"]),
        (batch(data=TRAIN), ["no images of 32x32"]),
        (batch(data=[1, 2]), ["no images of 32x32"]),
        ({"labels": LABELS}, ["no images of 32x32"]),
        ([1, 2], ["no dictionary"]),
        (None, ["no dictionary"]),
        (7, ["no dictionary"]),
    ],
)
def test_batches_that_do_not_fit_are_refused(tmp_path, content, words):
    write_cifar10(tmp_path, (TRAIN, LABELS), None, NAMES, batches=1)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, 2))
    known = [word for word in words if word != "none"]
    refused(lambda: load_images(tmp_path), *(known if "is not in" in words[0] else ["data_batch_1", *known]))


@pytest.mark.parametrize("meta", [{}, {"label_names": "ab"}, {"label_names": [1, 2, 3]}, [], {"label_names": []}])
def test_a_meta_file_without_names_is_refused(tmp_path, meta):
    write_cifar10(tmp_path, (TRAIN, LABELS), None, NAMES)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    refused(lambda: load_images(tmp_path))


def test_images_and_labels_must_fit_in_each_batch(tmp_path):
    """Seven labels in all would fit; the images of the first batch would get labels of the second."""
    for number, (images, labels) in enumerate(((TRAIN[:3], LABELS[:4]), (TRAIN[3:], LABELS[4:])), 1):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch(data=cifar_rows(images), labels=labels), 2))
    refused(lambda: load_images(tmp_path), "data_batch_1 has 4 labels for 3 images")


def test_arrays_in_columns_are_read_as_their_shape_says(tmp_path):
    rows = np.asfortranarray(cifar_rows(TRAIN))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"labels": LABELS, "data": rows}, 2))
    assert np.array_equal(load_images(tmp_path).arrays()[0], TRAIN)


@pytest.mark.parametrize("protocol", range(5))
def test_a_dictionary_of_one_array_is_read(protocol):
    """One item is set by another operation than several."""
    (array,) = parse_pickle(pickle.dumps({"data": cifar_rows(TRAIN)}, protocol), "x").values()
    assert np.array_equal(array, cifar_rows(TRAIN))
    assert np.array_equal(parse_pickle(pickle.dumps(cifar_rows(TRAIN), protocol), "x"), cifar_rows(TRAIN))


PLAIN = st.recursive(
    st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.booleans() | st.none() | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80, derandomize=True, database=None)
@given(PLAIN, st.integers(0, 4))
def test_plain_values_are_parsed_as_pickle_would(value, protocol):
    assert parse_pickle(pickle.dumps(value, protocol), "x") == value


# --- hostile --------------------------------------------------------------------------------------------


class Runs:
    """Its pickle calls a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HOSTILE = {
    "system": (pickle.dumps(Runs(os.system, "touch owned"), 0), "posix system"),
    "system 2": (pickle.dumps(batch(labels=Runs(os.system, "touch owned")), 2), "posix system"),
    "stack global": (pickle.dumps(Runs(os.system, "touch owned"), 4), "posix system"),
    "stack global by hand": (b"\x80\x04" + text("os") + text("system") + b"\x93" + text("touch owned") + b"\x85R.", ""),
    "eval": (pickle.dumps(Runs(eval, "open('owned', 'w')"), 2), "eval"),
    "getattr": (b"cbuiltins\ngetattr\n.", "builtins getattr"),
    "codecs": (b"c_codecs\ndecode\n(X\x01\0\0\0aX\x07\0\0\0unicodetR.", "_codecs decode"),
    "encode with another codec": (b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextR.", ""),
    "instance": (b"(ios\nsystem\nX\x0b\0\0\0touch owned.", "INST"),
    "instance of a list": (b"(S'touch owned'\nios\nsystem\n.", "INST"),
    "object": (b"(cos\nsystem\nS'touch owned'\no.", "os system"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "persistent": (b"Pid\n.", "PERSID"),
    "persistent by stack": (b"Nq\0Q.", "BINPERSID"),
    "buffer": (pickle.dumps(pickle.PickleBuffer(b"x"), 5), ""),
    "ndarray called": (b"cnumpy\nndarray\n(K\x01tR.", "calls something"),
    "reduce of text": (b"S'os.system'\n(S'touch owned'\ntR.", "calls something"),
    "reduce without a tuple": (b"cnumpy\ndtype\n]R.", "holds a list"),
    "reconstruct of another type": (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\0tR.", "calls something"),
    "build of a dict": (b"}(X\x01\0\0\0aK\x01tb.", "holds an object"),
    "bad memo": (b"h\x07.", "no pickle of a batch"),
    "empty stack": (b"0.", "POP"),
    "stop at once": (b".", "no pickle of a batch"),
    "no mark": (b"t.", "no pickle of a batch"),
    "mark above the stack": (b"K\x01(b.", "no pickle of a batch"),
    "odd items": (b"}(K\x01u.", "no pickle of a batch"),
    "append to a number": (b"K\x01K\x02a.", "holds a int"),
    "key of a list": (b"}]K\x01s.", "key of type list"),
    "unknown code": (b"\xff.", "no pickle of a batch"),
    "not a pickle": (b"hello\nworld\n", "no pickle of a batch"),
    "zip": (b"PK\x03\x04" + bytes(100), "no pickle of a batch"),
    "huge text": (b"X\xff\xff\xff\xffabc.", "no pickle of a batch"),
    "huge bytes": (b"\x8e" + struct.pack("<Q", 2**60) + b"abc.", "no pickle of a batch"),
    "more than can be": (b"\x8d" + b"\xff" * 8 + b"abc.", "no pickle of a batch"),
    "negative": (b"T\xff\xff\xff\xffabc.", "no pickle of a batch"),
    "huge long": (b"\x8b\xff\xff\xff\x7fabc.", "no pickle of a batch"),
    "huge number in text": (b"L" + b"9" * 10_000 + b"L\n.", "no pickle of a batch"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_pickle_is_run(tmp_path, monkeypatch, name):
    content, word = HOSTILE[name]
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    data = tmp_path / "data"
    data.mkdir()
    (data / "data_batch_1").write_bytes(content)
    message = refused(lambda: load_images(data), "data_batch_1", word)
    assert "python version" in message
    assert list(work.iterdir()) == []


def array_pickle(shape: bytes, content: bytes) -> bytes:
    """A byte array with a shape of any operations."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R"
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        + shape
        + dtype
        + b"\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tb."
    )


def test_the_array_of_these_tests_is_right():
    assert parse_pickle(array_pickle(b"K\x02K\x03\x86", b"abcdef"), "x").tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize(
    "shape",
    [
        b"K\x02K\x04\x86",
        b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86",
        b"(" + 7 * b"K\x01" + b"K\x06t",
        b"(" + 200_000 * b"\x8a\x09" + b"",
        b"G" + struct.pack(">d", 2.0) + b"K\x03\x86",
        b"\x88K\x06\x86",
        b"N",
        b"K\x06",
        b"]",
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape):
    refused(lambda: parse_pickle(array_pickle(shape, b"abcdef"), "a file"), "a file")


def test_a_shape_of_huge_numbers_costs_no_time():
    number = b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000
    many = b"(" + number * 2000 + b"t"
    refused(lambda: parse_pickle(array_pickle(many, b"abc"), "a file"), "shape does not fit")


def nested(depth: int, start: bytes = b"U\x04abcd") -> bytes:
    """A tuple of two tuples of two tuples and so on, each of them one object: in print it has 2^depth texts."""
    return (
        b"\x80\x02"
        + start
        + b"".join(b"q" + bytes((place,)) + b"h" + bytes((place,)) + b"\x86" for place in range(depth))
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"}" + nested(60) + b"K\x01s.", id="as a key"),
        pytest.param(b"c_codecs\nencode\n" + nested(60) + b"U\x01a\x86R.", id="as a text"),
        pytest.param(b"cnumpy\ndtype\n" + nested(60) + b"R.", id="as a dtype"),
        pytest.param(b"cnumpy\ndtype\n" + nested(60) + b"\x85R.", id="as the dtype's name"),
        pytest.param(nested(60) + nested(60) + b"\x93.", id="as a name"),
        pytest.param(nested(60) + b"N\x85R.", id="as a function"),
        pytest.param(nested(60) + b"N\x85b.", id="as an object"),
        pytest.param(nested(60) + b".", id="as the whole"),
        pytest.param(b"}U\x06labels" + nested(60) + b"s.", id="as labels"),
        pytest.param(b"}U\x04data" + nested(60) + b"s.", id="as data"),
    ],
)
def test_nested_references_are_never_written_out(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    refused(lambda: load_images(tmp_path), "data_batch_1")
    write_cifar10(tmp_path, (TRAIN, LABELS), None, NAMES, batches=1)
    (tmp_path / "batches.meta").write_bytes(content)
    refused(lambda: load_images(tmp_path), "batches.meta")


def test_a_text_in_the_memo_is_not_copied_for_many_arrays():
    size = 10**6
    start = b"\x80\x02X" + struct.pack("<I", size) + b"a" * size + b"q\x00"
    content = start + b"(" + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 500 + b"l."
    tracemalloc.start()
    try:
        refused(lambda: parse_pickle(content, "a file"), "uses a text for many arrays")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_operations_are_counted(monkeypatch):
    assert parse_pickle(b"(" + b"N" * 100 + b"l.", "x") == [None] * 100
    monkeypatch.setattr(cifar, "MAX_OPERATIONS", 50)
    refused(lambda: parse_pickle(b"(" + b"N" * 100 + b"l.", "a file"), "a file has more than 50 operations")


def test_a_file_of_half_a_gigabyte_is_not_read(tmp_path, monkeypatch):
    write_cifar10(tmp_path, (TRAIN, LABELS), None, NAMES, batches=1)
    monkeypatch.setattr(cifar, "MAX_BATCH_BYTES", 100)
    refused(lambda: load_images(tmp_path), "data_batch_1", "more than 100")


def test_deep_nesting_is_no_crash():
    for content in (b"]" * 50_000 + b"a" * 49_999 + b".", b")" + b"\x85" * 100_000 + b"."):
        assert parse_pickle(content, "x") is not None
    refused(lambda: parse_pickle(b"(" * 50_000 + b"t" * 50_001 + b".", "a file"))


SMALL = {"labels": [1, 0], "data": np.arange(6, dtype=np.uint8).reshape(2, 3), "filenames": ["a.png", "b.png"]}


@pytest.mark.parametrize("dump", WRITERS[:6])
def test_a_batch_cut_at_any_byte_is_refused(dump):
    whole = dump(SMALL)
    assert np.array_equal(parse_pickle(whole, "x")["data"], SMALL["data"])
    for length in range(len(whole)):
        refused(lambda length=length: parse_pickle(whole[:length], "a file"), "a file")


@pytest.mark.parametrize("dump", WRITERS[:6])
def test_a_batch_with_any_byte_changed_is_read_or_refused(dump):
    whole = dump(SMALL)
    for place in range(len(whole)):
        for value in (0, 0x28, 0x2E, 0x52, 0x62, 0x85, 0x93, 0xFF):
            changed = whole[:place] + bytes((value,)) + whole[place + 1 :]
            try:
                parse_pickle(changed, "a file")
            except InputError as error:
                assert len(str(error)) <= MAX_MESSAGE  # noqa: PT017 - a change may also be harmless


@settings(
    deadline=None,
    max_examples=300,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from(
            list(b"()]}{.0123RbcoiqhtaesuldNIKMJGXUTSVLFgprj\x80\x85\x86\x87\x88\x89\x8a\x8b\x93\x94\x95\n\x00\x01ab")
        ),
        max_size=60,
    )
)
def test_any_sequence_of_operations_is_read_or_refused(codes):
    for content in (bytes(codes), b"\x80\x02cnumpy\ndtype\n" + bytes(codes)):
        try:
            parse_pickle(content, "a file")
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_the_parser_reads_what_pickle_reads_from_an_own_writer():
    """The writer of these tests writes what Python 2 would: Python 3 reads it, too."""
    back = pickle.load(io.BytesIO(python2_pickle(batch())), encoding="latin1")  # noqa: S301
    assert np.array_equal(back["data"], cifar_rows(TRAIN))
    assert back["labels"] == LABELS
    assert b"U\x06labels" in python2_pickle(batch())
    assert b"cnumpy.core.multiarray\n_reconstruct" in python2_pickle(batch())


def test_the_file_is_a_plain_file(tmp_path: Path):
    os.mkfifo(tmp_path / "data_batch_1")
    refused(lambda: load_images(tmp_path), "data_batch_1", "not a file")
