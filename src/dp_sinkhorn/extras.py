"""Libraries that only some outputs and inputs need: asked for when they are used, named when they are missing."""

from importlib import import_module
from types import ModuleType

from dp_sinkhorn.errors import InputError


def require(module: str, extra: str, what: str) -> ModuleType:
    """The imported module of an optional dependency.

    Args:
        module: Dotted name. extra: The extra of this package that installs it. what: What needs it.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        install = f"pip install -c constraints.txt '.[{extra}]'"
        raise InputError(f"{what} needs {missing}, which is not installed; {install}") from None
