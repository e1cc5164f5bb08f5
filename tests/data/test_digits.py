"""The bundled digits are those of scikit-learn, with and without its file."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dp_sinkhorn.data.layouts import digits


@pytest.mark.parametrize("hidden", [False, True], ids=["from the file", "by scikit-learn"])
def test_the_bundle_is_that_of_scikit_learn(monkeypatch, hidden):
    if hidden:
        monkeypatch.setattr(digits, "find_spec", lambda name: None)
    images, labels = digits.bundle()
    expected = load_digits()
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_reading_the_bundle_does_not_import_scikit_learn():
    code = "import sys; from dp_sinkhorn.data.layouts import digits; digits.bundle(); print('sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
