"""The affine map of a whole generator: almost without noise, its images get the moments of the records."""

import functools
from dataclasses import replace

import pytest
import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.image_moments import MomentFrame
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.stages import class_moments
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.class_moments import affine_tensors, moment_frame, sum_class_moments
from support.stage_runs import config_of, plain_descent, with_noise

SHAPE, SIZE, DIMENSIONS = (1, 8, 8), 64, 6
EACH, IMAGES, DRAWN = 4_000, 8_000, 10_000


class Noise(Generator):
    """Normal images around a ramp, so grey that the map never meets black or white."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, SIZE)
        self.scale = torch.nn.Parameter(torch.tensor(0.02))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * (latents - 0.5) * 12**0.5 + torch.linspace(-0.04, 0.04, SIZE)


@functools.cache
def some_records() -> LabelledImages:
    """Two classes, each around a mean of its own, with more in the slow frequencies."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(EACH)
    strengths = torch.randn(2 * EACH, SIZE, generator=random) / (1.0 + frequency_bands(SHAPE))
    means = torch.randn(2, SIZE, generator=random)
    pixels = 127.5 + 4.0 * strengths + 3.0 * means[labels]
    return LabelledImages(pixels.round().to(torch.uint8).view(-1, *SHAPE), labels, ("a", "b"))


def some_state(variance: float = 4.0, noise_per_record: float = 1e-5, centre: torch.Tensor | None = None) -> State:
    """What the stages before have released; by a variance of 4 nothing is cut."""
    random = torch.Generator().manual_seed(1)
    near = 0.1 * torch.randn(SIZE, generator=random)
    basis = torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0]
    config = with_noise(config_of("record"), "class_moments", 1e-6)
    plan = config.plan.model_copy(update={"noise_per_record": noise_per_record})
    config = config.model_copy(update={"plan": plan})
    state = plain_descent(
        config,
        Noise(),
        counts=torch.full((2,), float(EACH), dtype=torch.float64),
        variance=torch.tensor(variance),
        centre=near if centre is None else centre,
        basis=basis,
    )
    records = Draw(HeldRecords(some_records()))
    state.learnt["class_moments"] = sum_class_moments(moment_frame(state), records).value
    return state


@pytest.fixture(autouse=True)
def _fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_moments, "_IMAGES", IMAGES)


def corrected(generator: Generator, state: State) -> TunedGenerator:
    tuned = TunedGenerator(generator, DIMENSIONS, 0, choice=False)
    tuned.affine.load_state_dict(affine_tensors(generator, state))
    return tuned


def drawn(images: Generator, label: int) -> torch.Tensor:
    with torch.no_grad():
        return images.sample(torch.full((DRAWN,), label), torch.Generator().manual_seed(1))


def records_of(label: int) -> torch.Tensor:
    return some_records().floats()[some_records().labels == label]


def test_corrected_images_have_the_records_moments() -> None:
    state = some_state()
    images, basis, bands = corrected(Noise(), state), state.subspace.basis, frequency_bands(SHAPE)
    for label in range(2):
        made, real = drawn(images, label), records_of(label)
        spread = real.std(0).mean()
        assert float((made.mean(0) - real.mean(0)).abs().max()) < 0.08 * spread
        found, wanted = (torch.cov((rows @ basis).T) for rows in (made, real))
        assert float((found - wanted).norm() / wanted.norm()) < 0.07
        of_rest = [to_frequencies(state.subspace.rest(rows), SHAPE).var(0) for rows in (made, real)]
        for band in range(num_bands(SHAPE[0])):
            if bool((bands == band).any()):
                ratio = of_rest[0][bands == band].sum() / of_rest[1][bands == band].sum()
                assert abs(float(ratio) - 1.0) < 0.2  # the subspace cuts across the bands


def test_variation_that_the_generator_lacks_is_added() -> None:
    """It never moves along the first direction of the subspace: no stretch helps there."""
    state = some_state()
    flat = state.subspace.basis[:, 0]

    class Flat(Noise):
        def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            images = super().forward(latents, labels)
            return images - torch.outer(images @ flat, flat)

    images = corrected(Flat(), state)
    for label in range(2):
        found, wanted = (
            torch.cov((rows @ state.subspace.basis).T) for rows in (drawn(images, label), records_of(label))
        )
        assert float(wanted[0, 0]) > 0.05 * float(wanted.trace())
        assert float(found[0, 0]) == pytest.approx(float(wanted[0, 0]), rel=0.07)
        others = found[1:, 1:] - wanted[1:, 1:]
        assert float(others.norm() / wanted[1:, 1:].norm()) < 0.07


def test_images_that_are_too_many_to_keep_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    state = some_state()
    kept = affine_tensors(Noise(), state)
    monkeypatch.setattr(class_moments, "_MOST_KEPT", IMAGES * SIZE - 1)
    counted: list[int] = []
    real = Generator.samples_by_class

    def counting(self: Generator, per_class: int, seed: int) -> object:
        counted.append(per_class)
        return real(self, per_class, seed)

    monkeypatch.setattr(Generator, "samples_by_class", counting)
    again = affine_tensors(Noise(), state)
    assert counted == [IMAGES // 2] * 4  # once a round, and once for what the last one leaves
    for name, tensor in kept.items():  # what is kept is kept as halves
        torch.testing.assert_close(again[name], tensor, rtol=2e-2, atol=2e-3)


def test_more_noise_per_record_amplifies_less_detail() -> None:
    """The model's images spread less than the records, whatever the frequency."""
    dull = Noise()
    with torch.no_grad():
        dull.scale.mul_(0.1)
    used = frequency_bands(SHAPE).unique()
    noises = (1e-4, 1.9e-4, 2e-4)
    gains = [corrected(dull, some_state(noise_per_record=noise)).affine.gains[:, used] for noise in noises]
    assert bool((gains[0] > 0.5).all())
    assert bool((gains[1] > 0.0).all())
    assert bool((gains[1] < gains[0]).all())
    assert not bool((gains[2] > 0.0).any())


def test_rounds_find_the_moments_although_half_the_records_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    records = some_records().floats()
    centre = records.mean(0)
    lengths = (records - centre).norm(dim=1)
    state = some_state(float(lengths.median()) ** 2, centre=centre)

    def errors(rounds: int) -> tuple[float, float]:
        monkeypatch.setattr(class_moments, "_ROUNDS", rounds)
        made, real, basis = drawn(corrected(Noise(), state), 0), records_of(0), state.subspace.basis
        spread = float(torch.trace(torch.cov((made @ basis).T)) / torch.trace(torch.cov((real @ basis).T)))
        return float(((made.mean(0) - real.mean(0)) @ basis).norm() / real.std(0).norm()), abs(spread - 1.0)

    once, often = errors(1), errors(3)
    assert often[0] < 0.5 * once[0]
    assert often[1] < 0.5 * once[1]


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_a_class_add_up(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    frame = MomentFrame.of(Subspace(torch.zeros(SIZE), torch.eye(SIZE)[:, :3].contiguous()), 4.0, SHAPE)
    few = some_records().subset(torch.tensor([0, 1, 2, 3, EACH + 1]))
    few = replace(few, class_names=("a", "b", "nobody"))
    whole = sum_class_moments(frame, Draw(HeldRecords(few))).value
    assert float(whole[2].norm()) == 0.0
    monkeypatch.setattr(class_moments, "_CHUNK", chunk)
    torch.testing.assert_close(sum_class_moments(frame, Draw(HeldRecords(few))).value, whole)
