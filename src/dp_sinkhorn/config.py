"""The configuration of a run: plain frozen data, TOML in and out."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.plan import PrivacyPlan

_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Settings(BaseModel):
    """What a user may choose. Every default is a public rule: none looks at the data.

    `None` is filled in from ε, δ, the number of records, the image shape and the number of classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Privacy. The ranges of ε, δ and the batch are checked where the plan is made.
    target_epsilon: float = 10.0
    target_delta: float = 1e-5
    num_steps: int | None = None
    expected_batch_size: int | None = None
    class_prior: Literal["histogram", "uniform"] | tuple[_Positive, ...] = "histogram"
    test_seed: int | None = None  # fixes noise and subsamples: for tests, and NOT PRIVATE

    # Loss: clip norm in units of the data's released standard deviation √V, reg in units of V.
    num_generated: _Count | None = None
    num_reference: _Count | None = None
    relative_clip_norm: _Positive | None = None
    relative_reg: _Positive = 0.01
    potential_iterations: Annotated[int, Field(ge=0)] = 0
    min_dimensions: _Count = 32
    rest_weight: Annotated[float, Field(ge=0.0)] = 0.1

    # Generator and optimiser.
    generator: Literal["conv", "mlp"] = "conv"
    latent_dim: _Count = 16
    width: _Count | None = None
    channels: _Count | None = None
    learning_rate: _Positive = 4e-3
    warmup: _Share = 0.05
    average_decay: _Share = 0.99

    # The rest.
    image_side: Annotated[int, Field(ge=8, le=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # public randomness: initial weights and latents
    device: str = "auto"

    @field_validator("class_prior", mode="before")
    @classmethod
    def _prior_from_text(cls, value: object) -> object:
        """Accept a list written as "0.7,0.3" on the command line."""
        if isinstance(value, str) and "," in value:
            return tuple(value.split(","))
        return tuple(value) if isinstance(value, list) else value


class DataFacts(BaseModel):
    """What is public about the private data: declared, or treated as public (the card says so)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    num_records: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class RunConfig(BaseModel):
    """A resolved run: nothing is left to derive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataFacts
    settings: Settings
    privacy: PrivacyPlan
    generator: GeneratorSpec
    num_generated: int
    num_reference: int
    relative_clip_norm: float
    device: str

    def to_toml(self) -> str:
        """The run as TOML; `from_toml` reads it back equal."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, path: Path) -> "RunConfig":
        """Read a run's `config.toml`."""
        try:
            return cls.model_validate(_read_toml(path))
        except ValidationError as error:
            raise InputError(f"{path}: {_first_problem(error)}") from None


def make_settings(recipe: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a recipe file (or a run's `config.toml`), then single values on top.

    Raises:
        InputError: The file cannot be read, a key is unknown or a value out of range.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        table = _read_toml(recipe)
        values |= table.get("settings", table)
    values |= overrides or {}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from None


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """`key=value` texts as a mapping; the values are converted and checked by `Settings`."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r} is not key=value; write for example --set num_steps=1000")
        overrides[key.strip()] = value.strip()
    return overrides


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {str(error).splitlines()[0]}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; known are {', '.join(Settings.model_fields)}"
    return f"{name}={problem['input']!r} does not fit: {problem['msg'].lower()}"
