"""All facts that a report may show, in one frozen record. This module alone decides what each edition contains.

The page shows what the record holds. What an edition must not show is absent from its record, not hidden in the page.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from dp_sinkhorn.evaluation.cautions import cautions
from dp_sinkhorn.evaluation.frechet import Frechet
from dp_sinkhorn.evaluation.gain import Gain
from dp_sinkhorn.evaluation.kernel import Kernel
from dp_sinkhorn.evaluation.memorisation import Memorisation
from dp_sinkhorn.evaluation.prdc import Prdc
from dp_sinkhorn.evaluation.record import COMPUTED_FROM, Evaluation, Shares
from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.explain import explain
from dp_sinkhorn.release.model_card import objective
from dp_sinkhorn.release.verify import Verification, verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.report.evidence import (
    PrivateFigures,
    Progress,
    read_evaluation,
    read_private_figures,
    read_progress,
)
from dp_sinkhorn.report.report_pictures import Picture, Snapshot, class_rows, snapshots
from dp_sinkhorn.settings import read_toml
from dp_sinkhorn.stages.base import Stages

MAIN_CLASSIFIER = "cnn"


@dataclass(frozen=True)
class Quality:
    """Figures measured on real test images; a part that this edition must not show is None.

    Args:
        scores: By classifier, trained on synthetic images; empty if the images have one class.
        ceiling: By classifier, trained on real images; curator only.
        gain: Curator only.
        test_is_public: Whether the curator declared so; if not, only the curator's edition has a `Quality`.
        notes: Warnings of the evaluation; in the public edition those that depend on no training record.
    """

    scores: dict[str, Scores]
    ceiling: dict[str, Scores] | None
    gain: Gain | None
    frechet: Frechet | None
    kernel: Kernel | None
    prdc: Prdc | None
    shares: Shares
    num_synthetic: int
    num_test: int
    seed: int
    test_is_public: bool
    notes: tuple[str, ...]

    @property
    def main(self) -> str:
        """Name of the classifier that the verdicts use: fixed in advance, not the best one."""
        return MAIN_CLASSIFIER if MAIN_CLASSIFIER in self.scores else next(iter(self.scores))


@dataclass(frozen=True)
class Report:
    """The facts of one edition.

    Args:
        curator: Whether this is the curator's edition.
        verification: The present result of `verify`.
        words: Lines of `verify`, by heading.
        objective: What the generator was trained for, in words that follow "it was trained".
        progress: ε over training. synthetic: A row of images for each of the first classes.
        quality: None without an evaluation, or if this edition must not show it; then `withheld` is true.
        memorisation, figures: Curator only: None and empty in the public edition.
        settings: The run's settings as TOML lines, without the place of its data.
    """

    curator: bool
    card: PrivacyCard
    verification: Verification
    words: dict[str, tuple[str, ...]]
    objective: str
    progress: tuple[Progress, ...]
    synthetic: tuple[Picture, ...]
    snapshots: tuple[Snapshot, ...]
    quality: Quality | None
    withheld: bool
    memorisation: Memorisation | None
    figures: tuple[PrivateFigures, ...]
    settings: str

    def epsilon_after(self, step: int) -> float | None:
        """An upper bound on the ε spent after a step: that of the first line at or after it."""
        return next((line.epsilon for line in self.progress if line.step >= step), None)


def collect(run: Path, evaluation: Path | None, stages: Stages, *, curator: bool, test_is_public: bool) -> Report:
    """Read and check a finished run, and keep the facts that the edition may show.

    Args:
        run: Run folder (`check_run`). evaluation: `evaluation.json` or its folder, or None.
        stages: All that may be on a card. curator: Make the curator's edition.
        test_is_public: The curator declares that the test images are not private records.

    Raises:
        InputError: The run has not finished or is damaged, the evaluation is not of this run, or the edition is public
            and the release does not hold.
    """
    if test_is_public and evaluation is None:
        raise InputError("--test-set-is-public is about the test images of an evaluation; add --evaluation DIR")
    card, generator = load_release(run, stages)
    settings = read_toml(run / "config.toml").get("settings", {})
    verification = verify(run, stages)
    if not curator:
        _may_be_public(run, verification)
    evaluated = None if evaluation is None else read_evaluation(evaluation, card)
    report = Report(
        curator=curator,
        card=card,
        verification=verification,
        words=dict(explain(verification)),
        objective=re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", objective(card, stages)),  # links as plain text
        progress=read_progress(run / "metrics.jsonl"),
        synthetic=class_rows(card, generator),
        snapshots=snapshots(run / "samples", card),
        quality=None,
        withheld=False,
        memorisation=None,
        figures=(),
        settings=tomli_w.dumps(settings) if isinstance(settings, dict) else "",
    )
    if curator:
        return replace(
            report,
            quality=None if evaluated is None else _whole(evaluated, test_is_public),
            memorisation=None if evaluated is None else evaluated.memorisation,
            figures=read_private_figures(run / "private" / "metrics.jsonl"),
        )
    if evaluated is None:
        return report
    shown = _public_part(evaluated) if test_is_public else None
    return replace(report, quality=shown, withheld=shown is None)


def check_run(run: Path) -> None:
    """Refuse a folder that is not a run folder.

    Raises:
        InputError: It is not.
    """
    if not (run / "config.toml").is_file():
        raise InputError(f"{run} is not a run folder; give the folder that train --out made")


def _may_be_public(run: Path, verification: Verification) -> None:
    if not verification.ok:
        raise InputError(
            f"the release of {run} does not hold, so no report on it may be public: {verification.problems[0]}; "
            "see dp-sinkhorn verify, or make a report for yourself with --curator"
        )


def _whole(evaluated: Evaluation, test_is_public: bool) -> Quality:
    return replace(
        _of_test_images(evaluated),
        ceiling=evaluated.trtr,
        gain=evaluated.gain,
        test_is_public=test_is_public,
        notes=evaluated.warnings,
    )


def _public_part(evaluated: Evaluation) -> Quality:
    """The figures computed from synthetic and test images alone, by this version's list and by the file's own.

    Guarantees: No figure depends on a training record. With a public test set, all figures are post-processing of the
    release.
    """
    needed = ("tstr", "frechet", "kernel", "prdc", "class_shares")
    for part in needed:
        touched = {*COMPUTED_FROM[part], *evaluated.computed_from.get(part, ("train",))}
        if touched != {"test"}:
            raise InputError(f"the evaluation's {part} was computed from more than test images; evaluate again")
    return _of_test_images(evaluated)


def _of_test_images(evaluated: Evaluation) -> Quality:
    """The figures that may be public, listed one by one, so that a new field of evaluations stays out by default."""
    return Quality(
        scores=evaluated.tstr,
        ceiling=None,
        gain=None,
        frechet=evaluated.frechet,
        kernel=evaluated.kernel,
        prdc=evaluated.prdc,
        shares=evaluated.class_shares,
        num_synthetic=evaluated.num_synthetic,
        num_test=evaluated.num_test,
        seed=evaluated.seed,
        test_is_public=True,
        notes=cautions(
            evaluated.tstr, evaluated.prdc, evaluated.class_shares, evaluated.class_names, evaluated.num_synthetic
        ),
    )
