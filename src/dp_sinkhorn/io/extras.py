"""Libraries that only some outputs and inputs need: asked for when they are used, named when they are missing."""

from importlib import import_module
from types import ModuleType

from dp_sinkhorn.io.errors import InputError


def how_to_install(extra: str) -> str:
    """The command for an extra of this package, in a checkout."""
    return f"pip install -c constraints.txt '.[{extra}]'"


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
        raise InputError(f"{what} needs {missing}, which is not installed; {how_to_install(extra)}") from None
