"""The classifier that is trained before the first step, and the latents of images that it finds their class in."""

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.features.scattering import SCATTERING
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.tuned import CHOICE_TRIES, TunedGenerator
from dp_sinkhorn.stages import label_classifier
from dp_sinkhorn.stages.label_classifier import choice_tensors, learning_rate
from support.halves import Halves, telling
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


def test_with_little_noise_the_classifier_separates_the_classes() -> None:
    data = toy(100, seed=3)
    scores = SCATTERING(data).double() @ trained(0.05).T
    assert float((scores.argmax(1) == data.labels).double().mean()) > 0.95


def test_noise_on_an_update_bounds_the_learning_rate() -> None:
    assert learning_rate(1e-6) == 600.0
    assert learning_rate(0.5) == pytest.approx(0.05)


def chosen(share: float, weight: torch.Tensor) -> TunedGenerator:
    """`Halves`, its latents chosen by this classifier."""
    state = plain_descent(config_of("record"), Halves(share), counts=torch.full((2,), 100.0).double())
    state.learnt[STAGE.name] = weight
    tuned = TunedGenerator(Halves(share), 0, 0, choice=True)
    tuned.choice.load_state_dict(choice_tensors(tuned, state))
    return tuned.requires_grad_(requires_grad=False)


def shares_of_own(generator: TunedGenerator) -> list[float]:
    """So many images of each class look like it: class 0 is bright above, class 1 below."""
    images = torch.stack(list(generator.samples_by_class(1000, 5)))
    brightness = images[:, :, :32].mean(2) - images[:, :, 32:].mean(2)
    return [float((sign * of > 0.0).double().mean()) for sign, of in zip((1.0, -1.0), brightness, strict=True)]


@pytest.mark.parametrize("preferring", [0.0, 3_000.0])
def test_chosen_latents_are_nearly_as_good_as_the_best_of_all_tries(monkeypatch, preferring: float) -> None:
    """Of a half that does not, one in 32 is left, whatever class the classifier prefers among all of them."""
    monkeypatch.setattr(label_classifier, "_IMAGES", 4000)
    found = chosen(0.5, telling(preferring))
    assert shares_of_own(found) == pytest.approx([1.0 - 0.5**CHOICE_TRIES] * 2, abs=0.06)
