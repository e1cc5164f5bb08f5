"""Settings of a run and the resolved run: frozen data, read from and written to TOML.

The settings of a stage are in the file of the stage. Those of the whole run are here.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dp_sinkhorn.data.reading import AS_STORED, Reading
from dp_sinkhorn.generators.spec import (
    MAX_CHANNELS,
    MAX_DIMENSIONS,
    MAX_LATENT_DIM,
    MAX_WIDTH,
    GeneratorName,
    GeneratorSpec,
    ImageShape,
)
from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, parse_toml, read_bytes, shown
from dp_sinkhorn.privacy.accounting import MAX_COUNT, check_analysable
from dp_sinkhorn.privacy.plan import MAX_RECORDS, Mode, PrivacyPlan, check_target

# Far beyond any sensible run, and small enough that nothing overflows. The memory of a step is bounded by
# `MAX_STEP_NUMBERS` and `generators.build.MAX_PARAMETERS`.
MAX_IMAGES_A_STEP = 10**6
MAX_ITERATIONS = 10**6
MAX_NUMBER = 1e30  # of a weight, norm or rate: well beyond it float32 overflows
# Numbers in the images of one step, generated and reference together: 1 GiB as float32.
MAX_STEP_NUMBERS = 2**28

Positive = Annotated[float, Field(gt=0.0, le=MAX_NUMBER, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, le=MAX_NUMBER, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Images = Annotated[int, Field(ge=1, le=MAX_IMAGES_A_STEP)]
Iterations = Annotated[int, Field(ge=0, le=MAX_ITERATIONS)]
Steps = Annotated[int, Field(ge=1, le=MAX_ITERATIONS)]
Dimensions = Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]
_Name = Annotated[str, Field(min_length=1, max_length=4096)]

# Settings that may change when a run is resumed, because they change nothing that is released.
HARMLESS = ("device", "private_metrics")
_RECIPES = Path(__file__).parent / "recipes"


class StageSettings(BaseModel):
    """Settings of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    # Names of these settings in version 0.1, where they differ: former → present.
    former: ClassVar[dict[str, str]] = {}


class StageRules(BaseModel):
    """Constants of one stage in a resolved run. They are public: derived from settings, plan and data facts."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


@runtime_checkable
class ConfiguredStage(Protocol):
    """The part of a stage that settings and configuration use."""

    name: str
    settings_type: type[StageSettings]
    rules_type: type[StageRules]


_SettingsKind = TypeVar("_SettingsKind", bound=StageSettings)
_RulesKind = TypeVar("_RulesKind", bound=StageRules)


class Settings(BaseModel):
    """Settings of a run. Every default is a public rule that does not depend on the records.

    `None` is replaced by a rule of ε, δ, the number of records, the image shape and the number of classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    # Privacy. `make_plan` checks the range of the batch.
    target_epsilon: float = 10.0
    target_delta: float = 1e-5
    allow_large_delta: bool = False  # of 1 / number of records or more
    mode: Mode | None = None  # None: by the noise per record
    num_steps: Annotated[int, Field(le=MAX_COUNT)] | None = None
    noise_multiplier: Positive | None = None  # None: calibrated; given without num_steps: as many steps as ε allows
    expected_batch_size: Annotated[int, Field(le=MAX_RECORDS)] | None = None
    # Fixes noise and subsamples: for tests, and NOT PRIVATE.
    test_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    # Generator and optimiser.
    num_generated: Images | None = None
    generator: GeneratorName = "conv"
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)] = 16
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] | None = None
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None
    learning_rate: Positive | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.05
    average_decay: Share = 0.99

    # The rest.
    reading: Reading = AS_STORED  # how the data are read
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # public randomness: initial weights and latents
    device: Annotated[str, Field(max_length=40)] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the generator's passes in training
    private_metrics: bool = False  # figures that ε does not cover, into private/metrics.jsonl

    # By the name of the stage. In TOML each stage has its own table.
    stages: dict[str, SerializeAsAny[StageSettings]] = {}

    def of(self, name: str, kind: type[_SettingsKind]) -> _SettingsKind:
        """The settings of a stage; the defaults if none were given."""
        found = self.stages.get(name, kind())
        assert isinstance(found, kind)  # noqa: S101 - `_of_stages` has checked it
        return found

    def given(self, name: str) -> list[str]:
        """Names of the settings of a stage that were given a value."""
        found = self.stages.get(name, StageSettings())
        return sorted(key for key in found.model_fields_set if getattr(found, key) is not None)

    @model_validator(mode="before")
    @classmethod
    def _of_stages(cls, values: Any, info: ValidationInfo) -> Any:
        """Collect the tables of the stages under `stages`. The validation context holds the known stages."""
        stages: Mapping[str, ConfiguredStage] = (info.context or {}).get("stages", {})
        if not isinstance(values, dict) or not stages:
            return values
        if "stages" in values:
            raise InputError("unknown setting 'stages'; write each stage's table under its own name")
        tables = {name: table for name, table in values.items() if name in stages}
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise InputError(f"{name}={shown(table)} is a stage, not a setting; write {name}.SETTING=VALUE")
        checked = {name: _checked(stages[name], table) for name, table in tables.items()}
        return {**{name: value for name, value in values.items() if name not in tables}, "stages": checked}

    @model_serializer(mode="wrap")
    def _tables(self, handler: Any) -> dict[str, Any]:
        """The stages' tables beside the other settings, as a user writes them."""
        plain: dict[str, Any] = handler(self)
        tables: dict[str, Any] = plain.pop("stages", {})
        return {**plain, **tables}

    @model_validator(mode="after")
    def _usable_target(self) -> "Settings":
        check_target(self.target_epsilon, self.target_delta)
        return self


class DataFacts(BaseModel):
    """Facts about the private data that are declared or treated as public. The card lists them."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    source: _Name
    num_records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    shape: ImageShape
    class_names: tuple[_Name, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes; 1: an unconditional generator."""
        return len(self.class_names)


class RunConfig(BaseModel):
    """A resolved run, in which every choice has a value.

    Args:
        trains: Name of the stage whose steps train the generator.
        rules: Constants of the stages that run, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    config_version: Literal[2] = 2
    data: DataFacts
    settings: Settings
    plan: PrivacyPlan
    generator: GeneratorSpec
    mode: Mode
    trains: Annotated[str, Field(max_length=40)]
    num_generated: Images
    learning_rate: Positive
    device: Annotated[str, Field(max_length=40)]
    precision: Literal["float32", "bfloat16"]
    rules: dict[str, SerializeAsAny[StageRules]]

    def rules_of(self, name: str, kind: type[_RulesKind]) -> _RulesKind:
        """The constants of a stage that runs."""
        found = self.rules[name]
        assert isinstance(found, kind)  # noqa: S101 - `_of_stages` has checked it
        return found

    @field_validator("rules", mode="before")
    @classmethod
    def _of_stages(cls, values: Any, info: ValidationInfo) -> Any:
        stages: Mapping[str, ConfiguredStage] = (info.context or {}).get("stages", {})
        if not isinstance(values, dict) or not stages:
            return values
        for name in values:
            if name not in stages:
                raise InputError(f"rules name the stage {shown(name)}, which this version does not know")
        return {name: stages[name].rules_type.model_validate(table) for name, table in values.items()}

    def only(self, names: Iterable[str]) -> "RunConfig":
        """The run with these stages and their charges only."""
        kept = set(names)
        charges = tuple(charge for charge in self.plan.charges if charge.name.partition(".")[0] in kept)
        return self.model_copy(
            update={
                "rules": {name: rules for name, rules in self.rules.items() if name in kept},
                "plan": self.plan.model_copy(update={"charges": charges}),
            }
        )

    def with_rules(self, name: str, **changes: object) -> "RunConfig":
        """The run with some constants of a stage replaced."""
        changed = self.rules[name].model_copy(update=changes)
        return self.model_copy(update={"rules": {**self.rules, name: changed}})

    def sha256(self) -> str:
        """Hash of everything that identifies the run: all but `HARMLESS` settings, device and source of the data."""
        harmless: dict[str, Any] = {"device": True, "data": {"source"}}
        facts = self.model_dump(mode="json", exclude=harmless)
        for name in HARMLESS:
            del facts["settings"][name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The run as TOML; `read_config` reads it back equal."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_config(path: Path, stages: Mapping[str, ConfiguredStage]) -> RunConfig:
    """Read a run's `config.toml`.

    Raises:
        InputError: It is damaged, or another version wrote it.
    """
    table = read_toml(path)
    if "config_version" not in table and "privacy" in table:
        raise InputError(f"{path} was written by version 0.1; use that version, or start a new run")
    try:
        config = RunConfig.model_validate(table, context={"stages": stages})
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error, stages)}") from None
    check_analysable(config.plan.charges, config.plan.target_delta)
    return config


def make_settings(
    stages: Mapping[str, ConfiguredStage],
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from a recipe (its name, a file, or a run's `config.toml`), overridden by single values.

    Args:
        overrides: Values by name; those of a stage as a mapping. None removes the recipe's value.

    Raises:
        InputError: The file cannot be read, a key is unknown or a value out of range.
    """
    values: dict[str, Any] = {}
    for source in (_recipe_values(recipe), dict(overrides or {})):
        for name, value in _nested(source, stages).items():
            if isinstance(value, Mapping) and isinstance(before := values.get(name, {}), Mapping):
                values[name] = {**before, **value}
            else:
                values[name] = value
    known = Settings.model_fields.keys() | stages.keys()
    # None removes a value. Then the default applies, also where it is not None.
    values = {
        name: {key: own for key, own in value.items() if own is not None} if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None or name not in known
    }
    try:
        return Settings.model_validate(values, context={"stages": stages})
    except ValidationError as error:
        raise InputError(_first_problem(error, stages)) from None


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`key=value` and `stage.key=value` texts as a mapping. `Settings` converts and checks the values.

    `key=none` removes a recipe's value, so the default applies.

    Raises:
        InputError: A text has another form, or gives both a stage and a setting of it.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r} is not key=value; write for example --set num_steps=1000")
        value = None if text.strip().lower() == "none" else text.strip()
        stage, dot, name = key.strip().partition(".")
        if not dot:
            overrides[stage] = value
        elif isinstance(table := overrides.setdefault(stage, {}), dict):
            table[name] = value
        else:
            raise InputError(f"--set {pair!r} does not fit --set {stage}={table}; leave one out")
    return overrides


def given(value: float | None, default: float) -> float:
    """The value, or the default if it is None; 0 is a value."""
    return default if value is None else value


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, within limits on its size and on the work of parsing.

    Raises:
        InputError: It cannot be read, is too large or is not TOML.
    """
    content = read_bytes(path, MAX_TEXT_BYTES, "give a TOML file")
    try:
        return parse_toml(content)
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}; give a TOML file") from None


def _recipe_values(recipe: str | Path | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    table = read_toml(_recipe_file(recipe))
    settings = table.get("settings", table)
    if not isinstance(settings, dict):
        raise InputError(f"settings in {recipe} is not a table; write the settings under [settings]")
    return settings


def _recipe_file(recipe: str | Path) -> Path:
    """The file of that path, or the packaged recipe of that name."""
    path = Path(recipe)
    packaged = _RECIPES / f"{recipe}.toml"
    if path.suffix or os.path.exists(path):  # noqa: PTH110 - it gives no error for an overlong name
        return path
    if not os.path.isfile(packaged):  # noqa: PTH113
        names = sorted(file.stem for file in _RECIPES.glob("*.toml"))
        known = f"{', '.join(names)}{did_you_mean(str(recipe), names)}"
        raise InputError(f"recipe {str(recipe)!r} is neither a file nor a known recipe; known are {known}")
    return packaged


def _nested(values: Mapping[str, Any], stages: Mapping[str, ConfiguredStage]) -> dict[str, Any]:
    """The values under their present names. A name of version 0.1 works, with a warning."""
    former = {"sanitize": "mode", "image_side": "reading.side"}
    for stage in stages.values():
        renamed = {new: old for old, new in stage.settings_type.former.items()}
        former |= {renamed.get(key, key): f"{stage.name}.{key}" for key in stage.settings_type.model_fields}
    found: dict[str, Any] = {}

    def table(name: str) -> Mapping[str, Any]:
        before = found.get(name) or {}
        if not isinstance(before, Mapping):
            raise InputError(f"{name}={shown(before)} is a group of settings; write {name}.SETTING=VALUE")
        return before

    for name, value in values.items():
        if name in Settings.model_fields or name in stages or name not in former or name == "budget_share":
            found[name] = {**table(name), **value} if isinstance(value, Mapping) else value
            continue
        present = former[name]
        warnings.warn(f"the setting {name} is now {present}; the next version accepts only {present}", FutureWarning, 4)
        place, dot, key = present.partition(".")
        found[place] = {**table(place), key: value} if dot else value
    return found


def _checked(stage: ConfiguredStage, table: dict[str, Any]) -> StageSettings:
    try:
        return stage.settings_type.model_validate(table)
    except ValidationError as error:
        problem = max(error.errors(), key=lambda found: len(found["loc"]))
        if isinstance(own := problem.get("ctx", {}).get("error"), InputError):
            raise own from None
        place = ".".join([stage.name, *(str(part) for part in problem["loc"][:1])])
        if problem["type"] == "extra_forbidden":
            own = [f"{stage.name}.{key}" for key in stage.settings_type.model_fields]
            known = f"{', '.join(own) or 'none'}{did_you_mean(place, own)}"
            raise InputError(f"unknown setting {shown(place)}; known there are {known}") from None
        raise InputError(_misfit(place, problem)) from None


def _first_problem(error: ValidationError, stages: Mapping[str, ConfiguredStage]) -> str:
    # The deepest error is the most precise: it names the element of a list, not the list.
    problem = max(error.errors(), key=lambda found: len(found["loc"]))
    if isinstance(own := problem.get("ctx", {}).get("error"), InputError):
        return str(own)
    place = [str(part) for part in problem["loc"]] or ["settings"]
    if problem["type"] == "missing":
        return f"{shown('.'.join(place))[1:-1]} is missing; if another version wrote it, use that one"
    if place == ["reading"]:
        return f"reading={shown(problem['input'])} is a group of settings; write reading.SETTING=VALUE"
    name = ".".join(place[:2]) if place[0] in ("data", "settings", "plan", "rules", "reading") else place[0]
    if problem["type"] == "extra_forbidden":
        plain = [key for key in Settings.model_fields if key not in ("stages", "reading")]
        of_reading = [f"reading.{key}" for key in Reading.model_fields]
        groups = ["reading", *stages]
        every = [f"{stage.name}.{key}" for stage in stages.values() for key in stage.settings_type.model_fields]
        known = of_reading if place[0] == "reading" else [*plain, *(f"{group}.…" for group in groups)]
        meant = did_you_mean(name, [*plain, *groups, *of_reading, *every]) or f"; known are {', '.join(known)}"
        return f"unknown setting {shown(name)}{meant}"
    return _misfit(shown(name)[1:-1], problem)


def _misfit(name: str, problem: Mapping[str, Any]) -> str:
    """What is wrong with a value, and the nearest one of those that fit."""
    choices = re.findall("'([^']*)'", problem.get("ctx", {}).get("expected", ""))
    meant = did_you_mean(problem["input"], choices) if isinstance(problem["input"], str) else ""
    return f"{name}={shown(problem['input'])} does not fit: {problem['msg'].lower()}{meant}"
