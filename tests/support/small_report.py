"""Quickly made input of a report: a run with metrics and pictures, and an evaluation written by hand."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from support.small_release import RECORD, make_run

# Each number is printed as a text that is unique on the page: "71.3 %" and so on, or "71.3 ± 0.4 %" with `ERROR`.
ERROR = 0.004
CEILING, GAIN, CLOSER, AUC, CLIPPED = 0.713, 0.617, 0.537, 0.529, 0.373
NOTE = "a note on private records"


def make_whole_run(
    folder: Path, names: tuple[str, ...] = ("cat", "dog"), settings: Mapping[str, object] = RECORD
) -> Path:
    """A run folder as after training, private figures included."""
    make_run(folder, names, **settings)
    lines = [{"step": step, "epsilon": 0.025 * step, "field_rms": 3.5} for step in (3, 6, 9, 12)]
    _write_lines(folder / "metrics.jsonl", lines)
    (folder / "samples").mkdir()
    for step in (3, 12):
        # As `draw_grid` makes it: tiles of 9 x 10 pixels including the frame, enlarged six times.
        picture = Image.new("L", (10 * 10 * 6, 9 * len(names) * 6), 10 * step)
        picture.save(folder / "samples" / f"step-{step:05d}.png")
    (folder / "private").mkdir()
    write_private_figures(folder, CLIPPED)
    return folder


def write_private_figures(folder: Path, clipped: float) -> None:
    """Two lines of the curator's figures."""
    lines = [
        {"step": step, "drawn": 77123, "share_clipped": clipped, "signal_norm": 4321.0, "noise_norm": 8765.0}
        for step in (3, 12)
    ]
    _write_lines(folder / "private" / "metrics.jsonl", lines)


def small_evaluation(names: tuple[str, ...] = ("cat", "dog")) -> dict:
    """The content of an `evaluation.json`: 40 test images per class, the last class the worst."""
    count = len(names)
    confusion = [[30 if true == other else 0 for other in range(count)] for true in range(count)]
    for true in range(count):
        confusion[true][(true + 1) % count] += 10
    confusion[-1][-1], confusion[-1][0] = 12, 28
    scores = {
        "accuracy": sum(confusion[k][k] for k in range(count)) / (40 * count),
        "balanced_accuracy": 0.5,
        "macro_f1": 0.48,
        "recall": [confusion[k][k] / 40 for k in range(count)],
        "confusion": confusion,
        "calibration_error": 0.1,
        "standard_errors": {
            **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "calibration_error"), ERROR),
            "recall": [ERROR] * count,
        },
    }
    ceiling = {**copy.deepcopy(scores), "accuracy": CEILING}
    even, errors = [1 / count] * count, [ERROR] * count
    estimate = {"value": CLOSER, "interval": [0.5, 0.6]}
    return {
        "version": 2,
        "tstr": {"logreg": copy.deepcopy(scores), "cnn": scores},
        "trtr": {"logreg": copy.deepcopy(ceiling), "cnn": ceiling},
        "gain": {
            "num_real": 500,
            "num_synthetic": 900,
            "real": {"cnn": {**copy.deepcopy(scores), "accuracy": GAIN}},
            "real_and_synthetic": {"cnn": {**copy.deepcopy(scores), "accuracy": GAIN}},
            "added": {"cnn": 0.0},
            "standard_errors": {"cnn": ERROR},
        },
        "frechet": {
            "extractor": "efficientnet-lite0-1280",
            "is_fid": False,
            "value": 101.5,
            "floor": 55.5,
            "num_synthetic": 40,
            "num_real": 40,
        },
        "kernel": None,
        "prdc": None,
        "class_shares": {
            "synthetic": even,
            "real": even,
            "standard_errors": {"synthetic": errors, "real": errors},
        },
        "class_names": list(names),
        "memorisation": {
            "private": True,
            "nearest_synthetic": {"0.01": 0.11, "0.5": 0.22},
            "nearest_held_out": {"0.01": 0.12, "0.5": 0.23},
            "exact_copies": 0,
            "share_closer": estimate,
            "attack": {
                "auc": AUC,
                "interval": [0.5, 0.6],
                "tpr_at_fpr": {"0.01": {"value": 0.013, "interval": [0.0, 0.04]}},
                "num_members": 500,
                "num_non_members": 80,
            },
            "bound": None,
            "num_queries": 900,
            "num_pool": 80,
        },
        "computed_from": {
            "tstr": ["test"],
            "trtr": ["train", "test"],
            "gain": ["train", "test"],
            "frechet": ["test"],
            "kernel": ["test"],
            "prdc": ["test"],
            "class_shares": ["test"],
            "memorisation": ["train", "test"],
        },
        "num_synthetic": 900,
        "num_real_train": 900,
        "num_test": 40 * count,
        "seed": 0,
        "seconds": 1.5,
        "warnings": [NOTE],
    }


def _write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
