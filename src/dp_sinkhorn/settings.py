"""The configuration of a run: plain frozen data, TOML in and out."""

import hashlib
import json
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dp_sinkhorn.generators.spec import (
    MAX_CHANNELS,
    MAX_DIMENSIONS,
    MAX_LATENT_DIM,
    MAX_WIDTH,
    GeneratorSpec,
    ImageShape,
)
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, parse_toml, read_bytes, shown
from dp_sinkhorn.privacy.accounting import MAX_COUNT, check_analysable
from dp_sinkhorn.privacy.plan import (
    CLASS_EMBEDDING,
    CLASSIFIER,
    PrivacyPlan,
    Sanitize,
    check_target,
    default_embedding_share,
    default_sanitize,
    make_plan,
)

# Far beyond any sensible run, and small enough that nothing overflows; what a step would hold in all is bounded
# in `build`, by `MAX_PARAMETERS` and `MAX_STEP_NUMBERS`.
MAX_IMAGES_A_STEP = 10**6
MAX_ITERATIONS = 10**6
MAX_QUERIES_A_STEP = 10**5
MAX_RECORDS = 10**12
MAX_FREQUENCIES = 10**5
MAX_NUMBER = 1e30  # of a weight, norm or rate: beyond it float32 itself overflows

_Positive = Annotated[float, Field(gt=0.0, le=MAX_NUMBER, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0.0, le=MAX_NUMBER, allow_inf_nan=False)]
# In units of the data's √V and V. Below these, the rounding of distances would no longer be small beside a clip norm.
_RelativeNorm = Annotated[float, Field(ge=0.01, le=MAX_NUMBER, allow_inf_nan=False)]
_RelativeReg = Annotated[float, Field(ge=1e-4, le=MAX_NUMBER, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
_Images = Annotated[int, Field(ge=1, le=MAX_IMAGES_A_STEP)]
_Iterations = Annotated[int, Field(ge=0, le=MAX_ITERATIONS)]
_Queries = Annotated[int, Field(ge=1, le=MAX_QUERIES_A_STEP)]
_Frequencies = Annotated[int, Field(ge=1, le=MAX_FREQUENCIES)]
_Dimensions = Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]
_Name = Annotated[str, Field(min_length=1, max_length=4096)]

# Queries a generator step where a whole batch is sanitised: they share the generator's passes.
_QUERIES = 64
# Chosen on MNIST and PneumoniaMNIST: docs/tried.md.
MOMENTS_SHARE, FEATURES_SHARE, CLASSIFIER_SHARE = 0.25, 0.05, 0.15
_RELEASED_BEFORE = {"moments_share", "features_share", "classifier_share"}
# Settings that may differ when a run goes on: they change nothing that is released.
HARMLESS = ("device", "private_metrics")
_RECIPES = Path(__file__).parent / "recipes"


class EmbeddingFeatures(BaseModel):
    """What the class embedding is the sum of.

    Args:
        num_frequencies: M of each kernel, of random Fourier features: M cosines and M sines.
        relative_width: Of the kernel of pixels, in units of the data's V: exp(−‖x − y‖²/(4·relative_width·V)).
        wavelet_weight: Of the kernel of wavelet features ψ in the sum of both; 0: there is none.
        wavelet_width: Of that kernel: exp(−‖ψ(x) − ψ(y)‖²/(4·wavelet_width)).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frequencies: _Frequencies
    relative_width: _RelativeReg
    wavelet_weight: _Share
    wavelet_width: _RelativeReg


class MatchingRules(EmbeddingFeatures):
    """Constants of the steps on a class embedding that follow those record by record, and see no record.

    Args:
        num_generated: Images a step. kept_share: Of the images of a release, so many are made by the generator as it
            was before these steps.
    """

    num_steps: Annotated[int, Field(ge=1, le=MAX_ITERATIONS)]
    num_generated: _Images
    learning_rate: _Positive
    kept_share: _Share


class RecordRules(BaseModel):
    """Constants of the step that sanitises record by record.

    Args:
        matching: What follows the steps; None: nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sanitize: Literal["record"] = "record"
    num_reference: _Images
    relative_clip_norm: _RelativeNorm
    relative_reg: _RelativeReg
    potential_iterations: _Iterations
    min_dimensions: _Dimensions
    rest_weight: _NotNegative
    matching: MatchingRules | None = None


class EmbeddingRules(EmbeddingFeatures):
    """Constants of the class embedding that is released once, in place of what steps would release."""

    sanitize: Literal["embedding"] = "embedding"
    min_dimensions: _Dimensions


class BatchRules(BaseModel):
    """Constants of the step that sanitises whole batches.

    Args:
        num_fresh: n′, images of the debiasing term beyond the n that the records see.
        capacity: Records a query can hold; more than that are drawn less than once in 10,000 queries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sanitize: Literal["batch"] = "batch"
    queries_per_step: _Queries
    num_fresh: Annotated[int, Field(ge=0, le=MAX_IMAGES_A_STEP)]
    capacity: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    clip_norm: _Positive
    reg: _Positive
    start_reg: _Positive
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=MAX_ITERATIONS)]
    l1_weight: _NotNegative
    label_weight: Annotated[float, Field(ge=0.0)]
    debias_fraction: Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """What a user may choose. Every default is a public rule: none looks at the data.

    `None` is filled in from ε, δ, the number of records, the image shape and the number of classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Privacy. The range of the batch is checked where the plan is made.
    target_epsilon: float = 10.0
    target_delta: float = 1e-5
    num_steps: Annotated[int, Field(le=MAX_COUNT)] | None = None
    noise_multiplier: _Positive | None = None  # None: calibrated; given: the run is as long as ε allows
    expected_batch_size: Annotated[int, Field(le=MAX_RECORDS)] | None = None
    class_prior: Literal["histogram", "uniform"] | tuple[_Positive, ...] | None = None
    # Fixes noise and subsamples: for tests, and NOT PRIVATE.
    test_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    # What is bounded and noised: each record's contribution to each step, or the gradient of a whole batch (the paper),
    # or each record's features, once; None: by the budget.
    sanitize: Sanitize | None = None
    num_generated: _Images | None = None

    # Record by record: clip norm in units of the data's released standard deviation √V, reg in units of V.
    num_reference: _Images | None = None
    relative_clip_norm: _RelativeNorm | None = None
    relative_reg: _RelativeReg | None = None
    potential_iterations: _Iterations | None = None
    min_dimensions: _Dimensions | None = None
    rest_weight: _NotNegative | None = None
    # Released once: random Fourier features; the width, in units of V, of the kernel of pixels; weight and width of the
    # other.
    num_frequencies: _Frequencies | None = None
    relative_width: _RelativeReg | None = None
    wavelet_weight: _Share | None = None
    wavelet_width: _RelativeReg | None = None

    # Not for whole batches. Of the budget: for each class's moments, by which the trained generator is corrected, for
    # its mean features, by which images are refined, and for the classifier that samples are checked with; 0: none.
    moments_share: _Share | None = None
    features_share: _Share | None = None
    classifier_share: _Share | None = None
    # Record by record: for an embedding of the classes, by which so many steps more see no record; 0: none.
    embedding_share: _Share | None = None
    matching_steps: Annotated[int, Field(ge=1, le=MAX_ITERATIONS)] | None = None

    # Whole batches: everything in units of the cost, pixels in [-1, 1].
    queries_per_step: _Queries | None = None
    clip_norm: _Positive | None = None
    reg: _Positive | None = None
    start_reg: _Positive | None = None
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=MAX_ITERATIONS)] | None = None
    l1_weight: _NotNegative | None = None
    label_weight: Annotated[float, Field(ge=0.0)] | None = None  # inf: transport within the class only
    debias_fraction: Annotated[float, Field(ge=0.0, le=1.0)] | None = None

    # Generator and optimiser.
    generator: Literal["conv", "mlp", "dcgan", "resnet"] = "conv"
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)] = 16
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] | None = None
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None
    learning_rate: _Positive | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: _Share = 0.05
    average_decay: _Share = 0.99

    # The rest.
    image_side: Annotated[int, Field(ge=8, le=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # public randomness: initial weights and latents
    device: Annotated[str, Field(max_length=40)] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the generator's passes in training
    private_metrics: bool = False  # figures that ε does not cover, into private/metrics.jsonl

    def plan(self, num_records: int, num_classes: int) -> PrivacyPlan:
        """The privacy plan of a run with these settings on so many records.

        Raises:
            InputError: A value is out of range or would not be read, or the target cannot be met.
        """
        sanitize = self.chosen_sanitize(num_records)
        batch = sanitize == "batch"
        prior = self.class_prior or ("uniform" if batch else "histogram")
        return make_plan(
            num_records=num_records,
            target_epsilon=self.target_epsilon,
            target_delta=self.target_delta,
            num_steps=self.num_steps,
            expected_batch_size=self.expected_batch_size,
            count_classes=prior == "histogram" and num_classes > 1,
            sanitize=sanitize,
            queries_per_step=(self.queries_per_step or _QUERIES) if batch else 1,
            noise_multiplier=self.noise_multiplier,
            moments_share=0.0 if batch else given(self.moments_share, MOMENTS_SHARE),
            features_share=0.0 if batch else given(self.features_share, FEATURES_SHARE),
            classifier_share=0.0 if batch or num_classes == 1 else given(self.classifier_share, CLASSIFIER_SHARE),
            embedding_share=self._embedding_share(num_records) if sanitize == "record" else 0.0,
        )

    def _embedding_share(self, num_records: int) -> float:
        """Of the budget, for an embedding beside steps record by record.

        Raises:
            InputError: It is 0, and a setting was given that is read with one only.
        """
        default = default_embedding_share(self.target_epsilon, self.target_delta, num_records)
        share = given(self.embedding_share, default)
        if share == 0.0 and (unread := _given(self, {*EmbeddingFeatures.model_fields, "matching_steps"})):
            raise InputError(
                f"{', '.join(unread)} would not be read: this run releases no embedding; leave it out, or give an "
                "embedding_share, for example 0.1"
            )
        return share

    def chosen_sanitize(self, num_records: int) -> Sanitize:
        """What is sanitised: as set, or by the budget for so many records.

        Raises:
            InputError: A setting was given that is not read then.
        """
        if self.sanitize is not None:
            return self.sanitize
        chosen = default_sanitize(self.target_epsilon, self.target_delta, num_records)
        _refuse_foreign(self, chosen, f"the default for {num_records} records at epsilon={self.target_epsilon:g}")
        return chosen

    @model_validator(mode="after")
    def _usable_target(self) -> "Settings":
        check_target(self.target_epsilon, self.target_delta)
        return self

    @model_validator(mode="after")
    def _settings_of_this_sanitizing(self) -> "Settings":
        """Refuse a setting that the given `sanitize` never reads, or that one never reads which may be the default."""
        if self.sanitize is not None:
            _refuse_foreign(self, self.sanitize, "")
        elif foreign := _given_of(self, "batch", other_than=("record", "embedding")):
            raise _foreign(foreign, "batch", "the default")
        return self

    @field_validator("class_prior", mode="before")
    @classmethod
    def _prior_from_text(cls, value: object) -> object:
        """Accept a list written as "0.7,0.3" on the command line."""
        if isinstance(value, str) and "," in value:
            return tuple(value.split(","))
        return tuple(value) if isinstance(value, list) else value


# The settings that each way to sanitise reads and another may not.
_READ: dict[Sanitize, frozenset[str]] = {
    "record": frozenset(RecordRules.model_fields)
    | frozenset(EmbeddingFeatures.model_fields)
    | _RELEASED_BEFORE
    | {"embedding_share", "matching_steps"},
    "embedding": frozenset(EmbeddingRules.model_fields) | _RELEASED_BEFORE,
    "batch": frozenset(BatchRules.model_fields),
}


def _refuse_foreign(settings: Settings, chosen: Sanitize, why: str) -> None:
    """Refuse what is given and read by another way to sanitise only."""
    for other in _READ:
        if foreign := _given_of(settings, other, other_than=(chosen,)):
            raise _foreign(foreign, other, f"{chosen!r}{why and f', {why}'}")


def _given_of(settings: Settings, sanitize: Sanitize, other_than: tuple[Sanitize, ...]) -> list[str]:
    """Settings that were given and that this way to sanitise reads, and none of the others."""
    return _given(settings, _READ[sanitize] - frozenset().union(*(_READ[other] for other in other_than)) - {"sanitize"})


def _given(settings: Settings, names: Set[str]) -> list[str]:
    """Those of `names` that were set."""
    return sorted(name for name in names & settings.model_fields_set if getattr(settings, name) is not None)


def _foreign(names: list[str], owner: Sanitize, chosen: str) -> InputError:
    belongs, it = ("belongs", "it") if len(names) == 1 else ("belong", "them")
    return InputError(
        f"{', '.join(names)} {belongs} to sanitize={owner!r}, not to {chosen}; leave {it} out (KEY=none takes back "
        "what a recipe gives), or set sanitize"
    )


class DataFacts(BaseModel):
    """What is public about the private data: declared, or treated as public (the card says so)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: _Name
    num_records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    shape: ImageShape
    class_names: tuple[_Name, ...]


class RunConfig(BaseModel):
    """A resolved run: nothing is left to derive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataFacts
    settings: Settings
    privacy: PrivacyPlan
    generator: GeneratorSpec
    rules: Annotated[RecordRules | EmbeddingRules | BatchRules, Field(discriminator="sanitize")]
    num_generated: _Images
    learning_rate: _Positive
    device: Annotated[str, Field(max_length=40)]
    precision: Literal["float32", "bfloat16"]

    @model_validator(mode="after")
    def _rules_of_the_plan(self) -> "RunConfig":
        """Steps without queries are those on an embedding, and only those; it is released where it is used."""
        if (self.rules.sanitize == "embedding") != (self.privacy.queries_per_step == 0):
            raise InputError(
                f"rules.sanitize={self.rules.sanitize!r} does not fit privacy.queries_per_step="
                f"{self.privacy.queries_per_step}; put the original back"
            )
        if (self.embedded is None) != (CLASS_EMBEDDING not in self.privacy.once):
            raise InputError(
                f"privacy.once and rules do not agree on whether {CLASS_EMBEDDING} is released; put the original back"
            )
        return self

    @property
    def matching(self) -> MatchingRules | None:
        """The steps that follow those record by record; None: none do."""
        return self.rules.matching if isinstance(self.rules, RecordRules) else None

    @property
    def kept_share(self) -> float:
        """Of a release's images, so many are made by the generator as it was before those steps."""
        return self.matching.kept_share if self.matching else 0.0

    @property
    def embedded(self) -> EmbeddingFeatures | None:
        """What the class embedding is the sum of; None: none is released."""
        return self.rules if isinstance(self.rules, EmbeddingRules) else self.matching

    def without(self, *names: str) -> "RunConfig":
        """The run without these releases before its steps and what is made of them; its steps know nothing of them.

        An embedding in place of what steps release stays.
        """
        plan, rules = self.privacy, self.rules
        if isinstance(rules, EmbeddingRules):
            names = tuple(name for name in names if name != CLASS_EMBEDDING)
        elif isinstance(rules, RecordRules) and CLASS_EMBEDDING in names:
            rules = rules.model_copy(update={"matching": None})
        once = {name: noise for name, noise in plan.once.items() if name not in names}
        classifier = None if CLASSIFIER in names else plan.classifier
        privacy = plan.model_copy(update={"once": once, "classifier": classifier})
        return self.model_copy(update={"privacy": privacy, "rules": rules})

    def sha256(self) -> str:
        """Hash of everything that makes the run what it is: all but `HARMLESS` settings and where the data lie."""
        harmless: dict[str, Any] = {"device": True, "settings": set(HARMLESS), "data": {"source"}}
        facts = self.model_dump(mode="json", exclude=harmless)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The run as TOML; `from_toml` reads it back equal."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, path: Path) -> "RunConfig":
        """Read a run's `config.toml`."""
        try:
            config = cls.model_validate(_read_toml(path))
        except ValidationError as error:
            raise InputError(f"{path}: {_first_problem(error)}") from None
        check_analysable(config.privacy.charges(), config.privacy.target_delta)
        return config


def make_settings(recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a recipe (its name, a file, or a run's `config.toml`), then single values on top.

    Raises:
        InputError: The file cannot be read, a key is unknown or a value out of range.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        table = _read_toml(_recipe_file(recipe))
        settings = table.get("settings", table)
        if not isinstance(settings, dict):
            raise InputError(f"settings in {recipe} are no table; write them under [settings]")
        values |= settings
    values |= overrides or {}
    known = Settings.model_fields
    # None takes a value back, also where the default is a number.
    values = {name: value for name, value in values.items() if value is not None or name not in known}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from None


def parse_overrides(pairs: list[str]) -> dict[str, str | None]:
    """`key=value` texts as a mapping; the values are converted and checked by `Settings`.

    `key=none` takes a recipe's value back: the setting is derived again.
    """
    overrides: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r} is not key=value; write for example --set num_steps=1000")
        overrides[key.strip()] = None if value.strip().lower() == "none" else value.strip()
    return overrides


def given(value: float | None, default: float) -> float:
    """The value, or the default where there is none; a value of 0 counts."""
    return default if value is None else value


def _recipe_file(recipe: str | Path) -> Path:
    """A file of that name, or the recipe that comes with the package."""
    path = Path(recipe)
    packaged = _RECIPES / f"{recipe}.toml"
    if path.suffix or os.path.exists(path):  # noqa: PTH110 - no error for an endless name
        return path
    if not os.path.isfile(packaged):  # noqa: PTH113
        names = ", ".join(sorted(file.stem for file in _RECIPES.glob("*.toml")))
        raise InputError(f"recipe {str(recipe)!r} is neither a file nor a known recipe; known are {names}")
    return packaged


def _read_toml(path: Path) -> dict[str, Any]:
    content = read_bytes(path, MAX_TEXT_BYTES, "give a TOML file")
    try:
        return parse_toml(content)
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}; give a TOML file") from None


def _first_problem(error: ValidationError) -> str:
    # The deepest first: what is wrong inside a list rather than that a list is not the word it could be instead.
    problem = max(error.errors(), key=lambda found: len(found["loc"]))
    if isinstance(own := problem.get("ctx", {}).get("error"), InputError):
        return str(own)
    place = [str(part) for part in problem["loc"]] or ["settings"]
    if problem["type"] == "missing":
        return f"{shown('.'.join(place))[1:-1]} is missing; if another version wrote it, use that one"
    name = ".".join(place[:2]) if place[0] in ("data", "settings", "privacy", "rules") else place[0]
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {shown(name)}; known are {', '.join(Settings.model_fields)}"
    return f"{shown(name)[1:-1]}={shown(problem['input'])} does not fit: {problem['msg'].lower()}"
