"""The Python in the documents runs as it stands there."""

import re
from pathlib import Path

import pytest

LOSSES = Path(__file__).parents[1] / "docs" / "losses.md"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_losses_document_runs_and_its_training_loop_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", LOSSES.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(LOSSES), "exec"), names)  # noqa: S102
    assert len(blocks) >= 3
    assert names["distance_after"] < 0.8 * names["distance_before"]
    assert "converged: True" in capsys.readouterr().out
