"""Arguments and options that several verbs of the command line share."""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from dp_sinkhorn.io.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. num_steps=1000; repeatable."),
]
Recipe = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="Settings of a recipe, e.g. mnist_paper, or of a TOML file.")
]
Epsilon = Annotated[float | None, typer.Option(help="Target ε: smaller is stricter. (default: 10)", show_default=False)]
Delta = Annotated[
    float | None, typer.Option(help="Target δ: well below 1 / number of images. (default: 1e-5)", show_default=False)
]
AllowLargeDelta = Annotated[
    bool, typer.Option("--allow-large-delta", help="Accept a δ of 1 / number of records or more.")
]


def existing(path: Any) -> Any:
    """Refuse a path that does not exist, before PyTorch is imported.

    Raises:
        InputError: There is nothing. What cannot be looked at is left to the reader.
    """
    with suppress(OSError):
        if path is not None and not Path(path).exists():
            raise InputError(f"{path} does not exist; check the path")
    return path


def existing_data(source: str) -> str:
    """As `existing`; a name without an ending may be that of a data set."""
    return str(existing(source)) if Path(source).suffix or Path(source).is_absolute() else source


Data = Annotated[
    str,
    typer.Argument(
        callback=existing_data,
        help="Your images: a folder or archive, an .npz, .npy or .parquet file, the name of a data set of Hugging Face "
        "that is already on this machine, or digits (a bundled example).",
    ),
]
Release = Annotated[Path, typer.Argument(callback=existing, help="Run folder that train made, or its release.")]
_READING = "How the data are read"
ClassesArePublic = Annotated[
    bool,
    typer.Option(
        "--classes-are-public", help="You declare that the class names may be published.", rich_help_panel=_READING
    ),
]


def _reading(
    side: Annotated[
        int | None, typer.Option(help="Resize all images to this many pixels a side.", rich_help_panel=_READING)
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="center", help="Cut out the largest centred square.", rich_help_panel=_READING)
    ] = None,
    pad: Annotated[
        bool, typer.Option("--pad", help="Make images square by a black border.", rich_help_panel=_READING)
    ] = False,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Make images square by stretching.", rich_help_panel=_READING)
    ] = False,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Stored values of black and white, e.g. 0,4095.",
            rich_help_panel=_READING,
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Names of all classes, in order.", rich_help_panel=_READING)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column that holds the class.", rich_help_panel=_READING)
    ] = None,
    class_level: Annotated[
        int | None,
        typer.Option(
            help="Which folder of a path names the class, 1 being the first; 0: one class.", rich_help_panel=_READING
        ),
    ] = None,
) -> dict[str, Any]:
    """The options that say how data are read, as settings of `reading`; those that are not given are left out."""
    if crop not in (None, "center"):
        raise InputError(f"--crop {crop} is not known; give --crop center")
    fits = [name for name, chosen in (("crop", crop), ("pad", pad), ("stretch", stretch)) if chosen]
    if len(fits) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in fits)} exclude each other; give one of them")
    values = {
        "side": side,
        "fit": fits[0] if fits else None,
        "range": range_,
        "classes": classes,
        "label_column": label_column,
        "class_level": class_level,
    }
    return {name: value for name, value in values.items() if value is not None}


def words_of(reading: dict[str, Any]) -> list[str]:
    """The options that `_reading` makes these settings of."""
    words: list[str] = []
    for name, value in reading.items():
        if name == "fit":
            words += ["--crop", "center"] if value == "crop" else [f"--{value}"]
        elif value is True:
            words.append(f"--{name.replace('_', '-')}")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def reads_data(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `_reading` on the command line; its argument `reading` gets what they say."""
    options = signature(_reading, eval_str=True).parameters
    own = [one for one in signature(verb, eval_str=True).parameters.values() if one.name != "reading"]

    @wraps(verb)
    def call(**given: Any) -> None:
        reading = _reading(**{name: given.pop(name) for name in options})
        verb(**given, reading=reading)

    call.__signature__ = Signature([*own, *options.values()])  # type: ignore[attr-defined]
    return call
