"""The classifier that is trained before the first step: gradient descent by answers, and no preference of its own."""

import pytest
import torch

from dp_sinkhorn.features.scattering import SCATTERING, Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.stages.label_classifier import LabelClassifier, balanced_classifier, learning_rate
from support.stage_runs import SHAPE, config_of, curator_of, plain_descent, toy, with_noise

STAGE = LabelClassifier()


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


def test_no_class_of_the_generator_s_own_images_is_preferred() -> None:
    class Grey(Generator):
        def __init__(self) -> None:
            super().__init__(SHAPE, 2, 64)
            self.scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.scale * (2.0 * latents - 1.0)

    biased = torch.zeros(2, Scattering(SHAPE).num_features).double()
    biased[0, -1] = 5.0
    balanced = balanced_classifier(biased, Grey(), 0)
    images = torch.cat(list(Grey().samples_by_class(300, 1))).detach()
    shares = (Scattering(SHAPE)(images).double() @ balanced.T).softmax(1).mean(0)
    assert shares.tolist() == pytest.approx([0.5, 0.5], abs=0.05)
