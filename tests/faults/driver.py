"""Kill runs at random moments, resume them, and compare what the ledger says with what was released.

    PYTHONPATH=src:tests python tests/faults/driver.py FOLDER KILLS SEED record|embedding|batch...

Every attempt is a forked process; it writes a line into a file of its own before each noisy tensor exists, and the
operating system keeps that line when the process is killed. Prints a JSON object a mode.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.training import run_folder as runs
from support.toy import LEAN, changed, config, toy

CLASSES, FINISHED, REFUSED = 3, 0, 2
COMMON = {"num_steps": 120, "width": 32, "learning_rate": 5e-3, "average_decay": 0.9, "num_generated": 30}
SETTINGS = {
    # With the queries of a stage that asks many times before the first step.
    "record": {"transport_steps": {"num_reference": 60}, "label_classifier": {"budget_share": 0.1}},
    "embedding": {"class_embedding": {"num_frequencies": 200}},
    "batch": {"batch_steps": {"queries_per_step": 3}},
}


def write_down_releases(path: Path) -> None:
    """Make every release of this process write a line `noise_multiplier queries` before it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    real = GaussianMechanism.__call__

    def release(self: GaussianMechanism, total: object, source: object) -> torch.Tensor:
        os.write(descriptor, f"{self.noise_multiplier} {total.queries}\n".encode())
        return real(self, total, source)

    GaussianMechanism.__call__ = release


def attempt(folder: Path, released: Path, data: LabelledImages, run: RunConfig) -> int:
    """Start or continue the run in its own process; returns the process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        write_down_releases(released)
        if (folder / "config.toml").exists():
            runs.resume(data, folder, {}, STAGES)
        else:
            runs.start(data, run, folder, STAGES)
        code = FINISHED
    except InputError as error:
        print(error, file=sys.stderr)
        code = REFUSED
    finally:
        os._exit(code)


def wait_for_a_moment(released: Path, process: int, moments: random.Random, whole: float, most: int) -> None:
    """Any moment of a run of `whole` seconds, or one among its releases, which leave `most` bytes.

    Of a resumed run a moment soon after: it may be killed many times.
    """
    if moments.random() < 0.3:
        time.sleep(moments.uniform(0.0, 0.8 * whole))
        return
    size = released.stat().st_size if released.exists() else 0
    enough = size + moments.randrange(min(640, most) if size else most)
    while (not released.exists() or released.stat().st_size < enough) and not os.waitid(
        os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(1e-4)
    time.sleep(moments.uniform(0.0, 5e-3))


def undercounted(folder: Path, released: Path) -> list[str]:
    """Releases that were made more often than charged, by noise multiplier."""
    charged: Counter[float] = Counter()
    if (folder / "ledger.jsonl").exists():
        for charge in read_charges(folder / "ledger.jsonl"):
            charged[charge.noise_multiplier] += charge.count
    made: Counter[float] = Counter()
    if released.exists():
        for line in released.read_text().splitlines():
            noise, queries = line.split()
            made[float(noise)] += int(queries)
    return [f"{made[noise]} releases of noise {noise}, {charged[noise]} charged" for noise in made - charged]


def unused_charges(folder: Path, released: Path) -> int:
    """Releases that were charged and, because of a kill, never made."""
    made = sum(int(line.split()[1]) for line in released.read_text().splitlines())
    return sum(charge.count for charge in read_charges(folder / "ledger.jsonl")) - made


def finds_the_classes(folder: Path, data: LabelledImages) -> bool:
    """Whether the mean image of each class is nearest to that class's true one."""
    images = sample(*load_release(folder, STAGES), 300)
    means, truth = (
        torch.stack([part.floats()[part.labels == k].mean(0) for k in range(CLASSES)]) for part in (images, data)
    )
    return torch.cdist(means, truth).argmin(1).tolist() == list(range(CLASSES))


def kill_runs(root: Path, kills: int, seed: int, mode: str) -> dict[str, object]:
    """Kill and resume runs, and count the results."""
    root.mkdir()
    moments, data = random.Random(seed), toy(1500, CLASSES)
    run = config(data, changed(LEAN[mode], **COMMON, **SETTINGS[mode]))
    counts, problems, number, killed_in_run = Counter[str](), [], 0, 0
    # The time of an uninterrupted run limits how late a kill comes. The first run is in this process, so that all
    # attempts inherit its imports and cached accounting.
    runs.start(data, run, root / "warm-up", STAGES)
    start = time.monotonic()
    assert os.waitpid(attempt(root / "unbroken", root / "unbroken.released", data, run), 0)[1] == 0
    whole = time.monotonic() - start
    most = (root / "unbroken.released").stat().st_size
    while counts["kills"] < kills or counts["finished"] == 0:
        folder, released = root / f"run{number}", root / f"run{number}.released"
        process = attempt(folder, released, data, run)
        if counts["kills"] < kills:
            wait_for_a_moment(released, process, moments, whole, most)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        problems += undercounted(folder, released)
        if os.WIFSIGNALED(status):
            counts["kills"] += 1
            killed_in_run += 1
            continue
        code = os.WEXITSTATUS(status)
        counts["finished" if code == FINISHED else "refused" if code == REFUSED else "crashed"] += 1
        if code == FINISHED:
            result = verify(folder, STAGES)
            problems += result.problems
            problems += [] if result.card.epsilon <= 10.0 else [f"epsilon {result.card.epsilon}"]
            # Whole batches of so few records learn little at this budget, also without interruptions.
            learned = mode == "batch" or finds_the_classes(folder, data)
            problems += [] if learned else [f"{folder.name} did not learn, {killed_in_run} kills"]
            counts["unused"] += unused_charges(folder, released)
            counts["most kills survived"] = max(counts["most kills survived"], killed_in_run)
        number, killed_in_run = number + 1, 0
    return {**counts, "runs": number, "problems": problems}


def main() -> None:
    """Run all modes in turn."""
    root, kills, seed, *modes = sys.argv[1:]
    torch.set_num_threads(1)
    for mode in modes:
        print(json.dumps(kill_runs(Path(root) / mode, int(kills), int(seed), mode)))


if __name__ == "__main__":
    main()
