"""Measure the quality table: our method and its peers on several data sets, ε and seeds; medians over the seeds.

    python benchmarks/quality.py [DATA_FOLDER] [--data mnist,fashion_mnist,cifar10,ham10000_32,pneumoniamnist]
                                 [--epsilon 10,1,0.2] [--seeds 0,1] [--num 20000,60000]
                                 [--methods dp-sinkhorn,dp-sinkhorn-balanced,dp-merf,gaussian,batch]
                                 [--results benchmarks/results.jsonl] [--work runs/quality]
                                 [--json] [--write docs/results.md README.md] [--show]

DATA_FOLDER (default: $DP_SINKHORN_DATA) holds mnist/, fashion_mnist/ (IDX), cifar10/ (Parquet), ham10000_32.npz and
pneumoniamnist.npz.

Settings    The defaults; δ = 1e-5, or 1e-4 below 10,000 records.
Images      As many as there are records, but at most the first number of --num. The other numbers of --num are made
            for our method, from the same runs, and for real images. `dp-sinkhorn-balanced` draws the same runs with
            all classes equally often, on data sets with classes of unequal size.
Seeds       0, 1 and 2; on PneumoniaMNIST, where repeated runs differ most, 0 to 5. --seeds replaces them.
Scores      On test images, and on validation images (`val_images` of an `.npz`) where there are any. No method sees
            either.
Cost        CPU seconds, wall seconds and peak memory of the whole training process.
Files       A finished row is a line of --results and is not measured again. The default file holds the rows of the
            project's tables: give another file to measure them yourself. Runs and images go to --work.
Order       All rows of the first seed, then all of the second: an interrupted table has every row, of fewer seeds.
--show      Measures nothing and prints the finished rows. Without DATA_FOLDER it does not check their settings.
--write     Replaces the part between the markers of each page: the tables, or the README's summary.

Exit status 1 if a run failed, 2 for bad arguments.
"""

import argparse
import json
import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dp_sinkhorn.io.errors import InputError, one_line
from quality_runs import BALANCED, METHODS, OURS, REAL, Job, RunError, Source, make_row, read_rows, row_of, source
from quality_table import IMBALANCED, TITLES, check_markers, grouped, markdown, write_tables

FILES = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", "cifar10": "cifar10"} | {
    name: f"{name}.npz" for name in ("ham10000_32", "pneumoniamnist")
}
_SEEDS = {name: [0, 1, 2] for name in FILES} | {"pneumoniamnist": [0, 1, 2, 3, 4, 5], "cifar10": [0]}


def jobs(
    sources: list[Source], methods: list[str], epsilons: list[float], seeds: dict[str, list[int]], nums: list[int]
) -> list[Job]:
    """List the jobs seed by seed, our method first. Real images come once a data set, after our first seed.

    Args:
        seeds: The seeds of each data set.
    """
    ordered: list[Job] = []
    for turn, seed in enumerate(dict.fromkeys(seed for data in sources for seed in seeds[data.name])):
        wanted = [data for data in sources if seed in seeds[data.name]]
        for place, method in enumerate(methods):
            for num in nums if method == OURS else nums[:1]:
                chosen = [data for data in wanted if method != BALANCED or data.name in IMBALANCED]
                ordered += [Job(data, method, epsilon, seed, num) for data in chosen for epsilon in epsilons]
            if turn == place == 0:
                ordered += [Job(data, REAL, None, 0, num) for num in nums for data in sources]
    # The number of images is capped at the number of records, so that larger numbers may name the same job.
    return list({job.name: job for job in ordered}.values())


def done(ordered: list[Job], results: Path, work: Path, show: bool) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of the jobs, and whether all jobs succeeded.

    A missing row is measured, unless `show`. A job that fails is reported on stderr, and the next one starts.
    """
    rows: list[dict[str, Any]] = []
    succeeded = True
    for number, job in enumerate(ordered, 1):
        try:
            row = row_of(job, results)
            if row is None and not show:
                _say(f"{number}/{len(ordered)} {job.name}")
                row = make_row(job, results, work)
        except KeyboardInterrupt:
            _say(f"interrupted in {job.name}; repeat the command to continue")
            return rows, False
        except Exception as error:  # one failure of any kind must not stop the other runs
            message = str(error) if isinstance(error, RunError | InputError) else repr(error)
            _say(f"{job.name} failed: {one_line(message)}")
            succeeded = False
            continue
        if row is not None:
            rows.append(row)
    return rows, succeeded


def kept_rows(
    results: Path,
    names: list[str],
    methods: list[str],
    epsilons: list[float],
    seeds: dict[str, list[int]],
    nums: list[int],
) -> list[dict[str, Any]]:
    """Return the finished rows in the order of `jobs`, without a check of their settings.

    A row with fewer images than the least of `nums` counts: its data set has no more records.

    Raises:
        RunError: A row is damaged.
    """
    order = [OURS, REAL, *(name for name in METHODS if name != OURS)]

    def asked(row: dict[str, Any]) -> bool:
        if row["data"] not in names or not (row["num"] in nums or row["num"] < min(nums)):
            return False
        made = row["method"] in methods and row["target_epsilon"] in epsilons and row["seed"] in seeds[row["data"]]
        return made or row["method"] == REAL

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        epsilon = 0 if row["method"] == REAL else epsilons.index(row["target_epsilon"])
        return row["seed"], order.index(row["method"]), row["num"], names.index(row["data"]), epsilon

    return sorted(filter(asked, read_rows(results)), key=place)


def numbers(text: str, kind: type[int] | type[float], what: str) -> list[Any]:
    """Read numbers written as "1,2".

    Raises:
        InputError: A part is no number, is negative or infinite, or stands twice.
    """
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{what} {text!r} is not a list of numbers; write for example {what} 1,2") from None
    if any(not math.isfinite(value) or value < 0 for value in values) or len(set(values)) < len(values):
        raise InputError(f"{what} {text!r} has a negative, infinite or repeated number; remove it")
    return values


def words(text: str, known: tuple[str, ...], what: str) -> list[str]:
    """Read names written as "a,b".

    Raises:
        InputError: A name is unknown or stands twice.
    """
    values = text.split(",")
    for value in values:
        if value not in known:
            raise InputError(f"{what} {value!r} is unknown; choose from {', '.join(known)}")
    if len(set(values)) < len(values):
        raise InputError(f"{what} {text!r} repeats a name; give each once")
    return values


def sources(folder: str | None, names: list[str]) -> list[Source]:
    """Load the data sets.

    Raises:
        InputError: The folder or a data set is missing.
    """
    if not folder:
        raise InputError("no data folder; give DATA_FOLDER or set DP_SINKHORN_DATA")
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds {', '.join(FILES.values())}")
    return [source(name, Path(folder, FILES[name])) for name in names]


def measured(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; return the exit status."""
    methods = words(arguments.methods, METHODS, "--methods")
    methods.sort(key=METHODS.index)
    names = words(arguments.data, tuple(TITLES), "--data")
    epsilons = numbers(arguments.epsilon, float, "--epsilon")
    if 0.0 in epsilons:
        raise InputError("--epsilon 0 allows no release; give for example 1")
    seeds, nums = _SEEDS, numbers(arguments.num, int, "--num")
    if arguments.seeds is not None:
        seeds = dict.fromkeys(FILES, numbers(arguments.seeds, int, "--seeds"))
    if 0 in nums:
        raise InputError("--num 0 draws no images; give for example 20000")
    for page in arguments.write:
        check_markers(page)
    data = arguments.folder or os.environ.get("DP_SINKHORN_DATA")
    if arguments.show and not data:
        rows = kept_rows(arguments.results, names, methods, epsilons, seeds, nums)
        return printed(arguments, rows, succeeded=True)
    found = sources(data, names)
    for name, folder in (("--results", arguments.results.parent), ("--work", arguments.work)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {folder}: {error.strerror}; give another {name}") from None
    ordered = jobs(found, methods, epsilons, seeds, nums)
    rows, succeeded = done(ordered, arguments.results, arguments.work, arguments.show)
    return printed(arguments, rows, succeeded)


def printed(arguments: argparse.Namespace, rows: list[dict[str, Any]], succeeded: bool) -> int:
    """Print the tables and write them into the pages; return the exit status."""
    table = grouped(rows)
    for page in arguments.write if table else ():
        write_tables(page, table)
    print(json.dumps(table) if arguments.json else markdown(table))
    return 0 if succeeded else 1


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="DATA_FOLDER")
    parser.add_argument("--data", default=",".join(TITLES))
    parser.add_argument("--epsilon", default="10,1,0.2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds")
    parser.add_argument("--num", default="20000,60000")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="PAGE")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = measured(arguments)
    except (InputError, RunError) as error:
        _say(f"error: {one_line(str(error))}")
        status = 2
    sys.exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
