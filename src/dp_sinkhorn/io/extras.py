"""Optional dependencies: imported when needed; a missing one gives an error that says how to install it."""

from importlib import import_module
from types import ModuleType

from dp_sinkhorn.io.errors import InputError


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package from a checkout."""
    return f"pip install -c constraints.txt '.[{extra}]'"


def require(module: str, extra: str, what: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: Dotted name.
        extra: The extra of this package that installs it.
        what: What needs the module, for the message.

    Raises:
        InputError: The module or one of its dependencies is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise InputError(f"{what} needs {missing}, which is not installed; {how_to_install(extra)}") from None
