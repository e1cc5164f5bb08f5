"""The classifier that is trained before the first step: gradient descent by answers."""

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.features.scattering import SCATTERING
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.stages.label_classifier import learning_rate
from support.stage_runs import config_of, curator_of, plain_descent, toy, with_noise

STAGE = method.STAGES["label_classifier"]


def trained(noise: float) -> torch.Tensor:
    config = with_noise(config_of("record"), STAGE.name, noise)
    generator = build_generator(config.generator, config.data.shape, config.data.num_classes)
    state = plain_descent(config, generator, counts=torch.tensor([100.0, 100.0]).double())
    curator = curator_of(config, toy())
    assert len(list(STAGE.run(curator, state))) == 1
    assert curator.taken(STAGE.name) == 200
    return state.learnt[STAGE.name]


def test_with_little_noise_it_tells_the_classes_apart() -> None:
    data = toy(100, seed=3)
    scores = SCATTERING(data).double() @ trained(0.05).T
    assert float((scores.argmax(1) == data.labels).double().mean()) > 0.95


def test_noise_on_an_update_bounds_the_learning_rate() -> None:
    assert learning_rate(1e-6) == 600.0
    assert learning_rate(0.5) == pytest.approx(0.05)
