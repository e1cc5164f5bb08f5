"""No private information leaks: with equal releases, two data sets leave equal traces outside `private/`.

Noise and subsamples come from a test seed, and every noisy tensor is replaced by one that no record has touched. What
still differed between the runs would depend on the records by some other way than a release. The data sets have as many
records, since that number is public. What `train` says of the data on stderr, before anything is charged, is for their
owner: it differs, and nothing else.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp_sinkhorn import cli
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.sources import open_data
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.training.checkpoint import CHECKPOINT
from dp_sinkhorn.training.loop import LOCK
from support.image_files import without_summary
from support.toy import LEAN, SMALL, changed, pairs

COUNT = 200
MODES = {
    # The first run has all stages.
    "record": SMALL | {"class_embedding": {"budget_share": 0.1, "num_frequencies": 50}},
    "record with potentials": changed(LEAN["record"], transport_steps={"potential_iterations": 3}),
    "embedding": LEAN["embedding"],
    "batch": LEAN["batch"],
}
# With the noise given, nothing is calibrated.
COMMON = {"num_steps": 10, "noise_multiplier": 20, "generator": "mlp", "test_seed": 1}
# Extreme values, for which a reader, a clip or a log line might behave differently.
DATA = ("ordinary", "all black, in one class")
Traces = dict[str, Any]


def write_data(folder: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
    labels = np.arange(COUNT) % 3
    if kind == "all black, in one class":
        images[:], labels[1:] = 0, 2
    names = np.array(["a", "b", "c"])
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, class_names=names)


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Train on one kind of data; returns everything printed or written outside `private/`."""

    def blind(self: GaussianMechanism, total: BoundedSum, random: CryptoRandom) -> torch.Tensor:
        return 100.0 + random.normal(*total.value.shape)

    def call(kind: str, settings: dict[str, Any]) -> tuple[Traces, Path]:
        folder = tmp_path / kind
        folder.mkdir()
        write_data(folder, kind)
        monkeypatch.chdir(folder)
        words = [*pairs(settings), "--range", "0,255"]
        monkeypatch.setattr(sys, "argv", ["dp-sinkhorn", "train", "data.npz", "--out", "run", "--json", *words])
        of_data = {f"warning: {text}" for text in open_data("data.npz", Reading(range=(0, 255))).summary().warnings}
        with monkeypatch.context() as patch:
            patch.setattr(GaussianMechanism, "__call__", blind)
            with pytest.raises(SystemExit) as stop:
                cli.main()
        out, err = capsys.readouterr()
        summary = json.loads(out) if out else {}
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted((folder / "run").rglob("*"))
            if path.is_file() and path.parent.name != "private"
        }
        # Times are printed for the person at the terminal; no file holds them.
        shown = {name: value for name, value in summary.items() if name not in ("seconds", "peak_memory_bytes")}
        spoken = re.sub(r"\S+(?= steps/s)|(?<=ETA )\S+|(?<=elapsed )\S+", "#", without_summary(err))
        assert "labels: " in err
        spoken = "\n".join(line for line in spoken.splitlines() if line not in of_data)
        private = sorted(path.name for path in (folder / "run" / "private").iterdir())
        return {"exit": stop.value.code, "out": shown, "err": spoken, "files": files, "private names": private}, folder

    return call


@pytest.mark.parametrize("mode", MODES)
def test_everything_visible_is_a_function_of_the_releases(traces: Any, mode: str) -> None:
    seen = {kind: traces(kind, MODES[mode] | COMMON)[0] for kind in DATA}
    reference = seen[DATA[0]]
    assert reference["exit"] == 0
    assert reference["private names"] == [CHECKPOINT, LOCK]
    assert {"run/ledger.jsonl", "run/metrics.jsonl", "run/release/weights.safetensors"} <= reference["files"].keys()
    for kind, found in seen.items():
        assert found["files"].keys() == reference["files"].keys(), kind
        for name, content in found["files"].items():
            assert content == reference["files"][name], (kind, name)
        assert found == reference, kind


@pytest.mark.parametrize("mode", LEAN)
def test_the_message_of_a_diverged_run_is_independent_of_records(traces: Any, mode: str) -> None:
    seen = [traces(kind, LEAN[mode] | COMMON | {"learning_rate": 1e30})[0] for kind in DATA]
    assert seen[0]["exit"] == 2
    assert re.search("training diverged at step [0-9]+, and the budget in", seen[0]["err"])
    assert all(found == seen[0] for found in seen)


@pytest.mark.parametrize("mode", ["record", "batch"])
def test_private_figures_depend_on_records_and_stay_private(traces: Any, mode: str) -> None:
    """Every record is drawn at rate 1, and the noise has its declared length."""
    figures = {}
    settings = LEAN[mode] | COMMON | {"private_metrics": True, "expected_batch_size": COUNT}
    for kind in DATA:
        found, folder = traces(kind, settings)
        assert found["private names"] == [CHECKPOINT, LOCK, "metrics.jsonl"]
        assert all(b"share_clipped" not in content for content in found["files"].values())
        lines = (folder / "run" / "private" / "metrics.jsonl").read_text().splitlines()
        figures[kind] = [json.loads(line) for line in lines]
        card = json.loads((folder / "run" / "release" / "card.json").read_text())
        for line in figures[kind]:
            assert line.keys() == {"step", "drawn", "share_clipped", "signal_norm", "noise_norm"}
            assert line["drawn"] == COUNT
            assert 0.0 <= line["share_clipped"] <= 1.0
            assert 0.0 < line["signal_norm"] <= card["clip_norm"] * (1 if mode == "batch" else COUNT) * (1 + 1e-6)
            coordinates = (line["noise_norm"] / (card["noise_multiplier"] * card["sensitivity"])) ** 2
            assert coordinates == pytest.approx(round(coordinates))
    # They depend on the records: that is why they are private.
    assert mode == "batch" or figures[DATA[0]] != figures[DATA[1]]
