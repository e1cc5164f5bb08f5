"""Shared fixtures of the tests of hostile input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
from dp_sinkhorn.method import resolve, settings_of
from dp_sinkhorn.settings import DataFacts, RunConfig
from support.small_release import make_release


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Checks that a call raises InputError with one printable line of bounded length that holds every word."""

    def check(call: Callable[[], Any], *words: str) -> str:
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) <= MAX_MESSAGE
        for word in words:
            assert word in message, message
        return message

    return check


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """The configuration of an untrained run on 100 images of two classes."""
    settings = settings_of(
        None,
        {
            "target_epsilon": 0.5,
            "num_steps": 3,
            "num_generated": 16,
            "transport_steps": {"num_reference": 16},
            "width": 8,
            "channels": 8,
            "latent_dim": 2,
        },
    )
    return resolve(settings, DataFacts(source="toy", num_records=100, shape=(1, 8, 8), class_names=("no", "yes")))


@pytest.fixture(scope="session")
def release(config, tmp_path_factory) -> Path:
    """A release with untrained weights and a correct card."""
    folder = tmp_path_factory.mktemp("hostile") / "release"
    make_release(folder, config, list(config.plan.charges))
    return folder
