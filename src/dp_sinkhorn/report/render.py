"""Render the record as one self-contained HTML file."""

from pathlib import Path
from typing import Any

from dp_sinkhorn.evaluation.cache import check_not_in_release
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.privacy.tradeoff import tpr_bound
from dp_sinkhorn.release.explain import percent_above
from dp_sinkhorn.report import plots
from dp_sinkhorn.report.content import Report, check_run, collect
from dp_sinkhorn.report.report_pictures import COLUMNS, MOST_CLASSES
from dp_sinkhorn.report.report_tables import confusions, worst_first
from dp_sinkhorn.report.verdicts import CLASSIFIERS, answers
from dp_sinkhorn.report.words import measured, number, percent, sentence, shown
from dp_sinkhorn.stages.base import Stages

MAX_BYTES = 5_000_000
_HERE = Path(__file__).parent
_MARK = '<meta name="generator" content="dp-sinkhorn report">'
# False-positive rates in the table beside the plot of the bounds.
_SHOWN_FPRS = (1e-4, 1e-3, 1e-2, 1e-1, 0.5)


def write_report(
    run: AnyPath,
    out: AnyPath | None = None,
    evaluation: AnyPath | None = None,
    *,
    stages: Stages,
    curator: bool = False,
    test_is_public: bool = False,
) -> Path:
    """Write a report on a finished run atomically.

    Args:
        run: Run folder. out: File to write; default: `report.html` in the run folder, of the curator's edition in its
            `private/`. Only its owner can read a file in `private/`.
        evaluation: `evaluation.json` or its folder, or None.
        stages: All that may be on a card. curator: Make the curator's edition, which is not for handing out.
        test_is_public: The curator declares that the test images are not private records.

    Returns:
        The path of the file.

    Raises:
        InputError: See `collect`; or a library is missing, or the file cannot or must not be written.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "report", "a report")
    run = Path(run)
    check_run(run)
    path = _checked(run, None if out is None else Path(out), curator=curator)
    evaluated = None if evaluation is None else Path(evaluation)
    page = render(collect(run, evaluated, stages, curator=curator, test_is_public=test_is_public))
    _write(path, page, mode=0o600 if _inside(path, run / "private") else 0o666)
    return path


def render(report: Report) -> str:
    """The HTML page of a report.

    Raises:
        InputError: The page is larger than 5 MB.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,  # class names are untrusted text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "measured": measured,
        "number": number,
        "percent": percent,
        "percent_above": percent_above,
        "shown": shown,
        "sentence": sentence,
    }
    page = environment.get_template("page.html").render(**_facts(report))
    if len(page.encode()) > MAX_BYTES:
        raise InputError(
            f"the report would be {len(page.encode()):,} bytes, above {MAX_BYTES:,}; its class names are too long"
        )
    return page


def _facts(report: Report) -> dict[str, Any]:
    from markupsafe import Markup

    attack = report.verification.attack
    svgs = {name: getattr(plots, name)(report) for name in ("tradeoff", "spending", "accuracies")}
    return {
        "mark": Markup(_MARK),  # noqa: S704
        # The style sheet is this package's own.
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        # Texts in the plots are this package's own, and escaped by matplotlib.
        "plots": {name: Markup(text) for name, text in svgs.items()},  # noqa: S704
        "report": report,
        "card": report.card,
        "verification": report.verification,
        "answers": answers(report),
        "bounds": []
        if attack is None
        else [
            (fpr, _curve_at(attack.curve, fpr), tpr_bound(fpr, report.card.epsilon, report.card.delta))
            for fpr in _SHOWN_FPRS
        ],
        "attack_limits": {} if attack is None else attack.tpr_at_fpr,
        "classifiers": CLASSIFIERS,
        "class_table": worst_first(report),
        "confusions": confusions(report),
        "columns": COLUMNS,
        "most_classes": MOST_CLASSES,
    }


def _curve_at(curve: tuple[tuple[float, float], ...], fpr: float) -> float:
    """The bound at the first point at or beyond a rate, so never below the bound at that rate."""
    return next(tpr for rate, tpr in curve if rate >= fpr * (1.0 - 1e-9))


def _checked(run: Path, out: Path | None, *, curator: bool) -> Path:
    private = run / "private"
    path = out or (private if curator else run) / "report.html"
    if path.suffix != ".html":
        raise InputError(f"{path} does not end in .html; give for example report.html")
    check_not_in_release(path.parent)
    if curator and _inside(path, run) and not _inside(path, private):
        raise InputError(f"{path} lies among the run's public files; give a path in {private} or outside the run")
    if not curator and _inside(path, private):
        raise InputError(f"{path} is in the run's private folder; give a path outside, or --curator")
    if path.is_dir() or (path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:1000]):
        raise InputError(f"{path} exists and is not a report; give another --out")
    return path


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _write(path: Path, page: str, *, mode: int) -> None:
    try:
        write_whole(path, page.encode("utf-8"), mode=mode)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give an --out that can be written") from None
