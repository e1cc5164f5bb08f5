"""Toy records, settings of a quick run on them, and such runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.settings import RunConfig, Settings
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.loop import TrainingResult

_RECORD = {
    "mode": "record", "num_steps": 20, "num_generated": 16, "width": 16, "channels": 8,
    "principal_subspace": {"min_dimensions": 4}, "transport_steps": {"num_reference": 16},
}  # fmt: skip

# Every stage runs: two seconds per run.
SMALL = _RECORD | {"fine_tuning": {"num_steps": 4}}

# The steps and what they need only: 0.2 seconds per run.
STEPS_ONLY = {
    "generator": "mlp", "class_moments": {"budget_share": 0}, "class_features": {"budget_share": 0},
    "label_classifier": {"budget_share": 0},
}  # fmt: skip
_COMMON = {"num_steps": 20, "num_generated": 16, "width": 16, "generator": "mlp"}
LEAN = {
    "record": _RECORD | STEPS_ONLY | {"class_embedding": {"budget_share": 0}},
    "embedding": _COMMON | STEPS_ONLY | {
        "mode": "embedding", "principal_subspace": {"min_dimensions": 4}, "class_embedding": {"num_frequencies": 50},
        "fine_tuning": {"num_steps": 4},
    },
    "batch": _COMMON | {
        "mode": "batch", "expected_batch_size": 20,
        "batch_steps": {"queries_per_step": 2, "sinkhorn_iterations": 5},
    },
}  # fmt: skip

# Number of releases of each name before the steps, in any mode.
BEFORE_THE_STEPS = {
    "class_counts": 1, "principal_subspace.first_moments": 1, "principal_subspace.second_moment": 1,
    "class_moments": 1, "class_features": 1, "label_classifier": 200,
}  # fmt: skip


def toy(count: int = 300, classes: int = 2, seed: int = 0) -> LabelledImages:
    """Class k has a bright block in its own quarter, with noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 150
    return LabelledImages(pixels, labels, tuple(map(str, range(classes))))


def changed(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The values with changes. Other settings of a changed stage are kept."""
    tables = {name: {**base.get(name, {}), **new} for name, new in changes.items() if isinstance(new, Mapping)}
    return {**base, **changes, **tables}


def settings(base: Mapping[str, Any] = SMALL, **changes: Any) -> Settings:
    """Settings of a run on toy records."""
    return settings_of(None, changed(base, **changes))


def config(data: LabelledImages | None = None, base: Mapping[str, Any] = LEAN["record"], **changes: Any) -> RunConfig:
    """A resolved run on toy records."""
    return resolve(settings(base, **changes), runs.facts_of("toy", toy() if data is None else data))


def start(
    folder: Path, data: LabelledImages | None = None, base: Mapping[str, Any] = LEAN["record"], **changes: Any
) -> TrainingResult:
    """Train in a new folder."""
    data = toy() if data is None else data
    return runs.start(data, config(data, base, **changes), folder, STAGES)


def resume(folder: Path, data: LabelledImages | None = None, **given: Any) -> TrainingResult:
    """Continue the run in a folder."""
    return runs.resume(toy() if data is None else data, folder, given, STAGES)


def pairs(values: Mapping[str, Any]) -> list[str]:
    """Settings as the command line takes them: --set KEY=VALUE, and --set STAGE.KEY=VALUE."""
    found: list[str] = []
    for name, value in values.items():
        table = value if isinstance(value, Mapping) else {"": value}
        found += [part for key, own in table.items() for part in ("--set", f"{name}{'.' * bool(key)}{key}={own}")]
    return found
