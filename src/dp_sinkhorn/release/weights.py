"""The release: averaged weights and their card. The only way out of a run."""

import hashlib
import math
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dp_sinkhorn.build import build_generator, empty_generator
from dp_sinkhorn.estimators.linear_classifier import Classifier
from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CORRECTION_TENSORS, CorrectedGenerator
from dp_sinkhorn.generators.mixture import MEMBERS, MixtureGenerator
from dp_sinkhorn.generators.refined import RefinedGenerator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.io.atomic import whole_folder
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, read_bytes
from dp_sinkhorn.privacy.accounting import (
    ACCOUNTANT,
    NEIGHBORING_RELATION,
    Charge,
    epsilon_pld,
    epsilons,
    merged,
)
from dp_sinkhorn.privacy.plan import CLASS_COUNTS, CLASSIFIER, STEP, Sanitize, budget_warnings
from dp_sinkhorn.privacy.random import SAMPLER
from dp_sinkhorn.release.card import NOT_PRIVATE, ClassPriorFacts, PrivacyCard
from dp_sinkhorn.release.model_card import model_card
from dp_sinkhorn.release.signature import MAX_KEY_BYTES, SIGNATURE
from dp_sinkhorn.settings import RunConfig

WEIGHTS, CARD, README = "weights.safetensors", "card.json", "README.md"
MAX_WEIGHTS_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20  # of safetensors: some 10,000 tensors, where a generator has some dozens
TREATED_AS_PUBLIC = (
    "the number of records",
    "the label set and its names",
    "the image size and range, and whether images are grey or colour",
    "all settings of the run",
)
MECHANISM = {
    "record": "Poisson-subsampled Gaussian: the sum of per-record transport gradients, each clipped to L2 norm "
    "clip_norm (sensitivity clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on "
    "every coordinate",
    "batch": "Poisson-subsampled Gaussian: the transport gradient of a whole subsample, clipped to L2 norm clip_norm "
    "(sensitivity 2 × clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on every "
    "coordinate; queries_per_step such releases a step, each on a subsample of its own",
    "embedding": "Gaussian, once, on all records: the sum of per-record random Fourier features, class by class, each "
    "of L2 norm at most clip_norm (sensitivity clip_norm), plus normal noise of standard deviation noise_multiplier × "
    "sensitivity on every number; the steps see no record",
}
RELEASED_ONCE = "; and once, on all records, Gaussian releases of sensitivity 1"
CLASSIFIED = (
    "; and before the first step, to train a classifier, Poisson-subsampled Gaussian releases of the sum of per-record "
    "gradients of its loss, each clipped, with noise of standard deviation noise_multiplier × sensitivity"
)
CORRECTION, REFINEMENT_FIELDS, CLASSIFIER_WEIGHT = "correction", "refinement.fields", "classifier.weight"
TUNING = "not charged: the defaults are public rules; if you chose settings by looking at private data, add that cost"


def mechanism(sanitize: Sanitize, charges: Sequence[Charge]) -> str:
    """How everything in `charges` was released, in words."""
    names = {charge.name for charge in charges}
    once = RELEASED_ONCE if names - {STEP, CLASSIFIER} else ""
    return MECHANISM[sanitize] + once + (CLASSIFIED if CLASSIFIER in names else "")


def make_card(
    config: RunConfig,
    charges: list[Charge],
    class_shares: tuple[float, ...],
    clip_norm: float,
    sensitivity: float,
    weights: bytes,
    corrected_dimensions: int = 0,
    refinement_steps: int = 0,
    warnings: tuple[str, ...] = (),
) -> PrivacyCard:
    """The card of a run, its ε recomputed from the ledger's charges."""
    plan, sanitize = config.privacy, config.rules.sanitize
    spent = merged(charges)
    bounds = epsilons(spent, plan.target_delta)
    counted = [charge for charge in spent if charge.name == CLASS_COUNTS]
    private = config.settings.test_seed is None
    known_before = budget_warnings(plan.target_epsilon, plan.target_delta, plan.num_records)
    return PrivacyCard(
        private=private,
        epsilon=bounds.pld,
        epsilon_rdp=bounds.rdp,
        delta=plan.target_delta,
        neighboring_relation=NEIGHBORING_RELATION,
        accountant=ACCOUNTANT,
        sanitize=sanitize,
        mechanism=mechanism(sanitize, spent),
        charges=tuple(spent),
        num_records=plan.num_records,
        num_steps=(
            sum(charge.count for charge in spent if charge.name == STEP) // plan.queries_per_step
            if plan.queries_per_step
            else plan.num_steps
        ),
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
        corrected_dimensions=corrected_dimensions,
        refinement_steps=refinement_steps,
        matching_steps=config.matching.num_steps if config.matching else 0,
        kept_share=config.kept_share,
        classifier="linear, on scattering features" if plan.classifier else None,
        tuning=TUNING,
        randomness=SAMPLER if private else f"fixed test seed; {NOT_PRIVATE}",
        treated_as_public=TREATED_AS_PUBLIC,
        warnings=tuple(text for text in (None if private else NOT_PRIVATE, *known_before, *warnings) if text),
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
    warnings: tuple[str, ...] = (),
) -> PrivacyCard:
    """Write `weights.safetensors`, `card.json` and `README.md`; the folder appears whole or not at all."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    basis = tensors.get(f"{CORRECTION}.basis")
    dimensions = 0 if basis is None else basis.shape[1]
    steps = len(tensors.get(REFINEMENT_FIELDS, ()))
    card = make_card(config, charges, class_shares, clip_norm, sensitivity, weights, dimensions, steps, warnings)
    with whole_folder(folder) as partial:
        (partial / WEIGHTS).write_bytes(weights)
        (partial / CARD).write_text(card.to_json(), encoding="utf-8")
        (partial / README).write_text(model_card(card), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return card


def find_release(path: Path) -> Path:
    """The release folder of a run folder, or the folder itself.

    Raises:
        InputError: There is none.
    """
    try:
        for folder in (path / "release", path):
            if (folder / CARD).is_file():
                return folder
        unfinished = (path / "config.toml").is_file()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a run or a release folder") from None
    if unfinished:
        raise InputError(f"{path} is a run that has not finished; continue it with train --resume")
    raise InputError(f"{path} is neither a run nor a release; give a folder that holds {CARD} or release/{CARD}")


def load_release(path: Path) -> tuple[PrivacyCard, Generator]:
    """The card and the generator of a release (or of a finished run), with all that stands around it.

    Raises:
        InputError: The release is missing, damaged, or its weights are not those of its card.
    """
    folder = find_release(path)
    card = PrivacyCard.from_file(folder / CARD)
    tensors = read_tensors(folder, card)
    weight = tensors.pop(CLASSIFIER_WEIGHT, None)
    fields = tensors.pop(REFINEMENT_FIELDS, None)
    correction = [tensors.pop(name) for name in _correction_shapes(card)]
    generator = _loaded(card, tensors)
    if correction:
        generator = CorrectedGenerator(generator, *correction)
    if weight is not None:
        generator = RejectingGenerator(generator, Classifier(card.image_shape, weight))
    if fields is not None:
        generator = RefinedGenerator(generator, fields)
    return card, generator.eval()


def read_tensors(folder: Path, card: PrivacyCard) -> dict[str, Tensor]:
    """The weights: exactly those of the card's generator and classifier, all finite. Neither is built.

    Raises:
        InputError: The file is missing, damaged, not the one that the card describes, or its tensors are not usable.
    """
    path = folder / WEIGHTS
    content = read_weights(folder, card)
    if int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:
        raise InputError(f"{path} has a header of more than {MAX_HEADER_BYTES} bytes; give an undamaged release")
    try:
        tensors = load(content)
    # The dtypes of other programs (packed numbers of 4 bits, say) have no name in this PyTorch.
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; give an undamaged release") from None
    wanted = empty_generator(card.generator, card.image_shape, len(card.class_names)).state_dict()
    if card.kept_share:
        wanted = {f"{member}.{name}": shape for member in MEMBERS for name, shape in wanted.items()}
    wanted |= {name: torch.empty(shape, device="meta") for name, shape in _correction_shapes(card).items()}
    of_classes = (len(card.class_names), num_features(card.image_shape))
    if card.refinement_steps:
        wanted[REFINEMENT_FIELDS] = torch.empty(card.refinement_steps, *of_classes, device="meta")
    if card.classifier is not None:
        wanted[CLASSIFIER_WEIGHT] = torch.empty(of_classes, device="meta")
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != {
        name: (value.shape, value.dtype) for name, value in wanted.items()
    }:
        raise InputError(f"{path} does not fit its card: other tensors; give an undamaged release")
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise InputError(f"{path} holds numbers in {name} that are not finite; give an undamaged release")
    return tensors


def _loaded(card: PrivacyCard, tensors: dict[str, Tensor]) -> Generator:
    """The generator of the card, or two where some images come from before its last steps."""
    classes = len(card.class_names)
    generator = build_generator(card.generator, card.image_shape, classes)
    if card.kept_share:
        kept = build_generator(card.generator, card.image_shape, classes)
        generator = MixtureGenerator(generator, kept, card.kept_share)
    generator.load_state_dict(tensors)
    return generator


def _correction_shapes(card: PrivacyCard) -> dict[str, tuple[int, ...]]:
    """The tensors of the card's correction, in the order of `CorrectedGenerator`; none if it has none."""
    size, classes, pixels = card.corrected_dimensions, len(card.class_names), math.prod(card.image_shape)
    shapes: tuple[tuple[int, ...], ...] = (
        (pixels, size),
        (classes, size, size),
        (classes, num_bands(card.image_shape[0])),
        (classes, pixels),
        (classes, size, size),
    )
    named = zip(CORRECTION_TENSORS, shapes, strict=True)
    return {f"{CORRECTION}.{name}": shape for name, shape in named} if size else {}


def read_weights(folder: Path, card: PrivacyCard) -> bytes:
    """The weights file, checked against the card's hash.

    Raises:
        InputError: It is missing, too large, or another file than the card describes.
    """
    path = folder / WEIGHTS
    content = read_bytes(path, MAX_WEIGHTS_BYTES, "give an undamaged release")
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise InputError(f"{path} is not the file that its card describes (SHA-256 differs); give the original release")
    return content


def release_files(folder: Path, card: PrivacyCard) -> dict[str, bytes]:
    """The files of a release by name: weights, card and signature as they are, and the README of that card."""
    files = {
        WEIGHTS: read_weights(folder, card),
        CARD: read_bytes(folder / CARD, MAX_TEXT_BYTES, "give an undamaged release"),
        README: model_card(card).encode(),
    }
    if (folder / SIGNATURE).is_file():
        files[SIGNATURE] = read_bytes(folder / SIGNATURE, MAX_KEY_BYTES, "give an undamaged release")
    return files
