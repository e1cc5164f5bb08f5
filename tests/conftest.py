"""One thread, and checked annotations, while the tests run."""

import os

from jaxtyping import install_import_hook

# Read when PyTorch is loaded. The tests' tensors are tiny: threads would only wait for each other, and on a busy
# machine for a long time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Shapes and dtypes in the annotations of these packages are checked, in tests only.
CHECKED = ("generators", "privacy", "training", "transport")

install_import_hook([f"dp_sinkhorn.{name}" for name in CHECKED], "beartype.beartype")
