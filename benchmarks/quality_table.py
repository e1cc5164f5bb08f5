"""Turn the rows of the quality benchmark into medians over the seeds and into Markdown tables."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError
from quality_runs import BALANCED, CLASSIFIERS, OURS, REAL

TITLES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "ham10000_32": "HAM10000, 32×32 RGB",
    "pneumoniamnist": "PneumoniaMNIST",
    "cifar10": "CIFAR-10",
}
IMBALANCED = ("ham10000_32", "pneumoniamnist")
_HEADS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
_METHODS = {
    OURS: "**dp-sinkhorn**",
    BALANCED: "**dp-sinkhorn** `--balanced`",
    "dp-merf": "DP-MERF",
    "gaussian": "Gaussian per class",
    "batch": "DP-Sinkhorn, mode `batch`",
    REAL: "real images",
}
# Published accuracies in % at δ = 1e-5: (data, ε) → (method, LogReg, MLP, CNN); None was not published.
PUBLISHED: dict[tuple[str, float], tuple[tuple[str, float | None, float | None, float | None], ...]] = {
    ("mnist", 10.0): (
        ("DP-Sinkhorn (Cao et al. 2021)", 82.8, 82.7, 83.2),
        ("DP-MERF", 79.4, 78.3, 82.1),
        ("GS-WGAN", 79.0, 79.0, 80.0),
        ("DPGAN, revisited", None, None, 95.0),
        ("DPDM (diffusion)", 90.8, 94.8, 98.1),
        ("DP-FETA (diffusion)", None, None, 98.1),
    ),
    ("mnist", 1.0): (
        ("DP-Sinkhorn, an independent run", None, None, 61.9),
        ("DP-MERF", None, None, 83.9),
        ("PEARL", None, None, 78.2),
        ("DP-Kernel (other classifiers)", None, None, 94.0),
        ("DPDM (diffusion)", None, None, 95.3),
        ("DP-FETA (diffusion)", None, None, 95.6),
    ),
    ("fashion_mnist", 10.0): (
        ("DP-Sinkhorn (Cao et al. 2021)", 75.1, 74.6, 71.1),
        ("DP-MERF", 75.5, 74.5, 75.4),
        ("GS-WGAN", 68.0, 65.0, 65.0),
        ("DPDM (diffusion)", 81.1, 83.0, 86.2),
        ("DP-FETA (diffusion)", None, None, 87.3),
    ),
    ("cifar10", 10.0): (("FETA-Pro (diffusion), best of three strong classifiers", None, None, 44.6),),
}
_SUMMARISED = (("mnist", 10.0), ("mnist", 1.0), ("fashion_mnist", 10.0), ("cifar10", 10.0))
_NEIGHBOURS = {"(Cao et al. 2021)": "the paper", "(diffusion)": "diffusion on a GPU"}  # by a part of the method's name


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the seeds of one group of `grouped`: the median of each figure, None where a seed lacks it."""
    first = rows[0]

    def middle(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return statistics.median(values) if len(values) == len(rows) else None

    recalls = zip(*(row["scores"]["cnn"]["recall"] for row in rows), strict=True)
    same = ("data", "method", "target_epsilon", "delta", "num", "class_names", "test_counts", "settings_sha256")
    figures = ("epsilon", "seconds", "processor_seconds", "peak_memory_bytes", "frechet", "frechet_floor")
    return {
        **{name: first[name] for name in same},
        "seeds": len(rows),
        "by_seed": [_of_seed(row) for row in sorted(rows, key=lambda row: row["seed"])],
        "processors": sorted({row["processor"] for row in rows}),
        **{name: middle(name) for name in figures},
        **_middle_scores([row["scores"] for row in rows]),
        "cnn_recall": [None if None in values else statistics.median(values) for values in recalls],
        "validation": _on_validation(rows),
    }


def _middle_scores(scores: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {key: {name: statistics.median(one[name][key] for one in scores) for name in CLASSIFIERS} for key in _HEADS}


def _on_validation(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Medians over the seeds with scores on validation images, and the number of these seeds; None without any."""
    scored = [row["validation"] for row in rows if row.get("validation") is not None]
    return {**_middle_scores(scored), "seeds": len(scored)} if scored else None


def _of_seed(row: dict[str, Any]) -> dict[str, Any]:
    return {"seed": row["seed"], **_middle_scores([row["scores"]]), "frechet": row["frechet"]}


def grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group rows by data set, ε, method and number of images, in order of appearance, and take `medians` of each group.

    Raises:
        ValueError: The seeds of a group have different settings.
    """
    groups: dict[tuple[str, float | None, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["target_epsilon"], row["method"], row["num"]), []).append(row)
    for key, group in groups.items():
        if len({row["settings_sha256"] for row in group}) > 1:
            raise ValueError(f"the seeds of {key} have different settings; keep rows of one version of the settings")
    return [medians(group) for group in groups.values()]


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """All tables of each data set: medians, recall by class where class sizes are unequal, and single seeds."""
    found = {summary["data"] for summary in summaries}
    names = [name for name in TITLES if name in found]
    return "\n\n".join(_data_tables(name, [row for row in summaries if row["data"] == name]) for name in names)


def summary(summaries: Sequence[dict[str, Any]]) -> str:
    """The README's table: our method beside published figures and real images.

    The training column has CPU seconds, or wall seconds marked "(wall)" where a seed lacks CPU seconds.
    """
    found = {(row["data"], row["target_epsilon"], row["method"]): row for row in reversed(summaries)}
    published_heads = [f"published: {name}" for name in _NEIGHBOURS.values()]
    head = ["", "ε", "synthetic", *published_heads, "real images", "training, CPU s"]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, epsilon in _SUMMARISED:
        row, real = (found.get((name, *key)) for key in ((epsilon, OURS), (None, REAL)))
        if row is None or real is None:
            continue
        key = _key(name)
        published = PUBLISHED.get((name, epsilon), ())
        lines.append(
            _line(
                [
                    f"{TITLES[name]}, {row['num']:,} images",
                    f"{epsilon:g}",
                    f"**{_accuracies(row, key)}**",
                    *(_published(_first(published, part)) for part in _NEIGHBOURS),
                    _accuracies(real, key),
                    _training(row),
                ]
            )
        )
    return "\n".join(lines)


def _first(published: Sequence[tuple[Any, ...]], part: str) -> Sequence[float | None]:
    """The figures of the first published method whose name has this part; none without one."""
    return next((scores for method, *scores in published if part in method), ())


def _training(row: dict[str, Any]) -> str:
    spent = row["processor_seconds"]
    return f"{row['seconds']:.0f} (wall)" if spent is None else f"{spent:.0f}"


_TABLES = {"quality": markdown, "summary": summary}


def check_markers(page: Path) -> str:
    """Find which table a page holds: "quality" or "summary".

    Raises:
        InputError: The page cannot be read, or no table has both its markers there, once each and in order.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {page}: {error}; give a Markdown file") from None
    for name in _TABLES:
        begin, end = markers(name)
        if text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end):
            return name
    first, last = markers("quality")
    raise InputError(f"{page} has no part between {first!r} and {last!r}; add these two lines")


def markers(table: str) -> tuple[str, str]:
    """The lines before and after a table in a page."""
    return f"<!-- {table}: begin -->", f"<!-- {table}: end -->"


def with_tables(page: Path, summaries: Sequence[dict[str, Any]]) -> str:
    """The text of a page with its table replaced."""
    name = check_markers(page)
    begin, end = markers(name)
    text = page.read_text(encoding="utf-8")
    return f"{text.split(begin)[0]}{begin}\n{_TABLES[name](summaries)}\n{end}{text.split(end)[1]}"


def write_tables(page: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Replace the table of a page."""
    write_whole(page, with_tables(page, summaries).encode(), shared=True)


def _data_tables(name: str, summaries: list[dict[str, Any]]) -> str:
    keys = tuple(dict.fromkeys((_key(name), "accuracy")))
    first, usual_num = summaries[0], min(row["num"] for row in summaries)
    validated = any(row["validation"] is not None for row in summaries)
    delta = next((row["delta"] for row in summaries if row["delta"] is not None), None)
    head = [
        "ε",
        "method",
        *(f"{_HEADS[key]}: LogReg / MLP / CNN" for key in keys),
        *([f"{_HEADS[keys[0]]} on validation images"] if validated else []),
        "Fréchet",
        "CPU s",
        "wall s",
        "processor",
        "memory",
        "seeds",
    ]
    lines = [
        f"**{TITLES[name]}**: {usual_num:,} images, {sum(first['test_counts']):,} real test images"
        + ("" if delta is None else f", δ = {delta:g}")
        + ("" if first["frechet_floor"] is None else f"; Fréchet floor {first['frechet_floor']:.2f}")
        + ".",
        "",
        _line(head),
        _line(["---"] * len(head)),
    ]
    wanted = {row["target_epsilon"] for row in summaries}
    for epsilon in sorted(wanted, key=lambda value: float("inf") if value is None else value, reverse=True):
        lines += [
            _line(_cells(row, keys, usual_num, validated)) for row in summaries if row["target_epsilon"] == epsilon
        ]
        for method, *scores in PUBLISHED.get((name, epsilon), ()) if epsilon is not None else ():
            lines.append(_line([f"{epsilon:g}", f"{method}, published", _published(scores), *[""] * (len(head) - 3)]))
    recalls = _recall_table(summaries, usual_num) if name in IMBALANCED else []
    return "\n".join([*lines, *recalls, *_seed_table(summaries, keys[0], usual_num)])


def _key(name: str) -> str:
    """The accuracy that stands first for a data set."""
    return "balanced_accuracy" if name in IMBALANCED else "accuracy"


def _published(scores: Sequence[float | None]) -> str:
    return " / ".join("-" if score is None else f"{score:.1f}" for score in scores)


def _cells(row: dict[str, Any], keys: Sequence[str], usual_num: int, validated: bool) -> list[str]:
    memory = row["peak_memory_bytes"]
    return [
        _epsilon(row),
        _method(row, usual_num),
        *(_accuracies(row, key) for key in keys),
        *([_validation(row, keys[0])] if validated else []),
        "" if row["frechet"] is None else f"{row['frechet']:.2f}",
        *_times(row),
        "" if memory is None else f"{memory / 2**30:.2f} GiB",
        str(row["seeds"]),
    ]


def _epsilon(row: dict[str, Any]) -> str:
    return "" if row["target_epsilon"] is None else f"{row['target_epsilon']:g}"


def _method(row: dict[str, Any], usual_num: int) -> str:
    return _METHODS[row["method"]] + ("" if row["num"] == usual_num else f" ({row['num']:,})")


def _accuracies(row: dict[str, Any], key: str) -> str:
    return " / ".join(f"{100 * row[key][name]:.1f}" for name in CLASSIFIERS)


def _validation(row: dict[str, Any], key: str) -> str:
    found = row["validation"]
    if found is None:
        return ""
    return _accuracies(found, key) + (
        "" if found["seeds"] == row["seeds"] else f" ({found['seeds']} of {row['seeds']} seeds)"
    )


def _times(row: dict[str, Any]) -> list[str]:
    """CPU seconds and wall seconds of the training, and the processors; empty cells where a row has none."""
    if row["seconds"] is None:
        return ["", "", ""]
    spent = row["processor_seconds"]
    return ["" if spent is None else f"{spent:.0f}", f"{row['seconds']:.0f}", ", ".join(row["processors"])]


def _seed_table(summaries: list[dict[str, Any]], key: str, usual_num: int) -> list[str]:
    """The scores of single seeds, one column each, of rows with more than one seed."""
    shown = [row for row in summaries if row["seeds"] > 1]
    if not shown:
        return []
    seeds = sorted({one["seed"] for row in shown for one in row["by_seed"]})
    head = ["ε", f"{_HEADS[key]} (Fréchet)", *(f"seed {seed}" for seed in seeds)]
    lines = ["", _line(head), _line(["---"] * len(head))]
    for row in shown:
        found = {one["seed"]: _accuracies(one, key) + _in_brackets(one["frechet"]) for one in row["by_seed"]}
        lines.append(_line([_epsilon(row), _method(row, usual_num), *(found.get(seed, "") for seed in seeds)]))
    return lines


def _in_brackets(frechet: float | None) -> str:
    return "" if frechet is None else f" ({frechet:.0f})"


def _recall_table(summaries: list[dict[str, Any]], usual_num: int) -> list[str]:
    """The CNN's recall by class, of real images and of our method."""
    shown = [row for row in summaries if row["method"] in (REAL, OURS, BALANCED)]
    if not shown:
        return []
    counts = zip(shown[0]["class_names"], shown[0]["test_counts"], strict=True)
    head = ["ε", "CNN recall by class, %", *(f"{name} ({count})" for name, count in counts)]
    lines = ["", _line(head), _line(["---"] * len(head))]
    for row in shown:
        recalls = ["-" if recall is None else f"{100 * recall:.0f}" for recall in row["cnn_recall"]]
        lines.append(_line([_epsilon(row), _method(row, usual_num), *recalls]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
