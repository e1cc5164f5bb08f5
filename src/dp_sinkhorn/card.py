"""The privacy card: every fact that the claim rests on, so that anybody can recompute it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.plan import Sanitize

MAX_CARD_BYTES = 1 << 20
NOT_PRIVATE = (
    "NOT PRIVATE: noise and subsamples came from a fixed test seed, so anyone who knows the seed can remove "
    "the noise. Do not hand this out."
)

_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ClassPriorFacts(BaseModel):
    """Shares of the classes, where they came from, and the ε that a noisy histogram alone would cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: Literal["noisy histogram", "declared"]
    shares: tuple[_Positive, ...]
    epsilon_alone: float


class PrivacyCard(BaseModel):
    """Facts about a release. `charges` is everything that was released, from the run's ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1] = 1
    private: bool
    epsilon: _Positive
    epsilon_rdp: _Positive
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    neighboring_relation: Literal["add_or_remove_one"]
    accountant: str
    sanitize: Sanitize
    mechanism: str
    charges: tuple[Charge, ...]
    num_records: Annotated[int, Field(ge=1)]
    num_steps: Annotated[int, Field(ge=0)]
    queries_per_step: Annotated[int, Field(ge=1)]
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    expected_batch_size: _Positive
    noise_multiplier: _Positive
    clip_norm: _Positive
    sensitivity: _Positive
    class_prior: ClassPriorFacts
    tuning: str
    randomness: str
    treated_as_public: tuple[str, ...]
    warnings: tuple[str, ...]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    generator: GeneratorSpec
    weights_sha256: str
    software: str

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
        try:
            with path.open("rb") as file:
                content = file.read(MAX_CARD_BYTES + 1)
            if len(content) > MAX_CARD_BYTES:
                raise InputError(f"{path} is larger than {MAX_CARD_BYTES} bytes, so it is not a card; give a release")
            return cls.model_validate_json(content)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; give a run or a release folder") from None
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "content"
            raise InputError(f"{path} is not a valid card: {where}: {problem['msg'].lower()}") from None

    def statement(self) -> str:
        """The claim in plain words."""
        if not self.private:
            return NOT_PRIVATE
        return (
            f"The release is ({self.epsilon:.4g}, {self.delta:g})-differentially private: whether any one record "
            f"was among the {self.num_records} changes the odds of anything an observer could conclude by a factor "
            f"of at most e^{self.epsilon:.4g}, except with probability {self.delta:g} "
            f"(add/remove neighbours, {self.accountant}; Rényi bound {self.epsilon_rdp:.4g})."
        )
