"""An evaluation as tables for a terminal, 80 columns wide."""

from rich.markup import escape
from rich.table import Table

from dp_sinkhorn.evaluation.gain import Gain
from dp_sinkhorn.evaluation.memorisation import Memorisation
from dp_sinkhorn.evaluation.record import Evaluation
from dp_sinkhorn.evaluation.uncertainty import plus_minus

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro-F1",
    "calibration_error": "calib. error",
}
"""Fields of `Scores` and their headings in a table."""

_MEANING = "±: standard error over the draw of the images; another run or seed adds to it."

PRIVATE_TITLE = "Memorisation: PRIVATE, not for handing out"


def tables(evaluation: Evaluation) -> list[Table]:
    """Tables of classifiers and classes (of two or more classes), of features, and of memorisation if requested."""
    found = [_classifiers(evaluation, evaluation.gain), _classes(evaluation)] if evaluation.gain is not None else []
    if evaluation.frechet is not None:
        found.append(_features(evaluation))
    if evaluation.memorisation is not None:
        found.append(_memorisation(evaluation.memorisation))
    return found


def _classifiers(evaluation: Evaluation, gain: Gain) -> Table:
    table = Table(
        title="Tested on real images, in %",
        caption=f"Trained on {evaluation.num_synthetic:,} synthetic images (synth.) or, as the ceiling, on "
        f"{evaluation.num_real_train:,} real training images drawn at random (real); "
        f"tested on {evaluation.num_test:,} real test images; seed {evaluation.seed}. {_MEANING} Gain: "
        + "; ".join(
            f"{name} accuracy {_percent(scores.accuracy, scores.standard_errors.accuracy)} from {gain.num_real:,} real "
            f"images; the synthetic ones add {_percent(gain.added[name], gain.standard_errors[name])} points"
            for name, scores in gain.real.items()
        )
        + ".",
    )
    table.add_column("classifier")
    for heading in METRICS.values():
        table.add_column(heading, justify="right")
    for name, synthetic in evaluation.tstr.items():
        for images, scores in (("synth.", synthetic), ("real", evaluation.trtr[name])):
            cells = (_percent(getattr(scores, metric), getattr(scores.standard_errors, metric)) for metric in METRICS)
            table.add_row(f"{name}, {images}", *cells, end_section=images == "real")
    return table


def _classes(evaluation: Evaluation) -> Table:
    table = Table(
        title="By class, in %",
        caption="Share of the synthetic and of the real test images; recall of the CNN trained on synthetic or on "
        "real images.",
    )
    table.add_column("class", overflow="fold")
    for heading in ("share\nsynth.", "\nreal", "CNN recall\nsynth.", "\nreal"):
        table.add_column(heading, justify="right")
    shares, classifiers = evaluation.class_shares, (evaluation.tstr["cnn"], evaluation.trtr["cnn"])
    columns = (
        map(_percent, shares.synthetic, shares.standard_errors.synthetic),
        map(_percent, shares.real, shares.standard_errors.real),
        *(map(_percent, scores.recall, scores.standard_errors.recall) for scores in classifiers),
    )
    for name, *cells in zip(evaluation.class_names, *columns, strict=True):
        table.add_row(escape(name), *cells)
    return table


def _features(evaluation: Evaluation) -> Table:
    frechet, kernel, prdc = evaluation.frechet, evaluation.kernel, evaluation.prdc
    assert frechet is not None and kernel is not None and prdc is not None  # noqa: PT018, S101 - made together
    table = Table(
        title=f"Features of {escape(frechet.extractor)}",
        caption=f"{frechet.num_synthetic:,} synthetic against {frechet.num_real:,} real test images; floor: "
        f"{frechet.num_real:,} other real test images in their place. "
        + ("" if frechet.is_fid else "Not FID: comparable only with this extractor and sample size."),
    )
    table.add_column("measure")
    table.add_column("synthetic", justify="right")
    table.add_column("floor", justify="right")
    table.add_column("better")
    table.add_row(
        "FID" if frechet.is_fid else "Fréchet distance", f"{frechet.value:.4g}", f"{frechet.floor:.4g}", "low"
    )
    table.add_row(
        "kernel distance",
        plus_minus(kernel.value, kernel.standard_error),
        plus_minus(kernel.floor, kernel.floor_standard_error),
        "low",
    )
    for name in ("precision", "recall", "density", "coverage"):
        sides = ((prdc, prdc.standard_errors), (prdc.floor, prdc.floor_standard_errors))
        table.add_row(name, *(plus_minus(getattr(of, name), getattr(errors, name)) for of, errors in sides), "high")
    return table


def _memorisation(found: Memorisation) -> Table:
    table = Table(
        title=PRIVATE_TITLE,
        caption="Distances to training images: root mean square difference of pixels, in % of the range. "
        "Intervals: 95 %.",
    )
    table.add_column("measure")
    table.add_column("found", justify="right")
    table.add_column("for comparison", overflow="fold")
    for share in ("0.01", "0.5"):
        name = f"nearest image, {'median' if share == '0.5' else '1st percentile'}"
        table.add_row(
            name, _percent(found.nearest_synthetic[share]), f"held-out: {_percent(found.nearest_held_out[share])}"
        )
    table.add_row("exact copies of training images", f"{found.exact_copies:,}", f"of {found.num_queries:,}")
    closer, attack, bound = found.share_closer, found.attack, found.bound
    table.add_row("closer to training images, %", _percent(closer.value), f"{_range(closer.interval)}; chance: 50")
    table.add_row(
        "attack: AUC, %", _percent(attack.auc), _beside(attack.interval, None if bound is None else bound.auc)
    )
    for rate, estimate in attack.tpr_at_fpr.items():
        table.add_row(
            f"attack: TPR at FPR {100 * float(rate):g} %, %",
            _percent(estimate.value),
            _beside(estimate.interval, None if bound is None else bound.tpr_at_fpr[rate]),
        )
    return table


def _beside(interval: tuple[float, float], bound: float | None) -> str:
    return _range(interval) + ("" if bound is None else f"; ε allows at most {100 * bound:.4g}")


def _range(interval: tuple[float, float]) -> str:
    return " to ".join(map(_percent, interval))


def _percent(share: float | None, error: float | None = None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f}" if error is None else plus_minus(100 * share, 100 * error)
