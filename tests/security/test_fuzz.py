"""Randomly changed files: every reader accepts them or refuses them in one printable line."""

import copy
import gzip
import hashlib
import io
import json
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from dp_sinkhorn.data import Reading, from_arrays, load_images, load_synthetic, open_data
from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
from dp_sinkhorn.method import STAGES, config_of, settings_of
from dp_sinkhorn.privacy.accounting import check_analysable
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from support.array_files import python2_pickle, write_parquet

# The same examples on every machine and in every run; `make fuzz` searches for new ones.
HOSTILE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = [-1, 0, 1, 7, 255, 2**16, 2**31, 2**32 - 1, 2**63, 10**18, 10**400, -0.0, 1e-300, 1e-9, 0.5, 1e300]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
TEXTS = ["", "0", "\x1b[2J\u202e", "\ud800", "x" * 300]
ABSURD = st.sampled_from([None, True, [], {}, [[[[]]]], {"a": {"a": 1}}, *TEXTS, *NUMBERS, *NOT_FINITE]).map(
    copy.deepcopy
)
SPLICES = st.sampled_from(
    [b"", b"\0", b"\xff" * 8, b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"\n", b"\r\n", b'"', b"\\ud800", b"1e999"]
) | st.binary(max_size=8)


@st.composite
def edits(draw: Any) -> Callable[[bytes], bytes]:
    """Up to four changes of bytes: overwrite, delete, insert, repeat, or cut off the end."""
    changes = draw(
        st.lists(st.tuples(st.floats(0, 1), st.sampled_from("owipc"), SPLICES, st.integers(1, 64)), max_size=4)
    )

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        for where, kind, splice, length in changes:
            at = round(where * len(data))
            if kind == "o":
                data[at : at + len(splice)] = splice
            elif kind == "w":
                del data[at : at + length]
            elif kind == "i":
                data[at:at] = splice
            elif kind == "p":
                data += data[at : at + length]
            else:
                del data[at:]
        return bytes(data)

    return change


@st.composite
def altered(draw: Any, tree: Any) -> Any:
    """Plain data with one to three values replaced, removed, renamed, wrapped or repeated."""
    made = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        node, key = [made], 0
        while isinstance(node[key], dict | list) and node[key] and draw(st.booleans() | st.just(value=True)):
            node = node[key]
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "many"]))
        if kind == "replace":
            node[key] = copy.deepcopy(draw(ABSURD))  # later changes must not alter the shared value
        elif kind == "wrap":
            node[key] = [node[key]]
        elif kind == "many":
            node[key] = [node[key]] * 50
        elif kind == "rename" and isinstance(node, dict):
            node[draw(st.sampled_from(["", "x", "\x1b[2J"]))] = node.pop(key)
        elif node != [made] and isinstance(node, dict | list):
            del node[key]
        made = made[0] if isinstance(made, list) and len(made) == 1 else made
    return made


def survives(call: Callable[[], Any]) -> Any:
    """The result of the call, or None if it raised InputError with one printable line."""
    try:
        return call()
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    assert 0 < len(message) <= MAX_MESSAGE
    return None


def idx(shape: tuple[int, ...], payload: bytes) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + payload


READINGS = st.sampled_from([Reading(), Reading(side=8, fit="crop"), Reading(range=(0, 9), label_column="1")])
SIZES = st.sampled_from([0, 1, 2, 3, 8, 9, 64, 65, 2**16, 2**31, 2**32 - 1])


@HOSTILE
@given(shape=st.tuples(SIZES, SIZES, SIZES), change=edits(), packed=st.booleans(), how=READINGS)
def test_changed_idx_files_are_read_or_refused(tmp_path, shape, change, packed, how):
    pack = gzip.compress if packed else bytes
    ending = ".gz" if packed else ""
    small = int(np.prod([min(size, 100) for size in shape]))
    for content in (change(pack(idx((3, 8, 9), bytes(216)))), pack(change(idx(shape, bytes(min(small, 10_000)))))):
        (tmp_path / f"train-images-idx3-ubyte{ending}").write_bytes(content)
        (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(pack(idx((3,), bytes(3))))
        survives(lambda: load_images(tmp_path, how=how))
        (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(content)
        survives(lambda: load_images(tmp_path, how=how))


def npz(**arrays: Any) -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)
    return made.getvalue()


NPZ = npz(
    train_images=np.arange(192, dtype=np.uint8).reshape(3, 8, 8), train_labels=["a", "b", "a"], class_names=["a", "b"]
)
DESCRS = [
    "|u1",
    "<f4",
    ">f8",
    "<f2",
    "<U0",
    "<U3",
    "|S1",
    "|O",
    "<M8[s]",
    "<c8",
    "|b1",
    "|V2",
    "<i8",
    "f16",
    "\x1b",
    "(",
]


@HOSTILE
@given(change=edits(), how=READINGS)
def test_changed_npz_files_are_read_or_refused(tmp_path, change, how):
    path = tmp_path / "a.npz"
    path.write_bytes(change(NPZ))
    survives(lambda: open_data(path).summary())
    survives(lambda: load_images(path, how=how))
    survives(lambda: load_synthetic(path))


@HOSTILE
@given(
    descr=st.sampled_from(DESCRS),
    shape=st.lists(SIZES | st.sampled_from([-1, 2**63, 10**30]), max_size=5),
    order=st.sampled_from(["True", "False", "0", "'\ud800'"]),
    version=st.integers(0, 4),
    length=st.none() | st.sampled_from([0, 1, 65535]),
    member=st.sampled_from(["train_images", "train_labels", "class_names"]),
    change=edits(),
)
def test_changed_npy_headers_are_read_or_refused(tmp_path, descr, shape, order, version, length, member, change):
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {tuple(shape)}}}".encode("utf-8", "replace")
    text = change(header.ljust(117) + b"\n")[:9000]
    size = len(text) if length is None else length
    array = b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version < 2 else "<I", size) + text + bytes(512)
    path = tmp_path / "a.npz"
    whole = {"train_images": np.zeros((3, 8, 8), np.uint8), "train_labels": np.zeros(3, np.uint8)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, value in {**whole, member: array}.items():
            if isinstance(value, bytes):
                made.writestr(f"{name}.npy", value)
            else:
                with made.open(f"{name}.npy", "w") as stream:
                    np.save(stream, value)
    survives(lambda: load_images(path))


BATCH = {
    "labels": [1, 0],
    "data": np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 3072),
    "filenames": ["a.png", "b.png"],
}
BATCHES = [python2_pickle(BATCH), *(pickle.dumps(BATCH, protocol) for protocol in range(5))]
OPERATIONS = st.lists(st.sampled_from([code.code.encode("latin-1") for code in pickletools.opcodes]), max_size=6)


@HOSTILE
@given(whole=st.sampled_from(BATCHES), change=edits(), operations=OPERATIONS, place=st.floats(0, 1), head=st.booleans())
def test_cifar_batches(tmp_path, whole, change, operations, place, head):
    # Most changes of bytes fall into the pixels; the interesting ones are before and after them.
    at = round(place * (250 if head else len(whole)))
    for content in (change(whole), change(whole[:400]) + whole[400:], whole[:at] + b"".join(operations) + whole[at:]):
        (tmp_path / "data_batch_1").write_bytes(content)
        survives(lambda: load_images(tmp_path))


def matlab(packed: bool) -> bytes:
    made = io.BytesIO()
    savemat(made, {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": [[1], [2]], "s": {"a": "b"}}, do_compression=packed)
    return made.getvalue()


MATLAB = [matlab(packed=False), matlab(packed=True)]


@HOSTILE
@given(change=edits(), how=READINGS, sizes=st.lists(st.tuples(st.integers(128, 1000), SIZES), max_size=2))
def test_matlab_files(tmp_path, change, how, sizes):
    array = zlib.compress(change(zlib.decompressobj().decompress(MATLAB[1][136:])))
    contents = [MATLAB[1][:128] + struct.pack("<II", 15, len(array)) + array]
    for whole in MATLAB:
        content = bytearray(whole)
        for place, size in sizes:
            content[place : place + 4] = struct.pack("<I", size)
        contents += [bytes(content), change(whole)]
    for content in contents:
        (tmp_path / "train_32x32.mat").write_bytes(content)
        survives(lambda: load_images(tmp_path, how=how))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("table") / "a.parquet"
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8), np.uint8)
    return write_parquet(path, images, [0, 1, 1, 0], ["a", "b"]).read_bytes()


@HOSTILE
@given(change=edits(), how=READINGS, features=st.data())
def test_parquet(table, tmp_path, change, how, features):
    path = tmp_path / "a.parquet"
    path.write_bytes(change(table))
    survives(lambda: load_images(path, how=how))
    declared = features.draw(altered({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}))
    try:
        facts = json.dumps(declared).encode()
    except ValueError:  # it holds itself
        return
    read = pq.read_table(io.BytesIO(table))
    pq.write_table(read.replace_schema_metadata({"huggingface": facts, "dp_sinkhorn": "[3"}), path)
    survives(lambda: load_images(path, how=how))


def picture(kind: str) -> bytes:
    made = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    options = {"save_all": True, "append_images": frames[1:]} if kind in ("GIF", "TIFF", "WEBP", "PNG") else {}
    frames[0].save(made, kind, **options)
    return made.getvalue()


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")}


@HOSTILE
@given(kind=st.sampled_from(sorted(PICTURES)), change=edits(), how=READINGS)
def test_changed_image_files_are_read_or_refused(tmp_path, kind, change, how):
    (tmp_path / "a.png").write_bytes(change(PICTURES[kind]))
    survives(lambda: load_images(tmp_path, how=how))


@HOSTILE
@given(
    shape=st.lists(st.sampled_from([0, 1, 3, 8, 9, 65, 9000, 2**20, 2**40]), min_size=1, max_size=5),
    dtype=st.sampled_from(["u1", "f2", "f8", "i8", "?", "U1", "S1", "c8", "M8[s]", "O"]),
    labels=st.none() | st.sampled_from([2**40, 3, 0, 1]),
    how=READINGS,
)
def test_random_arrays_are_accepted_or_refused(shape, dtype, labels, how):
    try:
        images = np.broadcast_to(np.zeros((), dtype), shape)
    except ValueError:  # too large for NumPy
        return
    # Within the limits a valid view of one number may become gigabytes, which this test avoids.
    if images.size < 10**6 or images.size > 2**31 * 3:
        counted = None if labels is None else np.broadcast_to(np.zeros((), np.uint8), (labels,))
        survives(lambda: from_arrays(images, counted, how=how))


@HOSTILE
@given(data=st.data(), change=edits())
def test_changed_cards_are_read_or_refused(release, tmp_path, data, change):
    folder = tmp_path / "copy"
    folder.mkdir(exist_ok=True)
    weights = (release / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights)
    original = (release / "card.json").read_bytes()
    tree = data.draw(altered(json.loads(original)))
    for content in (json.dumps(tree).encode(), change(original)):
        (folder / "card.json").write_bytes(content)
        card = survives(lambda: PrivacyCard.from_file(folder / "card.json"))
        if card is not None:
            assert card.statement().isprintable()
            card.to_json().encode()
            survives(lambda card=card: check_analysable(card.charges, card.delta))
        loaded = survives(lambda: load_release(folder, STAGES))
        if loaded is not None:
            assert len(sample(*loaded, 2)) == 2


@HOSTILE
@given(data=st.data(), change=edits())
def test_changed_weights_are_read_or_refused(release, tmp_path, data, change):
    folder = tmp_path / "copy"
    folder.mkdir(exist_ok=True)
    original = (release / "weights.safetensors").read_bytes()
    length = int.from_bytes(original[:8], "little")
    header = json.dumps(data.draw(altered(json.loads(original[8 : 8 + length])))).encode()
    card = json.loads((release / "card.json").read_text())
    for content in (struct.pack("<Q", len(header)) + header + original[8 + length :], change(original)):
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "card.json").write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(content).hexdigest()}))
        survives(lambda: load_release(folder, STAGES))


@HOSTILE
@given(data=st.data(), change=edits())
def test_changed_configurations_are_read_or_refused(config, tmp_path, data, change):
    path = tmp_path / "config.toml"
    tree = data.draw(altered(config.model_dump(mode="json", exclude_none=True)))
    contents = [change(config.to_toml().encode())]
    with suppress(TypeError, ValueError, AttributeError):  # not expressible in TOML
        contents.append(tomli_w.dumps(tree).encode())
    for content in contents:
        path.write_bytes(content)
        survives(lambda: config_of(path))
        survives(lambda: settings_of(path))


@HOSTILE
@given(
    values=st.dictionaries(
        st.sampled_from(["num_steps", "class_counts", "width", "seed", "batch_steps", "x"]),
        ABSURD | st.dictionaries(st.sampled_from(["prior", "reg", "x"]), ABSURD),
    )
)
def test_random_settings_are_accepted_or_refused(values):
    survives(lambda: settings_of(None, values))


@pytest.fixture(scope="module")
def ledger(config, tmp_path_factory) -> bytes:
    """The bytes of the ledger of a short run."""
    path = tmp_path_factory.mktemp("run") / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
    for charge in config.plan.charges:
        ledger.charge(charge)
    content = path.read_bytes()
    assert content.count(b"\n") >= 3
    return content


@HOSTILE
@given(data=st.data(), change=edits(), number=st.integers(0, 100))
def test_changed_ledgers_are_read_or_refused(ledger, tmp_path, data, change, number):
    path: Path = tmp_path / "ledger.jsonl"
    lines = ledger.splitlines(keepends=True)
    number %= len(lines)
    tree = data.draw(altered(json.loads(lines[number])))
    for content in (
        change(ledger),
        b"".join([*lines[:number], json.dumps(tree).encode() + b"\n", *lines[number + 1 :]]),
    ):
        path.write_bytes(content)
        survives(lambda: Ledger(path).charges)
        # A second read gives the same: opening repairs a torn end only.
        first = survives(lambda: Ledger(path).charges)
        if first is not None:
            assert Ledger(path).charges == first


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"entry":' * 100_000, b"9" * 100_000, b"\xff\xfe", b'"\\ud800"', b"NaN"]
)
def test_a_hostile_ledger_line_is_reported_as_damaged(tmp_path, line):
    # Deep nesting must not end in a RecursionError.
    (tmp_path / "ledger.jsonl").write_bytes(line + b"\n" + line + b"\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        Ledger(tmp_path / "ledger.jsonl")
