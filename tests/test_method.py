"""Plans and derived values by default: public rules of ε, δ, N, the shape and the classes."""

import json
from functools import cache

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.estimators.subspace import MAX_FREQUENCIES
from dp_sinkhorn.generators.build import build_generator, check_size
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier
from dp_sinkhorn.privacy.plan import PrivacyPlan, noise_per_record
from dp_sinkhorn.settings import DataFacts, RunConfig
from dp_sinkhorn.transport.divergence import split_debias
from support.stage_runs import quick_noise

BEFORE_THE_STEPS = {
    "class_counts": 1, "principal_subspace.first_moments": 1, "principal_subspace.second_moment": 1,
    "class_moments": 1, "class_features": 1, "label_classifier": 200,
}  # fmt: skip
ALONE = {f"{stage}": {"budget_share": 0} for stage in ("class_moments", "class_features", "label_classifier")}


def facts(num_records: int = 60_000, side: int = 28, classes: int = 10) -> DataFacts:
    return DataFacts(
        source="x", num_records=num_records, shape=(1, side, side), class_names=tuple(map(str, range(classes)))
    )


def plan_of(num_records: int, classes: int = 2, **settings: object) -> PrivacyPlan:
    """A plan with exact calibration."""
    return method.make_plan(method.settings_of(None, settings), num_records, classes)


@pytest.fixture
def resolved(monkeypatch):
    """A run with approximate noise, which is enough for rules that follow from noise."""
    monkeypatch.setattr(method, "step_noise_multiplier", quick_noise)

    def of(data: DataFacts, **settings: object) -> RunConfig:
        return _resolved(data, json.dumps(settings))

    return of


@cache
def _resolved(data: DataFacts, settings: str) -> RunConfig:
    return method.resolve(method.settings_of(None, json.loads(settings)), data)


def noise_of(config: RunConfig, name: str) -> float:
    charge = config.plan.charge(name)
    assert charge is not None
    return charge.noise_multiplier


def test_stages_that_ask_come_first_and_in_the_order_of_asking():
    assert list(method.STAGES) == [
        "class_counts", "principal_subspace", "class_moments", "class_features", "label_classifier", "class_embedding",
        "transport_steps", "batch_steps", "embedding_steps", "fine_tuning",
    ]  # fmt: skip


# What a plan spends.


@pytest.mark.parametrize(
    ("mode", "epsilon", "delta", "num_records", "more"),
    [
        ("record", 10.0, 1e-5, 60_000, {}),
        ("record", 1.0, 1e-4, 1_000, {"expected_batch_size": 1_000, "num_steps": 100}),
        ("record", 0.2, 1e-4, 1_000, {"num_steps": 20}),
        ("record", 1.0, 1e-3, 300, {"expected_batch_size": 3, "num_steps": 200, **ALONE}),
        ("embedding", 1.0, 1e-5, 1_437, {}),
        ("embedding", 0.2, 1e-5, 60_000, {}),
        ("batch", 1.0, 1e-4, 1_000, {"num_steps": 20, "batch_steps": {"queries_per_step": 8}}),
    ],
)
def test_the_whole_plan_spends_its_target_and_no_more(mode, epsilon, delta, num_records, more):
    plan = plan_of(num_records, mode=mode, target_epsilon=epsilon, target_delta=delta, **more)
    assert 0.99 * epsilon <= epsilon_pld(plan.charges, delta) <= epsilon


def test_a_plan_charges_each_stage_that_asks(resolved):
    config = resolved(facts(), mode="record", num_steps=20, expected_batch_size=600)
    counts = {charge.name: charge.count for charge in config.plan.charges}
    assert counts == {**BEFORE_THE_STEPS, "class_embedding": 1, "transport_steps": 20}
    rates = {charge.name: charge.sample_rate for charge in config.plan.charges}
    assert rates == {**dict.fromkeys(counts, 1.0), "label_classifier": 0.01, "transport_steps": 0.01}
    learned = config.plan.charge("transport_steps")
    assert (config.plan.learns, config.plan.noise_multiplier) == ("transport_steps", learned.noise_multiplier)
    assert (config.plan.queries_per_step, config.plan.expected_batch_size) == (1, pytest.approx(600))


def test_the_embedding_of_a_plan_costs_the_same_however_many_steps(resolved):
    some, more = (resolved(facts(), mode="embedding", num_steps=steps).plan for steps in (7, 500))
    assert {charge.name: charge.count for charge in some.charges} == {**BEFORE_THE_STEPS, "class_embedding": 1}
    assert (some.queries_per_step, some.learns) == (0, "class_embedding")
    assert some.charges == more.charges


def test_an_embedding_takes_the_noise_that_is_given_if_the_target_allows():
    plan = plan_of(5_000, mode="embedding", target_epsilon=1.0, target_delta=1e-4, noise_multiplier=9.0, **ALONE)
    assert plan.charge("class_embedding").noise_multiplier == plan.noise_multiplier == 9.0
    assert epsilon_pld(plan.charges, 1e-4) < 0.6
    with pytest.raises(InputError, match=r"noise_multiplier=2 spend epsilon=.*, more than 1; give more noise"):
        plan_of(5_000, mode="embedding", target_epsilon=1.0, target_delta=1e-4, noise_multiplier=2.0, **ALONE)


def test_with_given_noise_the_run_is_as_long_as_epsilon_allows():
    plan = plan_of(
        1_000,
        mode="batch",
        target_epsilon=2.0,
        target_delta=1e-4,
        expected_batch_size=20,
        noise_multiplier=1.1,
        batch_steps={"queries_per_step": 3},
    )
    (charge,) = plan.charges
    assert (charge.name, charge.noise_multiplier, charge.count) == ("batch_steps", 1.1, 3 * plan.num_steps)
    longer = charge.model_copy(update={"count": int(1.002 * charge.count) + 4})
    assert epsilon_pld([charge], 1e-4) <= 2.0 < epsilon_pld([longer], 1e-4)


def test_the_papers_noise_allows_millions_of_queries():
    """(10, 1e-5) with σ = 1.1 at 50 of 60,000: 4.4 million by privacy-loss distributions."""
    plan = plan_of(60_000, mode="batch", noise_multiplier=1.1, batch_steps={"queries_per_step": 1})
    assert plan.num_steps == pytest.approx(4.46e6, rel=0.01)


def test_shares_of_the_budget_are_parts_of_its_squared_noise(resolved):
    """μ² of the releases made once, compared with μ² of one Gaussian that spends the whole budget."""
    whole = gaussian_noise_multiplier(1.0, 1e-5)
    config = resolved(facts(), target_epsilon=1.0, mode="record")
    shares = {
        "class_counts": 0.01, "principal_subspace.first_moments": 0.01, "principal_subspace.second_moment": 0.03,
        "class_moments": 0.25, "class_features": 0.05,
        "class_embedding": 0.1,
    }  # fmt: skip
    for name, share in shares.items():
        assert (whole / noise_of(config, name)) ** 2 == pytest.approx(share, rel=2e-3)
    given = resolved(facts(), target_epsilon=1.0, mode="record", class_moments={"budget_share": 0.4})
    assert (whole / noise_of(given, "class_moments")) ** 2 == pytest.approx(0.4, rel=2e-3)
    assert given.plan.noise_multiplier > config.plan.noise_multiplier


@pytest.mark.parametrize(
    ("num_records", "share"),
    [(60_000, 0.01), (5_276, 0.01), (3_731, 0.02), (1_865, 0.08), (1_000, 0.1)],
)
def test_few_records_give_the_first_moments_a_larger_share(resolved, num_records, share):
    """√2·3.7306/(N·√share) is kept at 0.01, for shares of 1 to 10 % of the budget."""
    config = resolved(facts(num_records), target_epsilon=1.0, mode="record", num_steps=20, expected_batch_size=500)
    assert (3.7306 / noise_of(config, "principal_subspace.first_moments")) ** 2 == pytest.approx(share, rel=2e-3)
    assert (3.7306 / noise_of(config, "principal_subspace.second_moment")) ** 2 == pytest.approx(0.03, rel=2e-3)


@pytest.mark.parametrize(
    ("epsilon", "delta", "num_records", "mode"),
    [
        (10.0, 1e-5, 60_000, "record"),
        (1.0, 1e-5, 60_000, "record"),  # noise per record: 6.2e-5
        (0.2, 1e-5, 60_000, "embedding"),  # 2.7e-4
        (1.0, 1e-5, 15_000, "embedding"),
        (10.0, 1e-5, 2_000, "embedding"),
        (10.0, 1e-5, 1_437, "record"),
        (1.0, 1e-4, 4_708, "record"),  # 6.8e-4
        (0.2, 1e-5, 10_000, "record"),
    ],
)
def test_the_mode_follows_the_noise_per_record(epsilon, delta, num_records, mode):
    """Mode `embedding` from 1e-4 to 3e-4; noise per record 0.5 / N at ε = 10, 3.7 / N at 1, 16.3 / N at 0.2."""
    settings = method.settings_of(None, {"target_epsilon": epsilon, "target_delta": delta})
    assert method.chosen_mode(settings, num_records) == mode
    chosen = method.settings_of(None, {"target_epsilon": epsilon, "target_delta": delta, "mode": "batch"})
    assert method.chosen_mode(chosen, num_records) == "batch"


@pytest.mark.parametrize(
    ("epsilon", "num_records", "noise", "steps", "embedding"),
    [
        (10.0, 60_000, 8.3e-6, 1000, 0.1),
        (1.0, 30_000, 1.24e-4, 1244, 0.1),
        (1.0, 5_500, 6.8e-4, 2000, 0.1),
        (1.0, 4_400, 8.5e-4, 2000, 0.051),
        (1.0, 3_800, 9.8e-4, 2000, 0.006),
        (1.0, 3_700, 1.01e-3, 2000, None),
    ],
)
def test_the_noise_per_record_sets_steps_and_share_of_the_embedding(
    resolved, epsilon, num_records, noise, steps, embedding
):
    """Up to twice as many steps, each of fewer images in proportion; a share of 0.1 that falls to 0."""
    config = resolved(facts(num_records), target_epsilon=epsilon, target_delta=1e-5, mode="record")
    whole = noise_per_record(epsilon, 1e-5, num_records) * num_records
    assert config.plan.noise_per_record == pytest.approx(noise, rel=1e-2)
    assert config.plan.num_steps == pytest.approx(steps, rel=1e-2)
    assert config.rules["transport_steps"].num_reference * config.plan.num_steps == pytest.approx(5e5, rel=0.05)
    found = config.plan.charge("class_embedding")
    share = None if found is None else (whole / found.noise_multiplier) ** 2
    assert share == (None if embedding is None else pytest.approx(embedding, rel=0.1))


@pytest.mark.parametrize(("num_records", "batch"), [(100_000, 10_000), (5_000, 2_000), (300, 300), (1, 1)])
def test_the_default_batch_is_a_public_rule(resolved, num_records, batch):
    config = resolved(facts(num_records), target_epsilon=1.0, target_delta=1e-6, num_steps=5, mode="record")
    assert config.plan.expected_batch_size == pytest.approx(batch)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_epsilon": 0.0}, "epsilon=0 "),
        ({"target_epsilon": -1.0}, "epsilon=-1 "),
        ({"target_epsilon": "nan"}, "epsilon=nan "),
        ({"target_epsilon": "inf"}, "epsilon=inf "),
        ({"target_delta": 0.0}, "delta=0 "),
        ({"target_delta": 1.0}, "delta=1 "),
        ({"target_delta": 2.0}, "delta=2 "),
        ({"target_delta": "nan"}, "delta=nan "),
        ({"num_steps": 0}, "num_steps=0 "),
        ({"expected_batch_size": 0}, "expected_batch_size=0 "),
        ({"expected_batch_size": -5}, "expected_batch_size=-5 "),
        ({"expected_batch_size": 1_001}, "expected_batch_size=1001 exceeds the 1000 records"),
        ({"target_epsilon": 1e6}, "epsilon=1e"),
        ({"target_epsilon": 1e-9, "target_delta": 1e-10}, "epsilon=1e-09"),
        (
            {"class_moments": {"budget_share": 0.6}, "label_classifier": {"budget_share": 0.5}},
            "of the budget, which leaves none for training; give a smaller budget_share (class_counts, principal_",
        ),
        ({"label_classifier": {"budget_share": 1e-20}}, "times the sensitivity, more than 8.38861e+06"),
        ({"class_moments": {"budget_share": 1e-13}}, "needs noise of 1.18e+07 times the sensitivity, more than"),
        (
            {
                "mode": "batch",
                "expected_batch_size": 1_000,
                "batch_steps": {"queries_per_step": 400},
                "target_epsilon": 1e-4,
            },
            "times the sensitivity, more than 8.38861e+06",
        ),
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(monkeypatch, values, message):
    monkeypatch.setattr(method, "step_noise_multiplier", quick_noise)
    usual = {"target_epsilon": 1.0, "target_delta": 1e-5, "num_steps": 10, "mode": "record"}
    with pytest.raises(InputError) as caught:
        plan_of(1_000, **{**usual, **values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"noise_multiplier": 0.9, "num_steps": 500}, "500 steps with noise_multiplier=0.9 spend epsilon="),
        ({"noise_multiplier": 1e-3}, "noise_multiplier=0.001 is not in"),
        ({"noise_multiplier": 1e6}, "hardly spends epsilon=1; give num_steps"),
        ({"noise_multiplier": 0.5}, "1 steps with noise_multiplier=0.5 spend epsilon="),
        ({"batch_steps": {"queries_per_step": 0}}, "batch_steps.queries_per_step=0"),
    ],
)
def test_given_noise_that_does_not_fit_is_refused(values, named):
    usual = {"target_epsilon": 1.0, "target_delta": 1e-4, "expected_batch_size": 100, "mode": "batch"}
    with pytest.raises(InputError, match=named):
        plan_of(1_000, **{**usual, "batch_steps": {"queries_per_step": 1}, **values})


# What follows for a run.


def test_defaults_for_a_large_grey_set(resolved):
    config = resolved(facts())
    assert (config.generator.name, config.generator.width, config.generator.channels) == ("conv", 256, 32)
    assert (config.num_generated, config.rules["transport_steps"].num_reference) == (200, 500)
    assert (config.plan.num_steps, config.trains, config.mode) == (1000, "transport_steps", "record")
    assert config.device in ("cpu", "cuda")


@pytest.mark.parametrize(("name", "channels"), [("conv", 32), ("dcgan", 64), ("resnet", 64)])
def test_a_generator_has_maps_of_its_kind(resolved, name, channels):
    assert resolved(facts(), generator=name).generator.channels == channels


@pytest.mark.parametrize("classes", [1, 3, 7, 100])
def test_every_class_gets_as_many_images_and_at_least_eight(resolved, classes):
    config = resolved(facts(classes=classes))
    for images in (config.num_generated, config.rules["transport_steps"].num_reference):
        assert images % classes == 0
        assert images >= 8 * classes


def test_there_are_as_many_images_as_keep_the_noise_on_each_small(resolved):
    config = resolved(facts(num_records=8_000, classes=2), mode="record")
    of_each = config.plan.noise_multiplier / config.plan.expected_batch_size
    assert 40 < config.num_generated < 200
    assert of_each * config.num_generated <= 0.2 < of_each * (config.num_generated + 2)
    # So the clip norm is that of little noise.
    assert config.rules["transport_steps"].relative_clip_norm == 1.1
    for epsilon, classes, images in ((1, 2, 40), (0.2, 1, 40), (0.2, 7, 70)):
        few = facts(num_records=5_000, classes=classes)
        assert resolved(few, mode="record", target_epsilon=epsilon).num_generated == images
    assert resolved(facts(num_records=5_000, classes=2), mode="record", num_generated=100).num_generated == 100
    assert resolved(facts(classes=1), mode="record").num_generated == 200


def test_at_a_small_budget_there_are_more_steps_of_fewer_images(resolved):
    def steps_and_images(num_records: int = 60_000, classes: int = 10, **settings: object) -> tuple[int, int, int]:
        config = resolved(facts(num_records, classes=classes), mode="record", **settings)
        return config.plan.num_steps, config.num_generated, config.rules["transport_steps"].num_reference

    assert steps_and_images(target_epsilon=0.2) == (2000, 100, 250)
    assert steps_and_images(5_000, 2, target_epsilon=1) == (2000, 40, 250)
    # Data sets 100 times smaller and 100 times larger.
    assert steps_and_images(600)[0] == 2000
    assert steps_and_images(6_000_000, target_epsilon=0.2, target_delta=1e-7) == (1000, 200, 500)
    # Given values do not change.
    given = {"num_steps": 50, "num_generated": 200, "transport_steps": {"num_reference": 500}}
    assert steps_and_images(target_epsilon=0.2, **given) == (50, 200, 500)
    assert resolved(facts(), target_epsilon=0.2, mode="batch").plan.num_steps == 20_000


def test_the_clip_norm_follows_the_noise_not_the_data(resolved):
    def clip_norm(data: DataFacts, **settings: object) -> float:
        return resolved(data, mode="record", **settings).rules["transport_steps"].relative_clip_norm

    assert clip_norm(facts()) == 1.1
    assert clip_norm(facts(), target_epsilon=1) == 0.55
    assert clip_norm(facts(num_records=1437)) == 0.55
    assert clip_norm(facts(), transport_steps={"relative_clip_norm": 3}) == 3.0


def test_the_learning_rate_falls_with_the_noise(resolved):
    assert resolved(facts(), mode="record").learning_rate == 4e-3
    less = resolved(facts(), mode="record", target_epsilon=1)
    noise = less.plan.noise_multiplier * less.num_generated / less.plan.expected_batch_size
    assert less.learning_rate == pytest.approx(4e-3 * 0.5 / noise)
    # With noise alone a random walk of T updates is as long as 8 updates at the full rate.
    for steps, rate in ((1600, 4e-3 * 8 / 40), (60, 4e-3)):
        walk = resolved(facts(), mode="record", target_epsilon=0.1, num_steps=steps)
        assert walk.learning_rate == pytest.approx(rate)
    assert resolved(facts(), mode="record", target_epsilon=0.2, learning_rate=0.1).learning_rate == 0.1
    assert resolved(facts(), target_epsilon=0.2, mode="batch").learning_rate == 1e-3


def test_at_a_modest_budget_an_embedding_is_released(resolved):
    config = resolved(facts(), target_epsilon=0.2)
    assert config.rules["class_embedding"].model_dump() == {
        "num_frequencies": 2000, "relative_width": 0.25, "wavelet_weight": 0.3, "wavelet_width": 0.25,
    }  # fmt: skip
    # The embedding has trained the generator already.
    assert config.rules["fine_tuning"].model_dump() == {"num_steps": 300, "embedding_steps": 0, "num_generated": 200}
    assert (config.num_generated, config.plan.num_steps, config.learning_rate) == (400, 500, 4e-3)
    embedding = {"num_frequencies": 100, "relative_width": 1, "wavelet_weight": 0}
    given = resolved(facts(), target_epsilon=0.2, class_embedding=embedding, num_generated=100, num_steps=9)
    assert given.rules["class_embedding"].model_dump() == {**embedding, "wavelet_width": 0.25}
    assert (given.num_generated, given.plan.num_steps) == (100, 9)
    # At least two images of each class, as the unbiased estimate needs.
    assert resolved(facts(classes=100), target_epsilon=0.2).num_generated == 800


def test_in_mode_record_an_embedding_is_released_up_to_some_noise(resolved):
    config = resolved(facts())
    assert config.rules["class_embedding"].wavelet_weight == 0.5
    assert "embedding_steps" not in config.rules
    assert config.rules["fine_tuning"].model_dump() == {"num_steps": 300, "embedding_steps": 200, "num_generated": 200}
    assert resolved(facts(classes=1000)).rules["fine_tuning"].num_generated == 2000
    # Fewer of larger images: as many pixels in total.
    assert resolved(facts(side=56, classes=2)).rules["fine_tuning"].num_generated == 50
    given = resolved(facts(), fine_tuning={"num_steps": 7, "embedding_steps": 8}).rules["fine_tuning"]
    assert (given.num_steps, given.embedding_steps) == (7, 8)
    # From 1e-3 of noise per record on there is none: 0.5 / 1e-3 records at ε = 10.
    for num_records, steps in ((510, 200), (490, 0)):
        found = resolved(facts(num_records=num_records), mode="record")
        assert ("class_embedding" in found.rules) == (steps > 0)
        assert (found.rules["fine_tuning"].num_steps, found.rules["fine_tuning"].embedding_steps) == (300, steps)


def test_a_network_that_fits_into_a_release_can_be_built(resolved):
    """Before anything is charged: the largest generator that is allowed, and its last layers."""
    for more, classes in (({"width": 13_300}, 10), ({}, 3_000), ({}, 8_000)):
        config = resolved(
            facts(num_records=10**6, classes=classes), mode="record", target_delta=1e-7, generator="mlp", **more
        )
        spec, most = config.generator, config.rules["principal_subspace"].max_dimensions or MAX_FREQUENCIES
        for stage in method.STAGES.running(config):
            spec = stage.network(spec, config, min(most, 28 * 28))
        check_size(spec, config.data.shape, classes)


def test_mode_batch_has_the_papers_defaults_and_no_other_release(resolved):
    config = resolved(facts(), mode="batch", num_steps=100)
    rules = config.rules["batch_steps"]
    assert set(config.rules) == {"class_counts", "batch_steps"}
    assert (config.num_generated, rules.num_fresh, rules.queries_per_step) == (50, 20, 64)
    assert config.plan.expected_batch_size == pytest.approx(50)
    assert rules.capacity == 79  # 50 + 4√50: more are drawn about once in 20,000 queries
    (charge,) = config.plan.charges
    assert (charge.name, charge.count) == ("batch_steps", 6400)
    counted = resolved(facts(), mode="batch", num_steps=100, class_counts={"prior": "histogram"})
    assert counted.plan.charge("class_counts") is not None


def test_the_histogram_is_only_charged_where_it_is_needed(resolved):
    assert resolved(facts()).plan.charge("class_counts") is not None
    assert resolved(facts(classes=1)).plan.charge("class_counts") is None
    assert resolved(facts(), class_counts={"prior": "uniform"}).plan.charge("class_counts") is None


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.58, 1.0])
def test_the_fresh_images_are_as_many_as_the_loss_expects(resolved, fraction):
    config = resolved(facts(), mode="batch", num_steps=10, batch_steps={"debias_fraction": fraction})
    fresh = config.rules["batch_steps"].num_fresh
    assert split_debias(config.num_generated + fresh, fraction) == (config.num_generated, fresh)


def test_given_settings_are_kept(resolved):
    given = {"generator": "mlp", "width": 64, "num_generated": 40, "num_steps": 30, "expected_batch_size": 600}
    config = resolved(facts(), **given)
    assert (config.generator.name, config.generator.width) == ("mlp", 64)
    assert config.num_generated == 80  # eight for each of ten classes
    assert (config.plan.num_steps, config.plan.sample_rate) == (30, 0.01)


# What is refused.


def test_a_setting_without_effect_in_the_default_mode_is_refused(resolved):
    words = r"num_frequencies would have no effect: this run has no class_embedding; leave it out .* or give class_emb"
    with pytest.raises(InputError, match=words):
        resolved(facts(num_records=400), class_embedding={"num_frequencies": 100})
    words = r"transport_steps.num_reference would .*: mode='embedding', the default for 60000 records at this budget,"
    with pytest.raises(InputError, match=words):
        resolved(facts(), target_epsilon=0.2, transport_steps={"num_reference": 30})


def test_a_setting_of_a_stage_that_cannot_run_is_refused(resolved):
    """One class needs no classifier. Steps towards an embedding need one, and have no share of the budget."""
    with pytest.raises(InputError, match=r"label_classifier\.budget_share would have .* recipe's value\)$"):
        resolved(facts(classes=1), label_classifier={"budget_share": 0.3})
    assert "label_classifier" not in resolved(facts(classes=1), label_classifier={"budget_share": 0}).rules
    with pytest.raises(InputError, match=r"embedding_steps would .* a goal for it; .* or give a budget_share"):
        resolved(facts(), mode="record", class_embedding={"budget_share": 0}, fine_tuning={"embedding_steps": 7})
    nobody = {**ALONE, "class_embedding": {"budget_share": 0}}
    with pytest.raises(InputError, match=r"fine_tuning\.num_steps would have no effect"):
        resolved(facts(), mode="record", **nobody, fine_tuning={"num_steps": 7})
    with pytest.raises(InputError, match=r"fine_tuning\.embedding_steps would have no effect: mode='embedding'"):
        resolved(facts(), mode="embedding", fine_tuning={"embedding_steps": 7})


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("batch_steps", "debias_fraction", 1.4),
        ("batch_steps", "l1_weight", -1),
        ("batch_steps", "reg", 0),
        ("class_embedding", "relative_width", 0),
        ("class_embedding", "wavelet_width", 0),
        ("class_embedding", "wavelet_weight", 1),
        ("class_embedding", "num_frequencies", 10**6),
        ("class_embedding", "budget_share", 1),
        ("fine_tuning", "num_steps", 0),
        ("fine_tuning", "embedding_steps", 0),
        ("transport_steps", "relative_reg", 0),
        ("transport_steps", "relative_clip_norm", 0.001),
    ],
)
def test_a_setting_out_of_range_is_named(stage, key, value):
    with pytest.raises(InputError, match=rf"{stage}\.{key}={value} does not fit"):
        method.settings_of(None, {stage: {key: value}})


def test_an_embedding_that_would_not_fit_into_memory_is_refused(resolved):
    large = facts(num_records=5_000).model_copy(update={"shape": (3, 64, 64)})
    with pytest.raises(InputError, match=r"100000 frequencies .* give fewer class_embedding.num_frequencies"):
        resolved(large, mode="embedding", class_embedding={"num_frequencies": 100_000})
    many = {"mode": "embedding", "num_generated": 8, "class_embedding": {"num_frequencies": 20_000}}
    with pytest.raises(InputError, match=r"in 10000 classes .* give fewer class_embedding.num_frequencies"):
        resolved(facts(classes=10_000), **many)


def test_a_run_is_read_back_equal_and_damage_is_named(resolved, tmp_path):
    path, config = tmp_path / "config.toml", resolved(facts())
    path.write_text(config.to_toml())
    assert method.config_of(path) == config
    lines = config.to_toml().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("embedding_steps")))
    with pytest.raises(InputError, match=r"embedding_steps"):
        method.config_of(path)
    path.write_text(config.to_toml().replace("[rules.class_moments]", "[rules.class_moods]"))
    with pytest.raises(InputError, match="rules name the stage 'class_moods', which this version does not know"):
        method.config_of(path)


def test_weights_come_from_the_seed_and_leave_the_global_state_alone(resolved):
    spec = resolved(facts(), generator="mlp", width=8).generator
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (build_generator(spec, (1, 8, 8), 2, seed=3) for _ in range(2))
    other = build_generator(spec, (1, 8, 8), 2, seed=4)
    assert isinstance(first, MLPGenerator)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
