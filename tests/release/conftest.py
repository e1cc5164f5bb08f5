"""Shared set-up of the tests of releases."""

import pytest

from dp_sinkhorn.privacy.accounting import Epsilons
from dp_sinkhorn.release import verify as check


@pytest.fixture
def cheap(monkeypatch) -> None:
    """Skip the accounting, which takes seconds, for tests of contradictions between other facts."""
    monkeypatch.setattr(check, "epsilons", lambda charges, delta, claimed: Epsilons(pld=1e-9, rdp=1e-9))
    monkeypatch.setattr(check, "attack_bounds", lambda charges: None)
