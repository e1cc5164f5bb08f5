"""Read and check the files that a report shows: metrics, private figures and an evaluation."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dp_sinkhorn.evaluation.record import Evaluation
from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.release.card import PrivacyCard

EVALUATION = "evaluation.json"
_MAX_BYTES = 1 << 24
_LARGEST = 1e12
_REMEDY = "make it again with dp-sinkhorn evaluate --out DIR"

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Line = TypeVar("_Line", "Progress", "PrivateFigures")


class Progress(BaseModel):
    """A line of `metrics.jsonl`: steps done, an upper bound on the ε spent so far, RMS of the released field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Annotated[int, Field(ge=1)]
    epsilon: _Finite
    field_rms: _Finite


class PrivateFigures(BaseModel):
    """A line of `private/metrics.jsonl`: figures without noise, for the curator only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Annotated[int, Field(ge=1)]
    drawn: Annotated[int, Field(ge=0)]
    share_clipped: _Share
    signal_norm: _Finite
    noise_norm: _Finite


def read_progress(path: Path) -> tuple[Progress, ...]:
    """The lines of a run's `metrics.jsonl`, the last one of each step; empty without such a file."""
    return _read_lines(path, Progress)


def read_private_figures(path: Path) -> tuple[PrivateFigures, ...]:
    """The lines of a run's `private/metrics.jsonl`, likewise."""
    return _read_lines(path, PrivateFigures)


def read_evaluation(path: Path, card: PrivacyCard) -> Evaluation:
    """Read an evaluation from a file, or from its folder, and check that it fits the card.

    Raises:
        InputError: It is missing or damaged, or of other data than the card's.
    """
    file = path / EVALUATION if path.is_dir() else path
    content = _content(file)
    try:
        found = TypeAdapter(Evaluation).validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("version",):
            raise InputError(f"{file} is not an evaluation of this version of dp-sinkhorn; {_REMEDY}") from None
        where = ".".join(str(part) for part in problem["loc"]) or "content"
        raise InputError(f"{file} is not an evaluation: {where}: {problem['msg'].lower()}; {_REMEDY}") from None
    if wrong := _inconsistency(found):
        raise InputError(f"{file} is damaged: {wrong}; {_REMEDY}")
    if wrong := _of_other_data(found, card):
        raise InputError(f"{file} {wrong}; give the evaluation of this run")
    return found


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; {_REMEDY}") from None
    if len(content) > _MAX_BYTES:
        raise InputError(f"{file} is larger than {_MAX_BYTES} bytes, so it is not an evaluation; {_REMEDY}")
    return content


def _inconsistency(found: Evaluation) -> str | None:
    classes = len(found.class_names)
    if classes < 1:
        return "it has no class"
    for name in ("synthetic", "real"):
        if any(
            len(getattr(part, name)) != classes for part in (found.class_shares, found.class_shares.standard_errors)
        ):
            return f"class_shares.{name} does not list {classes} classes"
    added = ({}, {}) if found.gain is None else (found.gain.real, found.gain.real_and_synthetic)
    if set(found.tstr) != set(found.trtr) or set(added[0]) != set(added[1]):
        return "the classifiers differ between its parts"
    if bool(found.tstr) != (classes > 1) or (found.gain is not None) != (classes > 1):
        return f"it has {classes} class{'' if classes == 1 else 'es'}, and {len(found.tstr)} classifiers"
    parts = (found.tstr, found.trtr, *added)
    for scores in (scores for part in parts for scores in part.values()):
        if len(scores.recall) != classes or [len(row) for row in scores.confusion] != [classes] * classes:
            return f"recall or confusion does not have {classes} classes"
        if [share is None for share in scores.recall] != [error is None for error in scores.standard_errors.recall]:
            return "not every recall has a standard error"
        if not all(0.0 <= share <= 1.0 for share in _shares(scores)):
            return "a share is not in [0, 1]"
    if not all(abs(number) <= _LARGEST for number in _numbers(found)):
        return f"a number is not finite, or above {_LARGEST:g}"
    return None


def _of_other_data(found: Evaluation, card: PrivacyCard) -> str | None:
    numbered = tuple(map(str, range(len(card.class_names))))
    same_number = len(found.class_names) == len(card.class_names)
    if not same_number or (
        found.class_names != card.class_names and numbered not in (found.class_names, card.class_names)
    ):
        return f"is of other classes ({len(found.class_names)}) than the run ({len(card.class_names)})"
    if found.num_real_train > card.num_records:
        return f"used {found.num_real_train} training records, the run has {card.num_records}"
    bound = found.memorisation.bound if found.memorisation else None
    if bound is not None and (bound.epsilon, bound.delta) != (card.epsilon, card.delta):
        return f"is of a release with epsilon {bound.epsilon:.6g}, the run has {card.epsilon:.6g}"
    return None


def _shares(scores: Scores) -> Iterator[float]:
    yield from (scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.calibration_error)
    yield from (share for share in scores.recall if share is not None)


def _numbers(value: object) -> Iterator[float]:
    """Every float in a nested record."""
    if isinstance(value, float):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)


def _read_lines(path: Path, kind: type[_Line]) -> tuple[_Line, ...]:
    if not path.is_file():
        return ()
    by_step: dict[int, _Line] = {}
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = kind.model_validate(json.loads(text))
            by_step[line.step] = line
    except (OSError, ValueError):
        raise InputError(f"{path} is damaged; restore it, or remove it to make a report without it") from None
    return tuple(by_step[step] for step in sorted(by_step))
