"""Class counts: a histogram, or what was declared; and what is said of classes that noise may have made."""

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from support.stage_runs import FACTS, SETTINGS, config_of, curator_of, plain_descent, toy, with_noise

STAGE = method.STAGES["class_counts"]


def counted(config, records):
    generator = build_generator(config.generator, config.data.shape, config.data.num_classes)
    state = plain_descent(config, generator)
    assert len(list(STAGE.run(curator_of(config, records), state))) == 1
    STAGE.finish(state)
    return state


def test_with_little_noise_the_counts_are_those_of_the_records():
    state = counted(with_noise(config_of("record"), STAGE.name, 0.5), toy().subset(torch.arange(0, 199)))
    torch.testing.assert_close(state.class_counts, torch.tensor([100.0, 99.0]).double(), rtol=0.0, atol=3.0)
    assert state.class_prior.how == "noisy histogram"
    assert state.class_prior.shares == pytest.approx((100 / 199, 99 / 199), abs=0.02)


def test_a_count_that_noise_alone_can_explain_is_warned_about():
    """Released counts are never below one, nor below their noise."""
    config = with_noise(config_of("record"), STAGE.name, 20.0)
    state = counted(config, toy().subset(torch.arange(0, 200, 2)))
    assert float(state.class_counts[1]) >= 20.0
    assert STAGE.warnings(state) == ("class dog may have no records at all: noise alone can explain its count",)
    assert state.class_prior.epsilon_alone == epsilon_pld([STAGE.charge(config.plan)], 1e-5)


def test_declared_shares_cost_nothing_and_need_no_query():
    config = config_of("batch").with_rules(STAGE.name, declared=(0.25, 0.75))
    state = counted(config, toy())
    assert state.class_counts.tolist() == [50.0, 150.0]
    assert (state.class_prior.how, state.class_prior.shares) == ("declared", (0.25, 0.75))
    assert state.class_prior.epsilon_alone == 0.0
    assert STAGE.warnings(state) == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prior": (0.5, 0.6)}, "class_counts.prior=0.5,0.6 does not fit 2 classes; give 2 shares that sum to 1"),
        ({"prior": "1,2,3"}, "class_counts.prior=1,2,3 does not fit 2 classes"),
        (
            {"prior": "uniform", "budget_share": 0.1},
            "budget_share would have no effect: the classes are not counted",
        ),
        ({"budget_share": 0}, "class_counts.budget_share=0 leaves nothing for the histogram; declare class_counts"),
    ],
)
def test_a_prior_that_does_not_fit_is_named(given, words):
    settings = {**SETTINGS["record"], "class_counts": given, "noise_multiplier": 50.0}
    with pytest.raises(InputError, match=words):
        method.resolve(method.settings_of(None, settings), FACTS)
