"""What a dry run measures: the steps, without what comes before and after them."""

import pytest

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.settings import DataFacts
from dp_sinkhorn.training.loop import Run
from dp_sinkhorn.training.speed import Speed, measure_speed
from support.asking import Asking
from support.toy import LEAN, SMALL, config, settings


def test_an_embedding_is_timed_by_a_part_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their steps take as long whatever the records, which are not made up in their number."""
    held: list[int] = []
    real = Run.__init__

    def init(run: Run, made: object, records: LabelledImages, *rest: object) -> None:
        held.append(len(records))
        real(run, made, records, *rest)

    monkeypatch.setattr(Run, "__init__", init)
    facts = DataFacts(source="toy", num_records=10**7, shape=(1, 8, 8), class_names=("0", "1"))
    found = measure_speed(resolve(settings(LEAN["embedding"]), facts), STAGES)
    assert set(held) == {500}
    assert 0.0 < found.step < found.before


def test_only_what_the_steps_need_comes_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches need no answer; steps in a subspace need the subspace."""
    for mode, asked in (("batch", {"batch_steps"}), ("record", {"transport_steps", *BEFORE})):
        with monkeypatch.context() as patch:
            asking = Asking(patch)
            run = config(base=LEAN[mode])
            found = measure_speed(run, STAGES)
            assert set(asking.made) == asked
        assert found.step > 0.0
        assert (found.before > 0.0) is (mode == "record")
        assert found.after == 0.0
        assert found.whole(run) == pytest.approx(found.before + 20 * found.step)


BEFORE = ("class_counts", "principal_subspace.first_moments", "principal_subspace.second_moment")


def test_of_a_long_run_a_few_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(
        base=SMALL,
        num_steps=1000,
        generator="mlp",
        class_embedding={"budget_share": 0.1, "num_frequencies": 50},
        embedding_steps={"num_steps": 10_000},
    )
    asking = Asking(monkeypatch)
    found = measure_speed(run, STAGES)
    assert asking.steps < 20
    assert found.after > 100 * found.step
    assert found.whole(run) == pytest.approx(found.before + 1000 * found.step + found.after)


def test_the_whole_is_the_steps_and_what_stands_beside_them() -> None:
    run = resolve(settings_of(None, LEAN["record"] | {"num_steps": 40}), config().data)
    assert Speed(step=0.5, before=3.0, after=4.0).whole(run) == 27.0
