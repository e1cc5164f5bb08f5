"""What public functions accept as a path; they convert it to a `Path` at once."""

from os import PathLike

AnyPath = str | PathLike[str]
