"""The bound of Steinke, Nasr and Jagielski (2023): enumeration, limits, and randomised response of known ε."""

import itertools
import math

import numpy as np
import pytest

from dp_sinkhorn.audit.one_run import chance_of_so_many, epsilon_of_guesses, epsilon_of_scores


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_without_delta_the_bound_is_that_of_randomised_response(epsilon):
    """Every pattern of right and wrong answers about 6 coins, each right with probability e^ε/(e^ε + 1)."""
    right = math.exp(epsilon) / (math.exp(epsilon) + 1.0)
    for correct in range(7):
        chance = sum(
            math.prod(right if answer else 1.0 - right for answer in answers)
            for answers in itertools.product((False, True), repeat=6)
            if sum(answers) >= correct
        )
        assert chance_of_so_many(correct, 6, 20, epsilon, 0.0) == pytest.approx(chance)


def test_with_delta_the_bound_is_the_sum_of_the_theorem():
    coins, guesses, correct, epsilon, delta = 50, 8, 7, 0.8, 1e-3
    right = math.exp(epsilon) / (math.exp(epsilon) + 1.0)

    def tail(least: int) -> float:
        return sum(math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k) for k in range(max(least, 0), 9))

    gain = max((tail(correct - i) - tail(correct)) / i for i in range(1, coins + 1))
    expected = tail(correct) + 2 * coins * delta * gain
    assert chance_of_so_many(correct, guesses, coins, epsilon, delta) == pytest.approx(expected)


def test_limits_of_the_bound():
    # ε = 0 guesses like a coin: all of 10 are right once in 1024.
    assert chance_of_so_many(10, 10, 10, 0.0, 0.0) == pytest.approx(2.0**-10)
    assert chance_of_so_many(10, 10, 10, 40.0, 0.0) == pytest.approx(1.0)
    assert chance_of_so_many(0, 10, 10, 1.0, 0.1) == 1.0
    assert epsilon_of_guesses(5, 10, 10, 0.0, 0.05) == 0.0
    # All of r right: (e^ε/(e^ε+1))^r = level.
    share = 0.05 ** (1 / 100)
    assert epsilon_of_guesses(100, 100, 100, 0.0, 0.05) == pytest.approx(math.log(share / (1 - share)), abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_on_randomised_response_is_tight_and_rarely_wrong(epsilon):
    random, level, trials, coins = np.random.default_rng(0), 0.05, 400, 300
    right = math.exp(epsilon) / (math.exp(epsilon) + 1.0)
    found = [epsilon_of_guesses(int(v), coins, coins, 0.0, level) for v in random.binomial(coins, right, trials)]
    wrong = sum(value > epsilon for value in found)
    assert wrong <= level * trials + 3.0 * math.sqrt(level * trials)
    assert wrong > 0  # a bound that is never wrong would not be tight
    many = 200_000
    close = epsilon_of_guesses(int(random.binomial(many, right)), many, many, 0.0, level)
    assert 0.97 * epsilon < close <= epsilon + 0.02


def test_scores_that_follow_the_coins_show_much_others_nothing():
    random = np.random.default_rng(3)
    included = random.random(600) < 0.5
    assert epsilon_of_scores(included + 0.1 * random.random(600), included, 1e-6, 0.05) > 3.5
    assert epsilon_of_scores(random.random(600), included, 1e-6, 0.05) < 0.3
    # Against the coins, the highest scores are out: no evidence.
    assert epsilon_of_scores(-1.0 * included, included, 1e-6, 0.05) == 0.0
