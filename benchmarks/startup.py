"""Measure how long the command line takes to start, beside `import torch`.

    python benchmarks/startup.py [RUN] [--repeats 5] [--json]

Each command runs in a process of its own. One round of all commands warms up. Printed are the medians of further
rounds and their ratios to `python -c "import torch"`. Wall time is what a user waits for; beside other work the ratio
of processor time is steadier. RUN is a run or a release for `verify`. Without it, a run with the default settings on
scikit-learn's digits is made first, which takes some minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dp_sinkhorn.cli import app

REFERENCE = "import torch"
# Largest ratio of wall time that is accepted.
LIMITS = {
    "--help": 0.3,
    "--version": 0.3,
    "plan --num-records 60000": 1.5,
    "inspect digits": 1.5,
    "verify RUN": 1.5,
}


def known() -> list[str]:
    """The commands of `LIMITS` whose verbs this version has."""
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return [words for words in LIMITS if words.startswith("--") or words.split()[0] in verbs]


def seconds(*words: str) -> tuple[float, float]:
    """Wall time and processor time of one Python process.

    Raises:
        CalledProcessError: It fails.
    """
    begin, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - begin, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def measure(run: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of wall time and processor time of each command, and their ratios to those of `import torch`."""
    commands = {REFERENCE: ("-c", REFERENCE)}
    for words in known():
        commands[words] = ("-m", "dp_sinkhorn", *(str(run) if word == "RUN" else word for word in words.split()))
    rounds = [{name: seconds(*words) for name, words in commands.items()} for _ in range(repeats + 1)]
    medians = {name: [statistics.median(one[name][kind] for one in rounds[1:]) for kind in (0, 1)] for name in commands}
    return {
        name: {
            "seconds": wall,
            "ratio": wall / medians[REFERENCE][0],
            "processor_seconds": processor,
            "processor_ratio": processor / medians[REFERENCE][1],
        }
        for name, (wall, processor) in medians.items()
    }


def show(found: dict[str, dict[str, float]]) -> None:
    """Print one line a command."""
    print(f"{'command':<26} {'seconds':>8} {'ratio':>6} {'at most':>8} {'processor':>10} {'ratio':>6}")
    for name, row in found.items():
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        print(
            f"{name:<26} {row['seconds']:>8.2f} {row['ratio']:>6.2f} {limit:>8} {row['processor_seconds']:>10.2f} "
            f"{row['processor_ratio']:>6.2f}"
        )


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run or release folder")
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the first one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats} is below 1")
    if arguments.run is not None and not arguments.run.is_dir():
        parser.error(f"{arguments.run} is no folder; give a run or a release")
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run
        if run is None:
            run = Path(folder, "run")
            words = ("-m", "dp_sinkhorn", "train", "digits", "--out", str(run), "--json")
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        found = measure(run, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
