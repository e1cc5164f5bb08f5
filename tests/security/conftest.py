"""Hostile input: what the attacks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp_sinkhorn.build import resolve
from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
from dp_sinkhorn.release.weights import write_release
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings
from support.small_release import untrained


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """The call raises InputError: one printable line of bounded length, with every word in it."""

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
    """A run on 100 images of two classes, resolved and not trained."""
    settings = make_settings(
        None,
        {
            "target_epsilon": 0.5,
            "num_steps": 3,
            "num_generated": 16,
            "num_reference": 16,
            "width": 8,
            "channels": 8,
            "latent_dim": 2,
        },
    )
    return resolve(settings, DataFacts(source="toy", num_records=100, shape=(1, 8, 8), class_names=("no", "yes")))


@pytest.fixture(scope="session")
def release(config, tmp_path_factory) -> Path:
    """A release with untrained weights, whose card is right in every number."""
    folder = tmp_path_factory.mktemp("hostile") / "release"
    write_release(folder, config, list(config.privacy.charges()), (0.5, 0.5), 1.0, 1.0, untrained(config))
    return folder
