"""Changes to stored runs of earlier versions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the card of a run's release."""
    path = run / "release" / "card.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))
    return run
