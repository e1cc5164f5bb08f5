"""What tests of releases share."""

import pytest

from dp_sinkhorn.privacy.accounting import Epsilons
from dp_sinkhorn.release import verify as check


@pytest.fixture
def cheap(monkeypatch) -> None:
    """Without ε: for what other facts alone contradict. Changed charges would be accounted for anew, for seconds."""
    monkeypatch.setattr(check, "epsilons", lambda charges, delta: Epsilons(pld=1e-9, rdp=1e-9))
    monkeypatch.setattr(check, "attack_bounds", lambda charges: None)
