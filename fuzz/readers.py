"""Coverage-guided fuzzing of one reader: `python fuzz/readers.py READER [libFuzzer options]`.

The script makes the seeds in a temporary folder, which also holds the corpus. A reader may succeed or raise
`InputError` with one printable line. Anything else is a finding; libFuzzer writes its input to the current folder.
"""

import contextlib
import io
import json
import pickle
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
from scipy.io import savemat

with atheris.instrument_imports(include=["dp_sinkhorn"]):
    from dp_sinkhorn.data import load_images
    from dp_sinkhorn.data.layouts.cifar import parse_pickle
    from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.privacy.accounting import Charge, check_analysable
    from dp_sinkhorn.privacy.ledger import Ledger
    from dp_sinkhorn.release.card import PrivacyCard

SECONDS, MEGABYTES, BYTES = 10, 2048, 4096  # limits per input


def idx_seeds() -> list[bytes]:
    """Small images: valid, cut short, with a byte too many, with sizes that overflow, with a cut header."""
    valid = struct.pack(">4B3I", 0, 0, 8, 3, 2, 8, 8) + bytes(128)
    huge = struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 1)
    return [valid, valid[:-1], valid + b"\0", huge, valid[:9]]


def read_idx(path: Path) -> None:
    """As images beside right labels, as labels beside right images, and as if it were packed."""
    folder = path.parent / "idx"
    folder.mkdir(exist_ok=True)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    right = {images: idx_seeds()[0], labels: struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2)}
    for own, other in ((images, labels), (labels, images), (images.with_suffix(".gz"), labels)):
        own.write_bytes(path.read_bytes())
        other.write_bytes(right[other])
        with contextlib.suppress(InputError):
            assert load_images(folder).pixels.nbytes <= 2**26
        own.unlink()
        other.unlink()


def pickle_seeds() -> list[bytes]:
    """A small batch in every protocol, and calls that no batch makes."""
    batch = {"labels": [1, 0], "data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"filenames": ["a", "b"]}
    calls = [b"cos\nsystem\n(S'true'\ntR.", b"c_codecs\nencode\n(X\x01\0\0\0aX\x06\0\0\0latin1tR."]
    return [*(pickle.dumps(batch, protocol) for protocol in range(5)), *calls]


def read_pickle(path: Path) -> None:
    """Nothing is made but plain values and arrays of bytes."""
    found = parse_pickle(path.read_bytes(), "a file")
    if isinstance(found, dict):
        assert all(isinstance(key, str | bytes | int) for key in found)
    if isinstance(found, np.ndarray):
        assert found.dtype == np.uint8


def matlab_seeds() -> list[bytes]:
    """Two images of 8x8 pixels with labels, plain and packed."""
    seeds = []
    for packed in (False, True):
        made = io.BytesIO()
        savemat(made, {"X": np.zeros((8, 8, 1, 2), np.uint8), "y": [[1], [2]]}, do_compression=packed)
        seeds.append(made.getvalue())
    return seeds


def read_matlab(path: Path) -> None:
    """As the training images of SVHN."""
    (path.parent / "train_32x32.mat").write_bytes(path.read_bytes())
    assert load_images(path.parent / "train_32x32.mat").pixels.nbytes <= 2**26


def card_seeds() -> list[bytes]:
    """Cards of versions 1 and 2 with every field, and small invalid inputs."""
    step = {"name": "transport_steps", "noise_multiplier": 2.0, "sample_rate": 0.1, "first": 0, "count": 10}
    generator = {"name": "conv", "latent_dim": 2, "width": 8, "channels": 8}
    card = {
        "card_version": 2,
        "private": True,
        "epsilon": 1.0,
        "epsilon_rdp": 1.5,
        "delta": 1e-5,
        "neighboring_relation": "add_or_remove_one",
        "accountant": "x",
        "mode": "record",
        "mechanism": "x",
        "charges": [step],
        "num_records": 100,
        "num_steps": 10,
        "queries_per_step": 1,
        "sample_rate": 0.1,
        "expected_batch_size": 10.0,
        "noise_multiplier": 2.0,
        "clip_norm": 1.0,
        "sensitivity": 1.0,
        "class_prior": {"how": "declared", "shares": [0.5, 0.5], "epsilon_alone": 0.0},
        "stages": [
            {"name": "class_counts"},
            {"name": "class_moments", "corrected_dimensions": 5},
            {"name": "class_features", "refinement_steps": 1},
            {"name": "label_classifier", "classifier": "linear, on scattering features"},
            {"name": "transport_steps", "potential_iterations": 0},
            {"name": "embedding_steps", "fine_tuning_steps": 300, "mixture_weight": 0.5},
        ],
        "tuning": "x",
        "randomness": "x",
        "treated_as_public": ["x"],
        "warnings": [],
        "image_shape": [1, 8, 8],
        "class_names": ["a", "b"],
        "generator": generator,
        "weights_sha256": "0" * 64,
        "software": "x",
    }
    STAGES.facts_of(PrivacyCard.model_validate(card))
    former = {name: fact for name, fact in card.items() if name not in ("mode", "stages")} | {
        "card_version": 1,
        "sanitize": "record",
        "charges": [{**step, "name": "step"}],
        "corrected_dimensions": 5,
        "refinement_steps": 1,
        "classifier": "linear, on scattering features",
        "matching_steps": 300,
        "kept_share": 0.5,
    }
    cards = [json.dumps(facts).encode() for facts in (card, former)]
    return [*cards, b"[" * 2000, b'{"a":NaN}', b'{"a":1,"a":2}', b'"\\ud800"']


def read_card(path: Path) -> None:
    """Make the checks of `verify` that come before the tight accountant."""
    card = PrivacyCard.from_file(path)
    assert card.statement().isprintable()
    STAGES.facts_of(card)
    check_analysable(card.charges, card.delta)


def ledger_seeds() -> list[bytes]:
    """Lines of all formats of the ledger; their checksums are invalid."""
    charge = Charge(name="transport_steps", noise_multiplier=2.0, sample_rate=0.1, first=0, count=10).model_dump_json()
    header = json.dumps({"ledger_version": 1, "run": "0" * 32, "config_sha256": "0" * 64})
    lines = [f'{{"entry":{entry},"chain":"{"0" * 64}"}}\n'.encode() for entry in (header, charge)]
    return [b"".join(lines), lines[1], f'{{"charge":{charge},"crc32":0}}\n'.encode(), b"\n", b"[" * 2000 + b"\n"]


def read_ledger(path: Path) -> None:
    """Check that a second read gives the same charges, even if the first repaired a torn end."""
    assert Ledger(path).charges == Ledger(path).charges


# Tokens that random bytes hardly ever form.
TOKENS = [
    r"\"a\":",
    "null",
    "true",
    "NaN",
    "1e999",
    "-1",
    "[[[[",
    "{}",
    r"\\ud800",
    "[",
    "]",
    ",",
    "1e-300",
    "1e18",
    "0.5",
]
TARGETS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Path], None]]] = {
    "idx": (idx_seeds, read_idx),
    "pickle": (pickle_seeds, read_pickle),
    "matlab": (matlab_seeds, read_matlab),
    "card": (card_seeds, read_card),
    "ledger": (ledger_seeds, read_ledger),
}


def main() -> None:
    """Make the seeds and fuzz until libFuzzer stops."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"give one of {', '.join(TARGETS)}, then libFuzzer's options, for example -runs=10000")
    seeds, read = TARGETS[sys.argv[1]]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus, path = Path(folder) / "corpus", Path(folder) / "input"
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / f"seed{number}").write_bytes(seed)

        def one_input(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except InputError as error:
                if not str(error).isprintable() or len(str(error)) > MAX_MESSAGE:
                    raise RuntimeError(f"not one printable line: {error!r}") from error

        tokens = Path(folder) / "tokens"
        tokens.write_text("".join(f'"{token}"\n' for token in TOKENS))
        limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={BYTES}", f"-dict={tokens}"]
        atheris.Setup([sys.argv[0], *limits, *sys.argv[2:], str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
