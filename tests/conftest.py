"""Shapes and dtypes in annotations are checked while the tests run, and only then."""

from jaxtyping import install_import_hook

CHECKED = ("generators", "privacy", "training", "transport")

install_import_hook([f"dp_sinkhorn.{name}" for name in CHECKED], "beartype.beartype")
