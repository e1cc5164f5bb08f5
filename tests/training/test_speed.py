"""What a dry run measures: the steps, without what comes before and after them."""

import pytest
import torch

from dp_sinkhorn.build import resolve
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings
from dp_sinkhorn.training import speed, surroundings
from dp_sinkhorn.training.speed import Speed, measure_speed

SMALL = {"num_steps": 40, "width": 16, "channels": 8, "num_generated": 20, "expected_batch_size": 50}


def config(**settings: object) -> RunConfig:
    facts = DataFacts(source="toy", num_records=300, shape=(1, 8, 8), class_names=("0", "1"))
    return resolve(make_settings(None, SMALL | settings), facts)


def test_an_embedding_of_all_records_is_timed_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their steps take as long whatever the records, which are not made up in their number."""
    held = []
    real = speed.class_embedding
    monkeypatch.setattr(speed, "class_embedding", lambda data, *rest: held.append(len(data)) or real(data, *rest))
    facts = DataFacts(source="toy", num_records=10**7, shape=(1, 8, 8), class_names=("0", "1"))
    settings = {"sanitize": "embedding", "num_frequencies": 50, "num_generated": 20, "width": 16, "channels": 8}
    found = measure_speed(resolve(make_settings(None, settings), facts))
    assert held == [500]
    assert 0.0 < found.step < found.before


def test_the_steps_are_measured_without_the_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> torch.Tensor:
        raise AssertionError("a dry run made a release that no step needs")

    for name in ("release_class_moments", "release_class_features", "release_classifier"):
        monkeypatch.setattr(surroundings, name, never)
    run = config()
    found = measure_speed(run)
    assert found.step > 0.0
    assert found.before > 0.0
    assert found.whole(run) == pytest.approx(found.before + 40 * found.step)


@pytest.mark.parametrize("settings", [{"sanitize": "batch"}, {"features_share": 0.0, "classifier_share": 0.0}])
def test_without_features_nothing_comes_before_the_steps(settings: dict[str, object]) -> None:
    assert measure_speed(config(**settings)).before == 0.0


def test_the_steps_after_the_others_are_timed_by_a_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = speed.embedding_step
    monkeypatch.setattr(speed, "embedding_step", lambda *args: taken.append(1) or real(*args))
    given = {"sanitize": "record", "embedding_share": 0.2, "num_frequencies": 50, "matching_steps": 10_000}
    run = config(**given)
    found = measure_speed(run)
    assert 0 < len(taken) < 100
    assert found.after > found.step
    assert found.whole(run) == pytest.approx(found.before + 40 * found.step + found.after)
    assert measure_speed(config(sanitize="record", embedding_share=0)).after == 0.0


def test_the_whole_is_the_steps_and_what_comes_before_and_after() -> None:
    assert Speed(step=0.5, before=3.0, after=4.0).whole(config()) == 27.0
