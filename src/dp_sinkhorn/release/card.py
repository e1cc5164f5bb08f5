"""The privacy card: every fact that the claim rests on, so that anybody can recompute it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)

from dp_sinkhorn.data.reading import AS_STORED, Reading
from dp_sinkhorn.generators.spec import GeneratorSpec, ImageShape
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, parse_json, read_bytes
from dp_sinkhorn.privacy.accounting import MAX_COUNT, MAX_KINDS, Charge
from dp_sinkhorn.privacy.plan import MAX_RECORDS, Mode, delta_warning
from dp_sinkhorn.release.version_1 import as_version_2
from dp_sinkhorn.release.version_2 import EarlierLayers, as_version_3

MAX_TEXT, MAX_NAME = 2000, 128  # characters of a sentence; of a class name
MAX_CLASSES = 10_000
_MAX_STAGES, _MAX_FACTS = 50, 50
NOT_PRIVATE = (
    "NOT PRIVATE: noise and subsamples came from a fixed test seed, so anyone who knows the seed can remove "
    "the noise. Do not hand this out."
)


def _printable(text: str) -> str:
    """Refuse characters that a terminal would interpret or that no text file can hold."""
    if not text.isprintable():
        raise ValueError("text holds characters that cannot be printed")
    return text


_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_printable)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=100)]
_StageName = Annotated[str, Field(pattern="^[a-z_]{1,40}$")]
_Fact = bool | int | Annotated[float, Field(allow_inf_nan=False)] | _Text | None
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]


class ClassPriorFacts(BaseModel):
    """Shares of the classes among drawn images.

    Args:
        how: Where the shares come from. shares: One a class, of sum 1.
        epsilon_alone: ε that the noisy histogram would cost on its own; 0 for declared shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: Literal["noisy histogram", "declared"]
    shares: Annotated[tuple[_Share, ...], Field(max_length=MAX_CLASSES)]
    epsilon_alone: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class StageEntry(BaseModel):
    """A stage's entry on the card: its name, and facts in that stage's own format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _StageName
    facts: Annotated[dict[_StageName, _Fact], Field(max_length=_MAX_FACTS)] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Read a stage's facts, which stand beside its name on the card."""
        if not isinstance(values, dict) or "facts" in values:
            return values
        return {"name": values.get("name"), "facts": {key: value for key, value in values.items() if key != "name"}}

    @model_serializer
    def _spread(self) -> dict[str, Any]:
        return {"name": self.name, **self.facts}


class PrivacyCard(BaseModel):
    """Every fact that the privacy claim of a release rests on.

    `charges` lists all noisy answers, as in the run's ledger.
    `from_file` converts cards of versions 1 and 2 to these facts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1, 2, 3] = 3
    private: bool
    epsilon: _Positive
    epsilon_rdp: _Positive
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    neighboring_relation: Literal["add_or_remove_one"]
    accountant: _Text
    mode: Mode
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
    stages: Annotated[tuple[StageEntry, ...], Field(max_length=_MAX_STAGES)]
    tuning: _Text
    randomness: _Text
    treated_as_public: _Texts
    warnings: _Texts
    image_shape: ImageShape
    class_names: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    generator: GeneratorSpec
    reading: Reading = AS_STORED
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    software: _Text
    _read_sha256: str = PrivateAttr("")  # of the file that the card was read from
    _layers: EarlierLayers = PrivateAttr(EarlierLayers())

    @model_validator(mode="after")
    def _one_share_a_class(self) -> "PrivacyCard":
        shares, names = self.class_prior.shares, self.class_names
        if len({entry.name for entry in self.stages}) < len(self.stages):
            raise ValueError("stages list a stage twice")
        if len(set(names)) < len(names):
            raise ValueError("class_names repeat a name")
        if len(shares) != len(names) or abs(sum(shares) - 1.0) > 1e-3:
            raise ValueError(f"class_prior gives {len(shares)} shares of sum {sum(shares):g} for {len(names)} classes")
        return self

    @property
    def layers(self) -> EarlierLayers:
        """The layers around the generator of a release of version 1 or 2."""
        return self._layers

    def to_json(self) -> str:
        """The card as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def sha256(self) -> str:
        """SHA-256 of the release's `card.json`, in hexadecimal."""
        return self._read_sha256 or hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_file(cls, path: AnyPath) -> "PrivacyCard":
        """Read a card.

        Raises:
            InputError: The file is missing, too large, or not a card.
        """
        path = Path(path)
        content = read_bytes(path, MAX_TEXT_BYTES, "give a run or a release folder")
        try:
            facts = parse_json(content)
            layers: dict[str, Any] = {}
            if isinstance(facts, dict) and facts.get("card_version") == 1:
                facts = as_version_2(facts)
            if isinstance(facts, dict) and facts.get("card_version") in (1, 2):
                facts, layers = as_version_3(facts)
            card = cls.model_validate(facts)
            card._layers = EarlierLayers.model_validate(layers)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "content"
            message = f"{path} is not a valid card: {where}: {problem['msg'].lower()}; give an undamaged release"
            raise InputError(message) from None
        except ValueError as error:
            raise InputError(f"{path} is not a valid card: {error}; give an undamaged release") from None
        card._read_sha256 = hashlib.sha256(content).hexdigest()
        return card

    def statement(self) -> str:
        """The privacy claim in words; of a run that is not private, a warning."""
        if not self.private:
            return NOT_PRIVATE
        claim = (
            f"The release is ({self.epsilon:.4g}, {self.delta:g})-differentially private: adding or removing one "
            f"record changes the probability of anything an observer could conclude by at most a factor "
            f"e^{self.epsilon:.4g}, plus {self.delta:g}. The number of records, {self.num_records}, counts as public "
            f"and the same in both cases. Accountant: {self.accountant}; looser Rényi bound: {self.epsilon_rdp:.4g}."
        )
        warning = delta_warning(self.delta, self.num_records)
        return claim if warning is None else f"{claim} Warning: {warning}."
