"""One step of the paper: against autograd of its loss, without records, in blocks, and for images beyond n."""

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import dp_sinkhorn.stages.batch_steps as batch_steps
from dp_sinkhorn import method
from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.batch_steps import BatchSetup, BatchSteps, ClippedBatches, PixelsView
from dp_sinkhorn.transport.costs import MixedCost
from dp_sinkhorn.transport.divergence import semi_debiased_loss
from dp_sinkhorn.transport.sinkhorn import Sinkhorn
from support.stage_runs import FACTS, NAMES, SETTINGS, SHAPE, curator_of, plain_descent, with_noise

SIZE, CLASSES, N, FRESH, CLIP_NORM = 64, 2, 6, 3, 0.7
SILENT = 1e-12
HUGE = 1e4  # a clip norm that never binds, with a fine enough grid
STAGE = BatchSteps()


class Linear(Generator):
    """An image is the row of its class plus a linear function of its latent, so gradients have a closed form."""

    def __init__(self) -> None:
        super().__init__(SHAPE, CLASSES, 4)
        random = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(0.3 * torch.randn(CLASSES, SIZE, generator=random))
        self.mix = torch.nn.Parameter(0.3 * torch.randn(4, SIZE, generator=random))
        self.passes: list[list[int]] = []

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.passes.append(labels.tolist())
        return self.table[labels] + latents @ self.mix


def some_setup(
    clip_norm: float = CLIP_NORM, queries: int = 1, debias: float = FRESH / N, capacity: int = 9
) -> BatchSetup:
    return BatchSetup(
        view=PixelsView("cpu"),
        num_generated=N,
        num_fresh=math.floor(N * debias),
        debias_fraction=debias,
        class_shares=torch.tensor([0.5, 0.5]),
        queries=queries,
        capacity=capacity,
        clip_norm=clip_norm,
        cost=MixedCost(0.5),
        solver=Sinkhorn(reg=5.0, iterations=100, check=False),
        label_weight=2.0,
    )


def some_records(count: int = 9, seed: int = 2) -> LabelledImages:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *SHAPE), generator=random, dtype=torch.uint8)
    return LabelledImages(pixels, torch.randint(CLASSES, (count,), generator=random), NAMES)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    settings = {**SETTINGS["batch"], "noise_multiplier": 50.0}
    return method.resolve(method.settings_of(None, settings), FACTS)


class Stepper:
    """Takes steps of the stage with the test's own setup."""

    def __init__(self, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.monkeypatch = config, monkeypatch

    def begin(
        self,
        generator: Generator,
        records: LabelledImages,
        setup: BatchSetup,
        sample_rate: float = 1.0,
        noise: float = SILENT,
        seed: int = 0,
    ) -> tuple[State, Iterator[None]]:
        self.monkeypatch.setattr(BatchSetup, "of", lambda stage, state: setup)
        config = with_noise(self.config, STAGE.name, noise, sample_rate)
        state = plain_descent(config, generator)
        return state, STAGE.run(curator_of(config, records, seed), state)

    def __call__(self, records: LabelledImages, setup: BatchSetup, *more: float, seed: int = 0):
        """The change of the parameters by one step of plain descent at rate 1, and the size of its field."""
        generator = Linear()
        before = copy.deepcopy(dict(generator.named_parameters()))
        state, steps = self.begin(generator, records, setup, *more, seed=seed)
        next(steps)
        return {name: (before[name] - after).detach() for name, after in generator.named_parameters()}, state.field_size


@pytest.fixture
def step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Stepper:
    return Stepper(config, monkeypatch)


def images_and_labels(setup: BatchSetup) -> tuple[torch.Tensor, torch.Tensor]:
    """The images that the first step of the public seed 0 generates."""
    random = torch.Generator().manual_seed(0)
    labels = setup.draw_labels(random)
    return Linear().sample(labels, random).detach(), labels


def sum_of(records: LabelledImages, setup: BatchSetup, index: torch.Tensor, present: torch.Tensor):
    x, labels = images_and_labels(setup)
    own = -setup.debiasing_gradient(x, labels)[:N]
    return ClippedBatches(setup, x[:N], labels[:N], own)(Draw(HeldRecords(records), index, present))


def all_of(records: LabelledImages, queries: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(len(records)).expand(queries, -1)
    return index, torch.ones_like(index, dtype=torch.bool)


@pytest.mark.parametrize("debias", [0.0, 0.5, 1.0])
def test_without_clip_and_noise_a_step_descends_the_loss(step: Stepper, debias: float) -> None:
    setup, records = some_setup(HUGE, debias=debias), some_records()
    found, rms = step(records, setup, 1.0, 1e-20)

    generator, random = Linear(), torch.Generator().manual_seed(0)
    labels = setup.draw_labels(random)
    images = generator.sample(labels, random)
    images.retain_grad()
    loss = semi_debiased_loss(
        images,
        records.floats(),
        setup.cost,
        setup.solver,
        debias,
        labels=(labels, records.labels),
        label_weight=2.0,
    )
    loss.backward()
    for name, parameter in generator.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)
    assert rms == pytest.approx(float(images.grad[:N].square().sum(1).mean().sqrt()), rel=1e-3)


def test_a_query_is_the_gradient_of_its_subsample_clipped_as_a_whole() -> None:
    setup, records = some_setup(queries=5), some_records()
    index, drawn = PoissonSubsampler(9, 0.4).draw_padded(5, 9, CryptoRandom(test_seed=4))
    total = sum_of(records, setup, index, drawn)
    assert (total.sensitivity, total.queries) == (2.0 * CLIP_NORM, 5)

    x, labels = images_and_labels(setup)
    expected = torch.zeros(N, SIZE, dtype=torch.float64)
    for query in range(5):
        chosen = index[query][drawn[query]]
        leaf = x.clone().requires_grad_()
        semi_debiased_loss(
            leaf,
            to_unit_range(records.pixels[chosen]),
            setup.cost,
            setup.solver,
            setup.debias_fraction,
            b=None if len(chosen) else torch.zeros(0),
            labels=(labels, records.labels[chosen]),
            label_weight=2.0,
        ).backward()
        gradient = leaf.grad[:N].double()
        expected += gradient * min(1.0, CLIP_NORM / float(gradient.norm()))
    torch.testing.assert_close(total.value, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_images_beyond_n_cannot_see_the_records() -> None:
    """By autograd, with pixels as a leaf: rows without noise have no path to them; the others have."""
    setup = some_setup(HUGE)
    x, labels = images_and_labels(setup)
    own = setup.debiasing_gradient(x, labels)
    assert own.shape == (N + FRESH, SIZE)
    assert float(own[N:].norm()) > 0.0

    y = some_records().floats().requires_grad_()
    leaf = x.clone().requires_grad_()
    loss = semi_debiased_loss(
        leaf, y, setup.cost, setup.solver, FRESH / N, labels=(labels, some_records().labels), label_weight=2.0
    )
    (by_x, by_y) = torch.autograd.grad(loss, (leaf, y))
    assert float(by_y.norm()) > 0.0
    torch.testing.assert_close(by_x[N:], -own[N:], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_fresh_images_is_the_same_for_all_records(step: Stepper) -> None:
    """On two data sets: it comes from the model's own images only, clipped to the same length."""
    setup = some_setup()
    x, labels = images_and_labels(setup)
    own = -setup.debiasing_gradient(x, labels)
    assert float(own[N:].norm()) > CLIP_NORM
    own_part = torch.zeros(CLASSES, SIZE).index_add(0, labels[N:], own[N:] * (CLIP_NORM / float(own[N:].norm())))
    tables = []
    for records in (some_records(seed=2), some_records(seed=7)):
        total = sum_of(records, setup, *all_of(records)).value.float()
        expected = torch.zeros(CLASSES, SIZE).index_add(0, labels[:N], total) + own_part
        found, _ = step(records, setup)
        torch.testing.assert_close(found["table"], expected, rtol=1e-4, atol=1e-5)
        tables.append(found["table"])
    assert float((tables[0] - tables[1]).norm()) > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_one_record_moves_a_query_by_at_most_its_sensitivity(seed: int) -> None:
    setup = some_setup(0.1 if seed % 2 else CLIP_NORM)
    records = some_records(9, seed)
    more = LabelledImages(
        torch.cat([records.pixels, torch.full((1, *SHAPE), 255 * (seed % 2), dtype=torch.uint8)]),
        torch.cat([records.labels, torch.tensor([seed // 2])]),
        NAMES,
    )
    one, other = (sum_of(data, setup, *all_of(data)) for data in (records, more))
    assert one.sensitivity == other.sensitivity == 2.0 * setup.clip_norm
    assert 0.0 < float((one.value - other.value).norm()) <= one.sensitivity
    assert float(one.value.norm()) <= setup.clip_norm


@pytest.mark.parametrize("queries", [1, 4])
def test_an_empty_subsample_gives_the_own_gradient_and_noise(step: Stepper, queries: int) -> None:
    setup = some_setup(queries=queries)
    one, rms = step(some_records(seed=2), setup, 1e-12, 1.0, seed=5)
    other, same_rms = step(some_records(seed=7), setup, 1e-12, 1.0, seed=5)
    assert rms == same_rms > 0.0
    for name, value in one.items():
        assert bool(torch.isfinite(value).all())
        assert torch.equal(value, other[name])
    otherwise, _ = step(some_records(seed=2), setup, 1e-12, 1.0, seed=6)
    assert not torch.allclose(one["mix"], otherwise["mix"], rtol=1e-2, atol=1e-2)


def test_the_noise_of_a_step_is_the_mean_of_the_queries_noise(step: Stepper) -> None:
    sigma, queries, times = 1e4, 9, 20
    setup = some_setup(queries=queries)
    values = [step(some_records(), setup, 0.5, sigma, seed=seed)[1] for seed in range(times)]
    expected = math.sqrt(SIZE) * 2.0 * CLIP_NORM * sigma / math.sqrt(queries)
    found = math.sqrt(sum(value**2 for value in values) / len(values))
    spread = 6.0 / math.sqrt(2.0 * times * N * SIZE)
    assert found == pytest.approx(expected, rel=spread)
    assert spread < 0.06


@pytest.mark.parametrize("sample_rate", [1e-12, 0.3, 1.0])
def test_what_is_generated_does_not_depend_on_the_draw(step: Stepper, sample_rate: float) -> None:
    generator, setup = Linear(), some_setup(queries=3)
    _, steps = step.begin(generator, some_records(), setup, sample_rate, seed=1)
    next(steps)
    assert generator.passes == [images_and_labels(setup)[1].tolist()]


def test_a_query_takes_the_first_records_if_more_are_drawn_than_fit() -> None:
    setup, records = some_setup(), some_records()
    index, present = PoissonSubsampler(9, 1.0).draw_padded(1, 4, CryptoRandom(test_seed=0))
    assert bool(present.all())
    first = records.subset(torch.arange(4))
    cut = sum_of(records, setup, index, present).value
    torch.testing.assert_close(cut, sum_of(first, setup, *all_of(first)).value)


def test_padding_weighs_nothing() -> None:
    setup, records = some_setup(queries=2), some_records()
    index, present = all_of(records, 2)
    padded = torch.cat([index, torch.full((2, 3), 8)], dim=1), torch.cat([present, torch.zeros(2, 3).bool()], dim=1)
    torch.testing.assert_close(sum_of(records, setup, *padded).value, sum_of(records, setup, index, present).value)


def test_images_that_are_not_finite_stop_a_step_before_it_asks(step: Stepper) -> None:
    generator = Linear()
    with torch.no_grad():
        generator.table[:, 3] = math.nan
    before = generator.mix.detach().clone()
    _, steps = step.begin(generator, some_records(), some_setup())
    with pytest.raises(FloatingPointError, match="not finite"):
        next(steps)
    assert torch.equal(generator.mix, before)


def test_solves_of_private_images_check_no_value(config: RunConfig) -> None:
    """An error or a warning would reveal something of the records."""
    made_by = BatchSetup.of.__func__.__wrapped__  # type: ignore[attr-defined]
    constants = made_by(dict, STAGE, SimpleNamespace(config=config, class_shares=[0.5, 0.5]))
    assert constants["solver"].check is False


def test_queries_solved_in_blocks_are_the_same_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, records = some_setup(queries=7), some_records()
    drawn = PoissonSubsampler(9, 0.5).draw_padded(7, 9, CryptoRandom(test_seed=0))
    whole = sum_of(records, setup, *drawn)
    monkeypatch.setattr(batch_steps, "QUERIES_AT_ONCE", 3)
    blocks = sum_of(records, setup, *drawn)
    assert blocks.queries == whole.queries == 7
    assert blocks.sensitivity == whole.sensitivity == 2.0 * CLIP_NORM
    torch.testing.assert_close(blocks.value, whole.value)
