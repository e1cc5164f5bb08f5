"""The release: averaged weights and their card. The only way out of a run."""

import hashlib
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dp_sinkhorn.build import build_generator
from dp_sinkhorn.card import NOT_PRIVATE, ClassPriorFacts, PrivacyCard
from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.model_card import model_card
from dp_sinkhorn.privacy.accounting import (
    ACCOUNTANT,
    NEIGHBORING_RELATION,
    Charge,
    epsilon_pld,
    epsilons,
    merged,
)
from dp_sinkhorn.privacy.plan import CLASS_COUNTS, STEP, delta_warning
from dp_sinkhorn.privacy.random import SAMPLER

WEIGHTS, CARD, README = "weights.safetensors", "card.json", "README.md"
MAX_WEIGHTS_BYTES = 1 << 30
TREATED_AS_PUBLIC = (
    "the number of records",
    "the label set and its names",
    "the image size and range",
    "all settings of the run",
)
MECHANISM = {
    "record": "Poisson-subsampled Gaussian: the sum of per-record transport gradients, each clipped to L2 norm "
    "clip_norm (sensitivity clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on "
    "every coordinate",
    "batch": "Poisson-subsampled Gaussian: the transport gradient of a whole subsample, clipped to L2 norm clip_norm "
    "(sensitivity 2 × clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on every "
    "coordinate; queries_per_step such releases a step, each on a subsample of its own",
}
RELEASED_ONCE = "; and once, on all records, Gaussian releases of sensitivity 1"
TUNING = "not charged: the defaults are public rules; if you chose settings by looking at private data, add that cost"


def make_card(
    config: RunConfig,
    charges: list[Charge],
    class_shares: tuple[float, ...],
    clip_norm: float,
    sensitivity: float,
    weights: bytes,
) -> PrivacyCard:
    """The card of a run, its ε recomputed from the ledger's charges."""
    plan, settings = config.privacy, config.settings
    spent = merged(charges)
    bounds = epsilons(spent, plan.target_delta)
    counted = [charge for charge in spent if charge.name == CLASS_COUNTS]
    private = settings.test_seed is None
    warning = delta_warning(plan.target_delta, plan.num_records)
    return PrivacyCard(
        private=private,
        epsilon=bounds.pld,
        epsilon_rdp=bounds.rdp,
        delta=plan.target_delta,
        neighboring_relation=NEIGHBORING_RELATION,
        accountant=ACCOUNTANT,
        sanitize=settings.sanitize,
        mechanism=MECHANISM[settings.sanitize] + (RELEASED_ONCE if plan.once else ""),
        charges=tuple(spent),
        num_records=plan.num_records,
        num_steps=sum(charge.count for charge in spent if charge.name == STEP) // plan.queries_per_step,
        queries_per_step=plan.queries_per_step,
        sample_rate=plan.sample_rate,
        expected_batch_size=plan.expected_batch_size,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=clip_norm,
        sensitivity=sensitivity,
        class_prior=ClassPriorFacts(
            how="noisy histogram" if counted else "declared",
            shares=class_shares,
            epsilon_alone=epsilon_pld(counted, plan.target_delta) if counted else 0.0,
        ),
        tuning=TUNING,
        randomness=SAMPLER if private else f"fixed test seed; {NOT_PRIVATE}",
        treated_as_public=TREATED_AS_PUBLIC,
        warnings=tuple(text for text in (None if private else NOT_PRIVATE, warning) if text),
        image_shape=config.data.shape,
        class_names=config.data.class_names,
        generator=config.generator,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        software=f"dp-sinkhorn {version('dp-sinkhorn')}",
    )


def write_release(
    folder: Path,
    config: RunConfig,
    charges: list[Charge],
    class_shares: tuple[float, ...],
    clip_norm: float,
    sensitivity: float,
    tensors: dict[str, Tensor],
) -> PrivacyCard:
    """Write `weights.safetensors`, `card.json` and `README.md`; the folder appears whole or not at all."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    card = make_card(config, charges, class_shares, clip_norm, sensitivity, weights)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / WEIGHTS).write_bytes(weights)
    (partial / CARD).write_text(card.to_json(), encoding="utf-8")
    (partial / README).write_text(model_card(card), encoding="utf-8")
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return card


def find_release(path: Path) -> Path:
    """The release folder of a run folder, or the folder itself.

    Raises:
        InputError: There is none.
    """
    for folder in (path / "release", path):
        if (folder / CARD).is_file():
            return folder
    if (path / "config.toml").is_file():
        raise InputError(f"{path} is a run that has not finished; continue it with train --resume")
    raise InputError(f"{path} is neither a run nor a release; give a folder that holds {CARD} or release/{CARD}")


def load_release(path: Path) -> tuple[PrivacyCard, Generator]:
    """The card and the generator of a release (or of a finished run).

    Raises:
        InputError: The release is missing, damaged, or its weights are not those of its card.
    """
    folder = find_release(path)
    card = PrivacyCard.from_file(folder / CARD)
    generator = build_generator(card.generator, card.image_shape, len(card.class_names))
    try:
        generator.load_state_dict(load(read_weights(folder, card)))
    except (SafetensorError, RuntimeError):
        raise InputError(f"{folder / WEIGHTS} does not fit its card; give an undamaged release") from None
    return card, generator.eval()


def read_weights(folder: Path, card: PrivacyCard) -> bytes:
    """The weights file, checked against the card's hash.

    Raises:
        InputError: It is missing, too large, or another file than the card describes.
    """
    path = folder / WEIGHTS
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise InputError(f"{path} is larger than {MAX_WEIGHTS_BYTES} bytes; give an undamaged release")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a whole release") from None
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise InputError(f"{path} is not the file that its card describes (SHA-256 differs); give the original release")
    return content
