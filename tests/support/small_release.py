"""A quickly made run folder with ledger and release: untrained weights, everything else as in a real run."""

from pathlib import Path

import torch

from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import write_release
from dp_sinkhorn.settings import DataFacts, RunConfig
from dp_sinkhorn.stages.base import State

SMALL = {"target_epsilon": 0.3, "target_delta": 1e-4, "generator": "mlp", "width": 8, "channels": 8}
RECORD = {**SMALL, "num_steps": 12}
EMBEDDING = {**SMALL, "mode": "embedding", "num_steps": 12}
BATCH = {
    **SMALL,
    "mode": "batch",
    "noise_multiplier": 4.0,
    "num_steps": 5,
    "batch_steps": {"queries_per_step": 3},
    "class_counts": {"prior": "uniform"},
}
# All stages of the mode.
TUNED = {**RECORD, "class_embedding": {"budget_share": 0.1}}
DIMENSIONS = 5


def make_run(folder: Path, names: tuple[str, ...] = ("cat", "dog"), run: str = 32 * "0", **settings: object) -> Path:
    """Make `folder` with `config.toml`, `ledger.jsonl` and `release/`."""
    data = DataFacts(source="arrays", num_records=3000, shape=(1, 8, 9), class_names=names)
    config = resolve(settings_of(None, settings), data)
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml())
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.begin(Header(run=run, config_sha256=config.sha256()))
    for charge in config.plan.charges:
        # As a run charges them: those of a step before the step.
        block = config.plan.queries_per_step if charge.name == config.plan.learns else 0
        for first in range(0, charge.count, block or charge.count):
            ledger.charge(charge.model_copy(update={"first": first, "count": block or charge.count}))
    make_release(folder / "release", config, ledger.charges)
    return folder


def make_release(folder: Path, config: RunConfig, charges: list[Charge]) -> PrivacyCard:
    """Write the release of this run, with untrained weights."""
    return write_release(folder, finished_state(config), charges, STAGES)


def finished_state(config: RunConfig) -> State:
    """The state of a finished run: untrained, but right in every public fact."""
    count = config.data.num_classes
    generator = build_generator(config.generator, config.data.shape, count)
    trains = STAGES[config.trains]
    state = State(config, generator, generator, trains.optimiser(generator, config.learning_rate))
    shares = (1.0,) if count == 1 else (0.25, *[0.75 / (count - 1)] * (count - 1))
    state.learnt["counts"] = config.data.num_records * torch.tensor(shares, dtype=torch.float64)
    STAGES["class_counts"].finish(state)
    state.clip_norm = 1.0 if config.mode == "embedding" else 0.5
    state.sensitivity = 2.0 * state.clip_norm if config.mode == "batch" else state.clip_norm
    for stage in STAGES.running(config):
        state.spec = stage.network(state.spec, config, DIMENSIONS)
        state.steps_after += stage.finishing_steps(config)
    state.finished = build_generator(state.spec, config.data.shape, count)
    return state
