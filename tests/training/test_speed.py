"""Measuring the speed for a dry run: steps, and the work before and after them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.settings import DataFacts, RunConfig
from dp_sinkhorn.stages import fine_tuning
from dp_sinkhorn.training import speed
from dp_sinkhorn.training.loop import Run
from dp_sinkhorn.training.speed import Speed, check_memory, measure_speed
from support.asking import Asking
from support.toy import LEAN, SMALL, config, settings


def test_an_embedding_is_timed_on_a_part_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of its steps does not depend on the number of records, so fewer are made up."""
    held: list[int] = []
    real = Run.__init__

    def init(run: Run, made: object, records: LabelledImages, *rest: object) -> None:
        held.append(len(records))
        real(run, made, records, *rest)

    monkeypatch.setattr(Run, "__init__", init)
    facts = DataFacts(source="toy", num_records=10**7, shape=(1, 8, 8), class_names=("0", "1"))
    found = measure_speed(resolve(settings(LEAN["embedding"], target_delta=1e-8), facts), STAGES)
    assert set(held) == {500}
    assert 0.0 < found.step < found.before


def test_before_the_steps_only_the_stages_they_need_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches need none; steps in a subspace need the subspace."""
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


def test_only_a_few_steps_of_a_long_run_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(
        base=SMALL,
        num_steps=1000,
        generator="mlp",
        class_embedding={"budget_share": 0.1, "num_frequencies": 50},
        fine_tuning={"num_steps": 5_000, "embedding_steps": 5_000},
    )
    asking = Asking(monkeypatch)
    found = measure_speed(run, STAGES)
    assert asking.steps < 20
    assert found.after > 100 * found.step
    assert found.whole(run) == pytest.approx(found.before + 1000 * found.step + found.after)


def test_each_kind_of_finishing_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only these steps advance: 100 of them by 2, 100 by 5."""
    now = 0.0

    def taking(seconds: float, real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def slow(*given: Any) -> torch.Tensor:
            nonlocal now
            now += seconds
            return real(*given)

        return slow

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(EmbeddingGoal, "gradient", taking(2.0, EmbeddingGoal.gradient))
    monkeypatch.setattr(fine_tuning.Goal, "loss", taking(5.0, fine_tuning.Goal.loss))
    run = config(
        base=LEAN["record"],
        class_embedding={"budget_share": 0.1, "num_frequencies": 50},
        fine_tuning={"num_steps": 100, "embedding_steps": 100},
    )
    assert measure_speed(run, STAGES).after == 700.0


def test_memory_is_refused_by_records_shape_and_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the least free memory that suffices for one run, a larger one is refused."""

    def fits(run: RunConfig, free: int) -> bool:
        monkeypatch.setattr(speed.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        try:
            check_memory(run, STAGES)
        except InputError:
            return False
        return True

    def needed(base: dict[str, Any], num_records: int, shape: tuple[int, int, int] = (1, 8, 8)) -> int:
        """Bytes of free memory that suffice, within 1 MiB."""
        data = DataFacts(source="toy", num_records=num_records, shape=shape, class_names=("0", "1"))
        run = resolve(settings(base, target_delta=1e-7, noise_multiplier=200), data)
        low, high = 0, 2**44
        while high - low > 2**20:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(run, middle) else (middle, high)
        return high

    few, many = 10**4, 10**6
    plain = needed(LEAN["record"], many)
    assert plain - needed(LEAN["record"], few) > 64 * (many - few)
    assert needed(LEAN["record"], many, (3, 64, 64)) > 3 * 64 * 64 * many
    # Features of records are kept for the stages that need them.
    with_features = LEAN["record"] | {"class_features": {"budget_share": 0.05}, "fine_tuning": {"num_steps": 4}}
    assert needed(with_features, many) > plain + 10 * 64 * many


def test_the_estimate_adds_the_steps_and_the_work_around_them() -> None:
    run = resolve(settings_of(None, LEAN["record"] | {"num_steps": 40}), config().data)
    assert Speed(step=0.5, before=3.0, after=4.0).whole(run) == 27.0
