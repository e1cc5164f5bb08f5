"""Errors that a user can act on."""


class InputError(ValueError):
    """Bad input: one line that names the value and the remedy. The command line exits with code 2."""
