"""One bomb of each kind, in a process that may allocate 250 MiB after its imports."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from support.npy import UINT8, npy

MEBIBYTE, SIZE = 2**20, 300  # of a bomb, in MiB
SCRIPT = """
import json, resource, sys
from pathlib import Path
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.method import STAGES, settings_of
from dp_sinkhorn.data import Reading, load_images
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample

folder = Path(sys.argv[1])
calls = {
    "zip": lambda: load_images(folder / "zip.npz"),
    "bzip2": lambda: load_images(folder / "bzip2.npz"),
    "header": lambda: load_images(folder / "header.npz"),
    "gzip": lambda: load_images(folder / "gzip"),
    "png": lambda: load_images(folder / "png", how=Reading(side=8)),
    "zip in a zip": lambda: load_images(folder / "outer.zip"),
    "tar": lambda: load_images(folder / "a.tar.gz"),
    "npy": lambda: load_images(folder / "images.npy"),
    "pickle": lambda: load_images(folder / "pickle"),
    "pickled texts": lambda: load_images(folder / "texts"),
    "matlab": lambda: load_images(folder / "matlab.mat"),
    "parquet": lambda: load_images(folder / "a.parquet"),
    "toml": lambda: settings_of(folder / "dots.toml"),
    "card": lambda: PrivacyCard.from_file(folder / "zero" / "card.json"),
    "weights": lambda: load_release(folder / "zero_weights", STAGES),
    "generator": lambda: load_release(folder / "huge", STAGES),
    "sample": lambda: sample(*load_release(folder / "release", STAGES), 10**12),
}
load_release(folder / "release", STAGES)
import pyarrow.parquet
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 250 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
said = {}
for name, call in calls.items():
    try:
        call()
        said[name] = "taken"
    except InputError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.fixture
def bombs(tmp_path, release):
    """Small files that expand to hundreds of MiB or more."""
    for name, packing in (("zip", zipfile.ZIP_DEFLATED), ("bzip2", zipfile.ZIP_BZIP2)):
        with (
            zipfile.ZipFile(tmp_path / f"{name}.npz", "w", packing) as made,
            made.open("train_images.npy", "w") as member,
        ):
            member.write(npy(UINT8.replace("(4, 8, 8)", "(16777216, 8, 8)"), b""))
            for _ in range(SIZE if name == "zip" else 4):
                member.write(bytes(MEBIBYTE))
    with zipfile.ZipFile(tmp_path / "header.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("train_images.npy", npy(UINT8, bytes(SIZE * MEBIBYTE), version=2, length=2**32 - 1))
    (tmp_path / "gzip").mkdir()
    (tmp_path / "gzip" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 1) + b"\0")
    head, member = struct.pack(">4B3I", 0, 0, 8, 3, 16777216, 8, 8), gzip.compress(bytes(MEBIBYTE))
    (tmp_path / "gzip" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head) + SIZE * member)
    (tmp_path / "png").mkdir()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2**14, 2**14, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(MEBIBYTE))),
    ]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "png" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    array = npy(UINT8.replace("(4, 8, 8)", "(16777216, 8, 8)"), b"")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.write(tmp_path / "zip.npz", "zip.npz")
    info = tarfile.TarInfo("images.npy")
    info.size = SIZE * MEBIBYTE
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf()) + SIZE * member)
    (tmp_path / "images.npy").write_bytes(array)
    for name in ("pickle", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "pickle" / "data_batch_1").write_bytes(b"\x80\x02B" + struct.pack("<I", 2**32 - 1) + b"abc.")
    text = b"X" + struct.pack("<I", MEBIBYTE) + b"a" * MEBIBYTE + b"q\x00"
    repeated = b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * (2 * SIZE)
    (tmp_path / "texts" / "data_batch_1").write_bytes(b"\x80\x02" + text + b"(" + repeated + b"l.")
    packed = zlib.compressobj(9)
    start = packed.compress(struct.pack("<II", 14, SIZE * MEBIBYTE)) + packed.flush(zlib.Z_FULL_FLUSH)
    content = start + SIZE * (packed.compress(bytes(MEBIBYTE)) + packed.flush(zlib.Z_FULL_FLUSH))
    header = b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(content))
    (tmp_path / "matlab.mat").write_bytes(header + content)
    image = pyarrow.array([bytes(MEBIBYTE)] * SIZE, pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"image": image}), tmp_path / "a.parquet", row_group_size=SIZE)
    (tmp_path / "dots.toml").write_bytes(b".".join([b"a"] * 2_000_000) + b" = 1")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "card.json").symlink_to("/dev/zero")
    for name in ("release", "zero_weights", "huge"):
        shutil.copytree(release, tmp_path / name)
    (tmp_path / "zero_weights" / "weights.safetensors").unlink()
    (tmp_path / "zero_weights" / "weights.safetensors").symlink_to("/dev/zero")
    card = json.loads((release / "card.json").read_text())
    card["generator"] = {"name": "mlp", "latent_dim": 4096, "width": 65536, "channels": 1}
    (tmp_path / "huge" / "card.json").write_text(json.dumps(card))
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on memory")
def test_no_bomb_takes_more_memory_than_its_limit(bombs):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, bombs],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    words = {
        "zip": "decompression bomb",
        "bzip2": "numpy never uses",
        "header": "header of 4294967295 bytes",
        "gzip": "decompression bomb",
        "png": "decompression bomb",
        "zip in a zip": "decompression bomb",
        "tar": "decompression bomb",
        "npy": "0 of the 1073741824 bytes",
        "pickle": "no pickle of a batch",
        "pickled texts": "uses a text for many arrays",
        "matlab": "decompression bomb",
        "parquet": "decompression bomb",
        "toml": "too long dotted keys",
        "card": "not a regular file",
        "weights": "not a regular file",
        "generator": "does not fit its card",
        "sample": "num=1000000000000",
    }
    assert said.keys() == words.keys()
    for name, word in words.items():
        assert word in said[name], said
        assert "MemoryError" not in said[name]
