"""A run folder with ledger and release, made in a moment: untrained weights, everything else as a run leaves it."""

import math
from pathlib import Path

import torch
from torch import Tensor

from dp_sinkhorn.build import build_generator, resolve
from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.generators.corrected import CORRECTION_TENSORS
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.privacy.plan import CLASS_FEATURES, CLASS_MOMENTS, STEP
from dp_sinkhorn.release.weights import CLASSIFIER_WEIGHT, CORRECTION, REFINEMENT_FIELDS, write_release
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings

SMALL = {"target_epsilon": 0.3, "target_delta": 1e-4, "generator": "mlp", "width": 8, "channels": 8}
RECORD = {**SMALL, "num_steps": 12}
EMBEDDING = {**SMALL, "sanitize": "embedding", "num_steps": 12}
BATCH = {
    **SMALL,
    "sanitize": "batch",
    "noise_multiplier": 4.0,
    "num_steps": 5,
    "queries_per_step": 3,
    "class_prior": "uniform",
}


def make_run(folder: Path, names: tuple[str, ...] = ("cat", "dog"), **settings: object) -> Path:
    """Make `folder` with `config.toml`, `ledger.jsonl` and `release/`."""
    data = DataFacts(source="arrays", num_records=3000, shape=(1, 8, 9), class_names=names)
    config = resolve(make_settings(None, settings), data)
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml())
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
    for charge in (charge for charge in config.privacy.charges() if charge.name != STEP):
        ledger.charge(charge)
    for step in range(config.privacy.num_steps):
        for charge in config.privacy.step_charges(step, 1):
            ledger.charge(charge)
    clip = 1.0 if config.rules.sanitize == "embedding" else 0.5
    write_release(
        folder / "release",
        config,
        ledger.charges,
        (1.0,) if len(names) == 1 else (0.25, *[0.75 / (len(names) - 1)] * (len(names) - 1)),
        clip,
        2.0 * clip if config.rules.sanitize == "batch" else clip,
        untrained(config),
    )
    return folder


def untrained(config: RunConfig) -> dict[str, Tensor]:
    """Weights of the shapes that a release of this run has."""
    data = config.data
    tensors = build_generator(config.generator, data.shape, len(data.class_names)).state_dict()
    if CLASS_MOMENTS in config.privacy.once:
        random, size = torch.Generator().manual_seed(0), math.prod(data.shape)
        basis = torch.linalg.qr(torch.randn(size, 5, generator=random))[0]
        shapes = zip(CORRECTION_TENSORS[1:], ((5, 5), (num_bands(data.shape[0]),), (size,), (5, 5)), strict=True)
        tensors |= {f"{CORRECTION}.{name}": torch.zeros(len(data.class_names), *shape) for name, shape in shapes}
        tensors[f"{CORRECTION}.basis"] = basis
    of_classes = (len(data.class_names), num_features(data.shape))
    if CLASS_FEATURES in config.privacy.once:
        tensors[REFINEMENT_FIELDS] = torch.zeros(1, *of_classes)
    if config.privacy.classifier is not None:
        tensors[CLASSIFIER_WEIGHT] = torch.zeros(of_classes)
    return tensors
