"""Train, sample and evaluate with the default settings, several times, and print the medians.

    python benchmarks/quality.py DATA [DATA ...] [--epsilon 10] [--delta 1e-5] [--seeds 0,1,2] [--num 20000]
                                 [--work runs/quality] [--json]

Runs the command line in processes of their own, so seconds and memory are whole-process figures of `train`.
Finished parts are kept in the work folder and not done again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CLASSIFIERS = ("logreg", "mlp", "cnn")


def command(*arguments: object) -> dict[str, Any]:
    """Run one verb with --json and return what it prints."""
    words = [sys.executable, "-c", "from dp_sinkhorn.cli import main; main()", *map(str, arguments), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def one_run(data: str, epsilon: float, delta: float, seed: int, num: int, work: Path) -> dict[str, Any]:
    """One row: training facts and scores of one seed."""
    folder = work / f"{Path(data).stem}-eps{epsilon:g}-seed{seed}"
    summary = folder / "row.json"
    if summary.exists():
        row: dict[str, Any] = json.loads(summary.read_text())
        return row
    folder.mkdir(parents=True, exist_ok=True)
    trained = command(
        "train", data, "--out", folder / "run", "--epsilon", epsilon, "--delta", delta, "--set", f"seed={seed}"
    )
    command("sample", folder / "run", "--num", num, "--out", folder / "synthetic.npz", "--seed", seed)
    command("sample", folder / "run", "--num", 1000, "--out", folder / "grid.png", "--seed", seed)
    scores = command("evaluate", folder / "synthetic.npz", "--real", data, "--seed", seed)
    row = {"data": data, "seed": seed, **trained, **scores, "evaluation_seconds": scores["seconds"]}
    row["seconds"] = trained["seconds"]
    summary.write_text(json.dumps(row, indent=2))
    return row


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds."""

    def middle(*path: str) -> float:
        values = []
        for row in rows:
            value: Any = row
            for key in path:
                value = value[key]
            values.append(float(value))
        return statistics.median(values)

    scores = {
        kind: {name: {m: middle(kind, name, m) for m in ("accuracy", "balanced_accuracy")} for name in CLASSIFIERS}
        for kind in ("tstr", "trtr")
    }
    facts = ("epsilon", "delta", "seconds", "peak_memory_bytes", "evaluation_seconds")
    return {"data": rows[0]["data"], "seeds": len(rows), **{name: middle(name) for name in facts}, **scores}


def main() -> None:
    """Measure and print one row a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table = []
    for data in arguments.data:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        rows = [
            one_run(data, arguments.epsilon, arguments.delta, seed, arguments.num, arguments.work) for seed in seeds
        ]
        table.append(medians(rows))
    if arguments.json:
        print(json.dumps(table))
        return
    print("| data | ε | LogReg / MLP / CNN | balanced | real on real | training | memory | evaluation |")
    print("|---|---|---|---|---|---|---|---|")
    for row in table:

        def three(kind: str, metric: str, row: dict[str, Any] = row) -> str:
            return " / ".join(f"{100 * row[kind][name][metric]:.1f}" for name in CLASSIFIERS)

        print(
            f"| {Path(row['data']).stem} | {row['epsilon']:.2f} | {three('tstr', 'accuracy')} | "
            f"{three('tstr', 'balanced_accuracy')} | {three('trtr', 'accuracy')} | {row['seconds']:.0f} s | "
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB | {row['evaluation_seconds']:.0f} s |"
        )


if __name__ == "__main__":
    main()
