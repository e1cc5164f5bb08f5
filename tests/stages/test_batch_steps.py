"""One step of the paper: against autograd of its loss, between neighbours, without records, and blind beyond n."""

import copy
import math
from dataclasses import replace

import pytest
import torch

import dp_sinkhorn.stages.batch_steps as batch_step_module
from dp_sinkhorn.data.images import to_unit_range
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.stages.batch_steps import BatchStepRules, PixelRecords, batch_step, debiasing_gradient, query_sum
from dp_sinkhorn.transport.costs import MixedCost
from dp_sinkhorn.transport.divergence import semi_debiased_loss
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

SIZE, CLASSES, N, FRESH, CLIP_NORM = 64, 2, 6, 3, 0.7
SILENT = 1e-12
HUGE = 1e4  # a clip norm that never binds, on a grid that is fine enough


class Linear(Generator):
    """An image is its class's row plus a linear function of its latent: gradients can be written down."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), CLASSES, 4)
        random = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(0.3 * torch.randn(CLASSES, SIZE, generator=random))
        self.mix = torch.nn.Parameter(0.3 * torch.randn(4, SIZE, generator=random))
        self.passes: list[list[int]] = []

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.passes.append(labels.tolist())
        return self.table[labels] + latents @ self.mix


def some_rules(
    num_records: int = 9,
    sample_rate: float = 1.0,
    noise_multiplier: float = SILENT,
    clip_norm: float = CLIP_NORM,
    queries: int = 1,
    debias: float = FRESH / N,
) -> BatchStepRules:
    return BatchStepRules(
        num_generated=N,
        num_fresh=math.floor(N * debias),
        debias_fraction=debias,
        class_shares=torch.tensor([0.5, 0.5]),
        queries=queries,
        capacity=num_records,
        subsampler=PoissonSubsampler(num_records, sample_rate),
        clip_norm=clip_norm,
        mechanism=GaussianMechanism(2.0 * clip_norm, noise_multiplier),
        cost=MixedCost(0.5),
        solver=Sinkhorn(reg=5.0, iterations=100),
        label_weight=2.0,
    )


def some_records(count: int = 9, seed: int = 2) -> PixelRecords:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, SIZE), generator=random, dtype=torch.uint8)
    return PixelRecords(pixels, torch.randint(CLASSES, (count,), generator=random))


def latents(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def change(
    records: PixelRecords, rules: BatchStepRules, random: CryptoRandom | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """What one step of plain descent with rate 1 takes off the parameters, and what the step returns."""
    generator = Linear()
    optimiser = torch.optim.SGD(generator.parameters(), lr=1.0)
    before = copy.deepcopy(dict(generator.named_parameters()))
    rms = batch_step(generator, optimiser, records, rules, latents(), random or CryptoRandom(test_seed=0))
    return {name: (before[name] - after).detach() for name, after in generator.named_parameters()}, rms


def images_and_labels(rules: BatchStepRules) -> tuple[torch.Tensor, torch.Tensor]:
    """The images that `change`'s step generates."""
    random = latents()
    labels = torch.multinomial(rules.class_shares, N + rules.num_fresh, replacement=True, generator=random)
    return Linear().sample(labels, random).detach(), labels


@pytest.mark.parametrize("debias", [0.0, 0.5, 1.0])
def test_without_clip_and_noise_a_step_descends_the_semi_debiased_loss(debias: float) -> None:
    rules, records = some_rules(clip_norm=HUGE, noise_multiplier=1e-20, debias=debias), some_records()
    found, rms = change(records, rules)

    generator, random = Linear(), latents()
    labels = torch.multinomial(rules.class_shares, N + rules.num_fresh, replacement=True, generator=random)
    images = generator.sample(labels, random)
    images.retain_grad()
    loss = semi_debiased_loss(
        images,
        to_unit_range(records.pixels),
        rules.cost,
        rules.solver,
        debias,
        labels=(labels, records.labels),
        label_weight=2.0,
    )
    loss.backward()
    for name, parameter in generator.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)
    assert rms == pytest.approx(float(images.grad[:N].square().sum(1).mean().sqrt()), rel=1e-3)


def test_a_query_is_the_gradient_of_its_own_subsample_clipped_as_a_whole() -> None:
    rules, records = some_rules(num_records=9, sample_rate=0.4, queries=5), some_records()
    x, labels = images_and_labels(rules)
    own = -debiasing_gradient(x, labels, rules)[:N]
    total = query_sum(x[:N], labels[:N], own, records, rules, CryptoRandom(test_seed=4))
    assert (total.sensitivity, total.queries) == (2.0 * CLIP_NORM, 5)

    index, drawn = rules.subsampler.draw_padded(5, rules.capacity, CryptoRandom(test_seed=4))
    expected = torch.zeros(N, SIZE, dtype=torch.float64)
    for query in range(5):
        chosen = index[query][drawn[query]]
        leaf = x.clone().requires_grad_()
        semi_debiased_loss(
            leaf,
            to_unit_range(records.pixels[chosen]),
            rules.cost,
            rules.solver,
            rules.debias_fraction,
            b=None if len(chosen) else torch.zeros(0),
            labels=(labels, records.labels[chosen]),
            label_weight=2.0,
        ).backward()
        gradient = leaf.grad[:N].double()
        expected += gradient * min(1.0, CLIP_NORM / float(gradient.norm()))
    torch.testing.assert_close(total.value, expected, rtol=1e-4, atol=1e-5)


def test_images_beyond_n_get_a_gradient_that_cannot_see_the_records() -> None:
    """By autograd: pixels as a leaf. The rows that go back un-noised have no path to them; the others do."""
    rules = some_rules(clip_norm=HUGE)
    x, labels = images_and_labels(rules)
    own = debiasing_gradient(x, labels, rules)
    assert own.shape == (N + FRESH, SIZE)
    assert float(own[N:].norm()) > 0.0

    y = to_unit_range(some_records().pixels).requires_grad_()
    leaf = x.clone().requires_grad_()
    loss = semi_debiased_loss(
        leaf, y, rules.cost, rules.solver, FRESH / N, labels=(labels, some_records().labels), label_weight=2.0
    )
    (by_x, by_y) = torch.autograd.grad(loss, (leaf, y))
    assert float(by_y.norm()) > 0.0
    torch.testing.assert_close(by_x[N:], -own[N:], rtol=1e-5, atol=1e-6)


def test_what_the_fresh_images_move_is_the_same_for_all_records() -> None:
    """Two data sets, the same noise: the parameters' difference comes from the first n images alone."""
    rules = some_rules()
    one, _ = change(some_records(seed=2), rules)
    other, _ = change(some_records(seed=7), rules)
    x, labels = images_and_labels(rules)
    random = latents()
    torch.multinomial(rules.class_shares, N + FRESH, replacement=True, generator=random)
    z = torch.rand(N + FRESH, 4, generator=random)
    difference = one["mix"] - other["mix"]
    assert float(difference.norm()) > 1e-3
    # mix moves by zᵀ·gradient: what differs lies in the span of the first n latents.
    basis = torch.linalg.qr(z[:N].T)[0] if N < 4 else torch.eye(4)
    torch.testing.assert_close(basis @ basis.T @ difference, difference)
    own = -debiasing_gradient(x, labels, rules)
    assert float(own[N:].norm()) > CLIP_NORM
    own_part = torch.zeros(CLASSES, SIZE).index_add(0, labels[N:], own[N:] * (CLIP_NORM / float(own[N:].norm())))
    for found, records in ((one, some_records(seed=2)), (other, some_records(seed=7))):
        total = query_sum(x[:N], labels[:N], own[:N], records, rules, CryptoRandom(test_seed=0))
        expected = torch.zeros(CLASSES, SIZE).index_add(0, labels[:N], total.value.float()) + own_part
        torch.testing.assert_close(found["table"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_neighbours_differ_by_at_most_the_sensitivity_in_each_query(seed: int) -> None:
    """One record more, the same coins for the others."""
    random = torch.Generator().manual_seed(seed)
    records = some_records(9, seed)
    extreme = torch.full((1, SIZE), 255 * (seed % 2), dtype=torch.uint8)
    more = PixelRecords(
        torch.cat([records.pixels, extreme]), torch.cat([records.labels, torch.randint(2, (1,), generator=random)])
    )
    rules = some_rules(9, clip_norm=0.1 if seed % 2 else CLIP_NORM)
    x, labels = images_and_labels(rules)
    own = -debiasing_gradient(x, labels, rules)[:N]
    one = query_sum(x[:N], labels[:N], own, records, rules, CryptoRandom(test_seed=0))
    wider = replace(rules, subsampler=PoissonSubsampler(10, 1.0), capacity=10)
    other = query_sum(x[:N], labels[:N], own, more, wider, CryptoRandom(test_seed=0))
    assert one.sensitivity == other.sensitivity == 2.0 * rules.clip_norm
    assert 0.0 < float((one.value - other.value).norm()) <= one.sensitivity
    assert float(one.value.norm()) <= rules.clip_norm


@pytest.mark.parametrize("queries", [1, 4])
def test_an_empty_subsample_is_a_normal_step(queries: int) -> None:
    rules = some_rules(9, 1e-12, noise_multiplier=1.0, queries=queries)
    one, rms = change(some_records(seed=2), rules, CryptoRandom(test_seed=5))
    other, same_rms = change(some_records(seed=7), rules, CryptoRandom(test_seed=5))
    assert rms == same_rms > 0.0
    for name, value in one.items():
        assert bool(torch.isfinite(value).all())
        assert torch.equal(value, other[name])
    otherwise, _ = change(some_records(seed=2), rules, CryptoRandom(test_seed=6))
    assert not torch.allclose(one["mix"], otherwise["mix"], rtol=1e-2, atol=1e-2)


def test_the_noise_of_a_step_is_the_mean_of_the_queries_noise() -> None:
    sigma, queries = 1e4, 9
    rules = some_rules(9, 0.5, noise_multiplier=sigma, queries=queries)
    values = [change(some_records(), rules, CryptoRandom(test_seed=seed))[1] for seed in range(40)]
    expected = math.sqrt(SIZE) * 2.0 * CLIP_NORM * sigma / math.sqrt(queries)
    found = math.sqrt(sum(value**2 for value in values) / len(values))
    spread = 6.0 / math.sqrt(2.0 * 40 * N * SIZE)
    assert found == pytest.approx(expected, rel=spread)
    assert spread < 0.05


@pytest.mark.parametrize("sample_rate", [1e-12, 0.3, 1.0])
def test_what_is_generated_does_not_depend_on_the_draw(sample_rate: float) -> None:
    generator = Linear()
    optimiser = torch.optim.SGD(generator.parameters(), lr=0.1)
    rules = some_rules(9, sample_rate, queries=3)
    batch_step(generator, optimiser, some_records(), rules, latents(), CryptoRandom(test_seed=1))
    assert generator.passes == [images_and_labels(rules)[1].tolist()]


def test_more_records_than_fit_are_an_ordinary_query() -> None:
    rules, records = some_rules(9, 1.0), some_records()
    small = replace(rules, capacity=4)
    x, labels = images_and_labels(rules)
    own = -debiasing_gradient(x, labels, rules)[:N]
    total = query_sum(x[:N], labels[:N], own, records, small, CryptoRandom(test_seed=0))
    first = PixelRecords(records.pixels[:4], records.labels[:4])
    only = replace(rules, subsampler=PoissonSubsampler(4, 1.0), capacity=4)
    torch.testing.assert_close(total.value, query_sum(x[:N], labels[:N], own, first, only, CryptoRandom(0)).value)


def test_images_that_are_not_finite_stop_the_step_before_anything_is_changed() -> None:
    generator = Linear()
    with torch.no_grad():
        generator.table[:, 3] = math.nan
    before = generator.mix.detach().clone()
    optimiser = torch.optim.SGD(generator.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        batch_step(generator, optimiser, some_records(), some_rules(), latents(), CryptoRandom(test_seed=0))
    assert torch.equal(generator.mix, before)


def test_queries_solved_in_blocks_are_the_same_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, records = some_rules(9, 0.5, queries=7), some_records()
    x, labels = images_and_labels(rules)
    own = -debiasing_gradient(x, labels, rules)[:N]
    whole = query_sum(x[:N], labels[:N], own, records, rules, CryptoRandom(test_seed=0))
    monkeypatch.setattr(batch_step_module, "QUERIES_AT_ONCE", 3)
    blocks = query_sum(x[:N], labels[:N], own, records, rules, CryptoRandom(test_seed=0))
    assert blocks.queries == whole.queries == 7
    assert blocks.sensitivity == whole.sensitivity == 2.0 * CLIP_NORM
    torch.testing.assert_close(blocks.value, whole.value)
