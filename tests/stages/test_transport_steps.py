"""One private step: against a by-hand computation, between neighbours, without records, and towards a target."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from dp_sinkhorn.build import build_generator
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.stages.transport_steps import PrivateRecords, StepRules, hold, record_sum, training_step
from dp_sinkhorn.transport.semidual import SemiDualContributions, balanced_potential

SIZE, DIMENSIONS, CLASSES, PER_CLASS, REFERENCES, CLIP_NORM = 64, 10, 2, 5, 8, 1.5
SILENT = 1e-12


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


def some_labels(a_class: int) -> torch.Tensor:
    return torch.arange(CLASSES).repeat_interleave(a_class)


def some_rules(num_records: int = 12, sample_rate: float = 1.0, noise_multiplier: float = SILENT) -> StepRules:
    random = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0]
    return StepRules(
        subspace=Subspace(centre=0.1 * torch.randn(SIZE, generator=random), basis=basis),
        labels=some_labels(PER_CLASS),
        reference_labels=some_labels(REFERENCES),
        expected_counts=torch.tensor([7.0, 4.0], dtype=torch.float64),
        subsampler=PoissonSubsampler(num_records, sample_rate),
        mechanism=GaussianMechanism(CLIP_NORM, noise_multiplier),
        reg=0.8,
        potential_iterations=0,
        rest_weight=0.1,
        variance=math.inf,
    )


def some_records(count: int = 12, seed: int = 2, scale: float = 1.0) -> PrivateRecords:
    """Records around the images, every fourth one far outside."""
    random = torch.Generator().manual_seed(seed)
    coordinates = scale * torch.randn(count, DIMENSIONS, generator=random)
    coordinates[::4] *= 50.0
    return PrivateRecords(coordinates.double(), torch.randint(CLASSES, (count,), generator=random))


def fixed(coordinates: torch.Tensor, labels: list[int]) -> PrivateRecords:
    return PrivateRecords(coordinates.double(), torch.tensor(labels, dtype=torch.int64))


def latents(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(
    generator: Generator, records: PrivateRecords, rules: StepRules, random: CryptoRandom | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """What one step of plain descent with rate 1 takes off the parameters, and what the step returns."""
    trained = copy.deepcopy(generator)
    optimiser = torch.optim.SGD(trained.parameters(), lr=1.0)
    rms = training_step(trained, optimiser, records, rules, latents(), random or CryptoRandom(test_seed=0))
    before = dict(generator.named_parameters())
    return {name: (before[name] - after).detach() for name, after in trained.named_parameters()}, rms


def clipped_pull(x: torch.Tensor, record: torch.Tensor, f: torch.Tensor, reg: float) -> torch.Tensor:
    """One record's clipped contribution, written out."""
    difference = x - record
    mass = torch.exp((f - difference.square().sum(1)) / reg - ((f - difference.square().sum(1)) / reg).max())
    matrix = (mass / mass.sum()).unsqueeze(1) * 2.0 * difference
    return matrix * min(1.0, CLIP_NORM / float(matrix.norm()))


@pytest.mark.parametrize("iterations", [0, 4])
def test_a_step_is_what_its_equations_say(iterations: int) -> None:
    generator, rules, records = Linear(), replace(some_rules(), potential_iterations=iterations), some_records()
    found, rms = step(generator, records, rules)

    random = latents()
    z = torch.rand(CLASSES * PER_CLASS, 4, generator=random)
    images = generator(z, rules.labels).detach()
    reference = generator(torch.rand(CLASSES * REFERENCES, 4, generator=random), rules.reference_labels).detach()
    x_all, model_all = (rules.subspace.project(part).double() for part in (images, reference))
    pulls = []
    for k in range(CLASSES):
        x = x_all[k * PER_CLASS : (k + 1) * PER_CLASS]
        model = model_all[k * REFERENCES : (k + 1) * REFERENCES]
        half = REFERENCES // 2 if iterations else 0
        f = balanced_potential(x, model[:half], rules.reg, iterations)
        own = sum(clipped_pull(x, other, f, rules.reg) for other in model[half:]) / (REFERENCES - half)
        mine = records.coordinates[records.labels == k].double()
        theirs = sum(clipped_pull(x, record, f, rules.reg) for record in mine) / float(rules.expected_counts[k])
        weight = math.sqrt(float(rules.expected_counts[k]) / 7.0)
        pulls.append(weight * PER_CLASS * (theirs - own))
    pull = torch.cat(pulls)
    centred = images - rules.subspace.centre
    rest = centred - centred @ rules.subspace.basis @ rules.subspace.basis.T
    gradient = pull.float() @ rules.subspace.basis.T + 0.1 * rest

    assert rms == pytest.approx(float(pull.square().sum(1).mean().sqrt()), rel=1e-5)
    table = torch.zeros(CLASSES, SIZE).index_add(0, rules.labels, gradient)
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
def test_a_small_class_is_hidden_by_ten_clip_norms_of_noise_if_the_others_are_most_of_the_data(
    counts: list[float], noise_multiplier: float, hidden: list[bool]
) -> None:
    """Noise on an image's own pull: the noise multiplier, times five images a class, over the expected count."""
    labels = torch.arange(len(counts)).repeat_interleave(PER_CLASS)
    rules = some_rules(noise_multiplier=noise_multiplier)
    rules = replace(rules, labels=labels, expected_counts=torch.tensor(counts).double())
    assert rules.hidden().tolist() == hidden


def test_a_hidden_class_is_led_to_the_models_images_of_the_others_and_not_by_its_records() -> None:
    generator, wide = Linear(), torch.tensor([700.0, 4.0], dtype=torch.float64)
    rules = replace(some_rules(noise_multiplier=20.0), expected_counts=wide, rest_weight=0.0)
    found, _ = step(generator, some_records(), rules)
    moved = fixed(some_records().coordinates + 5.0 * some_records().labels.unsqueeze(1), some_records().labels.tolist())
    same, _ = step(generator, moved, rules)
    torch.testing.assert_close(found["table"], same["table"], rtol=0.0, atol=0.0)

    random = latents()
    x, model = (
        rules.coordinates(generator.sample(labels, random)) for labels in (rules.labels, rules.reference_labels)
    )
    f = torch.zeros(PER_CLASS, dtype=torch.float64)
    wanted, own = (
        sum(clipped_pull(x[1], other, f, rules.reg) for other in images) / REFERENCES for images in (model[0], model[1])
    )
    pull = math.sqrt(4.0 / 700.0) * PER_CLASS * (wanted - own).sum(0)
    torch.testing.assert_close(found["table"][1], pull.float() @ rules.subspace.basis.T, rtol=1e-4, atol=1e-5)


def test_a_class_never_moves_the_images_of_another() -> None:
    generator, rules = Linear(), replace(some_rules(), rest_weight=0.0)
    only_first = fixed(some_records().coordinates, [0] * 12)
    more_first = fixed(torch.cat([some_records().coordinates, 3.0 * torch.ones(1, DIMENSIONS)]), [0] * 13)
    one, _ = step(generator, only_first, rules)
    other, _ = step(generator, more_first, replace(rules, subsampler=PoissonSubsampler(13, 1.0)))
    assert float((one["table"][0] - other["table"][0]).norm()) > 0.1
    torch.testing.assert_close(one["table"][1], other["table"][1], rtol=0.0, atol=1e-6)


def sum_of(records: PrivateRecords, rules: StepRules, iterations: int, seed: int) -> torch.Tensor:
    random = latents()
    with torch.no_grad():
        x = rules.coordinates(Linear().sample(rules.labels, random))
    potentials = [balanced_potential(x_k, x_k + 0.1, rules.reg, iterations) for x_k in x]
    total = record_sum(x, potentials, records, rules, CryptoRandom(test_seed=seed))
    assert total.sensitivity == CLIP_NORM
    assert total.value.shape == (CLASSES, PER_CLASS, DIMENSIONS)
    return total.value


@pytest.mark.parametrize("scale", [0.05, 1.0, 1e4])
@pytest.mark.parametrize("iterations", [0, 3])
def test_neighbours_with_the_same_subsample_differ_by_at_most_the_clip_norm(scale: float, iterations: int) -> None:
    """One record more, drawn beside the same others: the coins of the first N records are the same stream."""
    base = some_records(40)
    checked = 0
    for seed in range(30):
        drawn = PoissonSubsampler(41, 0.4).draw(CryptoRandom(test_seed=seed))
        if 40 not in drawn.tolist():
            continue
        assert PoissonSubsampler(40, 0.4).draw(CryptoRandom(test_seed=seed)).tolist() == drawn.tolist()[:-1]
        extra = scale * torch.randn(1, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
        label = torch.tensor([seed % CLASSES])
        more = PrivateRecords(torch.cat([base.coordinates, extra]), torch.cat([base.labels, label]))
        change = sum_of(more, some_rules(41, 0.4), iterations, seed) - sum_of(
            base, some_rules(40, 0.4), iterations, seed
        )
        assert float(change.norm()) <= CLIP_NORM
        assert float(change.norm()) > 0.0
        assert torch.equal(change[1 - int(label)], torch.zeros(PER_CLASS, DIMENSIONS, dtype=torch.float64))
        if scale == 1e4:
            assert float(change.norm()) == pytest.approx(CLIP_NORM, rel=1e-5)
        checked += 1
    assert checked >= 5


def test_a_record_that_is_not_finite_counts_for_nothing() -> None:
    rules, records = some_rules(), some_records()
    bad = records.coordinates.clone()
    bad[3, 2], bad[5] = math.nan, math.inf
    keep = torch.tensor([j for j in range(12) if j not in (3, 5)])
    found, rms = step(Linear(), PrivateRecords(bad, records.labels), rules)
    fewer = PrivateRecords(records.coordinates[keep], records.labels[keep])
    expected, _ = step(Linear(), fewer, replace(rules, subsampler=PoissonSubsampler(10, 1.0)))
    assert math.isfinite(rms)
    torch.testing.assert_close(found["table"], expected["table"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sample_rate", [1e-12, 0.3, 1.0])
def test_what_is_generated_does_not_depend_on_the_draw(sample_rate: float) -> None:
    generator = Linear()
    optimiser = torch.optim.SGD(generator.parameters(), lr=0.1)
    rules = some_rules(12, sample_rate, noise_multiplier=1.0)
    training_step(generator, optimiser, some_records(), rules, latents(), CryptoRandom(test_seed=1))
    assert generator.passes == [
        (torch.Size([CLASSES * PER_CLASS, 4]), some_labels(PER_CLASS).tolist()),
        (torch.Size([CLASSES * REFERENCES, 4]), some_labels(REFERENCES).tolist()),
    ]


def test_an_empty_subsample_is_a_normal_step_of_noise_only() -> None:
    rules = some_rules(12, 1e-12, noise_multiplier=1.0)
    one, rms = step(Linear(), some_records(seed=2), rules, CryptoRandom(test_seed=5))
    other, same_rms = step(Linear(), some_records(seed=7, scale=30.0), rules, CryptoRandom(test_seed=5))
    noised_otherwise, _ = step(Linear(), some_records(seed=2), rules, CryptoRandom(test_seed=6))
    assert rms == same_rms > 0.0
    for name, change in one.items():
        assert torch.equal(change, other[name])
        assert not torch.allclose(change, noised_otherwise[name], rtol=1e-2, atol=1e-2)


def test_a_class_without_records_is_an_ordinary_class() -> None:
    records = fixed(some_records().coordinates, [1] * 12)
    found, _ = step(Linear(), records, some_rules(noise_multiplier=1.0))
    assert bool(torch.isfinite(found["table"]).all())
    assert bool((found["table"].norm(dim=1) > 0.0).all())


@pytest.mark.parametrize("sample_rate", [1e-12, 0.5, 1.0])
def test_the_noise_of_a_step_is_the_declared_one_whatever_was_drawn(sample_rate: float) -> None:
    """Where noise is all, one image's pull has n_k·σ·C/(q·N·π_k) a coordinate: 2/3 or 3/2 of it are rejected."""
    per_class, sigma = 2_000, 1e4
    rules = replace(some_rules(12, sample_rate, sigma), labels=some_labels(per_class))
    _, rms = step(Linear(), some_records(), rules, CryptoRandom(test_seed=8))
    weights = torch.tensor([1.0, math.sqrt(4.0 / 7.0)])
    stddevs = weights * per_class * sigma * CLIP_NORM / rules.expected_counts
    expected = math.sqrt(DIMENSIONS * float(stddevs.square().mean()))
    assert rms == pytest.approx(expected, rel=6.0 / math.sqrt(2.0 * CLASSES * per_class * DIMENSIONS / 1.5))
    assert 6.0 / math.sqrt(2.0 * CLASSES * per_class * DIMENSIONS / 1.5) < 0.03


@pytest.mark.parametrize("iterations", [0, 5])
def test_the_field_vanishes_when_the_records_are_the_models_own_images(iterations: int) -> None:
    generator, count = Linear(), 10_000
    rules = replace(
        some_rules(CLASSES * count, 1.0),
        reference_labels=some_labels(2 * count if iterations else count),
        expected_counts=torch.full((CLASSES,), float(count), dtype=torch.float64),
        potential_iterations=iterations,
    )
    with torch.no_grad():
        labels = some_labels(count)
        coordinates = rules.subspace.project(generator.sample(labels, latents(99)))
    _, rms = step(generator, PrivateRecords(coordinates.double(), labels), rules)
    _, shifted = step(generator, PrivateRecords((coordinates + 0.3).double(), labels), rules)
    # Two samples of 10,000 differ by about √2/100 of a contribution, an image's share of it times 5.
    assert rms < 0.1
    assert shifted > 10.0 * rms


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_stop_the_step_before_anything_is_changed(bad: float) -> None:
    generator = Linear()
    with torch.no_grad():
        generator.table[1, 3] = bad
    before = generator.mix.detach().clone()
    optimiser = torch.optim.SGD(generator.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        training_step(generator, optimiser, some_records(), some_rules(), latents(), CryptoRandom(test_seed=0))
    assert torch.equal(generator.mix, before)


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_fifty_steps_come_closer_to_a_target(name: str) -> None:
    generator = build_generator(GeneratorSpec(name=name, latent_dim=4, width=32, channels=16), (1, 8, 8), CLASSES)
    targets = torch.zeros(CLASSES, 8, 8)
    targets[0, :, :4], targets[1, 2:6, :] = 0.8, -0.8
    count = 50
    images = targets.flatten(1).repeat_interleave(count, 0)
    images = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    labels = some_labels(count)
    subspace = Subspace(images.mean(0), torch.eye(SIZE))
    rules = replace(
        some_rules(CLASSES * count, 0.5, noise_multiplier=0.01),
        subspace=subspace,
        expected_counts=torch.full((CLASSES,), 0.5 * count, dtype=torch.float64),
    )
    records = PrivateRecords(subspace.project(images).double(), labels)
    optimiser = torch.optim.Adam(generator.parameters(), lr=5e-3, betas=(0.9, 0.99))
    random = CryptoRandom(test_seed=10)

    def distance() -> float:
        with torch.no_grad():
            sample = generator.sample(some_labels(20), latents(50))
        return float((sample.view(CLASSES, 20, -1).mean(1) - targets.flatten(1)).norm())

    before = distance()
    for number in range(50):
        training_step(generator, optimiser, records, rules, latents(number), random)
    assert distance() < 0.4 * before


def test_contributions_are_bounded_by_the_mechanisms_sensitivity_and_by_nothing_else() -> None:
    """Doubling the clip norm in the one place where it is declared doubles what an outlier may do."""
    rules = some_rules(1)
    far = fixed(1e3 * torch.ones(1, DIMENSIONS), [1])
    with torch.no_grad():
        x = rules.coordinates(Linear().sample(rules.labels, latents()))
    zero = [torch.zeros(PER_CLASS, dtype=torch.float64)] * CLASSES
    assert float(SemiDualContributions.of(x[1], far.coordinates, zero[1], rules.reg).norms()) > 10.0
    for clip_norm in (0.5, 1.0, 2.0):
        bounded = replace(rules, mechanism=GaussianMechanism(clip_norm, SILENT))
        total = record_sum(x, zero, far, bounded, CryptoRandom(test_seed=0))
        assert total.sensitivity == clip_norm
        assert float(total.value.norm()) == pytest.approx(clip_norm, rel=1e-5)


def test_images_are_held_back_by_as_much_as_they_vary_more_than_the_records() -> None:
    centred = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert torch.equal(hold(centred, 5.0, 7.0), torch.zeros(2, 2))  # their variance is 5
    assert torch.equal(hold(torch.zeros(2, 2), 5.0, 7.0), torch.zeros(2, 2))
    torch.testing.assert_close(hold(centred, 4.0, 8.0), 8.0 * 0.25 * centred / math.sqrt(10.0))


def test_steps_of_noise_alone_do_not_drive_the_images_out() -> None:
    """Without the hold the same 150 steps multiply the variance by far more than it is allowed to grow here."""
    start = Linear()
    silent = fixed(torch.zeros(0, DIMENSIONS), [])

    def trained(variance: float) -> float:
        generator = copy.deepcopy(start)
        optimiser = torch.optim.Adam(generator.parameters(), lr=0.05)
        rules = replace(some_rules(12, 1e-12, 1e3), variance=variance)
        random = CryptoRandom(test_seed=11)
        for number in range(150):
            training_step(generator, optimiser, silent, rules, latents(number), random)
        with torch.no_grad():
            images = generator.sample(some_labels(50), latents(999))
        return float((images - rules.subspace.centre).square().sum(1).mean())

    assert trained(math.inf) > 3.0 * 4.0
    assert trained(4.0) < 1.5 * 4.0
