"""The privacy card: every fact that the claim rests on, so that anybody can recompute it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dp_sinkhorn.generators.spec import MAX_DIMENSIONS, GeneratorSpec, ImageShape
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, parse_json, read_bytes
from dp_sinkhorn.privacy.accounting import MAX_COUNT, MAX_KINDS, Charge
from dp_sinkhorn.privacy.plan import Sanitize

MAX_RECORDS = 10**12  # more than anybody has; a larger number is damage
MAX_TEXT, MAX_NAME = 2000, 128  # characters of a sentence; of a class name
MAX_CLASSES = 10_000
MAX_REFINEMENT_STEPS = 20  # each makes the images of a release dearer by some milliseconds
NOT_PRIVATE = (
    "NOT PRIVATE: noise and subsamples came from a fixed test seed, so anyone who knows the seed can remove "
    "the noise. Do not hand this out."
)


def _printable(text: str) -> str:
    """Refuse what a terminal would obey instead of showing it, and what no file can hold."""
    if not text.isprintable():
        raise ValueError("text holds characters that cannot be printed")
    return text


_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_printable)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=100)]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]


class ClassPriorFacts(BaseModel):
    """Shares of the classes, where they came from, and the ε that a noisy histogram alone would cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: Literal["noisy histogram", "declared"]
    shares: Annotated[tuple[_Share, ...], Field(max_length=MAX_CLASSES)]
    epsilon_alone: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class PrivacyCard(BaseModel):
    """Facts about a release. `charges` is everything that was released, from the run's ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1] = 1
    private: bool
    epsilon: _Positive
    epsilon_rdp: _Positive
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    neighboring_relation: Literal["add_or_remove_one"]
    accountant: _Text
    sanitize: Sanitize
    mechanism: _Text
    charges: Annotated[tuple[Charge, ...], Field(max_length=MAX_KINDS)]
    num_records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    num_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    queries_per_step: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    expected_batch_size: _Positive
    noise_multiplier: _Positive
    clip_norm: _Positive
    sensitivity: _Positive
    class_prior: ClassPriorFacts
    corrected_dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS)] = 0
    refinement_steps: Annotated[int, Field(ge=0, le=MAX_REFINEMENT_STEPS)] = 0
    matching_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    kept_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    classifier: Literal["linear, on scattering features"] | None = None
    tuning: _Text
    randomness: _Text
    treated_as_public: _Texts
    warnings: _Texts
    image_shape: ImageShape
    class_names: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    generator: GeneratorSpec
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    software: _Text

    @model_validator(mode="after")
    def _one_share_a_class(self) -> "PrivacyCard":
        shares, names = self.class_prior.shares, self.class_names
        if len(set(names)) < len(names):
            raise ValueError("class_names repeat a name")
        if len(shares) != len(names) or abs(sum(shares) - 1.0) > 1e-3:
            raise ValueError(f"class_prior gives {len(shares)} shares of sum {sum(shares):g} for {len(names)} classes")
        return self

    def to_json(self) -> str:
        """The card as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def sha256(self) -> str:
        """Hash of the `card.json` that a release holds."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path) -> "PrivacyCard":
        """Read a card.

        Raises:
            InputError: The file is missing, too large, or not a card.
        """
        content = read_bytes(path, MAX_TEXT_BYTES, "give a run or a release folder")
        try:
            return cls.model_validate(parse_json(content))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "content"
            raise InputError(f"{path} is not a valid card: {where}: {problem['msg'].lower()}") from None
        except ValueError as error:
            raise InputError(f"{path} is not a valid card: {error}; give an undamaged release") from None

    def statement(self) -> str:
        """The claim in plain words."""
        if not self.private:
            return NOT_PRIVATE
        return (
            f"The release is ({self.epsilon:.4g}, {self.delta:g})-differentially private: whether any one record "
            f"was among the {self.num_records} changes the odds of anything an observer could conclude by a factor "
            f"of at most e^{self.epsilon:.4g}, except with probability {self.delta:g} "
            f"(add/remove neighbours, public facts kept, {self.accountant}; Rényi bound {self.epsilon_rdp:.4g})."
        )
