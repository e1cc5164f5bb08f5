"""Write and read a release: weights, card and model card."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator, empty_generator
from dp_sinkhorn.io.atomic import whole_folder
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, read_bytes
from dp_sinkhorn.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, Charge, epsilons, merged
from dp_sinkhorn.privacy.plan import budget_warnings
from dp_sinkhorn.privacy.random import SAMPLER
from dp_sinkhorn.release.card import NOT_PRIVATE, PrivacyCard, StageEntry
from dp_sinkhorn.release.model_card import model_card
from dp_sinkhorn.release.signature import MAX_KEY_BYTES, SIGNATURE
from dp_sinkhorn.release.version_1 import present_names

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stage, Stages, State

WEIGHTS, CARD, README = "weights.safetensors", "card.json", "README.md"
MAX_WEIGHTS_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file: room for 10,000 tensors; a generator has some dozens
TREATED_AS_PUBLIC = (
    "the number of records N, the same for both neighbours",
    "the label set and its names",
    "the image size and range, and whether images are grey or colour",
    "all settings of the run",
)
RELEASED_ONCE = "once, on all records, Gaussian releases of sensitivity 1"
TUNING = "not charged: the defaults are public rules; if you chose settings by looking at private data, add that cost"


def mechanism(card_stages: "Iterable[Stage]", charges: Sequence[Charge]) -> str:
    """How everything in `charges` was released, in words."""
    charged = {charge.name.partition(".")[0] for charge in charges}
    found = [stage for stage in card_stages if stage.name in charged]
    words = [stage.mechanism for stage in reversed(found) if stage.mechanism]
    if any(not stage.mechanism for stage in found):
        words.insert(1, RELEASED_ONCE)
    return "; and ".join(words)


def make_card(state: "State", charges: list[Charge], stages: "Stages", weights: bytes) -> PrivacyCard:
    """The card of a finished run, its ε recomputed from the ledger's charges."""
    config, plan, found = state.config, state.plan, stages.running(state.config)
    spent = merged(charges)
    bounds = epsilons(spent, plan.target_delta)
    private = config.settings.test_seed is None
    known_before = budget_warnings(plan.target_epsilon, plan.target_delta, plan.num_records)
    of_stages = [text for stage in found for text in stage.warnings(state)]
    learned = sum(charge.count for charge in spent if charge.name == plan.learns)
    queries = plan.queries_per_step
    assert state.class_prior is not None  # noqa: S101 - a finishing stage has set it
    return PrivacyCard(
        private=private,
        epsilon=bounds.pld,
        epsilon_rdp=bounds.rdp,
        delta=plan.target_delta,
        neighboring_relation=NEIGHBORING_RELATION,
        accountant=ACCOUNTANT,
        mode=config.mode,
        mechanism=mechanism(found, spent),
        charges=tuple(spent),
        num_records=plan.num_records,
        num_steps=learned // queries if queries else plan.num_steps,
        queries_per_step=queries,
        sample_rate=plan.sample_rate,
        expected_batch_size=plan.expected_batch_size,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=state.clip_norm,
        sensitivity=state.sensitivity,
        class_prior=state.class_prior,
        stages=tuple(StageEntry(name=stage.name, facts=stage.facts(state).model_dump(mode="json")) for stage in found),
        tuning=TUNING,
        randomness=SAMPLER if private else f"fixed test seed; {NOT_PRIVATE}",
        treated_as_public=TREATED_AS_PUBLIC,
        warnings=tuple(text for text in (None if private else NOT_PRIVATE, *known_before, *of_stages) if text),
        image_shape=config.data.shape,
        class_names=config.data.class_names,
        generator=state.spec,
        reading=config.settings.reading,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        software=f"dp-sinkhorn {version('dp-sinkhorn')}",
    )


def write_release(folder: Path, state: "State", charges: list[Charge], stages: "Stages") -> PrivacyCard:
    """Write `weights.safetensors`, `card.json` and `README.md`; the folder appears atomically."""
    tensors = state.finished.state_dict()
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    card = make_card(state, charges, stages, weights)
    with whole_folder(folder) as partial:
        (partial / WEIGHTS).write_bytes(weights)
        (partial / CARD).write_text(card.to_json(), encoding="utf-8")
        (partial / README).write_text(model_card(card, stages), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return card


def find_release(path: AnyPath) -> Path:
    """The release folder of a run folder, or the folder itself if it is a release.

    Raises:
        InputError: There is no release.
    """
    path = Path(path)
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


def load_release(path: AnyPath, stages: "Stages") -> tuple[PrivacyCard, Generator]:
    """The card and the generator of a release, or of a finished run.

    Raises:
        InputError: The release is missing or damaged, lists an unknown stage, or its weights are not those of its card.
    """
    folder = find_release(path)
    card = PrivacyCard.from_file(folder / CARD)
    stages.facts_of(card)  # refuses stages that this version does not know
    tensors = read_tensors(folder, card, stages)
    generator = build_generator(card.generator, card.image_shape, len(card.class_names))
    generator.load_state_dict({name: tensors[name] for name in generator.state_dict()})
    return card, card.layers.wrap(generator, tensors).eval()


def read_tensors(folder: Path, card: PrivacyCard, stages: "Stages") -> dict[str, Tensor]:
    """Read the weights: exactly the tensors of the card's generator, all finite. Builds no network.

    Raises:
        InputError: The file is missing, damaged, not the one that the card describes, or its tensors are not usable.
    """
    path = folder / WEIGHTS
    content = read_weights(folder, card)
    if int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:
        raise InputError(f"{path} has a header of more than {MAX_HEADER_BYTES} bytes; give an undamaged release")
    try:
        tensors = load(content)
    # Other programs may write dtypes that this PyTorch does not know, for example packed numbers of 4 bits.
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; give an undamaged release") from None
    if card.card_version == 1:
        tensors = present_names(tensors)
    own = empty_generator(card.generator, card.image_shape, len(card.class_names)).state_dict()
    wanted = {name: (value.shape, value.dtype) for name, value in own.items()}
    shapes = card.layers.shapes(card.generator, card.image_shape, len(card.class_names))
    wanted |= {name: (torch.Size(shape), _dtype(name, own)) for name, shape in shapes.items()}
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != wanted:
        raise InputError(f"{path} does not fit its card: other tensors; give an undamaged release")
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise InputError(f"{path} holds numbers in {name} that are not finite; give an undamaged release")
    return tensors


def _dtype(name: str, own: dict[str, Tensor]) -> torch.dtype:
    """The dtype of a layer's tensor: that of the generator's tensor which it copies, else float32."""
    copied = own.get(name.partition(".")[2])
    return torch.float32 if copied is None else copied.dtype


def read_weights(folder: Path, card: PrivacyCard) -> bytes:
    """Read the weights file and check it against the card's hash.

    Raises:
        InputError: It is missing, too large, or not the file that the card describes.
    """
    path = folder / WEIGHTS
    content = read_bytes(path, MAX_WEIGHTS_BYTES, "give an undamaged release")
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise InputError(f"{path} is not the file that its card describes (SHA-256 differs); give the original release")
    return content


def release_files(folder: Path, card: PrivacyCard, stages: "Stages") -> dict[str, bytes]:
    """The files of a release by name: weights, card and signature unchanged, and a README written for that card."""
    files = {
        WEIGHTS: read_weights(folder, card),
        CARD: read_bytes(folder / CARD, MAX_TEXT_BYTES, "give an undamaged release"),
        README: model_card(card, stages).encode(),
    }
    if (folder / SIGNATURE).is_file():
        files[SIGNATURE] = read_bytes(folder / SIGNATURE, MAX_KEY_BYTES, "give an undamaged release")
    return files
