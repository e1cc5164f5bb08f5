"""How data are read: what a user declares about files that do not say it themselves."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import shown

MIN_SIDE, MAX_SIDE = 8, 128

Fit = Literal["crop", "pad", "stretch"]

# Remedies, in the words of the shell and of Python.
SIDE_REMEDY = '--side 32 (in Python settings={"reading": {"side": 32}})'
FIT_REMEDY = (
    '--crop center, --pad or --stretch beside --side (in Python settings={"reading": {"side": 32, "fit": "crop"}})'
)
COLUMN_REMEDY = '--label-column NAME (in Python settings={"reading": {"label_column": NAME}})'


def range_remedy(high: int) -> str:
    """The option that declares a range of values, for example."""
    return f'--range 0,{high} (in Python settings={{"reading": {{"range": (0, {high})}}}})'


def _listed(value: Any) -> Any:
    """ "a,b" as on the command line."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _range(value: Any) -> Any:
    parts = _listed(value)
    try:
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise InputError(f"range {shown(value)} is not LOWEST,HIGHEST; give for example 0,4095") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"range {shown(value)} has no width; give for example 0,4095")
    return low, high


class Reading(BaseModel):
    """How to read a data set. Everything here is public, and none of it is inferred from pixels.

    Args:
        side: Height and width that every image gets, 8 to 128 pixels (Lanczos). None: as stored.
        fit: How an image that is not square becomes square: its largest centred square, a black border, or stretched.
        range: Stored values that become black and white; values outside are clipped. None: by the type of the data.
        classes: Names of the classes, in order. None: the labels of the training split.
        label_column: The column of a table, or of a matrix of labels, that holds the class.
        class_level: Which folder of a path names the class: 1 is the first below the split; 0: one class.
        classes_are_public: The class names may be published even if they look private.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)] | None = None
    fit: Fit | None = None
    range: Annotated[tuple[float, float], BeforeValidator(_range)] | None = None
    classes: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    label_column: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    class_level: Annotated[int, Field(ge=0, le=16)] | None = None
    classes_are_public: bool = False

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> "Reading":
        if self.label_column is not None and self.class_level is not None:
            raise InputError("--label-column and --class-level exclude each other; give one of them")
        return self


AS_STORED = Reading()
