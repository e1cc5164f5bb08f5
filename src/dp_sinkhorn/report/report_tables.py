"""Tables by class, worst first, and confusion matrices with shaded cells."""

from dataclasses import dataclass

from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.report.content import Report
from dp_sinkhorn.report.verdicts import CLASSIFIERS
from dp_sinkhorn.report.words import sentence

MOST_ROWS, MOST_CONFUSED = 50, 20
_SHADES = 9


Measured = tuple[float | None, float | None]
"""A share in [0, 1] and its standard error; None where there is none."""


@dataclass(frozen=True)
class ClassRow:
    """A class: its shares of the synthetic and the real test images, and its recall.

    Args:
        recall: Of the main classifier trained on synthetic images. ceiling: The same, trained on real images.
    """

    name: str
    share_synthetic: Measured
    share_real: Measured
    recall: Measured
    ceiling: Measured


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix.

    Args:
        count: Number of test images. share: Their share of the true class. shade: 0 (light) to 9 (dark).
        right: Whether the prediction is correct.
    """

    count: int
    share: float
    shade: int
    right: bool


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix; rows: the true class, columns: the predicted one."""

    caption: str
    rows: tuple[tuple[Cell, ...], ...]


def worst_first(report: Report) -> tuple[ClassRow, ...]:
    """The classes in ascending order of recall, at most `MOST_ROWS`; empty without figures."""
    quality = report.quality
    if quality is None or not quality.scores:
        return ()
    main, shares, names = quality.main, quality.shares, report.card.class_names
    rows = [
        ClassRow(*facts)
        for facts in zip(
            names,
            zip(shares.synthetic, shares.standard_errors.synthetic, strict=True),
            zip(shares.real, shares.standard_errors.real, strict=True),
            _recalls(quality.scores[main]),
            [(None, None)] * len(names) if quality.ceiling is None else _recalls(quality.ceiling[main]),
            strict=True,
        )
    ]
    rows.sort(key=lambda row: 2.0 if row.recall[0] is None else row.recall[0])
    return tuple(rows[:MOST_ROWS])


def _recalls(scores: Scores) -> list[Measured]:
    return list(zip(scores.recall, scores.standard_errors.recall, strict=True))


def confusions(report: Report) -> tuple[Confusion, ...]:
    """Confusion matrices of the main classifier, trained on synthetic and, if the edition has it, on real images.

    Empty without figures, and above `MOST_CONFUSED` classes.
    """
    quality = report.quality
    if quality is None or not quality.scores or len(report.card.class_names) > MOST_CONFUSED:
        return ()
    name = CLASSIFIERS.get(quality.main, quality.main)
    found = [_confusion(f"{name}, trained on synthetic images", quality.scores[quality.main].confusion)]
    if quality.ceiling is not None:
        found.append(_confusion(f"{name}, trained on real images", quality.ceiling[quality.main].confusion))
    return tuple(found)


def _confusion(caption: str, counts: tuple[tuple[int, ...], ...]) -> Confusion:
    rows = []
    for true, row in enumerate(counts):
        total = max(1, sum(row))
        rows.append(
            tuple(
                Cell(count, count / total, round(_SHADES * (count / total) ** 0.5), true == predicted)
                for predicted, count in enumerate(row)
            )
        )
    return Confusion(sentence(caption), tuple(rows))
