"""One transport step: against a by-hand computation, and when model = data; hidden classes; no drift by noise alone."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.optimiser import Optimiser
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.curator import Draw, HeldRecords, View
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.transport_steps import (
    ClippedTransport,
    CoordinatesView,
    TransportSetup,
    TransportSteps,
    variance_penalty,
)
from dp_sinkhorn.transport.semidual import balanced_potential
from support.stage_runs import FACTS, NAMES, SETTINGS, curator_of, plain_descent, with_noise

SIZE, DIMENSIONS, CLASSES, PER_CLASS, REFERENCES, CLIP_NORM = 64, 10, 2, 5, 8, 1.5
SILENT = 1e-12
STAGE = TransportSteps()


class Linear(Generator):
    """An image is its class's row plus a linear function of its latent: gradients can be written down."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), CLASSES, 4)
        random = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(0.3 * torch.randn(CLASSES, SIZE, generator=random))
        self.mix = torch.nn.Parameter(0.3 * torch.randn(4, SIZE, generator=random))
        self.passes: list[tuple[torch.Size, list[int]]] = []

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.passes.append((latents.shape, labels.tolist()))
        return self.table[labels] + latents @ self.mix


class Coordinates(HeldRecords):
    """Records of which nothing is known but their coordinates."""

    def __init__(self, coordinates: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__(LabelledImages(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, NAMES))
        object.__setattr__(self, "coordinates", coordinates.double())

    def compute(self, view: View) -> torch.Tensor:
        assert view.name == "coordinates"
        return self.coordinates


class AtItsOwnRate(Optimiser):
    """Whatever rate the run sets."""

    def set_rate(self, rate: float) -> None:
        """Keep it."""


def some_labels(a_class: int) -> torch.Tensor:
    return torch.arange(CLASSES).repeat_interleave(a_class)


def some_setup(**changes: object) -> TransportSetup:
    random = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0]
    subspace = Subspace(centre=0.1 * torch.randn(SIZE, generator=random), basis=basis)
    setup = TransportSetup(
        view=CoordinatesView(subspace, "cpu"),
        subspace=subspace,
        labels=some_labels(PER_CLASS),
        reference_labels=some_labels(REFERENCES),
        expected_counts=torch.tensor([7.0, 4.0], dtype=torch.float64),
        clip_norm=CLIP_NORM,
        noise_multiplier=SILENT,
        reg=0.8,
        potential_iterations=0,
        rest_weight=0.1,
        variance=math.inf,
    )
    return replace(setup, **changes)


def some_records(count: int = 12, seed: int = 2, scale: float = 1.0) -> Coordinates:
    """Records around the images, every fourth one far outside."""
    random = torch.Generator().manual_seed(seed)
    coordinates = scale * torch.randn(count, DIMENSIONS, generator=random)
    coordinates[::4] *= 50.0
    return Coordinates(coordinates, torch.randint(CLASSES, (count,), generator=random))


@pytest.fixture(scope="module")
def config() -> RunConfig:
    settings = {**SETTINGS["record"], "num_steps": 200, "noise_multiplier": 50.0}
    return method.resolve(method.settings_of(None, settings), FACTS)


class Stepper:
    """Takes steps of the stage from a setup that the test has made."""

    def __init__(self, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.monkeypatch = config, monkeypatch

    def begin(
        self,
        generator: Generator,
        records: Coordinates,
        setup: TransportSetup,
        sample_rate: float = 1.0,
        seed: int = 0,
        optimiser: Optimiser | None = None,
    ) -> tuple[State, Iterator[None]]:
        self.monkeypatch.setattr(TransportSetup, "of", lambda stage, state: setup)
        config = with_noise(self.config, STAGE.name, setup.noise_multiplier, sample_rate)
        state = plain_descent(config, generator)
        state.optimiser = optimiser or state.optimiser
        return state, STAGE.run(curator_of(config, records, seed), state)

    def __call__(
        self,
        generator: Generator,
        records: Coordinates,
        setup: TransportSetup,
        sample_rate: float = 1.0,
        seed: int = 0,
    ) -> tuple[dict[str, torch.Tensor], float]:
        """What one step of plain descent at rate 1 takes off the parameters, and the size of its field."""
        trained = copy.deepcopy(generator)
        state, steps = self.begin(trained, records, setup, sample_rate, seed)
        next(steps)
        before = dict(generator.named_parameters())
        return {name: (before[name] - after).detach() for name, after in trained.named_parameters()}, state.field_size


@pytest.fixture
def step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Stepper:
    return Stepper(config, monkeypatch)


def latents() -> torch.Generator:
    """As of the first step of the public seed 0."""
    return torch.Generator().manual_seed(0)


def clipped_pull(x: torch.Tensor, record: torch.Tensor, f: torch.Tensor, reg: float) -> torch.Tensor:
    """One record's clipped contribution, written out."""
    difference = x - record
    mass = torch.exp((f - difference.square().sum(1)) / reg - ((f - difference.square().sum(1)) / reg).max())
    matrix = (mass / mass.sum()).unsqueeze(1) * 2.0 * difference
    return matrix * min(1.0, CLIP_NORM / float(matrix.norm()))


@pytest.mark.parametrize("iterations", [0, 4])
def test_a_step_follows_its_equations(step: Stepper, iterations: int) -> None:
    generator, setup, records = Linear(), some_setup(potential_iterations=iterations), some_records()
    found, rms = step(generator, records, setup)

    random = latents()
    z = torch.rand(CLASSES * PER_CLASS, 4, generator=random)
    images = generator(z, setup.labels).detach()
    reference = generator(torch.rand(CLASSES * REFERENCES, 4, generator=random), setup.reference_labels).detach()
    x_all, model_all = (setup.subspace.project(part).double() for part in (images, reference))
    pulls = []
    for k in range(CLASSES):
        x = x_all[k * PER_CLASS : (k + 1) * PER_CLASS]
        model = model_all[k * REFERENCES : (k + 1) * REFERENCES]
        half = REFERENCES // 2 if iterations else 0
        f = balanced_potential(x, model[:half], setup.reg, iterations)
        own = sum(clipped_pull(x, other, f, setup.reg) for other in model[half:]) / (REFERENCES - half)
        mine = records.coordinates[records.images.labels == k]
        theirs = sum(clipped_pull(x, record, f, setup.reg) for record in mine) / float(setup.expected_counts[k])
        weight = math.sqrt(float(setup.expected_counts[k]) / 7.0)
        pulls.append(weight * PER_CLASS * (theirs - own))
    pull = torch.cat(pulls)
    centred = images - setup.subspace.centre
    rest = centred - centred @ setup.subspace.basis @ setup.subspace.basis.T
    gradient = pull.float() @ setup.subspace.basis.T + 0.1 * rest

    assert rms == pytest.approx(float(pull.square().sum(1).mean().sqrt()), rel=1e-5)
    table = torch.zeros(CLASSES, SIZE).index_add(0, setup.labels, gradient)
    torch.testing.assert_close(found["table"], table, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["mix"], z.T @ gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("counts", "noise_multiplier", "hidden"),
    [
        ([102.0, 10.1, 9.9], 21.0, [False, True, True]),
        ([102.0, 10.1, 9.9], 20.0, [False, False, True]),  # the second has 9.9 clip norms of noise
        ([98.0, 9.9, 9.7], 30.0, [False, False, True]),  # the second is more than a tenth of the first
        ([9.0, 9.5, 9.9], 20.0, [False, False, False]),  # none is small
        ([10.0] + 12 * [0.9], 20.0, 13 * [False]),  # nothing to learn from instead
        ([10.0] + 12 * [0.9] + [0.05], 1.5, 13 * [False] + [True]),
    ],
)
def test_ten_clip_norms_of_noise_hide_a_small_class(
    counts: list[float], noise_multiplier: float, hidden: list[bool]
) -> None:
    """If the others are most of the data. Noise on a pull: the multiplier, times five images a class, by the count."""
    setup = some_setup(
        labels=torch.arange(len(counts)).repeat_interleave(PER_CLASS),
        expected_counts=torch.tensor(counts).double(),
        noise_multiplier=noise_multiplier,
    )
    assert setup.hidden().tolist() == hidden


def test_a_hidden_class_follows_the_models_images_of_the_others(step: Stepper) -> None:
    """And not by its records."""
    generator, wide = Linear(), torch.tensor([700.0, 4.0], dtype=torch.float64)
    setup = some_setup(noise_multiplier=20.0, expected_counts=wide, rest_weight=0.0)
    records = some_records()
    found, _ = step(generator, records, setup)
    moved = Coordinates(records.coordinates + 5.0 * records.images.labels.unsqueeze(1), records.images.labels)
    same, _ = step(generator, moved, setup)
    torch.testing.assert_close(found["table"][1], same["table"][1], rtol=0.0, atol=0.0)

    random = latents()
    x, model = (
        setup.coordinates(generator.sample(labels, random)) for labels in (setup.labels, setup.reference_labels)
    )
    f = torch.zeros(PER_CLASS, dtype=torch.float64)
    wanted, own = (
        sum(clipped_pull(x[1], other, f, setup.reg) for other in images) / REFERENCES for images in (model[0], model[1])
    )
    pull = math.sqrt(4.0 / 700.0) * PER_CLASS * (wanted - own).sum(0)
    torch.testing.assert_close(found["table"][1], pull.float() @ setup.subspace.basis.T, rtol=1e-4, atol=1e-5)


def test_a_class_never_moves_the_images_of_another(step: Stepper) -> None:
    generator, setup, twelve = Linear(), some_setup(rest_weight=0.0), some_records().coordinates
    one, _ = step(generator, Coordinates(twelve, torch.zeros(12).long()), setup)
    more = torch.cat([twelve, 3.0 * torch.ones(1, DIMENSIONS)])
    other, _ = step(generator, Coordinates(more, torch.zeros(13).long()), setup)
    assert float((one["table"][0] - other["table"][0]).norm()) > 0.1
    torch.testing.assert_close(one["table"][1], other["table"][1], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.05, 1.0, 1e4])
@pytest.mark.parametrize("iterations", [0, 3])
def test_one_record_moves_its_class_by_at_most_the_clip_norm(scale: float, iterations: int) -> None:
    setup, records = some_setup(), some_records(40)
    with torch.no_grad():
        x = setup.coordinates(Linear().sample(setup.labels, latents()))
    potentials = [balanced_potential(x_k, x_k + 0.1, setup.reg, iterations) for x_k in x]
    contribute = ClippedTransport(setup, x, potentials)

    def total(held: Coordinates) -> torch.Tensor:
        return contribute(Draw(held)).value

    base = total(records)
    for seed in range(5):
        extra = scale * torch.randn(1, DIMENSIONS, generator=torch.Generator().manual_seed(seed)).double()
        label = seed % CLASSES
        more = Coordinates(
            torch.cat([records.coordinates, extra]), torch.cat([records.images.labels, torch.tensor([label])])
        )
        change = total(more) - base
        assert 0.0 < float(change.norm()) <= CLIP_NORM
        assert torch.equal(change[1 - label], torch.zeros(PER_CLASS, DIMENSIONS, dtype=torch.float64))
        if scale == 1e4:
            assert float(change.norm()) == pytest.approx(CLIP_NORM, rel=1e-5)


def test_a_record_that_is_not_finite_adds_zero(step: Stepper) -> None:
    setup, records = some_setup(), some_records()
    bad = records.coordinates.clone()
    bad[3, 2], bad[5] = math.nan, math.inf
    keep = torch.tensor([j for j in range(12) if j not in (3, 5)])
    labels = records.images.labels
    found, rms = step(Linear(), Coordinates(bad, labels), setup)
    expected, _ = step(Linear(), Coordinates(records.coordinates[keep], labels[keep]), setup)
    assert math.isfinite(rms)
    torch.testing.assert_close(found["table"], expected["table"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sample_rate", [1e-12, 0.3, 1.0])
def test_what_is_generated_does_not_depend_on_the_draw(step: Stepper, sample_rate: float) -> None:
    generator = Linear()
    _, steps = step.begin(generator, some_records(), some_setup(noise_multiplier=1.0), sample_rate, seed=1)
    next(steps)
    assert generator.passes == [
        (torch.Size([CLASSES * PER_CLASS, 4]), some_labels(PER_CLASS).tolist()),
        (torch.Size([CLASSES * REFERENCES, 4]), some_labels(REFERENCES).tolist()),
    ]


def test_an_empty_subsample_is_a_step_of_noise_only(step: Stepper) -> None:
    setup = some_setup(noise_multiplier=1.0)
    one, rms = step(Linear(), some_records(seed=2), setup, 1e-12, seed=5)
    other, same_rms = step(Linear(), some_records(seed=7, scale=30.0), setup, 1e-12, seed=5)
    noised_otherwise, _ = step(Linear(), some_records(seed=2), setup, 1e-12, seed=6)
    assert rms == same_rms > 0.0
    for name, change in one.items():
        assert torch.equal(change, other[name])
        assert not torch.allclose(change, noised_otherwise[name], rtol=1e-2, atol=1e-2)


def test_a_class_without_records_is_an_ordinary_class(step: Stepper) -> None:
    records = Coordinates(some_records().coordinates, torch.ones(12).long())
    found, _ = step(Linear(), records, some_setup(noise_multiplier=1.0))
    assert bool(torch.isfinite(found["table"]).all())
    assert bool((found["table"].norm(dim=1) > 0.0).all())


@pytest.mark.parametrize("sample_rate", [1e-12, 0.5, 1.0])
def test_the_noise_of_a_step_is_the_declared_one(step: Stepper, sample_rate: float) -> None:
    """Where noise is all, one image's pull has n_k·σ·C/(q·N·π_k) a coordinate: 2/3 or 3/2 of it are rejected."""
    per_class, sigma = 2_000, 1e4
    setup = some_setup(noise_multiplier=sigma, labels=some_labels(per_class))
    _, rms = step(Linear(), some_records(), setup, sample_rate, seed=8)
    weights = torch.tensor([1.0, math.sqrt(4.0 / 7.0)])
    stddevs = weights * per_class * sigma * CLIP_NORM / setup.expected_counts
    expected = math.sqrt(DIMENSIONS * float(stddevs.square().mean()))
    spread = 6.0 / math.sqrt(2.0 * CLASSES * per_class * DIMENSIONS / 1.5)
    assert rms == pytest.approx(expected, rel=spread)
    assert spread < 0.03


@pytest.mark.parametrize("iterations", [0, 5])
def test_the_field_vanishes_when_records_are_the_model_s_own_images(step: Stepper, iterations: int) -> None:
    generator, count = Linear(), 4_000
    setup = some_setup(
        reference_labels=some_labels(2 * count if iterations else count),
        expected_counts=torch.full((CLASSES,), float(count), dtype=torch.float64),
        potential_iterations=iterations,
    )
    labels = some_labels(count)
    with torch.no_grad():
        coordinates = setup.subspace.project(generator.sample(labels, torch.Generator().manual_seed(99)))
    _, rms = step(generator, Coordinates(coordinates, labels), setup)
    _, shifted = step(generator, Coordinates(coordinates + 0.5, labels), setup)
    # Two samples of 4,000 differ by about √2/63 of a contribution, an image's share of it times 5.
    assert rms < 0.15
    assert shifted > 10.0 * rms


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_stop_a_step_before_it_asks(step: Stepper, bad: float) -> None:
    generator = Linear()
    with torch.no_grad():
        generator.table[1, 3] = bad
    before = generator.mix.detach().clone()
    _, steps = step.begin(generator, some_records(), some_setup())
    with pytest.raises(FloatingPointError, match="not finite"):
        next(steps)
    assert torch.equal(generator.mix, before)


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_fifty_steps_come_closer_to_a_target(step: Stepper, name: str) -> None:
    generator = build_generator(GeneratorSpec(name=name, latent_dim=4, width=32, channels=16), (1, 8, 8), CLASSES)
    targets = torch.zeros(CLASSES, 8, 8)
    targets[0, :, :4], targets[1, 2:6, :] = 0.8, -0.8
    count = 50
    images = targets.flatten(1).repeat_interleave(count, 0)
    images = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    subspace = Subspace(images.mean(0), torch.eye(SIZE))
    setup = some_setup(
        subspace=subspace,
        noise_multiplier=0.01,
        expected_counts=torch.full((CLASSES,), 0.5 * count, dtype=torch.float64),
    )
    records = Coordinates(subspace.project(images), some_labels(count))
    adam = torch.optim.Adam(generator.parameters(), lr=5e-3, betas=(0.9, 0.99))

    def distance() -> float:
        with torch.no_grad():
            sample = generator.sample(some_labels(20), torch.Generator().manual_seed(50))
        return float((sample.view(CLASSES, 20, -1).mean(1) - targets.flatten(1)).norm())

    before = distance()
    _, steps = step.begin(generator, records, setup, 0.5, seed=10, optimiser=AtItsOwnRate(adam))
    for _ in range(50):
        next(steps)
    assert distance() < 0.4 * before


def test_images_are_pulled_back_by_their_excess_variance() -> None:
    centred = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert torch.equal(variance_penalty(centred, 5.0, 7.0), torch.zeros(2, 2))  # their variance is 5
    assert torch.equal(variance_penalty(torch.zeros(2, 2), 5.0, 7.0), torch.zeros(2, 2))
    torch.testing.assert_close(variance_penalty(centred, 4.0, 8.0), 8.0 * 0.25 * centred / math.sqrt(10.0))


def test_steps_of_noise_alone_do_not_drive_the_images_out(step: Stepper) -> None:
    """Where nothing holds them back the same steps multiply the variance by far more than it may grow here."""

    def trained(variance: float) -> float:
        generator, setup = Linear(), some_setup(noise_multiplier=1e3, variance=variance)
        adam = torch.optim.Adam(generator.parameters(), lr=0.05)
        _, steps = step.begin(generator, some_records(), setup, 1e-12, seed=11, optimiser=AtItsOwnRate(adam))
        for _ in range(150):
            next(steps)
        with torch.no_grad():
            images = generator.sample(some_labels(50), torch.Generator().manual_seed(999))
        return float((images - setup.subspace.centre).square().sum(1).mean())

    assert trained(math.inf) > 3.0 * 4.0
    assert trained(4.0) < 1.5 * 4.0
