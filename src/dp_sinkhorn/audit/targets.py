"""The queries of a run, collected while its stages run on public records."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp_sinkhorn.audit.neighbouring import BREAKDOWNS, PublicRecords, Target, Violation
from dp_sinkhorn.audit.stand_in import on_stand_in, smooth_images
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.curator import Curator, Query
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Stages, State
from dp_sinkhorn.training.loop import Run

_RECORDS, _STEPS = 500, 4
_PUBLIC = "the {} of a query depend on the records, not only on what was released"


class RecordingCurator(Curator):
    """Keeps all queries and answers."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.asked: list[Query] = []
        self.answers: list[Tensor] = []

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""
        answer = super().ask(query)
        self.asked.append(query)
        self.answers.append(answer)
        return answer


class ReplayingCurator(Curator):
    """Computes each query on its own records, but returns recorded answers."""

    def __init__(self, answers: Sequence[Tensor], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.public: list[dict[str, Tensor]] = []
        self._answers = list(answers)

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""
        noisy = super().ask(query)
        if len(self.public) >= len(self._answers):
            raise Violation("the number of queries depends on the records")
        answer = self._answers[len(self.public)]
        if noisy.shape != answer.shape:
            shapes = f"shape {tuple(noisy.shape)}, not {tuple(answer.shape)}"
            raise Violation(f"an answer has {shapes}: the shape depends on the records")
        self.public.append(dict(query.public))
        return answer


def targets_of(config: RunConfig, stages: Stages) -> dict[str, list[Target]]:
    """The first, a middle and the last query of each charge, by its name.

    Raises:
        Violation: The run fails on public records.
    """
    short = on_stand_in(config, _RECORDS, stages, steps=_STEPS)
    images = smooth_images(short.data, _RECORDS, seed=1)
    # This run's noise has a fixed seed, so that the audit is repeatable: the images are public.
    with _ran(short, images, stages, RecordingCurator) as run:
        assert isinstance(run.curator, RecordingCurator)  # noqa: S101
        found: dict[str, list[Target]] = {}
        for charge in short.plan.charges:
            stage = stages[charge.name.partition(".")[0]]
            asked = [query for query in run.curator.asked if query.charge.name == charge.name]
            if not asked:
                raise Violation(f"{charge.name} is charged but never asked")
            kept = sorted({0, len(asked) // 2, len(asked) - 1})
            worst = stage.worst(run.state)
            by_record, once = not stage.bounds_whole_batches, charge.name in stage.charged
            found[charge.name] = [
                Target(asked[place], worst, short.data, by_record=by_record, once=once) for place in kept
            ]
    return found


def check_only_the_answers(config: RunConfig, stages: Stages, data_sets: Sequence[PublicRecords]) -> str:
    """Replay the same answers on very different records: the generator must be updated equally, to the last bit.

    Raises:
        Violation: Something other than the answers depends on the records.
    """
    count = len(data_sets[0])
    short = on_stand_in(config, count, stages, steps=2, own_generator=True)
    with _ran(short, data_sets[0].images, stages, RecordingCurator) as run:
        assert isinstance(run.curator, RecordingCurator)  # noqa: S101
        answers = run.curator.answers
    start = [weight.clone() for weight in run.start]
    states: list[tuple[State, list[dict[str, Tensor]]]] = []
    for records in data_sets:
        with _ran(short, records.images, stages, partial(ReplayingCurator, answers)) as again:
            assert isinstance(again.curator, ReplayingCurator)  # noqa: S101
            states.append((again.state, again.curator.public))
    (first, public), (second, others) = states
    for own, other in zip(public, others, strict=True):
        for name in own:
            if not torch.equal(own[name], other[name]):
                raise Violation(_PUBLIC.format(_WORDS.get(name, name)))
    for name, learnt in first.learnt.items():
        if not torch.equal(learnt, second.learnt[name]):
            raise Violation(f"what is learnt ({name}) depends on the records, not only on what was released")
    weights = [list(state.generator.parameters()) for state in (first, second)]
    if first.field_size != second.field_size or not all(map(torch.equal, *weights)):
        raise Violation("the generator's update depends on the records, not only on what was released")
    if all(map(torch.equal, start, weights[0])):
        raise Violation("the generator did not move, so nothing was tested")
    sizes = " or ".join(str(len(records)) for records in data_sets)
    return f"with the same answers, other records ({sizes}) change no public input and no bit of the update"


_WORDS = {"images": "generated images", "potential": "potentials"}


class _Started(Run):
    """A run that keeps its initial weights."""

    start: list[Tensor]


@contextmanager
def _ran(
    config: RunConfig, images: LabelledImages, stages: Stages, curator: Callable[..., Curator]
) -> Iterator[_Started]:
    """Run all stages on public records, in a temporary folder.

    Raises:
        Violation: The run failed.
    """
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        try:
            run = _Started(config, images, Path(folder), stages, curator)
            run.curator.random = CryptoRandom(test_seed=1)
            run.start = [weight.detach().clone() for weight in run.state.generator.parameters()]
            run.train()
        except BREAKDOWNS as error:
            raise Violation(f"a run failed on ordinary records: {error}") from error
        yield run
