"""What is derived when the user leaves it open: public rules of ε, δ, N, the shape and the classes."""

import pytest
import torch

from dp_sinkhorn.build import build_generator, resolve
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings
from dp_sinkhorn.transport.divergence import split_debias


def facts(num_records: int = 60_000, side: int = 28, classes: int = 10) -> DataFacts:
    return DataFacts(
        source="x", num_records=num_records, shape=(1, side, side), class_names=tuple(map(str, range(classes)))
    )


def resolved(data: DataFacts, **settings: object) -> RunConfig:
    return resolve(make_settings(None, settings), data)


def test_defaults_for_a_large_grey_set():
    config = resolved(facts())
    assert (config.generator.name, config.generator.width, config.generator.channels) == ("conv", 256, 32)
    assert (config.num_generated, config.rules.num_reference) == (200, 500)
    assert config.privacy.num_steps == 1000
    assert config.device in ("cpu", "cuda")


@pytest.mark.parametrize(("name", "channels"), [("conv", 32), ("dcgan", 64), ("resnet", 64)])
def test_a_generator_has_maps_of_its_kind(name, channels):
    assert resolved(facts(), generator=name).generator.channels == channels


@pytest.mark.parametrize("classes", [1, 3, 7, 100])
def test_every_class_gets_the_same_number_of_images_and_at_least_eight(classes):
    config = resolved(facts(classes=classes))
    for images in (config.num_generated, config.rules.num_reference):
        assert images % classes == 0
        assert images >= 8 * classes


def by_record(data: DataFacts, **settings: object) -> RunConfig:
    return resolved(data, sanitize="record", **settings)


def test_images_share_the_records_only_while_the_noise_on_each_stays_little():
    config = by_record(facts(num_records=8_000, classes=2))
    of_each = config.privacy.noise_multiplier / config.privacy.expected_batch_size
    assert 40 < config.num_generated < 200
    assert of_each * config.num_generated <= 0.2 < of_each * (config.num_generated + 2)
    # The clip norm of little noise, then.
    assert config.rules.relative_clip_norm == 1.1
    assert by_record(facts(num_records=5_000, classes=2), target_epsilon=1).num_generated == 40
    assert by_record(facts(num_records=5_000, classes=1), target_epsilon=0.2).num_generated == 40
    assert by_record(facts(num_records=5_000, classes=7), target_epsilon=0.2).num_generated == 70
    assert by_record(facts(num_records=5_000, classes=2), num_generated=100).num_generated == 100
    assert by_record(facts(classes=1)).num_generated == 200


def test_where_the_budget_is_small_there_are_more_steps_of_fewer_images():
    config = by_record(facts(), target_epsilon=0.2)
    assert (config.privacy.num_steps, config.num_generated, config.rules.num_reference) == (2000, 100, 250)
    few = by_record(facts(num_records=5_000, classes=2), target_epsilon=1)
    assert (few.privacy.num_steps, few.num_generated, few.rules.num_reference) == (2000, 40, 250)
    # A hundredth of the records, a hundred times as many.
    assert by_record(facts(num_records=600)).privacy.num_steps == 2000
    many = by_record(facts(num_records=6_000_000), target_epsilon=0.2)
    assert (many.privacy.num_steps, many.num_generated, many.rules.num_reference) == (1000, 200, 500)
    # What is given stays what it is.
    assert by_record(facts(), target_epsilon=0.2, num_steps=50).privacy.num_steps == 50
    assert by_record(facts(), target_epsilon=0.2, num_generated=200).num_generated == 200
    assert by_record(facts(), target_epsilon=0.2, num_reference=500).rules.num_reference == 500
    assert resolved(facts(), target_epsilon=0.2, sanitize="batch").privacy.num_steps == 20_000


def test_the_clip_norm_follows_the_noise_not_the_data():
    assert by_record(facts()).rules.relative_clip_norm == 1.1
    assert by_record(facts(), target_epsilon=1).rules.relative_clip_norm == 0.55
    assert by_record(facts(num_records=1437)).rules.relative_clip_norm == 0.55
    assert by_record(facts(), relative_clip_norm=3).rules.relative_clip_norm == 3.0


def test_the_learning_rate_falls_with_the_noise():
    assert by_record(facts()).learning_rate == 4e-3
    less = by_record(facts(), target_epsilon=1)
    noise = less.privacy.noise_multiplier * less.num_generated / less.privacy.expected_batch_size
    assert less.learning_rate == pytest.approx(4e-3 * 0.5 / noise)
    # Where noise is nearly all, 8 updates' length is what √T of them walk.
    assert by_record(facts(), target_epsilon=0.1, num_steps=1600).learning_rate == pytest.approx(4e-3 * 8 / 40)
    assert by_record(facts(), target_epsilon=0.1, num_steps=60).learning_rate == 4e-3
    assert by_record(facts(), target_epsilon=0.2, learning_rate=0.1).learning_rate == 0.1
    assert resolved(facts(), target_epsilon=0.2, sanitize="batch").learning_rate == 1e-3


def test_by_a_small_budget_an_embedding_is_released_and_what_is_given_stays():
    config = resolved(facts(), target_epsilon=0.2)
    assert config.rules.model_dump() == {
        "sanitize": "embedding", "num_frequencies": 2000, "relative_width": 0.25, "wavelet_weight": 0.3,
        "wavelet_width": 0.25, "min_dimensions": 96,
    }  # fmt: skip
    assert (config.num_generated, config.privacy.num_steps, config.learning_rate) == (400, 500, 4e-3)
    given = resolved(facts(), target_epsilon=0.2, num_frequencies=100, relative_width=1, num_generated=100, num_steps=9)
    assert (given.rules.num_frequencies, given.rules.relative_width) == (100, 1.0)
    assert (given.num_generated, given.privacy.num_steps) == (100, 9)
    without = resolved(facts(), target_epsilon=0.2, wavelet_weight=0)
    assert without.rules.wavelet_weight == 0.0
    assert resolved(facts(), target_epsilon=0.2, sanitize="record").rules.sanitize == "record"
    assert resolved(facts(), sanitize="embedding").rules.sanitize == "embedding"
    # At least two images of each class, or none has a mean without its own bias.
    assert resolved(facts(classes=100), target_epsilon=0.2).num_generated == 800


def test_beside_steps_an_embedding_is_released_up_to_some_noise_a_record():
    config = resolved(facts())
    assert config.rules.matching.model_dump() == {
        "num_frequencies": 2000, "relative_width": 0.25, "wavelet_weight": 0.5, "wavelet_width": 0.25,
        "num_steps": 300, "num_generated": 200, "learning_rate": 2e-3, "kept_share": 0.0,
    }  # fmt: skip
    # A tenth of what counts cost ten times: σ is as 1/√share.
    assert config.privacy.once["class_embedding"] == pytest.approx(
        0.1**0.5 * config.privacy.once["class_counts"], rel=1e-3
    )
    assert resolved(facts(classes=100)).rules.matching.num_generated == 800
    given = resolved(facts(), num_frequencies=100, matching_steps=7, wavelet_weight=0)
    assert (given.rules.matching.num_frequencies, given.rules.matching.num_steps) == (100, 7)
    assert given.rules.matching.wavelet_weight == 0.0
    without = resolved(facts(), embedding_share=0)
    assert without.rules.matching is None
    assert without.privacy.noise_multiplier < config.privacy.noise_multiplier
    # By a small budget, more than 1e-4 of noise a record, the generator before these steps makes half of the images.
    assert by_record(facts(), target_epsilon=0.2).rules.matching.kept_share == 0.5
    # 1e-3 of noise a record, from which on there is none: 0.5 / 1e-3 records at ε = 10.
    for num_records, there in ((520, True), (480, False)):
        found = by_record(facts(num_records=num_records))
        assert (found.rules.matching is not None) == ("class_embedding" in found.privacy.once) == there


def test_a_setting_that_the_default_does_not_read_is_refused():
    with pytest.raises(InputError, match="num_frequencies would not be read: this run releases no embedding; leave it"):
        resolved(facts(num_records=400), num_frequencies=100)
    with pytest.raises(
        InputError, match="matching_steps belongs to sanitize='record', not to 'embedding', the default"
    ):
        resolved(facts(), target_epsilon=0.2, matching_steps=100)
    with pytest.raises(
        InputError, match=r"not to 'embedding', the default for 60000 records at epsilon=0\.2; leave it"
    ):
        resolved(facts(), target_epsilon=0.2, num_reference=30)


def test_a_file_whose_rules_are_of_another_plan_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    text = resolved(facts(), target_epsilon=0.2).to_toml()
    path.write_text(text)
    assert RunConfig.from_toml(path).rules.sanitize == "embedding"
    rules = resolved(facts(), target_epsilon=0.2, sanitize="record").to_toml()
    path.write_text(text[: text.index("[rules]")] + rules[rules.index("[rules]") :])
    with pytest.raises(InputError, match=r"rules\.sanitize='record' does not fit privacy.queries_per_step=0; put"):
        RunConfig.from_toml(path)


def test_a_file_that_lacks_a_setting_names_it(tmp_path):
    path = tmp_path / "config.toml"
    lines = resolved(facts(), target_epsilon=10.0).to_toml().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("kept_share")))
    with pytest.raises(InputError, match=r"rules\.record\.matching\.kept_share is missing; if another version"):
        RunConfig.from_toml(path)


def test_an_embedding_that_would_not_fit_into_memory_is_refused():
    large = facts(num_records=5_000).model_copy(update={"shape": (3, 64, 64)})
    with pytest.raises(InputError, match=r"100000 frequencies .* give fewer num_frequencies"):
        resolved(large, sanitize="embedding", num_frequencies=100_000)
    many = facts(classes=10_000, num_records=60_000)
    with pytest.raises(InputError, match=r"in 10000 classes .* give fewer num_frequencies"):
        resolved(many, sanitize="embedding", num_frequencies=20_000, num_generated=8)


def test_the_histogram_is_only_charged_where_it_is_needed():
    assert "class_counts" in resolved(facts()).privacy.once
    assert "class_counts" not in resolved(facts(classes=1)).privacy.once
    assert "class_counts" not in resolved(facts(), class_prior="uniform").privacy.once


def test_whole_batches_keep_the_papers_habits_and_release_nothing_else():
    config = resolved(facts(), sanitize="batch", num_steps=100)
    assert config.rules.sanitize == "batch"
    assert (config.num_generated, config.rules.num_fresh, config.rules.queries_per_step) == (50, 20, 64)
    assert config.privacy.expected_batch_size == pytest.approx(50)
    assert config.rules.capacity == 79  # 50 + 4√50: more are drawn about once in 20,000 queries
    assert config.privacy.once == {}
    assert config.privacy.charges()[0].count == 6400
    assert "class_counts" in resolved(facts(), sanitize="batch", num_steps=100, class_prior="histogram").privacy.once


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sanitize": "batch", "num_reference": 30}, "num_reference belongs to sanitize='record'"),
        ({"debias_fraction": 0.4}, "debias_fraction belongs to sanitize='batch'"),
        ({"sanitize": "batch", "debias_fraction": 1.4}, "debias_fraction=1.4"),
        ({"sanitize": "batch", "l1_weight": -1}, "l1_weight=-1"),
        ({"sanitize": "batch", "reg": 0}, "reg=0"),
        ({"sanitize": "whole"}, "sanitize='whole'"),
        ({"sanitize": "embedding", "relative_reg": 1}, "relative_reg belongs to sanitize='record', not to 'embedding'"),
        ({"sanitize": "batch", "relative_width": 1}, "relative_width belongs to sanitize='record', not to 'batch'"),
        ({"sanitize": "embedding", "relative_width": 0}, "relative_width=0"),
        ({"sanitize": "embedding", "wavelet_width": 0}, "wavelet_width=0"),
        ({"sanitize": "embedding", "wavelet_weight": 1}, "wavelet_weight=1"),
        ({"sanitize": "embedding", "num_frequencies": 10**6}, "num_frequencies=1000000"),
    ],
)
def test_a_setting_of_the_other_method_or_out_of_range_is_refused(settings, named):
    with pytest.raises(InputError, match=named):
        make_settings(None, settings)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.58, 1.0])
def test_the_fresh_images_are_as_many_as_the_loss_expects(fraction):
    config = resolved(facts(), sanitize="batch", num_steps=10, debias_fraction=fraction)
    total = config.num_generated + config.rules.num_fresh
    assert split_debias(total, fraction) == (config.num_generated, config.rules.num_fresh)


def test_what_is_given_is_kept():
    config = resolved(facts(), generator="mlp", width=64, num_generated=40, num_steps=30, expected_batch_size=600)
    assert (config.generator.name, config.generator.width) == ("mlp", 64)
    assert config.num_generated == 80  # eight for each of ten classes
    assert (config.privacy.num_steps, config.privacy.sample_rate) == (30, 0.01)


def test_prior_that_does_not_fit():
    with pytest.raises(InputError, match="does not fit 2 classes"):
        resolved(facts(classes=2), class_prior=(0.5, 0.6))


def test_weights_come_from_the_seed_and_leave_the_global_state_alone():
    spec = resolved(facts(), generator="mlp", width=8).generator
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (build_generator(spec, (1, 8, 8), 2, seed=3) for _ in range(2))
    other = build_generator(spec, (1, 8, 8), 2, seed=4)
    assert isinstance(first, MLPGenerator)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
