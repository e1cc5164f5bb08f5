"""Two invariants of whole runs: every release is charged, and nothing else depends on the records."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from logging import StreamHandler, getLogger
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.privacy.curator import Curator, Query
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages import transport_steps
from dp_sinkhorn.training import loop
from dp_sinkhorn.training.progress import LiveView
from dp_sinkhorn.training.run_folder import CONFIG, facts_of

SMALL = {
    "num_steps": 6, "noise_multiplier": 4.0, "generator": "mlp", "width": 8, "latent_dim": 2, "target_delta": 1e-4,
    "num_generated": 16, "private_metrics": True,
}  # fmt: skip
RECORD = SMALL | {
    "mode": "record", "principal_subspace": {"min_dimensions": 4}, "transport_steps": {"num_reference": 16},
}  # fmt: skip
FREQUENCIES = {"num_frequencies": 20}
# Subsamples are so small that many are empty.
EMPTY = {"expected_batch_size": 1}
MODES: dict[str, dict[str, Any]] = {
    "record": RECORD | EMPTY | {
        "target_epsilon": 20.0, "class_embedding": FREQUENCIES, "fine_tuning": {"embedding_steps": 4},
    },
    "record, tiny budget": RECORD | {"target_epsilon": 2.0, "noise_multiplier": 8.0},
    "record, fitted potential": RECORD | {
        "target_epsilon": 20.0, "transport_steps": {"num_reference": 16, "potential_iterations": 3},
        "class_embedding": {"budget_share": 0},
    },
    "embedding": SMALL | {
        "mode": "embedding", "target_epsilon": 5.0, "class_embedding": FREQUENCIES,
        "principal_subspace": {"min_dimensions": 4},
    },
    "batch": SMALL | EMPTY | {
        "mode": "batch", "target_epsilon": 20.0, "class_counts": {"prior": "histogram"},
        "batch_steps": {"queries_per_step": 3, "sinkhorn_iterations": 3},
    },
}  # fmt: skip


def records(seed: int) -> LabelledImages:
    """Different images and labels for different seeds, with the same public facts."""
    random = torch.Generator().manual_seed(seed)
    brightness = 60 if seed else 256
    pixels = torch.randint(0, brightness, (300, 1, 8, 8), generator=random, dtype=torch.uint8)
    labels = (torch.rand(300, generator=random) < (0.9 if seed else 0.2)).long()
    return LabelledImages(pixels, labels, ("no", "yes"))


def run(config: RunConfig, data: LabelledImages, folder: Path, curator: Any = Curator) -> str:
    """A whole run as the command line makes it. Returns what it printed and warned."""
    folder.mkdir()
    (folder / CONFIG).write_text(config.to_toml())
    output = StringIO()
    # Outputs may not depend on records. Those that depend on the clock are removed.
    view, log, handler = LiveView(Console(file=output, width=100)), getLogger("dp_sinkhorn"), StreamHandler(output)
    log.setLevel("INFO")
    log.addHandler(handler)
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("always")
        loop.train(config, data, folder, STAGES, view, curator)
    log.removeHandler(handler)
    lines = re.sub(r"\d+:\d\d:\d\d|[\d.]+ steps/s|… steps/s|-:--:--", "", output.getvalue()).replace(str(folder), "")
    return lines + "".join(str(warning.message) for warning in warned)


def config_of(name: str) -> RunConfig:
    return resolve(settings_of(None, MODES[name]), facts_of("toy", records(0)))


def kinds(releases: Iterable[tuple[float, float, int]]) -> Counter[tuple[str, float]]:
    """Number of releases of each noise multiplier and sample rate."""
    counts: Counter[tuple[str, float]] = Counter()
    for noise, rate, count in releases:
        counts[(f"{noise:.12g}", rate)] += count
    return counts


@pytest.mark.parametrize("name", MODES)
def test_the_releases_are_exactly_those_in_the_ledger(tmp_path, monkeypatch, name):
    ledger = tmp_path / "run" / "ledger.jsonl"
    rates, made = [], []
    sound, sound_draw = GaussianMechanism.__call__, PoissonSubsampler.__post_init__

    def charged() -> Counter[tuple[str, float]]:
        return kinds((charge.noise_multiplier, charge.sample_rate, charge.count) for charge in read_charges(ledger))

    def drawn(self: PoissonSubsampler) -> None:
        rates.append(self.sample_rate)
        sound_draw(self)

    def released(self: GaussianMechanism, total: Any, random: Any) -> Tensor:
        made.append((self.noise_stddev / total.sensitivity, rates[-1], total.queries))
        assert kinds(made) <= charged()  # before the noisy tensor exists
        return sound(self, total, random)

    monkeypatch.setattr(PoissonSubsampler, "__post_init__", drawn)
    monkeypatch.setattr(GaussianMechanism, "__call__", released)
    config = config_of(name)
    run(config, records(0), tmp_path / "run")
    assert kinds(made) == charged()
    assert charged() == kinds(
        (charge.noise_multiplier, charge.sample_rate, charge.count) for charge in config.plan.charges
    )


class PublicAnswers(Curator):
    """Draws, sums and adds noise as usual, and returns a fixed public sequence instead."""

    empty_draws = 0

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""
        noisy = super().ask(query)
        public = torch.Generator().manual_seed(len(self.ledger.heads) + self.taken(query.charge.name))
        scale = query.sensitivity * len(self.held.images) * query.charge.sample_rate
        return 0.1 * scale * torch.randn(noisy.shape, generator=public, dtype=torch.float64).abs()

    def _draw(self, query: Query) -> Any:
        draw = super()._draw(query)
        if draw.present is not None:
            PublicAnswers.empty_draws += int((draw.present.sum(1) == 0).sum())
        elif draw.index is not None:
            PublicAnswers.empty_draws += int(draw.index.numel() == 0)
        return draw


def handed_out(folder: Path) -> dict[str, bytes]:
    """Content of every file outside `private/`. No file contains a time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "private" not in path.parts
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", MODES)
def test_with_public_answers_nothing_outside_private_depends_on_records(tmp_path, monkeypatch, name):
    monkeypatch.setattr(loop, "new_identity", lambda test_seed: "0" * 32)
    PublicAnswers.empty_draws = 0
    config = config_of(name)
    outputs = [run(config, records(seed), tmp_path / str(seed), PublicAnswers) for seed in (0, 1)]
    first, second = (handed_out(tmp_path / str(seed)) for seed in (0, 1))
    assert first.keys() == second.keys()
    assert {"ledger.jsonl", "metrics.jsonl", "release/weights.safetensors", "release/card.json"} <= first.keys()
    assert any(name.startswith("samples/") for name in first)
    for path, content in first.items():
        assert content == second[path], path
    assert outputs[0] == outputs[1]
    assert "stage class_counts" in outputs[0]
    assert "ε spent ≤" in outputs[0]
    if config.plan.sample_rate < 0.01:
        assert PublicAnswers.empty_draws > 0
    # The private figures do depend on the records.
    if config.plan.queries_per_step:
        one, other = (rows_of(tmp_path / str(seed) / "private/metrics.jsonl") for seed in (0, 1))
        # An empty draw carries no signal, and the length of one that is clipped as a whole is the clip norm.
        assert one != other or not any(row["drawn"] and row["share_clipped"] < 1.0 for row in one + other)


def test_a_leak_past_the_curator_is_detected(tmp_path, monkeypatch):
    """The test above can fail: a step that divides by the drawn number."""
    sound, drawn = transport_steps.ClippedTransport.contributions, [1]

    def telling(self: Any, draw: Any) -> Any:
        drawn[0] += len(draw.labels)
        return sound(self, draw)

    weights = transport_steps.class_weights
    monkeypatch.setattr(transport_steps.ClippedTransport, "contributions", telling)
    monkeypatch.setattr(transport_steps, "class_weights", lambda counts: weights(counts) / drawn[0])
    monkeypatch.setattr(loop, "new_identity", lambda test_seed: "0" * 32)
    config = config_of("record")
    for seed in (0, 1):
        drawn[0] = 1 + seed
        run(config, records(seed), tmp_path / str(seed), PublicAnswers)
    assert handed_out(tmp_path / "0") != handed_out(tmp_path / "1")
