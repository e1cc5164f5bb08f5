"""Four questions about a run, each with a short answer that is no stronger than its numbers."""

from dataclasses import dataclass

from dp_sinkhorn.evaluation.cautions import LARGEST_ERROR
from dp_sinkhorn.evaluation.gain import difference_error
from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.privacy.plan import delta_warning
from dp_sinkhorn.release.explain import percent_above
from dp_sinkhorn.report.content import Quality, Report
from dp_sinkhorn.report.words import measured, number, percent, sentence, shown

_NOT_MEASURED = "This report has no evaluation. The section Quality says how to make one."
_ONE_CLASS = "The images have one class, so there is nothing to classify."
_WITHHELD = (
    "It was measured on real test images. These were not declared public, so only the curator's edition has the "
    "figures."
)


@dataclass(frozen=True)
class Answer:
    """A question, a short verdict, and the numbers that it rests on.

    Args:
        tone: Colour of the verdict: "good", "mixed", "bad" or "open".
        target: Id of the section with the details.
    """

    question: str
    verdict: str
    lines: tuple[str, ...]
    tone: str
    target: str


def answers(report: Report) -> tuple[Answer, ...]:
    """The answers: is it private, is it good, where is it bad, may it be handed out."""
    return (_private(report), _good(report), _bad(report), _hand_out(report))


def _private(report: Report) -> Answer:
    card, attack = report.card, report.verification.attack
    question, target = "Is it private?", "privacy"
    if not report.verification.ok or attack is None:
        return Answer(question, "No: the release does not hold", report.verification.problems[:1], "bad", target)
    tpr = attack.tpr_at_1_percent
    if tpr <= 0.02:
        verdict, tone = "Yes: an attacker can hardly do better than guess", "good"
    elif tpr <= 0.10:
        verdict, tone = "Yes, within a moderate bound", "good"
    elif tpr <= 0.50:
        verdict, tone = "Yes, but within a loose bound", "mixed"
    else:
        verdict, tone = "Barely: the bound is very loose", "bad"
    lines = (
        f"ε = {number(card.epsilon)}, δ = {card.delta:g}, for each single record.",
        "An attack that guesses which images were trained on, and wrongly accuses 1 % of all others, finds at most "
        f"{percent_above(tpr)} of those trained on; blind guessing finds 1 %.",
    )
    if warning := delta_warning(card.delta, card.num_records):
        return Answer(question, "Barely: δ is too large", (*lines, f"Warning: {warning}."), "bad", target)
    return Answer(question, verdict, lines, tone, target)


def _good(report: Report) -> Answer:
    question, target = "Is it good?", "quality"
    quality = report.quality
    if quality is None:
        if report.withheld:
            return Answer(question, "Not in this edition", (_WITHHELD,), "open", target)
        return Answer(question, "Not measured", (_NOT_MEASURED,), "open", target)
    if not quality.scores:
        return Answer(question, "Not measured by classifiers", (_ONE_CLASS, *_likeness(quality)), "open", target)
    name = quality.main
    scores = quality.scores[name]
    accuracy = scores.accuracy
    chance = max(quality.shares.real)
    lines = [
        f"{sentence(CLASSIFIERS.get(name, name))} trained on synthetic images classifies "
        f"{percent(accuracy, scores.standard_errors.accuracy)} of the "
        f"real test images correctly; always predicting the largest class gives {percent(chance)}."
    ]
    if quality.ceiling is None:
        beaten = accuracy > 2.0 * chance or accuracy > 1.0 - (1.0 - chance) / 2.0
        verdict = "Well above guessing" if beaten else "Little or no better than guessing"
        lines.append("Only the curator's edition compares this with training on real images.")
        return Answer(question, verdict, tuple(lines), "mixed" if beaten else "bad", target)
    ceiling = quality.ceiling[name]
    lines.append(f"Trained on real images: {percent(ceiling.accuracy, ceiling.standard_errors.accuracy)}.")
    gap, error = ceiling.accuracy - accuracy, difference_error(scores, ceiling)
    if accuracy <= chance + 0.02:
        verdict, tone = "Little or no better than guessing", "bad"
    elif gap < error:
        enough = error <= max(LARGEST_ERROR, -gap)
        verdict = "As useful as real images, by this measure" if enough else "Too few test images to tell"
        tone = "good" if enough else "open"
    else:
        verdict = f"{measured(100.0 * gap, 100.0 * error)} points behind real images"
        tone = "good" if gap <= 0.02 else "mixed" if gap <= 0.10 else "bad"
    return Answer(question, verdict, tuple(lines), tone, target)


def _bad(report: Report) -> Answer:
    question, card = "Where is it bad?", report.card
    quality = report.quality
    if quality is None:
        lines: list[str] = [_WITHHELD if report.withheld else _NOT_MEASURED]
        shares = card.class_prior.shares
        if len(shares) > 1 and card.class_prior.how == "noisy histogram":
            rarest = min(range(len(shares)), key=shares.__getitem__)
            lines.append(
                f"The rarest class is {shown(card.class_names[rarest])}, about {percent(shares[rarest])} of the "
                "records. The fewer records a class has, the less the generator can learn of it."
            )
        return Answer(
            question, "Not in this edition" if report.withheld else "Not measured", tuple(lines), "open", "quality"
        )
    if not quality.scores:
        return Answer(question, "Not measured by class", (_ONE_CLASS,), "open", "quality")
    worst = worst_class(quality)
    recall = _recall(quality.scores[quality.main], worst)
    lines = [
        f"{sentence(CLASSIFIERS.get(quality.main, quality.main))} trained on synthetic images recognises "
        f"{recall} of its real test images"
        + (
            "."
            if quality.ceiling is None
            else f"; trained on real images, {_recall(quality.ceiling[quality.main], worst)}."
        )
    ]
    if pair := worst_pair(quality):
        true, predicted, share = pair
        lines.append(
            f"Most frequent mistake: {percent(share)} of {shown(card.class_names[true])} is taken for "
            f"{shown(card.class_names[predicted])}."
        )
    return Answer(question, f"Worst in class {shown(card.class_names[worst])}", tuple(lines), "mixed", "classes")


def _recall(scores: Scores, index: int) -> str:
    return percent(scores.recall[index], scores.standard_errors.recall[index])


def _likeness(quality: Quality) -> tuple[str, ...]:
    if (frechet := quality.frechet) is None:
        return ()
    name, floor = "FID" if frechet.is_fid else "Fréchet distance", number(frechet.floor)
    return (f"{name} {number(frechet.value)}; with other real images in place of the synthetic ones {floor}.",)


def _hand_out(report: Report) -> Answer:
    question, target = "May I hand it out?", "covered"
    if not report.verification.ok:
        return Answer(question, "No", ("The release does not hold: see Privacy.",), "bad", target)
    lines = [
        f"Yes: the folder release/ and any images drawn from it, if ε = {number(report.card.epsilon)} is small enough "
        "for you, no person has several records, and you add the ε of all other releases from the same records.",
        "No: the folder private/, and any evaluation.",
    ]
    if report.curator:
        lines.append("No: this report, because it is the curator's edition.")
    return Answer(question, "The release, under conditions", tuple(lines), "mixed", target)


CLASSIFIERS = {
    "logreg": "logistic regression",
    "mlp": "a small neural network (MLP)",
    "cnn": "a convolutional network (CNN)",
    "boosting": "boosted trees",
}
"""Names of the classifiers on the page."""


def worst_class(quality: Quality) -> int:
    """Index of the class with the lowest recall, among those with test images."""
    recall = quality.scores[quality.main].recall
    return min((share, index) for index, share in enumerate(recall) if share is not None)[1]


def worst_pair(quality: Quality) -> tuple[int, int, float] | None:
    """(true, predicted, share of the true class) of the most frequent mistake; None if there is none."""
    confusion = quality.scores[quality.main].confusion
    pairs = [
        (count / sum(row), true, predicted)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    if not pairs:
        return None
    share, true, predicted = max(pairs)
    return true, predicted, share
