"""Plots as SVG inside the page, in the page's fonts and its colours in light and dark."""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.privacy.tradeoff import tpr_bound
from dp_sinkhorn.report.content import Report
from dp_sinkhorn.report.verdicts import CLASSIFIERS
from dp_sinkhorn.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholders: each is replaced by a colour variable of the page (style.css).
_INK, _FAINT, _FIRST, _SECOND = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--ink", _FAINT: "--line", _FIRST: "--accent", _SECOND: "--second"}
_STYLE: Any = {  # Matplotlib types the keys one by one
    "svg.fonttype": "none",  # text stays text, for screen readers and in the page's font
    "svg.hashsalt": "dp-sinkhorn",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "text.parse_math": False,
}
_SMALLEST_FPR = 1e-4


def tradeoff(report: Report) -> str:
    """Bounds on the true-positive rate of every membership attack, by its false-positive rate."""
    attack, card = report.verification.attack, report.card
    if attack is None:
        return ""
    points = [point for point in attack.curve if point[0] >= _SMALLEST_FPR]

    def draw(axes: "Axes") -> None:
        rates = [fpr for fpr, _ in points]
        axes.plot(rates, [100 * tpr for _, tpr in points], color=_FIRST, label="bound from all charges")
        alone = [100 * tpr_bound(rate, card.epsilon, card.delta) for rate in rates]
        axes.plot(rates, alone, color=_SECOND, linestyle="--", label="bound from ε and δ alone")
        axes.plot(rates, [100 * rate for rate in rates], color=_INK, linestyle=":", label="blind guessing")
        axes.set_xscale("log")
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
        axes.minorticks_off()
        axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("non-members accused wrongly")
        axes.set_ylabel("members found")
        axes.figure.legend(loc="outside upper left", fontsize=9.5)

    title = "Bounds on a membership attack"
    return _svg(
        "tradeoff",
        title,
        f"If 1 % of non-members are accused wrongly, at most {100 * attack.tpr_at_1_percent:.3g} % of members are "
        f"found; if 0.1 %, at most {100 * attack.tpr_at_01_percent:.3g} %. The table below holds the values.",
        draw,
    )


def spending(report: Report) -> str:
    """ε over the steps."""
    progress = report.progress
    if len(progress) < 2:
        return ""

    def draw(axes: "Axes") -> None:
        steps = [0, *(line.step for line in progress)]
        axes.plot(steps[1:], [line.epsilon for line in progress], color=_FIRST)
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_ylabel("ε spent")

    first, last = progress[0], progress[-1]
    return _svg(
        "spending",
        "ε spent over the steps",
        f"From {first.epsilon:.3g} after {first.step} steps to {last.epsilon:.3g} after {last.step}.",
        draw,
    )


def accuracies(report: Report) -> str:
    """Accuracies of the classifiers, and their ceilings if the edition has them."""
    quality = report.quality
    if quality is None or not quality.scores:
        return ""
    names = list(reversed(quality.scores))

    def draw(axes: "Axes") -> None:
        places = range(len(names))
        axes.barh(
            places,
            [100 * quality.scores[name].accuracy for name in names],
            xerr=[100 * quality.scores[name].standard_errors.accuracy for name in names],
            ecolor=_INK,
            height=0.5,
            color=_FIRST,
            label="trained on synthetic images",
        )
        if quality.ceiling is not None:
            ceilings = [100 * quality.ceiling[name].accuracy for name in names]
            axes.plot(ceilings, places, color=_SECOND, marker="D", linestyle="", label="trained on real images")
        axes.axvline(
            100 * max(quality.shares.real), color=_INK, linestyle=":", linewidth=1.5, label="always the largest class"
        )
        axes.set_yticks(places, [_SHORT.get(name, name) for name in names])
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("real test images classified correctly")
        axes.figure.legend(loc="outside upper left", fontsize=9.5)

    texts = [
        f"{CLASSIFIERS.get(name, name)}: {_accuracy(scores)}"
        + ("" if quality.ceiling is None else f", trained on real images {_accuracy(quality.ceiling[name])}")
        for name, scores in quality.scores.items()
    ]
    return _svg("accuracies", "Accuracy on real test images", "; ".join(texts) + ".", draw)


def _accuracy(scores: Scores) -> str:
    return percent(scores.accuracy, scores.standard_errors.accuracy)


_SHORT = {"logreg": "logistic\nregression", "mlp": "MLP", "cnn": "CNN", "boosting": "boosted\ntrees"}


def _svg(name: str, title: str, description: str, draw: Callable[["Axes"], None]) -> str:
    """An SVG element with title and description; `name` is the prefix of all its ids."""
    require("matplotlib", "report", "a report")
    import matplotlib as mpl
    from markupsafe import escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.9, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{body}'
    )
